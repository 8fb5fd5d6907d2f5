"""Muon: a step that moves a matrix by as much in every direction that its gradient has."""

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vdm.model import Params
from vdm.networks import stacked

# The root mean square of a step's entries, in units of the rate: about that of Adam's steps, so
# that vectors and matrices share one rate (Liu et al. 2025, "Muon is scalable for LLM training").
RMS = 0.2
ITERATIONS = 3


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta: float = 0.9,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.01,
) -> optax.GradientTransformation:
    """Return Muon for the matrices and kernels of a network of Flax Linen, and NAdam for the rest.

    The average of the gradient, with Nesterov's momentum `beta`, is replaced by the nearest matrix
    with equal singular values, U Vᵀ of its U S Vᵀ, up to what three Newton–Schulz iterations leave
    (Jordan et al. 2024, "Muon: an optimizer for hidden layers"; three do where a matrix begins
    with the Schatten 4-norm 1, a closer bound on the greatest singular value than Frobenius's,
    as `optax` has it after Grishina et al. 2025, arXiv 2506.10935). A
    kernel [*window, in, out] is taken as a matrix of window · in rows; of stacked blocks
    (`vdm.networks.stacked`) each is its own. Vectors and tables of embeddings get Adam with
    Nesterov's momentum, `b1` and `b2`, at the same rate, and only what Muon moves decays, by
    `weight_decay` times the rate. Raises ValueError for a beta outside [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be at least 0 and below 1: got {beta}")
    return contrib.muon(
        learning_rate,
        ns_steps=ITERATIONS,
        preconditioning="schatten",
        beta=beta,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        muon_weight_dimension_numbers=_as_matrices,
        consistent_rms=RMS,
    )


def _as_matrices(params: Params) -> Params:
    """Return for each array which axes are the rows and columns of a matrix, None for Adam's."""

    def one(path: tuple[object, ...], leaf: jax.Array, axes: int) -> object:
        embedding = getattr(path[-1], "key", None) == "embedding"
        if axes < 2 or embedding:
            return None
        last = jnp.ndim(leaf) - 1
        return contrib.MuonDimensionNumbers(tuple(range(last + 1 - axes, last)), last)

    return jax.tree.map_with_path(one, params, stacked.num_axes(params))
