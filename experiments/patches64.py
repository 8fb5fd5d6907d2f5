"""Photographs in patches of 64×64 RGB pixels: a U-Net that goes down to coarser resolutions.

    vdm train    --config=experiments/patches64.py --workdir=runs/patches64
    vdm evaluate --workdir=runs/patches64 --split=test
    vdm sample   --workdir=runs/patches64 --num=16
    vdm report   --workdir=runs/patches64

The two photographs of scikit-learn, 427×640 pixels each, are cut up; nothing is downloaded. The
test split is the right-hand fifth of both, which no patch of training reaches into. Blocks at the
full resolution stand at both ends of the network, since the bound is about single pixels; those at
coarser resolutions see far for little work. A code that knows nothing takes 8 bits per dimension.

Hardware and time: two CPU cores, ten minutes, and one and a half to evaluate.
Expected: 2.94 ± 0.28 bits per dimension on the 24 patches of the test split, 3.01 ± 0.27 on as many
of training. A code that predicts each number from its neighbours takes 3.95 ± 0.47 (`python
benchmarks/predictor.py --config=experiments/patches64.py`). Two photographs teach a model little
about others.
"""

import numpy as np
from ml_collections import ConfigDict
from sklearn.datasets import load_sample_images

from vdm.run.config import default_values

PIXELS = 64  # of a patch, a side
STRIDE = 8  # between patches of the training split
FIRST_OF_TEST = 512  # of 640 columns


def data(split: str) -> np.ndarray:
    """Return the patches [n, 64, 64, 3] of a split."""
    columns = slice(0, FIRST_OF_TEST) if split == "train" else slice(FIRST_OF_TEST, None)
    stride = STRIDE if split == "train" else PIXELS
    parts = []
    for image in load_sample_images().images:
        windows = np.lib.stride_tricks.sliding_window_view(
            image[:, columns], (PIXELS, PIXELS), axis=(0, 1)
        )
        parts.append(np.moveaxis(windows[::stride, ::stride], 2, -1).reshape(-1, PIXELS, PIXELS, 3))
    return np.concatenate(parts)


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_values()
    config.data.name = "patches64:data"
    config.model.update(
        {
            # The ends of the VDM paper, for 256 levels.
            "schedule": {"name": "linear", "log_snr_max": 13.3, "log_snr_min": -5.0},
            "network": {
                "name": "unet",
                "channels": 32,
                "num_blocks": 1,
                "levels": (1, 1),
                "num_groups": 8,
                "attention": "none",
                # sin and cos of z with periods of 1 and 2 levels, which are 2/256 apart.
                "fourier_exponents": (6, 7),
                "dropout": 0.0,
            },
            "likelihood": {"name": "discretised", "levels": 256},
            "prediction": "eps",
        }
    )
    config.train.update(num_steps=2000, batch_size=4, log_every=50, checkpoint_every=500)
    config.objective.law = ConfigDict({"name": "sigmoid"})
    config.optimizer.update(learning_rate=3e-3, decay="cosine", ema_decay=0.999)
    return config
