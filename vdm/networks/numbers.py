"""A network of the number of points of a set: p(n|c), where a histogram has p(n)."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from vdm.condition import Condition, Conditions
from vdm.networks.condition import Kinds, check_kinds, checked
from vdm.networks.embeddings import joined, of_example
from vdm.networks.fields import check_positive

DTYPE = "float32"  # a term of the bound: in no precision of the points' network


class NumberNetwork(nn.Module):
    """The law of the number of points given a class and a vector, for a `VDM` of sets.

    A perceptron with two hidden layers of `width` maps the condition to `largest` logits, and
    log p(n|c) for n = 1 … `largest` is their log_softmax: Σ_n p(n|c) = 1. The last layer starts at
    zero, a fresh network being uniform, p(n|c) = 1/largest. All is computed in float32.

    Fields: `largest`, the most points of a set; `width`; the conditions, `num_classes` for integers
    [b], `cond_dim` for vectors [b, cond_dim], or both; and `optional_cond` for examples that come
    without these (see `vdm.condition`), whose law is learned too. What else the points' network is
    given has no part in it: what is known of each point is of n points already. Raises ValueError
    for sizes below 1, and for no condition, where `vdm.sets.number_law` says the same.
    """

    largest: int
    width: int = 64
    num_classes: int | None = None
    cond_dim: int | None = None
    optional_cond: bool = False

    def __post_init__(self) -> None:
        check_positive(largest=self.largest, width=self.width)
        if self.num_classes is None and self.cond_dim is None:
            raise ValueError(
                "a network of the number of points needs num_classes or cond_dim: without a "
                "condition a histogram says the same"
            )
        check_kinds(self._kinds)
        super().__post_init__()

    @property
    def _kinds(self) -> Kinds:
        return Kinds(self.num_classes, self.cond_dim, optional=self.optional_cond)

    @nn.compact
    def __call__(self, cond: Condition | None, size: int) -> Float[Array, " size largest"]:
        """Return log p(n|c) in nats of `size` examples, for n = 1 … largest, [size, largest].

        Raises ValueError or TypeError for a condition that the network was not built for.
        """
        given = checked(self._own(cond), (size,), self._kinds)
        h = joined(of_example(given, self._kinds, self.width), DTYPE)
        for i in range(2):
            h = nn.swish(nn.Dense(self.width, dtype=DTYPE, name=f"dense{i}")(h))
        logits = nn.Dense(
            self.largest, dtype=DTYPE, kernel_init=nn.initializers.zeros, name="dense_out"
        )(h)
        return jax.nn.log_softmax(logits)

    def _own(self, cond: Condition | None) -> Condition | None:
        """Return the parts of a condition that this network is built for."""
        if not isinstance(cond, Conditions):
            return cond
        return Conditions(**{name: getattr(cond, name) for name in self._kinds.names})
