"""A real time series: the voltage across a nerve cell's membrane, in pieces of 64 samples.

    vdm train    --config=experiments/series.py --workdir=runs/series
    vdm evaluate --workdir=runs/series --split=test
    vdm sample   --workdir=runs/series --trajectory=6
    vdm report   --workdir=runs/series

The recording is an example of matplotlib's, 12,000 samples of one channel; nothing is downloaded.
They are rounded down to steps of 10/4096, about those of its converter. An example [64, 1] holds
these steps, from 0 to 292, so that the bound is what a lossless code of them takes (`vdm
compress`). The last quarter of the recording is the test split, which no piece of training reaches
into. A code that knows nothing takes log2(293) = 8.19 bits a sample.

Hardware and time: two CPU cores, two and a half minutes, and 20 seconds to evaluate.
Expected: 2.81 ± 0.06 bits a sample on the 46 pieces of the test split, 2.65 ± 0.05 on as many of
training. A code of the differences between samples takes 3.16 ± 0.09 (`python
benchmarks/predictor.py --config=experiments/series.py`).
"""

import matplotlib.cbook
import numpy as np
from ml_collections import ConfigDict

from vdm.run.config import default_values

SAMPLES = 64  # of a piece
STRIDE = 2  # between pieces of the training split
FIRST_OF_TEST = 9_000  # of 12,000
STEP = 10 / 4096  # of the converter, in the file's unit
LEVELS = 293


def data(split: str) -> np.ndarray:
    """Return the pieces [n, 64, 1] of a split."""
    with matplotlib.cbook.get_sample_data("membrane.dat") as file:
        steps = np.floor(np.frombuffer(file.read(), np.float32) / STEP).astype(np.int32)
    steps -= steps.min()
    part = steps[:FIRST_OF_TEST] if split == "train" else steps[FIRST_OF_TEST:]
    pieces = np.lib.stride_tricks.sliding_window_view(part, SAMPLES)
    return pieces[:: STRIDE if split == "train" else SAMPLES, :, None]


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_values()
    config.data.name = "series:data"
    config.model.update(
        {
            # λ_max is about 2 log V + 2 for V levels.
            "schedule": {"name": "linear", "log_snr_max": 13.4, "log_snr_min": -6.0},
            "network": {
                "name": "unet",
                "axes": 1,
                "channels": 32,
                "num_blocks": 2,
                "num_groups": 8,
                "attention": "middle",
                # sin and cos of z with periods of 1 and 2 levels, which are 2/293 apart.
                "fourier_exponents": (6.2, 7.2),
                "dropout": 0.0,
            },
            "likelihood": {"name": "discretised", "levels": LEVELS},
            "prediction": "eps",
        }
    )
    config.train.update(num_steps=3000, batch_size=32, log_every=100, checkpoint_every=500)
    config.objective.law = ConfigDict({"name": "sigmoid"})
    config.optimizer.update(learning_rate=3e-3, decay="cosine", ema_decay=0.999)
    return config
