"""Noise schedules λ(t): how the log signal-to-noise ratio falls as t runs from 0 to 1.

A schedule is a frozen value with three functions: `init(key)` gives its parameters,
`log_snr(params, t)` gives λ and `inverse(params, log_snr)` gives t back. Parameters
are always {"ends": ..., "shape": ...}, empty where nothing is learned, because the
two groups are trained differently: the end points descend the bound, the shape
between them descends the variance of its estimate (`vdm.variance`).
"""

from vdm.schedules.base import Params, Schedule, log_snr_and_rate
from vdm.schedules.chain import from_betas
from vdm.schedules.fixed import beta_linear, cosine, edm, flow_matching, linear
from vdm.schedules.learned import learned_linear, learned_monotone
from vdm.schedules.unpinned import learned_unpinned

__all__ = [
    "Params",
    "Schedule",
    "beta_linear",
    "cosine",
    "edm",
    "flow_matching",
    "from_betas",
    "learned_linear",
    "learned_monotone",
    "learned_unpinned",
    "linear",
    "log_snr_and_rate",
]
