"""Real fields with parameters: heights of a mountainside, given where they are and how high.

    vdm train    --config=experiments/relief.py --workdir=runs/relief
    vdm evaluate --workdir=runs/relief
    vdm sample   --workdir=runs/relief --cond=-84.2,36.6,300
    vdm report   --workdir=runs/relief

The map is a sample of matplotlib, 344×403 cells of whole metres near Jacksboro, Tennessee, cut into
pieces of 16×16. An example is how many metres its cells are above the lowest of them; its condition
is a vector of three numbers: longitude and latitude of its middle, and the height of the lowest
cell. A strip of the map from north to south is the test split, which no piece of training reaches
into.

Hardware and time: two CPU cores, two and a half minutes, and 20 seconds to evaluate.
Expected: 4.868 ± 0.018 bits a cell on the 84 pieces of the test split, 4.825 ± 0.028 on as many of
training. A code that predicts each cell from its neighbours and knows no place takes 5.516 ± 0.038
(`python benchmarks/predictor.py --config=experiments/relief.py`).
"""

import matplotlib.cbook
import numpy as np
from ml_collections import ConfigDict

from vdm.run.config import default_values

CELLS = 16  # of a piece, a side
STRIDE = 4  # between pieces of the training split
# Of 403 columns. The test split lies between the parts of training, and so do its conditions.
TRAINING, TEST = (slice(0, 160), slice(224, 403)), (slice(160, 224),)
LEVELS = 600  # the largest range of a piece is 565 metres


def data(split: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the pieces [n, 16, 16, 1] of a split, and their conditions [n, 3]."""
    with matplotlib.cbook.get_sample_data("jacksboro_fault_dem.npz") as file:
        heights, step = file["elevation"].astype(np.int32), float(file["dx"])
        west, north = float(file["xmin"]), float(file["ymin"])  # the file's y runs downwards
    stride, strips = (STRIDE, TRAINING) if split == "train" else (CELLS, TEST)
    rows, columns = np.indices(heights.shape)
    x, row, column = (
        np.concatenate([_pieces(array[:, strip], stride) for strip in strips])
        for array in (heights, rows, columns)
    )
    lowest = x.min((1, 2))
    place = (west + step * column.mean((1, 2)), north - step * row.mean((1, 2)))
    return (x - lowest[:, None, None])[..., None], {"cond": np.stack([*place, lowest], axis=1)}


def _pieces(array: np.ndarray, stride: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(array, (CELLS, CELLS))
    return windows[::stride, ::stride].reshape(-1, CELLS, CELLS)


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_values()
    config.data.name = "relief:data"
    config.model.update(
        {
            # λ_max is about 2 log V + 2 for V levels.
            "schedule": {"name": "linear", "log_snr_max": 14.8, "log_snr_min": -6.0},
            "network": {
                "name": "unet",
                "channels": 32,
                "num_blocks": 1,
                "num_groups": 8,
                "attention": "none",
                # Periods of 1, 2 and 4 levels, which are 2/600 apart.
                "fourier_exponents": (6.2, 7.2, 8.2),
                "dropout": 0.0,
                "cond_dim": 3,
                "optional_cond": True,
            },
            "likelihood": {"name": "discretised", "levels": LEVELS},
            "prediction": "eps",
        }
    )
    config.train.update(num_steps=3000, batch_size=8, log_every=100, checkpoint_every=500)
    config.train.cond_dropout = 0.1
    config.objective.law = ConfigDict({"name": "sigmoid"})
    config.optimizer.learning_rate = 5e-3
    config.optimizer.decay = "cosine"
    config.optimizer.ema_decay = 0.999
    return config
