"""Training steps as they are compiled for TPU slices, on a machine that has none.

Wherever the compiler is: `make test` puts it into .venv/aot, TPU_LIBRARY_PATH names another one.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import runs
from vdm.run import cli

LIBRARY = os.environ.get("TPU_LIBRARY_PATH", f"{sys.prefix}/aot/libtpu/libtpu.so")
TESTS = pathlib.Path(__file__).parents[2]

pytestmark = [
    pytest.mark.float32,
    pytest.mark.skipif(
        not pathlib.Path(LIBRARY).is_file(),
        reason="the compiler for TPUs (libtpu) is not installed",
    ),
]

BF16 = {"model.network.dtype": "bfloat16"}
CASES = {
    "unrolled": ("v5e:2x2", {**BF16, "devices.scan_blocks": "no"}),
    "bfloat16": ("v5e:2x2", BF16),
    "fsdp": ("v5e:4x4", {**BF16, "devices.fsdp": 4}),
    "fsdp over all": ("v5e:4x4", {**BF16, "devices.fsdp": 16, "model.network.remat": True}),
    "micro-batches": ("v5e:2x2", {**BF16, "train.accumulation_steps": 4}),
    "several steps": ("v5e:2x2", {"devices.steps_per_dispatch": 5}),
    "256 chips": ("v5e:16x16", {**BF16, "train.batch_size": 4096}),
}


@pytest.fixture(scope="module")
def steps():
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    left_out = ("XLA_FLAGS", "JAX_ENABLE_X64")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    found = subprocess.run(
        [sys.executable, str(TESTS / "tpu_steps.py"), json.dumps(list(CASES.values()))],
        env={**kept, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "TPU_LIBRARY_PATH": LIBRARY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    return dict(zip(CASES, json.loads(found.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_state_is_donated_and_no_example_leaves_its_device(steps, case):
    step = steps[case]
    assert step["donated"] > 0.95
    assert set(step["collectives"]) <= {"all-reduce", "all-gather", "reduce-scatter"}
    # An image is 3 kB and its activations 32 kB at each layer: a batch of them would be seen.
    gathered = step["collectives"].get("all-gather", [0, 0])[1]
    assert gathered <= 4 * step["parameters"] + 64 * 64
    assert step["slices"] == 0  # every convolution has all of its channels


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_summed_in_float32_and_each_once(steps, case):
    step = steps[case]
    times = CASES[case][1].get("devices.steps_per_dispatch", 1)
    scattered = step["collectives"].get("reduce-scatter", [0, 0])[1] / times
    summed = step["collectives"]["all-reduce"][1] / times
    assert step["dtypes"]["all-reduce"] == ["f32"]
    assert step["dtypes"].get("reduce-scatter", ["f32"]) == ["f32"]
    fsdp = CASES[case][1].get("devices.fsdp", 1)
    # Some numbers for each example, and the metrics.
    small = 24 * CASES[case][1].get("train.batch_size", 64) + 256
    if fsdp == 1:
        assert scattered == 0
        assert 4 * step["parameters"] <= summed <= 4 * step["parameters"] + small
        assert step["collectives"]["all-reduce"][0] <= 2 * times
    else:  # scattered first, and what is left of each summed over the copies
        assert scattered + summed <= 4 * step["parameters"] * (1 + 1 / fsdp) * 1.05
        # Small parts are summed whole: the compiler's choice, for all where fsdp is 16.
        assert fsdp == 16 or scattered > 2 * step["kernels"]


def test_parameters_are_gathered_once_in_the_precision_they_are_used_in(steps):
    for case in ("fsdp", "fsdp over all"):
        step = steps[case]
        vectors = step["parameters"] - step["kernels"]
        assert step["collectives"]["all-gather"][1] <= 2.05 * step["kernels"] + 4 * vectors
    assert "all-gather" not in steps["bfloat16"]["collectives"]


def test_a_batch_in_pieces_is_communicated_as_one_that_is_not(steps):
    whole, pieces = steps["bfloat16"], steps["micro-batches"]
    once = whole["collectives"]["all-reduce"]
    assert pieces["collectives"]["all-reduce"] == pytest.approx(once, abs=24 * 64)
    assert pieces["collectives"]["all-reduce"][0] <= 2
    assert pieces["work"] < whole["work"]


def test_fsdp_divides_what_a_device_holds(steps):
    assert steps["fsdp"]["held"] < 0.35 * steps["bfloat16"]["held"]
    assert steps["fsdp over all"]["held"] < 0.5 * steps["fsdp"]["held"]


def test_the_counts_are_those_of_the_compiler(steps):
    """Where there are no loops, of which it counts one round."""
    assert steps["unrolled"]["flops"] == pytest.approx(1.0, abs=0.12)
    assert steps["unrolled"]["seconds"] > 0
    assert steps["several steps"]["seconds"] is None


def test_the_command_says_what_a_slice_would_take(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TPU_LIBRARY_PATH", LIBRARY)
    path = runs.write_config_file(tmp_path / "points.py", runs.points(batch_size=64))
    command = ["train", f"--config={path}", f"--workdir={tmp_path}/new", "--dry_run"]
    assert cli.main([*command, "--topology=v5e:2x2"]) == 0
    said = capsys.readouterr().out
    assert "4 × TPU v5 lite" in said and "of 16.0 GB" in said and "all-reduce in a step" in said
    assert cli.main([*command, "--topology=v5e:3x5"]) == cli.EXIT_USER_ERROR
    assert "v5e:3x5" in capsys.readouterr().err
