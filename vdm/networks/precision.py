"""Parameters in the precision that a network computes with."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from vdm.networks.applied import Applied
from vdm.networks.dit import DiT
from vdm.networks.mlp import MLP
from vdm.networks.unet import UNet


def cast(network: nn.Module | Applied, params: Mapping[str, Any]) -> Any:
    """Return the network's parameters, the kernels of our own networks in their compute dtype.

    Their layers do the same wherever they use a kernel: the outputs are equal. Done once a step it
    spares the casts of the backward pass, and halves what is sent between devices. Gains and
    biases stay as they are, which normalisation uses in float32, and so do the parameters of other
    networks.
    """
    if not isinstance(network, DiT | MLP | UNet):
        return params

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf.astype(network.dtype) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(one, params)
