"""Classification by the bound: which condition makes an example the least surprising."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vdm.condition import Condition
from vdm.few_steps.chain import Chain
from vdm.inference.bound import Data, bounds, check, check_samples
from vdm.inference.grid import checked_prior
from vdm.model import VDM, Params


def classify(
    model: VDM,
    params: Params,
    x: Data,
    key: Key[Array, "..."],
    *,
    num_classes: int | None = None,
    conds: Condition | None = None,
    log_prior: Float[Array | np.ndarray, " m"] | None = None,
    num_samples: int = 64,
    num_steps: int | None = None,
    chain: Chain | None = None,
    batch_size: int = 256,
) -> Float[Array, " b m"]:
    """Return log P(class|x) of every example [b, *d] by Bayes' rule, in nats; exp sums to 1.

    log P(j|x) = log P(j) + VLB(x|j) − log Σ_k P(k) exp(VLB(x|k)), with the same noise for all
    classes of an example (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot
    Classifier", who weight all noise levels alike instead of as the bound does). The classes are
    0..num_classes−1, by default as many as the network has, or any `conds` [m, ...]; the prior is
    uniform by default, its logarithm counts up to a constant. All `num_samples` draws are one set
    of evenly spaced times with pairs ±ε, which has the least noise and no estimate of it; `profile`
    has one. Raises what `profile` and `posterior` raise, ValueError for odd num_samples, for
    num_classes beside conds, and for neither with a network that has no classes.
    """
    if num_classes is not None and conds is not None:
        raise ValueError(f"expected num_classes or conds: got num_classes={num_classes} and conds")
    if conds is None:
        found = getattr(model.network, "num_classes", None) if num_classes is None else num_classes
        if found is None:
            raise ValueError(
                "expected num_classes or conds for a network without classes: got neither"
            )
        conds = np.arange(found)
    num_levels = check_samples(num_samples, 1, 1, batch_size)
    x, keys, conds = check(model, x, key, conds, num_steps, chain)
    sets = bounds(
        model,
        params,
        keys,
        x,
        conds,
        num_steps,
        chain,
        num_sets=1,
        num_levels=num_levels,
        batch_size=batch_size,
    )
    prior = checked_prior(log_prior, sets.shape[2], sets.dtype)
    return jax.nn.log_softmax(prior[None] - jnp.squeeze(sets, 1), axis=1)
