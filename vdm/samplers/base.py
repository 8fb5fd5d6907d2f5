"""What every sampler offers: a step from one noise level to the next cleaner one."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

from vdm.losses import EpsFn

Carry = Any  # a pytree of arrays, the same structure from step to step


@runtime_checkable
class Sampler(Protocol):
    """A frozen value that carries z from one noise level to the next.

    What a sampler remembers between steps goes through `carry`, so that a whole chain is
    one compiled loop.
    """

    def init(self, z: Float[Array, " b *d"]) -> Carry:
        """Return what is remembered before the first step, () for nothing."""
        ...

    def step(
        self,
        eps_fn: EpsFn,
        z_t: Float[Array, " b *d"],
        carry: Carry,
        noise: Float[Array, " b *d"],
        log_snr_t: Float[Array, ""],
        log_snr_s: Float[Array, ""],
    ) -> tuple[Float[Array, " b *d"], Carry]:
        """Return z_s and what to remember, given z_t and standard normal noise; λ_s > λ_t."""
        ...
