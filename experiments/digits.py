from ml_collections import ConfigDict, config_dict

from vdm.run.config import default_values


def get_config() -> ConfigDict:
    config = default_values()
    config.data = ConfigDict({"name": "digits"})
    config.model = ConfigDict(
        {
            "schedule": {"name": "linear", "log_snr_max": 8.0, "log_snr_min": -6.0},
            "network": {
                "name": "unet",
                "channels": 32,
                "num_blocks": 2,
                "num_groups": 8,
                "fourier_exponents": (),
                "dropout": 0.1,
                "num_classes": config_dict.placeholder(int),
            },
            "likelihood": {"name": "discretised", "levels": 17},
            "prediction": "eps",
        }
    )
    config.train = ConfigDict(
        {
            "num_steps": 200,
            "batch_size": 64,
            "log_every": 50,
            "checkpoint_every": 100,
            "checkpoints_kept": 2,
        }
    )
    return config
