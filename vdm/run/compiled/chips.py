"""What chips can do: their arithmetic and their memory, by the names that JAX gives them."""

from collections.abc import Mapping
from typing import NamedTuple


class Chip(NamedTuple):
    """Peak dense bfloat16 FLOP/s (V100: float16), bytes per second of its memory, and its size."""

    flops: float
    bandwidth: float
    memory: float


# By the start of the device's name; the longest match counts.
# NVIDIA: the data sheets of V100, A100, H100, H200; numbers "with sparsity" are twice these.
# TPU: cloud.google.com/tpu/docs, "peak compute per chip (bf16)", "HBM capacity and bandwidth"; the
# inference chip v4 lite: Jouppi et al. 2021, table 1.
CHIPS: Mapping[str, Chip] = {
    "Tesla V100": Chip(125e12, 0.9e12, 32e9),
    "Tesla V100-PCIE-16GB": Chip(125e12, 0.9e12, 16e9),
    "Tesla V100-SXM2-16GB": Chip(125e12, 0.9e12, 16e9),
    "NVIDIA A100": Chip(312e12, 2.039e12, 80e9),
    "NVIDIA A100-PCIE-40GB": Chip(312e12, 1.555e12, 40e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 1.555e12, 40e9),
    "NVIDIA H100": Chip(989e12, 3.35e12, 80e9),
    "NVIDIA H100 PCIe": Chip(756e12, 2.0e12, 80e9),
    "NVIDIA H100 NVL": Chip(835e12, 3.9e12, 94e9),
    "NVIDIA H200": Chip(989e12, 4.8e12, 141e9),
    "NVIDIA H200 NVL": Chip(835e12, 4.8e12, 141e9),
    "TPU v4": Chip(275e12, 1.2e12, 32e9),
    "TPU v4 lite": Chip(138e12, 0.614e12, 8e9),
    "TPU v5": Chip(459e12, 2.765e12, 95e9),
    "TPU v5p": Chip(459e12, 2.765e12, 95e9),
    "TPU v5 lite": Chip(197e12, 0.819e12, 16e9),
    "TPU v5e": Chip(197e12, 0.819e12, 16e9),
    "TPU v6 lite": Chip(918e12, 1.64e12, 32e9),
    "TPU v6e": Chip(918e12, 1.64e12, 32e9),
}


def of(device_kind: str) -> Chip | None:
    """Return the numbers of one device of a kind, None where they are not known."""
    fitting = [name for name in CHIPS if device_kind.startswith(name)]
    return CHIPS[max(fitting, key=len)] if fitting else None
