"""A run with the diffusion transformer, from its config to a program without this package."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import runs
import vdm.run
from vdm.networks import DiT
from vdm.run import cli, config as configs
from vdm.run.training import layout

pytestmark = [pytest.mark.float32, pytest.mark.usefixtures("unchecked")]
# As JSON has it.
TINY = runs.DIT | {"patch": [4, 2], "padding": ["zero", "wrap"]}


def test_a_run_is_trained_loaded_sampled_and_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = runs.write_config_file(tmp_path / "dit.py", runs.images(TINY))
    assert cli.main(["train", f"--config={file}", "--workdir=run"]) == 0
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 3
    run = vdm.run.load(tmp_path / "run")
    assert run.model.network == DiT(
        patch=(4, 2),
        channels=8,
        num_blocks=1,
        num_heads=2,
        padding=("zero", "wrap"),
        dropout=0.1,
        log_snr_max=8.0,
        log_snr_min=-6.0,
    )
    assert np.any(run.params["network"]["dense_out"]["kernel"])  # it has learned
    assert cli.main(["export", "--workdir=run", "out"]) == 0
    program = jax.export.deserialize((tmp_path / "out/sample.jax_export").read_bytes())
    samples = program.call(np.uint32(3), np.arange(2, dtype=np.int32))
    np.testing.assert_array_equal(samples, run.sample(2, key=3))


@pytest.mark.parametrize("asked", ["auto", "yes"])
def test_no_device_scans_its_blocks(asked):
    config = runs.images(TINY)
    config = dataclasses.replace(
        config, devices=dataclasses.replace(config.devices, scan_blocks=asked)
    )
    for platform in ("cpu", "gpu", "tpu"):
        assert not layout.scans(config, DiT(), platform)
    assert configs.from_dict(configs.to_dict(config)) == config
