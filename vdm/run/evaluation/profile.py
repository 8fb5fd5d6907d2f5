"""The denoiser's error at each noise level, from the rows of a continuous-time bound.

Each row holds ½ ‖ε − ε̂‖²/p(λ) at a λ drawn with density p. Summed over the rows of an example
whose λ lies in an interval it is an unbiased estimate of ½ ∫ E‖ε − ε̂‖² dλ over that interval,
whatever p is. Intervals of one example are dependent, so standard errors are over examples.
"""

import math

import numpy as np

from vdm.gaps import steps_law
from vdm.information import tail_bound
from vdm.losses import bits_per_dim
from vdm.run.evaluation.record import Estimates, IMmse, Profile

NUM_INTERVALS = 16


def profile(
    diffusion: np.ndarray, log_snr: np.ndarray, *, log_snr_max: float, log_snr_min: float
) -> Profile:
    """Return the error's profile and the running information, for each of 16 intervals of λ.

    `diffusion` holds the diffusion term of every row in bits per dimension, `log_snr` where it
    was taken, both [n, rows]. The profile has `log_snr`, the 17 edges of the intervals; `error`,
    the mean of ‖ε − ε̂‖² per dimension in each of the 16; and `information`, ½ ∫ E‖ε − ε̂‖² dλ
    from λ_min to each edge in bits per dimension: I(x; z_λ) − I(x; z_{λ_min}) for the exact
    denoiser, an upper bound of it for any other (Guo, Shamai & Verdú 2005).
    """
    edges = np.linspace(log_snr_min, log_snr_max, NUM_INTERVALS + 1)
    which = np.clip(np.searchsorted(edges, log_snr, side="right") - 1, 0, NUM_INTERVALS - 1)
    n, num_rows = diffusion.shape
    shares = np.zeros((n, NUM_INTERVALS))
    np.add.at(shares, (np.arange(n)[:, None], which), diffusion / num_rows)
    running = np.concatenate([np.zeros((n, 1)), np.cumsum(shares, axis=1)], axis=1)
    # ½ ∫ E‖ε − ε̂‖² dλ of an interval, back in nats, over half its length.
    error = shares * math.log(2.0) / (0.5 * np.diff(edges))
    return Profile(tuple(edges.tolist()), _mean(error), _mean(running))


def i_mmse(measured: Profile, *, levels: int) -> IMmse:
    """Return −log P(x) of discrete data by I-MMSE, its mean in bits per dimension.

    It is the information over all λ (Kong, Brekelmans & Ver Steeg 2023), with neither a prior
    nor a decoder: what is `between` the ends, and the tail `below`, ½ E‖ε − ε̂‖² at λ_min. The
    tail above is left out; `above_at_most` bounds it (`vdm.information.tail_bound`).
    """
    nats_below = 0.5 * _at_ends(measured)[0]
    nats_above = float(tail_bound(1, measured.log_snr[-1], levels=levels))
    below, above = bits_per_dim(np.asarray([nats_below, nats_above]), 1).tolist()
    between = measured.information.mean[-1]
    return IMmse(bpd=between + below, between=between, below=below, above_at_most=above)


def predicted_steps(measured: Profile, num_steps: int) -> float:
    """Return the diffusion term at T = num_steps that follows from T = ∞, in bits per dimension.

    To leading order and for λ linear in t, with the errors at both ends extrapolated from the
    intervals there; see `vdm.gaps.steps_law`.
    """
    edges = measured.log_snr
    at_infinity = measured.information.mean[-1]
    at_min, at_max = bits_per_dim(np.asarray(_at_ends(measured)), 1).tolist()
    cost = steps_law(edges[-1], edges[0], at_infinity, at_min, at_max, num_steps)
    return at_infinity + float(cost)


def _at_ends(measured: Profile) -> tuple[float, float]:
    """Return the error at λ_min and λ_max: extrapolated by half an interval."""
    first, second, *_, before, last = measured.error.mean
    return _half_on(first, second), _half_on(last, before)


def _half_on(end: float, inner: float) -> float:
    return end * math.sqrt(end / inner) if inner > 0 else end


def _mean(values: np.ndarray) -> Estimates:
    n = len(values)
    sem = values.std(0, ddof=1) / math.sqrt(n) if n > 1 else None
    return Estimates(tuple(values.mean(0).tolist()), None if sem is None else tuple(sem.tolist()))
