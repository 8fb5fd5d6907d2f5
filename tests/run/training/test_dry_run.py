"""A dry run: what a run would take, told without running it."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest

import runs
from vdm.run import cli, dry_run, train, trained
from vdm.run.config import DevicesConfig
from vdm.run.training import parts

pytestmark = pytest.mark.float32


def described(config):
    return dict(dry_run.describe(parts.prepare(config)))


def test_it_tells_parameters_work_and_memory():
    config = runs.points(batch_size=64, num_steps=1000)
    config.model.network.update(width=256)
    made = parts.prepare(config)
    lines = described(config)
    params = jax.eval_shape(made.trainer.model.init, jax.random.key(0), np.zeros((1, 2), "f4"))
    sizes = {key: sum(math.prod(p.shape) for p in jax.tree.leaves(params[key])) for key in params}
    assert lines["parameters of the network"] == f"{sizes['network']:,}"
    assert lines["parameters of the schedule"] == str(sizes["schedule"]) == "0"
    assert lines["training"] == "1,000 steps of 64 examples"
    assert lines["mesh"] == "data 2, fsdp 1: 2 × cpu in 1 process(es)"
    # Parameters, their average, two moments: float32 each, and two or three counters.
    total = float(lines["state, all devices together"].split()[0])
    assert total == pytest.approx(4 * 4 * sizes["network"] / 1e6, abs=0.1)
    assert lines["state, one device"] == lines["state, all devices together"]
    # Forward, gradient by the weights, gradient by the inputs: a product and a sum each.
    flops = 3 * 2 * 64 * sizes["network"]
    assert float(lines["FLOPs per step"]) == pytest.approx(flops, rel=0.1)
    assert "state" in lines["memory of a step, one device"]
    assert lines["bytes moved in a step, one device"].endswith("B")


def test_fsdp_spares_memory():
    config = runs.points(batch_size=64)
    config.model.network.update(width=256)
    cut = dataclasses.replace(config, devices=DevicesConfig(fsdp=2))
    whole, halved = described(config), described(cut)
    sizes = [float(lines["state, one device"].split()[0]) for lines in (whole, halved)]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)
    assert whole["state, all devices together"] == halved["state, all devices together"]


def test_the_command_prints_it_and_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "train", None)
    path = runs.write_config_file(tmp_path / "points.py", runs.points())
    workdir = tmp_path / "new"
    assert cli.main(["train", f"--config={path}", f"--workdir={workdir}", "--dry_run"]) == 0
    assert "FLOPs per step" in capsys.readouterr().out
    assert not workdir.exists()


def test_a_mistake_is_found_by_a_dry_run_too(tmp_path, capsys):
    path = runs.write_config_file(tmp_path / "points.py", runs.points())
    command = ["train", f"--config={path}", f"--workdir={tmp_path}", "--dry_run"]
    assert cli.main([*command, "--config.devices.fsdp=3"]) == cli.EXIT_USER_ERROR
    assert capsys.readouterr().err.startswith("vdm: devices.fsdp is 3, which does not divide")


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_results_are_described_without_being_computed(command, tmp_path, capsys, monkeypatch):
    workdir = runs.copy_of("points", tmp_path / "run")
    before = sorted(path.name for path in workdir.iterdir())
    words = [command, f"--workdir={workdir}", "--dry_run", "--batch_size=7"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "8 noise levels" in said if command == "evaluate" else "8 samples by 5 steps" in said
    assert "2 × cpu" in said and "memory of a call, one device" in said
    # Of 2 inputs, 16 units and one block: the embedding of λ, three dense layers, two to λ's.
    flops = re.search(r"once *│ ([^ ]*) ", said)
    params = sum(leaf.size for leaf in jax.tree.leaves(trained.load(workdir).params["network"]))
    assert float(flops[1]) == pytest.approx(2 * 8 * params, rel=0.15)
    assert sorted(path.name for path in workdir.iterdir()) == before
    assert cli.main([f"{command}", f"--workdir={workdir}", "--topology=v5e:2x2"]) == 2
    assert "--topology goes with --dry_run" in capsys.readouterr().err
