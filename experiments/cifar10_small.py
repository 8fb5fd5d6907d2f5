"""CIFAR-10, 32×32×3 pixels of 256 levels: what a small network learns on one core.

    vdm train    --config=experiments/cifar10_small.py --workdir=runs/cifar10_small
    vdm evaluate --workdir=runs/cifar10_small --split=test
    python benchmarks/curve.py --workdir=runs/cifar10_small --out=docs/pictures/cifar10.png

The set is prepared once by tensorflow-datasets; where it is not there, the
first command says how.

Hardware and time: one CPU core, 38 minutes of processor time; to evaluate takes minutes more.
Expected: 3.570 ± 0.024 bits per dimension on the 10,000 test images (4.550 ± 0.025 with Adam, half
the blocks, no filter and 500 steps of 8, in 80 seconds on two cores). A code that knows nothing
takes 8, one that knows the histogram of each colour channel 7.902.
"""

from ml_collections import ConfigDict

from vdm.run.config import neighbour


def get_config() -> ConfigDict:
    """Return the config."""
    config = neighbour(__file__, "mnist.py")
    config.data.name = "cifar10"
    config.model.network.update(num_blocks=2, wiener="stationary")
    # Of equal work, batches of 4 get further than of 8.
    config.train.update(num_steps=9000, batch_size=4, checkpoint_every=1000)
    config.optimizer.learning_rate = 1.5e-2
    return config
