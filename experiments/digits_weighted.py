"""Digits trained on a weighted loss, sigmoid(−λ), and still measured by the bound.

    vdm train    --config=experiments/digits_weighted.py --workdir=runs/digits_weighted
    vdm evaluate --workdir=runs/digits_weighted --split=test

Everything but the weighting is that of experiments/digits.py. The weight leaves out the
finest details (Kingma & Gao 2023), which samples can do without and the bound cannot: this
is the way to a picture, not to bits. The weighted loss is logged as `objective`, the bound
as `loss`. Other weights: simple, v, edm, edm_monotone, min_snr, p2 (see vdm/weightings.py).

With 1,000 steps of 16 under even times, three seeds: 2.848 ± 0.021 bits per dimension,
where the bound itself reaches 2.094 ± 0.010 (benchmarks/README.md). This form: not measured.
"""

from ml_collections import ConfigDict

from vdm.run.config import neighbour


def get_config() -> ConfigDict:
    """Return the config."""
    config = neighbour(__file__, "digits.py")
    config.objective.weighting = ConfigDict({"name": "sigmoid", "bias": 0.0})
    config.objective.law = ConfigDict({"name": "adaptive"})
    config.objective.draw = "stratified"
    return config
