"""A real volume: pieces of 16×16×16 voxels of an MRI image of the human brain.

    pip install nilearn
    vdm train    --config=experiments/brain.py --workdir=runs/brain
    vdm evaluate --workdir=runs/brain
    vdm sample   --workdir=runs/brain --num=8
    vdm report   --workdir=runs/brain

The image is the MNI152 template (T1, 1 mm, 197×233×189 voxels of 256 levels), which nilearn
carries; nothing is downloaded. The template is symmetric: only its left half is taken. The pieces
lie within the brain. The test split is the front, which no piece of training reaches into.

Hardware and time: one CPU core, three and a half minutes, and as long to evaluate.
Expected: 3.326 ± 0.067 bits a voxel on the 52 pieces of the test split, 3.399 ± 0.068 on as many of
training. A code that predicts each voxel from its neighbours in the slice takes 4.240 ± 0.068
(`python benchmarks/predictor.py --config=experiments/brain.py`).
"""

import importlib.util

import numpy as np
from ml_collections import ConfigDict

from vdm.run.config import default_values

VOXELS = 16  # of a piece, an edge
STRIDE = 8  # between pieces of the training split
HALF = 98  # of 197 planes from left to right, of which the middle one is left out
FIRST_OF_TEST = 128  # of 233 planes from back to front
INSIDE = 0.9  # share of a piece that must belong to the brain


def data(split: str) -> np.ndarray:
    """Return the pieces [n, 16, 16, 16, 1] of a split."""
    if importlib.util.find_spec("nilearn") is None:
        raise ImportError("the image is in the package nilearn: pip install nilearn")
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1).get_fdata()  # between 0 and 1
    image = np.round(255 * image[:HALF]).astype(np.uint8)
    planes = slice(0, FIRST_OF_TEST) if split == "train" else slice(FIRST_OF_TEST, None)
    windows = np.lib.stride_tricks.sliding_window_view(image[:, planes], (VOXELS,) * 3)
    stride = STRIDE if split == "train" else VOXELS
    pieces = windows[::stride, ::stride, ::stride].reshape(-1, *(VOXELS,) * 3)
    return pieces[(pieces > 0).mean((1, 2, 3)) > INSIDE][..., None]


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_values()
    config.data.name = "brain:data"
    config.model.update(
        {
            # The ends of the VDM paper, for 256 levels.
            "schedule": {"name": "linear", "log_snr_max": 13.3, "log_snr_min": -5.0},
            "network": {
                "name": "unet",
                "axes": 3,
                "channels": 16,
                "num_blocks": 1,
                "num_groups": 4,
                "attention": "none",
                "fourier_exponents": (6, 7),
                "dropout": 0.0,
            },
            "likelihood": {"name": "discretised", "levels": 256},
            "prediction": "eps",
        }
    )
    config.train.update(num_steps=600, batch_size=4, log_every=20, checkpoint_every=100)
    config.objective.law = ConfigDict({"name": "sigmoid"})
    config.optimizer.learning_rate = 5e-3
    config.optimizer.decay = "cosine"
    config.optimizer.ema_decay = 0.99
    return config
