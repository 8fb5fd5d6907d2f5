"""Small runs for the tests of the machinery: configs that compile in seconds."""

import dataclasses
import os
import pathlib
import shutil
import tempfile

import jax

from vdm.run import config as configs, train

# Where prepared sets of tensorflow-datasets are, if there are any.
BESIDE = pathlib.Path(__file__).parents[2] / "shared/data/tfds"
PREPARED = pathlib.Path(os.environ.get("TFDS_DATA_DIR", BESIDE))
MLP = {"name": "mlp", "width": 16, "num_blocks": 1, "dropout": 0.1}
UNET = {
    "name": "unet",
    "channels": 8,
    "num_blocks": 1,
    "num_groups": 4,
    "fourier_exponents": (),
    "attention": "none",
}
DIT = {
    "name": "dit",
    "axes": 2,
    "patch": 4,
    "channels": 8,
    "num_blocks": 1,
    "num_heads": 2,
    "padding": "wrap",
    "dropout": 0.1,
}


def points(**train):
    """The mixture of points with a tiny MLP."""
    return configs.from_dict(
        {
            "data": {"name": "mixture"},
            "model": {
                "schedule": {"name": "linear", "log_snr_max": 8.0, "log_snr_min": -8.0},
                "network": dict(MLP),
                "likelihood": {"name": "gaussian", "scale": 0.02},
            },
            "train": {"num_steps": 4, "batch_size": 50, "log_every": 2, **train},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
            "evaluate": {"levels_per_example": 2},
            "sample": {"num_steps": 5},
        }
    )


def images(network=MLP, num_classes=None, **train):
    """The digits with learned ends; the MLP compiles several times faster than the U-Net."""
    return configs.from_dict(
        {
            "data": {"name": "digits"},
            "model": {
                "schedule": {"name": "learned_linear", "log_snr_max": 8.0, "log_snr_min": -6.0},
                "network": {**network, "num_classes": num_classes},
                "likelihood": {"name": "discretised", "levels": 17},
                "prediction": "v",
            },
            "train": {"num_steps": 3, "batch_size": 6, "log_every": 1, **train},
            "evaluate": {"levels_per_example": 2, "batch_size": 64},
            "sample": {"num_steps": 3},
        }
    )


def sets(path, **train):
    """Sets of points from a file, with a tiny transformer."""
    config = points(**{"batch_size": 4, **train})
    network = {"name": "set_transformer", "channels": 8, "num_blocks": 1, "num_heads": 2}
    return dataclasses.replace(
        config,
        data=configs.DataConfig("sets", path=str(path), standardise="per_feature"),
        model=dataclasses.replace(config.model, network=network),
    )


def conditions(**train):
    """Images that are conditioned on a class, a vector and a field, all three."""
    config = images(num_classes=3, **train)
    network = {**config.model.network, "cond_dim": 2, "cond_channels": 1}
    return dataclasses.replace(
        config,
        data=configs.DataConfig("exact_conditions:pixels"),
        model=dataclasses.replace(config.model, network=network),
    )


# Runs that many tests begin with, by their names.
MADE = {
    "points": points,
    "images": images,
    "classes": lambda: images(num_classes=10),
    "conditions": conditions,
}


def copy_of(name, workdir):
    """Copy a run of `MADE`, which is trained once in a whole test run; returns its workdir."""
    assert not jax.config.jax_enable_x64, "these runs are of float32"
    home = pathlib.Path(os.environ["VDM_TESTS_COMPILED"]) / "runs"
    if not (home / name).exists():
        home.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as folder:
            new = pathlib.Path(folder) / "run"
            train.train(MADE[name](), new)
            try:
                new.rename(home / name)
            except OSError:  # another worker of pytest-xdist was first
                assert (home / name).exists()
    return shutil.copytree(home / name, workdir, dirs_exist_ok=True)


CONFIG_FILE = """
import ml_collections


def get_config():
    return ml_collections.ConfigDict({values!r})
"""


def write_config_file(path, config):
    """Write a config file that `vdm train --config` reads."""
    path.write_text(CONFIG_FILE.format(values=configs.to_dict(config)))
    return path
