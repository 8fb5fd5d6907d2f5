"""MNIST, 28×28 pixels of 256 grey levels: the U-Net of experiments/fields.py.

    vdm train    --config=experiments/mnist.py --workdir=runs/mnist
    vdm evaluate --workdir=runs/mnist --split=test
    vdm sample   --workdir=runs/mnist

The set is prepared once by tensorflow-datasets; where it is not there, the
first command says how.

Hardware and time: one CPU core, 25 minutes of processor time beside other work.
Expected: 1.075 ± 0.005 bits per dimension on the 10,000 test images (1.077 ± 0.005 with Adam, no
filter and twice the steps).
A code that knows nothing takes log2(256) = 8.

Two steps of a small form, on noise and in a minute:

    python -c "import numpy as n; n.save('noise', n.random.randint(0, 256, (40, 28, 28, 1), 'u1'))"
    vdm train --config=experiments/mnist.py --workdir=runs/small --config.train.num_steps=2 \
        --config.train.batch_size=4 --config.model.network.channels=8 \
        --config.model.network.num_groups=4 --config.model.network.wiener=stationary \
        --config.data.name=arrays --config.data.path=noise.npy
"""

from ml_collections import ConfigDict

from vdm.run.config import neighbour


def get_config() -> ConfigDict:
    """Return the config."""
    config = neighbour(__file__, "fields.py")
    config.data.update(name="mnist", path="")
    config.model.prediction = "v"
    # The network is also given the best linear estimate of x: digits are alike in where they are.
    config.model.network.update(residual=False, wiener="full")
    config.train.update(num_steps=6000, checkpoint_every=1000, sample_every=0)
    # 10,000 images: their number makes the standard error small enough.
    config.evaluate.levels_per_example = 1
    config.optimizer.method = ConfigDict({"name": "muon"})
    config.optimizer.update(learning_rate=1e-2, warmup_steps=20, b2=0.95)
    return config
