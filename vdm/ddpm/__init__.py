"""The DDPM chain (Ho et al. 2020) as the special case that it is.

N variances β give N latents x_1 … x_N. They are our z at t = i/(N − 1), i = n − 1, so the
chain's N − 1 transitions are the bound's T = N − 1 steps, with the same KL and prior terms.
Two things are its own: a reverse variance other than the posterior's, which costs a KL of
its own, and the last term L_0, a discretised Gaussian around the network's estimate from x_1, where
the VDM bound decodes z_0 without the network.
"""

from vdm.ddpm.bound import reconstruction, simple_loss, step_kl, step_kls, vlb
from vdm.ddpm.chain import Chain, from_betas
from vdm.ddpm.decoder import DiscretisedGaussian, discretised_gaussian
from vdm.ddpm.sampling import Reverse, reverse, sample

__all__ = [
    "Chain",
    "DiscretisedGaussian",
    "Reverse",
    "discretised_gaussian",
    "from_betas",
    "reconstruction",
    "reverse",
    "sample",
    "simple_loss",
    "step_kl",
    "step_kls",
    "vlb",
]
