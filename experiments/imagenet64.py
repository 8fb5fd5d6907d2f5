"""ImageNet at 64×64×3 as the VDM paper trains it (Kingma et al. 2021, table 1).

    vdm train    --config=experiments/imagenet64.py --workdir=runs/imagenet64
    vdm evaluate --workdir=runs/imagenet64 --split=test

Two sets go by this name too, and are not to be compared:

    --config.data.name=downsampled_imagenet/64x64   van den Oord et al. 2016: the paper's, default
    --config.data.name=imagenet_resized/64x64       Chrabaszcz et al. 2017: newer, anti-aliased

Both are prepared once by tensorflow-datasets; where one is not there, the first
command says how. Their split `validation` is the one called `test` here. Either is 15 GB when
decoded and is therefore read while training (extra `stream`).

Hardware and time: many accelerators, 10 M steps of 128 images. Where the memory of one does not
hold its share of a step, `--config.model.network.remat=True` takes less and computes more. Not
measured here.
Expected, as published and not measured here: 3.40 bits per dimension on the split
`validation` of downsampled_imagenet/64x64.

Two steps of a small form, on noise and in a minute:

    python -c "import numpy as n; n.save('noise', n.random.randint(0, 256, (40, 64, 64, 3), 'u1'))"
    vdm train --config=experiments/imagenet64.py --workdir=runs/small --config.train.num_steps=2 \
        --config.train.batch_size=4 --config.model.network.channels=8 \
        --config.model.network.num_blocks=1 --config.model.network.num_groups=4 \
        --config.model.network.attention=none \
        --config.data.name=arrays --config.data.path=noise.npy

Settings and parameters are those of the authors' code: 237,602,821, where it has 237,603,845; the
1,024 and the other differences are those that experiments/cifar10.py tells.
"""

from ml_collections import ConfigDict

from vdm.run.config import neighbour


def get_config() -> ConfigDict:
    """Return the config."""
    config = neighbour(__file__, "cifar10.py")
    config.data.name = "downsampled_imagenet/64x64"
    config.model.network.update(channels=256, num_blocks=64)
    return config
