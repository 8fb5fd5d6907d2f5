"""The bound as a likelihood of its condition: p(θ|x) of a model that was trained on p(x|θ).

−VLB(x|θ) is an estimate of −log p(x|θ), in nats. `profile` takes it at many θ with the same noise,
`posterior` makes weights of it, `log_prob_fn` is a function of θ for gradients and samplers,
`classify` is for classes. `ranks`, `uniformity` and `coverage` test posteriors of simulated θ;
`dependence` says whether the looseness of the bound moves with θ, as it must not.
"""

from vdm.inference.calibration import Coverage, coverage, grid_draws, ranks, uniformity
from vdm.inference.classes import classify
from vdm.inference.dependence import Dependence, dependence
from vdm.inference.grid import Profile, joint, posterior, profile
from vdm.inference.log_prob import log_prob_fn

__all__ = [
    "Coverage",
    "Dependence",
    "Profile",
    "classify",
    "coverage",
    "dependence",
    "grid_draws",
    "joint",
    "log_prob_fn",
    "posterior",
    "profile",
    "ranks",
    "uniformity",
]
