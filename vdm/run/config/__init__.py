"""The configuration of a run: what it holds, how it is checked, and how it is stored."""

from vdm.run.config.kept import CONFIG_FILE, changes, differences, keep, load, neighbour
from vdm.run.config.parse import default_values, flatten, from_dict, to_dict
from vdm.run.config.schema import (
    CompressConfig,
    Config,
    DataConfig,
    DevicesConfig,
    EvaluateConfig,
    FewStepsConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
)

__all__ = [
    "CONFIG_FILE",
    "CompressConfig",
    "Config",
    "DataConfig",
    "DevicesConfig",
    "EvaluateConfig",
    "FewStepsConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "SampleConfig",
    "TrainConfig",
    "changes",
    "default_values",
    "differences",
    "flatten",
    "from_dict",
    "keep",
    "load",
    "neighbour",
    "to_dict",
]
