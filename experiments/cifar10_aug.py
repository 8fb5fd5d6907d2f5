"""CIFAR-10 with augmentation as the VDM authors' code trains it: flips, turns, channel swaps.

    vdm train    --config=experiments/cifar10_aug.py --workdir=runs/cifar10_aug
    vdm evaluate --workdir=runs/cifar10_aug --split=test

The network is told whether an image was augmented, and is evaluated on images as they came
(see vdm/run/data/augment.py).

Hardware and time: several accelerators; the authors used a TPU v3-64. Not measured here.
Expected, as published and not measured here: 2.522 bits per dimension on the 10,000 test images,
by the checkpoint that the authors released with these settings. The paper's own 2.49 (Kingma et
al. 2021, table 1) took batches of 1,024, a rate of 2e-4 and attention in every block:

    --config.train.batch_size=1024 --config.optimizer.learning_rate=2e-4 \
        --config.optimizer.schedule_learning_rate=2e-4 --config.model.network.attention=everywhere

Two steps of a small form, on noise and in a minute:

    python -c "import numpy as n; n.save('noise', n.random.randint(0, 256, (40, 32, 32, 3), 'u1'))"
    vdm train --config=experiments/cifar10_aug.py --workdir=runs/small --config.train.num_steps=2 \
        --config.train.batch_size=4 --config.model.network.channels=8 \
        --config.model.network.num_blocks=1 --config.model.network.num_groups=4 \
        --config.data.name=arrays --config.data.path=noise.npy

The schedule is the paper's: a monotone network between learned ends, whose interior descends the
variance (appendix on the noise schedule). The authors' code has the same network without pinned
ends, and descends the bound with all of it. It has 122,140,677 parameters, 3,074 of them the
schedule's; here they are 122,402,310 and 3,075. Its flag is a number with a row of 1,024 weights,
here it is a class with two learned vectors of 256 and 256 × 1,024 weights: 261,632 more.
"""

from ml_collections import ConfigDict

from vdm.run.config import neighbour


def get_config() -> ConfigDict:
    """Return the config."""
    config = neighbour(__file__, "cifar10.py")
    config.data.augment = "vdm"
    config.model.schedule.name = "learned_monotone"
    config.model.network.update(channels=256, dropout=0.05, num_classes=2)
    config.optimizer.update(learning_rate=1e-4, schedule_learning_rate=1e-4)
    return config
