"""The config of an imported run: the official one, corrected by what the parameters show."""

import dataclasses
from collections.abc import Collection
from typing import Any

import ml_collections

from vdm import VDM
from vdm.networks import UNet
from vdm.run import config as configs
from vdm.run.config import Config
from vdm.run.errors import UserError
from vdm.schedules.fixed import Linear
from vdm.schedules.learned import LearnedLinear
from vdm.schedules.unpinned import LearnedUnpinned

# Of the config's network; everything else about it is read from the parameters.
NETWORK_KEYS = ("dropout", "num_groups", "log_snr_max", "log_snr_min", "dtype", "remat")
SCHEDULES = {
    Linear: "linear",
    LearnedLinear: "learned_linear",
    LearnedUnpinned: "learned_unpinned",
}


def official_values() -> ml_collections.ConfigDict:
    """Return the config of the official CIFAR-10 model.

    Values that follow from the parameters are here too, so that contradicting them is an error.
    """
    config = configs.default_values()
    config.data.name = "cifar10"
    config.model.schedule = {
        "name": "learned_linear",
        "log_snr_max": 13.3,
        "log_snr_min": -5.0,
    }
    config.model.network = {
        "name": "unet",
        "channels": 128,
        "num_blocks": 32,
        "attention": "middle",
        "fourier_exponents": (6, 7),
        "dropout": 0.1,
        "num_groups": 32,
        # The range that the network was built for is not the one that the schedule has learned.
        "log_snr_max": 13.3,
        "log_snr_min": -5.0,
        "dtype": "float32",
        "remat": False,
    }
    config.model.likelihood = {"name": "discretised", "levels": 256}
    # One rate for all parameters, and nothing clipped.
    config.optimizer.update(schedule_learning_rate=2e-4, shape_learning_rate=2e-4, clip_norm=0.0)
    config.train.num_steps = 10_000_000
    config.evaluate.levels_per_example = 10  # as in experiments/cifar10.py
    return config


def settle(
    config: Config, model: VDM, stated: Collection[str]
) -> tuple[Config, list[tuple[str, str]]]:
    """Return the config with the values that the parameters show in place of its own.

    Also return which of its values were replaced. Raises UserError where one of them was `stated`.
    """
    asked, network = config.model, model.network
    assert isinstance(network, UNet)  # the official one
    ends = {
        key: asked.schedule.get(key, getattr(model.schedule, key))
        for key in ("log_snr_max", "log_snr_min")
    }
    schedule: dict[str, Any] = {"name": SCHEDULES[type(model.schedule)], **ends}
    if isinstance(model.schedule, LearnedUnpinned):
        schedule["width"] = model.schedule.width
    likelihood = asked.likelihood
    if likelihood["name"] != "discretised":
        likelihood = {"name": "discretised", "levels": 256}
    kept = {key: value for key, value in asked.network.items() if key in NETWORK_KEYS}
    settled = dataclasses.replace(
        config,
        # Without the conditioning an augmentation could not condition the network.
        data=dataclasses.replace(config.data, augment="none"),
        train=dataclasses.replace(config.train, cond_dropout=0.0),
        model=dataclasses.replace(
            asked,
            schedule=schedule,
            likelihood=likelihood,
            prediction=model.prediction,
            network={
                "name": "unet",
                **kept,
                "channels": network.channels,
                "num_blocks": network.num_blocks,
                "attention": network.attention,
                "fourier_exponents": network.fourier_exponents,
            },
        ),
    )
    before, after = (configs.flatten(configs.to_dict(c)) for c in (config, settled))
    replaced = []
    for key in sorted(key for key in before if before[key] != after.get(key)):
        shown = f"{after[key]!r}" if key in after else "nothing of the kind"
        if key in stated:
            raise UserError(
                f"--config.{key}={before[key]} contradicts the checkpoint, which has {shown}"
            )
        replaced.append((key, f"{shown} (the config has {before[key]!r})"))
    return settled, replaced
