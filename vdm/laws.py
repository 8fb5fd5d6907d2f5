"""The laws of λ that a run can draw its noise levels from, each with the state it needs.

Uniform positions u in [0, 1) become noise levels with their density. A law is a frozen
value with three pure functions: `init()` gives its state, `levels(state, log_snr_fn, u)`
the noise levels and `update(state, log_snr_fn, levels, diffusion)` the next state; a law
without a state carries (). Training and evaluation use the same laws.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from vdm import adaptive, noise_levels
from vdm.noise_levels import NoiseLevels
from vdm.schedules.base import LogSnrFn

Weighting = Callable[[jax.Array], jax.Array]
LawState = adaptive.Histogram | tuple[()]  # of a law without a state it is empty


@runtime_checkable
class Law(Protocol):
    """A law of λ: which noise levels to draw, and the weight of each draw."""

    def init(self) -> LawState:
        """Return the state before the first step."""
        ...

    def levels(
        self,
        state: LawState,
        log_snr_fn: LogSnrFn,
        u: jax.Array,
        *,
        stratified: bool,
        weighting: Weighting | None = None,
    ) -> NoiseLevels:
        """Return noise levels at the positions; differentiable in the schedule's parameters."""
        ...

    def update(
        self, state: LawState, log_snr_fn: LogSnrFn, levels: NoiseLevels, diffusion: jax.Array
    ) -> LawState:
        """Return the state after a batch whose diffusion terms are ‖ε − ε̂‖²/(2p(λ)), in nats."""
        ...


@dataclasses.dataclass(frozen=True)
class ScheduleLaw:
    """Uniform times of the schedule."""

    def init(self) -> LawState:
        return ()

    def levels(
        self,
        state: Any,
        log_snr_fn: LogSnrFn,
        u: jax.Array,
        *,
        stratified: bool,
        weighting: Weighting | None = None,
    ) -> NoiseLevels:
        del state, stratified, weighting
        return noise_levels.from_times(log_snr_fn, u)

    def update(
        self,
        state: Any,
        log_snr_fn: LogSnrFn,
        levels: NoiseLevels | jax.Array,  # times, where the bound has finitely many steps
        diffusion: jax.Array,
    ) -> Any:
        del log_snr_fn, levels, diffusion
        return state


@dataclasses.dataclass(frozen=True)
class SigmoidLaw:
    """p(λ) ∝ sigmoid(λ) between the schedule's ends."""

    def init(self) -> LawState:
        return ()

    def levels(
        self,
        state: Any,
        log_snr_fn: LogSnrFn,
        u: jax.Array,
        *,
        stratified: bool,
        weighting: Weighting | None = None,
    ) -> NoiseLevels:
        del state, stratified, weighting
        return noise_levels.sigmoid_law(u, *_ends(log_snr_fn))

    def update(
        self, state: Any, log_snr_fn: LogSnrFn, levels: NoiseLevels, diffusion: jax.Array
    ) -> Any:
        del log_snr_fn, levels, diffusion
        return state


@dataclasses.dataclass(frozen=True)
class AdaptiveLaw:
    """A histogram that learns where the loss varies; see `vdm.adaptive`."""

    num_bins: int = 100
    decay: float = 0.99
    floor: float = 0.02

    def __post_init__(self) -> None:
        # Beyond, float32 no longer distinguishes the edges of neighbouring bins.
        if not (isinstance(self.num_bins, int) and 1 <= self.num_bins <= 10_000):
            raise ValueError(
                f"num_bins must be a whole number from 1 to 10,000: got {self.num_bins}"
            )
        if not (0 <= self.decay < 1 and 0 < self.floor <= 1):
            raise ValueError(
                f"decay must be in [0, 1) and floor in (0, 1]: got {self.decay}, {self.floor}"
            )

    def init(self) -> LawState:
        return adaptive.init(self.num_bins)

    def levels(
        self,
        state: Any,
        log_snr_fn: LogSnrFn,
        u: jax.Array,
        *,
        stratified: bool,
        weighting: Weighting | None = None,
    ) -> NoiseLevels:
        return adaptive.levels(
            state,
            u,
            *_ends(log_snr_fn),
            stratified=stratified,
            floor=self.floor,
            weighting=weighting,
        )

    def update(
        self, state: Any, log_snr_fn: LogSnrFn, levels: NoiseLevels, diffusion: jax.Array
    ) -> Any:
        error = 2.0 * diffusion / levels.inverse_density
        ends = _ends(log_snr_fn)
        return adaptive.update(state, levels.log_snr, error, *ends, decay=self.decay)


LAWS: Mapping[str, Callable[..., Law]] = {
    "schedule": ScheduleLaw,
    "sigmoid": SigmoidLaw,
    "adaptive": AdaptiveLaw,
}


def name_of(law: Law) -> str:
    """Return the name that a config calls a law by."""
    return next(name for name, kind in LAWS.items() if kind is type(law))


def _ends(log_snr_fn: LogSnrFn) -> tuple[jax.Array, jax.Array]:
    return log_snr_fn(jnp.zeros(())), log_snr_fn(jnp.ones(()))
