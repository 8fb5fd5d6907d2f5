"""The probability-flow ODE: exact likelihoods, and the latent that belongs to each example.

Two options say how a solve is done. They are values: the divergence is "exact",
"hutchinson" or `hutchinson(num_probes=4)`; the steps are None (adaptive), a number of equal
steps, or `adaptive(rtol=1e-5, atol=1e-5)`.
"""

from vdm.ode import divergence, integrator, marginal
from vdm.ode.flow import Solution, decode, encode, log_prob, solve
from vdm.ode.options import adaptive, hutchinson

__all__ = [
    "Solution",
    "adaptive",
    "decode",
    "divergence",
    "encode",
    "hutchinson",
    "integrator",
    "log_prob",
    "marginal",
    "solve",
]
