"""Networks f(z, log_snr, cond, *, train) whose output has z's shape."""

from vdm.condition import Conditions, drop_condition, no_condition
from vdm.networks.applied import from_apply
from vdm.networks.dit import DiT
from vdm.networks.mlp import MLP
from vdm.networks.numbers import NumberNetwork
from vdm.networks.sets import SetTransformer
from vdm.networks.unet import UNet

__all__ = [
    "MLP",
    "Conditions",
    "DiT",
    "NumberNetwork",
    "SetTransformer",
    "UNet",
    "drop_condition",
    "from_apply",
    "no_condition",
]
