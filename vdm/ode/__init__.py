"""The probability-flow ODE: exact likelihoods, and the latent that belongs to each example."""

from vdm.ode import divergence, integrator, marginal
from vdm.ode.flow import Solution, decode, encode, log_prob, solve

__all__ = [
    "Solution",
    "decode",
    "divergence",
    "encode",
    "integrator",
    "log_prob",
    "marginal",
    "solve",
]
