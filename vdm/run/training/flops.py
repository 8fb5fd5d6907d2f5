"""The arithmetic of a function, counted in its matrix products and convolutions.

Counted in the traced program, not in the compiled one: so it is the same on every machine, whatever
is fused, computed twice or left to a library.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def of(fn: Callable[..., Any], *arguments: Any) -> float:
    """Return the FLOPs, a product and a sum each, of fn at arguments or at their shapes.

    A scan counts once per iteration, a loop of unknown length once, and of alternatives the first
    one.
    """
    return _count(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, given = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = given["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            # Of the kernel's axes all but the one over output channels are summed over.
            shape = equation.invars[1].aval.shape
            inner = math.prod(shape) // shape[given["dimension_numbers"].rhs_spec[0]]
        else:
            rounds = given["length"] if name == "scan" else 1
            total += rounds * sum(_count(inside) for inside in _inside(given))
            continue
        total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
    return total


def _inside(given: dict[str, Any]) -> Iterator[Any]:
    """Yield the jaxprs among an equation's parameters, of alternatives the first one."""
    for value in given.values():
        one = value[0] if isinstance(value, tuple) and value else value
        one = getattr(one, "jaxpr", one)
        if hasattr(one, "eqns"):
            yield one
