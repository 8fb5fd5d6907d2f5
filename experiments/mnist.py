"""MNIST, 28×28 pixels of 256 grey levels: a U-Net small enough for two CPU cores.

    vdm train    --config=experiments/mnist.py --workdir=runs/mnist
    vdm evaluate --workdir=runs/mnist --split=test
    vdm sample   --workdir=runs/mnist

The set is prepared once by tensorflow-datasets (extra `tfds`); where it is not there, the
first command says how.

Hardware and time: two CPU cores, 20 minutes, of which one core is enough: 19 minutes.
Expected: 1.077 ± 0.005 bits per dimension on the 10,000 test images, 1.085 ± 0.005 on as many
of the training set: what limits it is the number of steps.
A code that knows nothing takes log2(256) = 8.

Two steps of a small form, on noise and in a minute:

    python -c "import numpy as n; n.save('noise', n.random.randint(0, 256, (40, 28, 28, 1), 'u1'))"
    vdm train --config=experiments/mnist.py --workdir=runs/small --config.train.num_steps=2 \
        --config.train.batch_size=4 --config.model.network.channels=8 \
        --config.model.network.num_groups=4 \
        --config.data.name=arrays --config.data.path=noise.npy
"""

from ml_collections import ConfigDict

from vdm.run.config import default_values


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_values()
    config.data.name = "mnist"
    config.model.update(
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
    # Of equal work, small batches get further in so short a time.
    config.train.update(num_steps=12_000, batch_size=8, log_every=100, checkpoint_every=1000)
    config.objective.law = ConfigDict({"name": "sigmoid"})
    # 10,000 images: their number makes the standard error small enough.
    config.evaluate.levels_per_example = 1
    config.optimizer.learning_rate = 7e-3
    config.optimizer.decay = "cosine"
    config.optimizer.ema_decay = 0.999
    return config
