"""Whether real data are on the scale of the process, found before a run trains on them.

A process that ends in N(0, I) expects encoded data of about unit variance, and a likelihood about
as wide as the noise at λ_max: what that costs otherwise, no network can learn away.
"""

import math

import numpy as np

from vdm.likelihoods import Gaussian
from vdm.model import VDM
from vdm.run.data.dataset import Dataset
from vdm.run.data.moments import Moments
from vdm.run.errors import UserError

# Bits per dimension that one end of λ may cost: worth a line, and beyond repair by training.
WORTH_SAYING, REFUSED = 0.1, 1.0
# The encoded mean square that is worth a line.
SMALL, LARGE = 0.1, 10.0
LARGEST = 700.0  # whose exponential is a float64
ROUNDING = 0.1  # of float32, in units of the likelihood's scale


def check(model: VDM, data: Dataset) -> None:
    """Raise UserError where real data do not fit the process, whatever a network learns.

    That is where the prior term costs more than a bit per dimension, or where float32 takes from
    the numbers what the likelihood would see.
    """
    found, likelihood = data.moments, model.likelihood
    if found is None or not isinstance(likelihood, Gaussian):
        return
    # Of a constant nothing is lost.
    lost = np.where(found.is_constant, 0.0, found.rounding)
    worst = float(np.max(lost / (likelihood.scale * np.asarray(likelihood.std))))
    if worst > ROUNDING:
        raise UserError(
            f"float32 moves numbers of {data.version} by up to {found.rounding.max():.2g}, "
            f"which is {worst:.2g} times the scale of the likelihood (scale · std): subtract a "
            "constant from the data in float64, and save them again"
        )
    square = mean_square(likelihood, found)
    cost = prior_cost(model.schedule.log_snr_min, square)
    if cost > REFUSED:
        cure = "Use data.standardise=auto, or mean and std of model.likelihood"
        if square < LARGE:
            cure = "Use a lower model.schedule.log_snr_min"
        raise UserError(
            f"the encoded data have the mean square {square:.3g}, where the process expects about "
            f"1: at λ_min the prior term alone is {cost:.3g} bits per dimension. {cure}"
        )


def advice(model: VDM, data: Dataset) -> tuple[str, ...]:
    """Return what is worth saying of real data and the two ends of λ, a line each."""
    found, likelihood = data.moments, model.likelihood
    if found is None or not isinstance(likelihood, Gaussian):
        return ()
    said = []
    square = mean_square(likelihood, found)
    if not SMALL < square < LARGE:
        said.append(
            f"the encoded data have the mean square {square:.3g}, where the process expects about "
            "1: mean and std of model.likelihood, or data.standardise=auto, take care of it"
        )
    cost = prior_cost(model.schedule.log_snr_min, square)
    if cost > WORTH_SAYING:
        said.append(
            f"at λ_min the prior term costs {cost:.2f} bits per dimension, whatever the network "
            "learns: a lower model.schedule.log_snr_min makes it small"
        )
    log_snr_max, scale = model.schedule.log_snr_max, likelihood.scale
    cost = decoder_cost(log_snr_max, scale)
    if cost > WORTH_SAYING:
        best = -2 * math.log(scale)
        cure = f"with model.schedule.log_snr_max = {best:.1f} it costs nothing"
        if best <= 0:
            cure = "a smaller scale costs less"
        said.append(
            f"the likelihood's scale is {scale:.3g} and the noise at λ_max "
            f"{math.exp(-0.5 * log_snr_max):.3g}, which costs {cost:.2f} bits per dimension, "
            f"whatever the network learns: {cure}"
        )
    return tuple(said)


def mean_square(likelihood: Gaussian, found: Moments) -> float:
    """Return the mean square of the encoded data."""
    mean, std = np.asarray(likelihood.mean), np.asarray(likelihood.std)
    return float(np.mean((found.variance + (found.mean - mean) ** 2) / std**2))


def prior_cost(log_snr_min: float, square: float) -> float:
    """Return ½ [sigmoid(λ_min)(E x² − 1) + softplus(λ_min)] in bits per dimension.

    The prior term of the bound (VDM, eq. 11), which no network changes.
    """
    noise = math.log1p(math.exp(log_snr_min))
    nats = 0.5 * ((square - 1) / (1 + math.exp(-log_snr_min)) + noise)
    return nats / math.log(2)


def decoder_cost(log_snr_max: float, scale: float) -> float:
    """Return ½ (r − 1 − ln r) in bits per dimension, with r = e^{−λ_max}/scale².

    It is KL(N(0, e^{−λ_max}) ‖ N(0, scale²)), by which the bound of a perfect network is above the
    entropy of data that are smooth on both scales.
    """
    log_ratio = -log_snr_max - 2 * math.log(scale)
    if log_ratio > LARGEST:
        return math.inf
    return 0.5 * (math.expm1(log_ratio) - log_ratio) / math.log(2)
