"""ImageNet at 32×32×3 as the VDM paper trains it (Kingma et al. 2021, table 1).

    vdm train    --config=experiments/imagenet32.py --workdir=runs/imagenet32
    vdm evaluate --workdir=runs/imagenet32 --split=test

Two sets go by this name, resampled in different ways, and their bits per dimension differ by
about 0.25 for the same model: they never belong in one column. Results name the set.

    --config.data.name=downsampled_imagenet/32x32   van den Oord et al. 2016: the paper's, default
    --config.data.name=imagenet_resized/32x32       Chrabaszcz et al. 2017: newer, anti-aliased

Both are prepared once by tensorflow-datasets; where one is not there, the first
command says how. Neither has a split `test`: the one called so here is their `validation`, as in
the literature. In memory either takes 3.7 GiB.

Hardware and time: several accelerators, 10 M steps of 128 images. Not measured here.
Expected, as published and not measured here: 3.72 bits per dimension on the split
`validation` of downsampled_imagenet/32x32. For imagenet_resized/32x32 the paper has no figure.

Two steps of a small form, on noise and in a minute:

    python -c "import numpy as n; n.save('noise', n.random.randint(0, 256, (40, 32, 32, 3), 'u1'))"
    vdm train --config=experiments/imagenet32.py --workdir=runs/small --config.train.num_steps=2 \
        --config.train.batch_size=4 --config.model.network.channels=8 \
        --config.model.network.num_blocks=1 --config.model.network.num_groups=4 \
        --config.data.name=arrays --config.data.path=noise.npy

Settings and parameters are those of the authors' code: 122,136,581, where it has 122,137,605; the
1,024 and the other differences are those that experiments/cifar10.py tells.
"""

from ml_collections import ConfigDict

from vdm.run.config import neighbour


def get_config() -> ConfigDict:
    """Return the config."""
    config = neighbour(__file__, "cifar10.py")
    config.data.name = "downsampled_imagenet/32x32"
    config.model.network.channels = 256
    return config
