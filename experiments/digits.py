"""Real handwritten digits, 8×8 pixels of 17 grey levels: the smallest real likelihood.

    vdm train    --config=experiments/digits.py --workdir=runs/digits
    vdm evaluate --workdir=runs/digits --split=test --num_steps=10,100,1000,inf
    vdm sample   --workdir=runs/digits

Hardware and time: two CPU cores, 4 to 16 minutes.
Expected: 1.71 ± 0.01 bits per dimension on the 297 test images (the train subset: 1.67);
at T = 1000, 100 and 10: 1.72, 1.84 and 3.70.
What limits it is the number of training images: the gap to the train subset grows.
A code that knows nothing takes log2(17) = 4.09, a per-pixel histogram 2.43.

`make demo` trains a smaller form for a shorter time. The class-conditional form is
experiments/digits_conditional.py.
"""

import math

from ml_collections import ConfigDict

from vdm.run.config import default_values

# sin and cos of z with periods of 1, 2 and 4 grey levels, which are 2/17 apart.
GREY_LEVEL = math.log2(17 / 2)


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_values()
    config.data.name = "digits"
    config.model.update(
        {
            # λ_max: at 8 the decoder costs 0.004 bpd for 17 levels. λ_min: at -6 the prior
            # costs 0.001.
            "schedule": {"name": "linear", "log_snr_max": 8.0, "log_snr_min": -6.0},
            "network": {
                "name": "unet",
                "channels": 32,
                "num_blocks": 2,
                "num_groups": 8,
                "attention": "middle",
                "fourier_exponents": (GREY_LEVEL - 2, GREY_LEVEL - 1, GREY_LEVEL),
                "dropout": 0.05,
            },
            "likelihood": {"name": "discretised", "levels": 17},
            "prediction": "eps",
        }
    )
    config.train.update(num_steps=10_000, batch_size=32, log_every=200, checkpoint_every=1000)
    config.optimizer.learning_rate = 5e-3
    config.optimizer.decay = "cosine"
    config.optimizer.ema_decay = 0.999
    return config
