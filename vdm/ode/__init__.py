"""The probability-flow ODE: exact likelihoods, and the latent that belongs to each example."""

from vdm.ode import marginal
from vdm.ode.flow import Solution, decode, encode, log_prob, solve

__all__ = ["Solution", "decode", "encode", "log_prob", "marginal", "solve"]
