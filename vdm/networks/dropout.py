"""Dropout that an example's number decides, not its place in a batch or on a device."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int, Key

from vdm.condition import Condition
from vdm.networks.applied import Applied


class Dropout(NamedTuple):
    """A key for all examples, and the number of each within the batch that the key is drawn for.

    What is dropped of an example follows from both: it is the same however the batch is divided.
    """

    key: Key[Array, ""]
    rows: Int[Array, " b"]


def apply(
    network: nn.Module | Applied,
    variables: Mapping[str, Any],
    z: Float[Array, " b *d"],
    log_snr: Float[Array, " b"],
    cond: Condition | None,
    dropout: Key[Array, ""] | Dropout | None,
) -> Array:
    """Return the network's output at z and λ: with a key in training, without one as it is.

    With a `Dropout` every `flax.linen.Dropout` draws for each example by itself; what else a module
    asks of the stream "dropout" follows from its key. A network that is no Linen module is given
    one example at a time (by vmap), with a key of its own.
    """

    def output(
        z: Array, log_snr: Array, cond: Condition | None, key: Key[Array, ""] | None = None
    ) -> Array:
        rngs = None if key is None else {"dropout": key}
        found: Any = network.apply(variables, z, log_snr, cond, train=key is not None, rngs=rngs)
        return found

    if dropout is None:
        return output(z, log_snr, cond)
    if not isinstance(dropout, Dropout):
        return output(z, log_snr, cond, dropout)
    if isinstance(network, nn.Module):
        with nn.intercept_methods(_each_by_itself(dropout.rows)):
            return output(z, log_snr, cond, dropout.key)

    def one(
        z: Float[Array, "*d"],
        log_snr: Float[Array, ""],
        cond: Condition | None,
        row: Int[Array, ""],
    ) -> Array:
        key = jax.random.fold_in(dropout.key, row)
        return output(z[None], log_snr[None], jax.tree.map(lambda part: part[None], cond), key)[0]

    return jax.vmap(one)(z, log_snr, cond, dropout.rows)


def _each_by_itself(rows: Int[Array, " b"]) -> Callable[..., Any]:
    def intercept(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        options: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        if not isinstance(module, nn.Dropout) or context.method_name != "__call__":
            return call(*args, **options)
        said = options.get("deterministic", args[1] if len(args) > 1 else module.deterministic)
        if said or module.rate in (0.0, 1.0):
            return call(*args, **options)
        key = options.get("rng")
        if key is None:
            key = module.make_rng(module.rng_collection)  # another one for every module

        def one(part: Array, row: Array) -> Array:
            own = {**options, "rng": jax.random.fold_in(key, row)}
            return call(part[None], *args[1:], **own)[0]

        return jax.vmap(one)(args[0], rows)

    return intercept
