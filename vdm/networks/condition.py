"""A network's checks of the condition that it is given, and the form in which it uses it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vdm.condition import Condition, Conditions
from vdm.networks.fields import check_positive


class Kinds(NamedTuple):
    """The conditions that a network is built for: classes, a vector, a field; None for not.

    A network of sets is given a mask too, always.
    """

    num_classes: int | None = None
    cond_dim: int | None = None
    cond_channels: int | None = None
    optional: bool = False
    masked: bool = False

    @property
    def names(self) -> list[str]:
        """The names of the parts of `Conditions` that the network is given."""
        there = (self.num_classes, self.cond_dim, self.cond_channels, self.masked)
        return [name for name, size in zip(Conditions._fields, there, strict=True) if size]


def check_kinds(kinds: Kinds) -> None:
    """Raise ValueError for sizes below 1, and for a condition that is optional but not there."""
    for name, size in zip(kinds._fields[:3], kinds, strict=False):
        if size is not None:
            check_positive(**{name: size})
    if kinds.optional and not [name for name in kinds.names if name != "mask"]:
        raise ValueError(
            "optional_cond needs a condition, num_classes, cond_dim or cond_channels: got none of "
            "them"
        )


def checked(cond: Condition | None, shape: tuple[int, ...], kinds: Kinds) -> Conditions:
    """Return the parts of the condition of a batch of z's shape [b, *d], each as it must be.

    A label is integers of shape [b] in 0..num_classes−1, a vector floats of shape
    [b, cond_dim], a field floats of z's shape but with cond_channels channels. An array by itself
    stands for the only part. With optional conditions a part that is not given is filled with what
    says so (`vdm.condition.no_condition`), and labels may be −1.

    Raises TypeError or ValueError for anything else; under jit, where values cannot be looked at,
    the network's output for another label is not a number.
    """
    if not kinds.names:
        if jax.tree.leaves(cond):
            raise ValueError(
                "this network is unconditional (num_classes, cond_dim and cond_channels are None), "
                f"expected cond=None: got {_named(cond)}"
            )
        return Conditions()
    given = _parts(cond, kinds)
    expected = _expected(shape, kinds)
    for name, (what, kind, form) in expected.items():
        part, wanted = getattr(given, name), f"expected {_where(name, cond)} to be {what}"
        if part is None and kinds.optional and name != "mask":
            none = jnp.asarray(-1) if name == "label" else jnp.asarray(jnp.nan, float)
            given = given._replace(**{name: jnp.full(form, none)})
            continue
        if part is None:
            got = "cond=None" if cond is None else f"no {name}"
            raise ValueError(f"this network is conditional, {wanted} of shape {form}: got {got}")
        if not jnp.issubdtype(part.dtype, kind):
            raise TypeError(f"{wanted} of shape {form}: got {part.dtype}")
        if part.shape != form:
            raise ValueError(f"{wanted} of shape {form}: got shape {part.shape}")
        if name == "label":
            _check_classes(part, kinds, f"{wanted} of shape {form}")
    return given


def _parts(cond: Condition | None, kinds: Kinds) -> Conditions:
    names = kinds.names
    if cond is None:
        return Conditions()
    if not isinstance(cond, Conditions):
        if len(names) > 1 or kinds.masked:
            what = "is one of sets" if kinds.masked else "has several conditions"
            raise TypeError(
                f"this network {what}, expected Conditions({', '.join(names)}): got {_named(cond)}"
            )
        return Conditions(**{names[0]: cond})
    beside = [name for name, part in cond._asdict().items() if part is not None]
    if unknown := [name for name in beside if name not in names]:
        raise ValueError(f"this network is given {' and '.join(names)}: got a {unknown[0]} as well")
    return cond


def _expected(shape: tuple[int, ...], kinds: Kinds) -> dict[str, tuple[str, type, tuple[int, ...]]]:
    """Return for each part what it is, its type and its shape."""
    b, classes = shape[0], kinds.num_classes or 0
    every: dict[str, tuple[str, type, tuple[int, ...]]] = {
        "label": (f"integers in 0..{classes - 1}", jnp.integer, (b,)),
        "vector": ("floats", jnp.floating, (b, kinds.cond_dim or 0)),
        "field": ("floats", jnp.floating, (*shape[:-1], kinds.cond_channels or 0)),
        "mask": ("booleans", jnp.bool_, shape[:2]),
    }
    return {name: every[name] for name in kinds.names}


def _check_classes(label: Array | np.ndarray, kinds: Kinds, expected: str) -> None:
    if isinstance(label, jax.core.Tracer) or not label.size:
        return
    values = np.asarray(label)  # NumPy's: a minimum of JAX would be traced where others are
    for value in (int(values.min()), int(values.max())):
        if not -1 * kinds.optional <= value < (kinds.num_classes or 0):
            raise ValueError(f"{expected}: got {value}")


def _where(name: str, cond: Condition | None) -> str:
    return f"cond.{name}" if isinstance(cond, Conditions) else "cond"


def _named(cond: Condition | None) -> str:
    if isinstance(cond, Conditions):
        return f"Conditions of {[k for k, part in cond._asdict().items() if part is not None]}"
    return "None" if cond is None else f"cond of shape {cond.shape}"
