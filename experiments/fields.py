"""Images or fields of your own in 256 levels: a U-Net small enough for two CPU cores.

    vdm train    --config=experiments/fields.py --workdir=runs/fields
    vdm evaluate --workdir=runs/fields --split=test
    vdm sample   --workdir=runs/fields

The data are integers from 0 to 255, examples along the first axis, in `fields.npz` as `x`, of shape
[n, height, width, channels]; `--config.data.path=...` names another file, and
`--config.data.name=images` a folder of images. A tenth is held out. For another number of levels V
set `--config.model.likelihood.levels`, and λ_max to about 2 log V + 2.

Hardware and time: two CPU cores, 540 fields of 16×16: 3 minutes of processor time, 3 to 10 minutes;
evaluation half a minute. What to expect depends on your data: vdm train prints the loss.
A code that knows nothing takes log2(256) = 8.
"""

from ml_collections import ConfigDict

from vdm.run.config import default_values


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_values()
    config.data.update(name="arrays", path="fields.npz")
    config.model.update(
        {
            # The ends of the VDM paper, for 256 levels.
            "schedule": {"name": "linear", "log_snr_max": 13.3, "log_snr_min": -5.0},
            "network": {
                "name": "unet",
                "channels": 32,
                "num_blocks": 1,
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
    # Of equal work, small batches get further in so short a time.
    config.train.update(num_steps=3000, batch_size=8, log_every=100, checkpoint_every=500)
    config.train.sample_every = 1000
    config.objective.law = ConfigDict({"name": "sigmoid"})
    config.optimizer.learning_rate = 5e-3
    config.optimizer.decay = "cosine"
    config.optimizer.ema_decay = 0.999
    return config
