"""CIFAR-10 without augmentation as the VDM paper trains it (Kingma et al. 2021, table 1).

    vdm train    --config=experiments/cifar10.py --workdir=runs/cifar10
    vdm evaluate --workdir=runs/cifar10 --split=test

The set is prepared once by tensorflow-datasets; where it is not there, the
first command says how.

Hardware and time: an accelerator, 20.5 TFLOP a step, 10 M steps of 128 images. The authors' code
was tested on a TPU v3-8; a reproduction's 2.04 steps/s on four V100 in float32 would be 57 days.
Not measured here.
Expected, as published and not measured here: 2.65 bits per dimension on the 10,000 test images
(the authors' released checkpoint: 2.637); in reproductions 2.79 after 310,000 steps and 2.72
after 2 M. experiments/cifar10_fast.py has the recipe that we recommend.

Two steps of a small form, on noise and in a minute:

    python -c "import numpy as n; n.save('noise', n.random.randint(0, 256, (40, 32, 32, 3), 'u1'))"
    vdm train --config=experiments/cifar10.py --workdir=runs/small --config.train.num_steps=2 \
        --config.train.batch_size=4 --config.model.network.channels=8 \
        --config.model.network.num_blocks=1 --config.model.network.num_groups=4 \
        --config.data.name=arrays --config.data.path=noise.npy

Settings and parameters are those of the authors' code: 30,577,669, where it has 30,578,181. The
512 are the weights of a conditioning number that it gives the network with every image, and that
says nothing without augmentation. It also lets AdamW decay the ends of λ and the scales of
GroupNorm, which is left out here, and its average of parameters starts with the full memory.
"""

from ml_collections import ConfigDict

from vdm.run.config import default_values


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_values()
    config.data.name = "cifar10"
    config.model.update(
        {
            "schedule": {"name": "learned_linear", "log_snr_max": 13.3, "log_snr_min": -5.0},
            "network": {
                "name": "unet",
                "channels": 128,
                "num_blocks": 32,
                "num_groups": 32,
                "attention": "middle",
                # sin and cos of z with periods of 1 and 2 grey levels, which are 2/256 apart.
                "fourier_exponents": (6, 7),
                "dropout": 0.1,
                "dtype": "float32",
                "remat": False,
            },
            "likelihood": {"name": "discretised", "levels": 256},
            "prediction": "eps",
        }
    )
    config.train.update(
        num_steps=10_000_000, batch_size=128, log_every=1000, checkpoint_every=10_000
    )
    config.optimizer.update(
        # One AdamW for the network and for the ends of λ, without clipping.
        learning_rate=2e-4,
        schedule_learning_rate=2e-4,
        decay="constant",
        warmup_steps=100,
        b1=0.9,
        b2=0.99,
        weight_decay=0.01,
        clip_norm=0.0,
        ema_decay=0.9999,
    )
    # Their number makes the standard error small enough.
    config.evaluate.levels_per_example = 10
    return config
