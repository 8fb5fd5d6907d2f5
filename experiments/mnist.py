"""MNIST, 28×28 pixels of 256 grey levels: a U-Net small enough for two CPU cores.

    vdm train    --config=experiments/mnist.py --workdir=runs/mnist
    vdm evaluate --workdir=runs/mnist --split=test
    vdm sample   --workdir=runs/mnist

The set is prepared once by tensorflow-datasets (extra `tfds`); where it is not there, the
first command says how.

Hardware and time: meant for 20 minutes on two CPU cores; beside heavy other work they took
2.5 steps a second.
Expected: not measured yet. A code that knows nothing takes log2(256) = 8.
"""

from ml_collections import ConfigDict

from vdm.run.config import default_values


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_values()
    config.data = ConfigDict({"name": "mnist"})
    config.model = ConfigDict(
        {
            # The ends of the VDM paper, for 256 levels.
            "schedule": {"name": "linear", "log_snr_max": 13.3, "log_snr_min": -5.0},
            "network": {
                "name": "unet",
                "channels": 32,
                "num_blocks": 1,
                "num_groups": 8,
                "attention": "none",
                # sin and cos of z with periods of 1 and 2 grey levels, which are 2/256 apart.
                "fourier_exponents": (6, 7),
                "dropout": 0.0,
            },
            "likelihood": {"name": "discretised", "levels": 256},
            "prediction": "eps",
        }
    )
    config.train = ConfigDict(
        {
            "num_steps": 4_000,
            "batch_size": 16,
            "log_every": 100,
            "checkpoint_every": 1000,
            "checkpoints_kept": 2,
        }
    )
    # 10,000 images: their number makes the standard error small enough.
    config.evaluate.levels_per_example = 1
    config.optimizer.learning_rate = 2e-3
    config.optimizer.decay = "cosine"
    config.optimizer.ema_decay = 0.999
    return config
