"""One device, eight, and two processes of four: the same numbers, however the arrays are cut."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import runs
from vdm.run import mesh as meshes
from vdm.run.config import DevicesConfig
from vdm.run.errors import UserError

TESTS = pathlib.Path(__file__).parents[2]


def several(out, processes=1):
    """Run tests/several.py, in as many processes as asked; returns what the first one wrote."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(TESTS / "several.py"), str(out), f"--processes={processes}"]
    running = [
        subprocess.Popen(
            [*command, f"--port={port}", f"--index={index}"],
            env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for index in range(processes)
    ]
    texts = [process.communicate(timeout=600)[0].decode() for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(texts)
    return np.load(out)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return several(tmp_path_factory.mktemp("one") / "out.npz")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return several(tmp_path_factory.mktemp("two") / "out.npz", processes=2)


def of(found, mesh, precision):
    prefix = f"{mesh} {precision} "
    return {key.removeprefix(prefix): found[key] for key in found if key.startswith(prefix)}


@pytest.mark.parametrize("processes", ["one_process", "two_processes"])
def test_five_steps_are_the_same_when_everything_is_cut(request, one_process, processes):
    one = of(one_process, "one", "float64")
    other = of(request.getfixturevalue(processes), "everything", "float64")
    assert one.keys() == other.keys() and one["loss"].shape == (5,)
    assert int(other.pop("cut")) > 0 and int(one.pop("cut")) == 0
    for key, value in other.items():
        assert value.dtype in (np.float64, np.int32)
        scale = np.abs(one[key]).max()
        np.testing.assert_allclose(value, one[key], rtol=0, atol=1e-9 * scale, err_msg=key)


def test_loss_and_gradient_of_a_unet_are_the_same_cut_over_devices(one_process):
    one, other = (of(one_process, mesh, "unet") for mesh in ("one", "fsdp"))
    assert one.keys() == other.keys() and len(one) > 15
    sizes = {key: np.abs(value).max() for key, value in one.items() if key.startswith("[")}
    largest = max(sizes.values())
    assert np.mean([size > 1e-3 * largest for size in sizes.values()]) > 0.7
    for key, value in other.items():
        assert value.dtype == np.float32
        # Of a leaf whose gradient is zero but for rounding there is no relative error.
        scale = max(np.abs(one[key]).max(), 1e-3 * largest)
        # Rounding alone: 1.2e-5 by the older code generator (conftest.py), 3.1e-6 by the newer.
        np.testing.assert_allclose(value, one[key], rtol=0, atol=4e-5 * scale, err_msg=key)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_large_arrays_are_cut_along_their_largest_axis_that_fits(fsdp):
    mesh = meshes.make(DevicesConfig(fsdp=fsdp))
    shapes = {"kernel": (3, 3, 40, 60), "odd": (85, 55), "bias": (4094,), "long": (4096,)}
    leaves = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    cut = {
        name: leaf.sharding.shard_shape(shapes[name])
        for name, leaf in meshes.of_state(mesh, leaves).items()
    }
    whole = fsdp == 1
    assert cut["kernel"] == ((3, 3, 40, 60) if whole else (3, 3, 40, 30))
    assert cut["odd"] == (85, 55) and cut["bias"] == (4094,)
    assert cut["long"] == ((4096,) if whole else (2048,))


def test_a_batch_is_put_together_from_each_devices_rows():
    mesh = meshes.make(DevicesConfig(fsdp=2))
    here = meshes.rows_here(mesh, 6)
    np.testing.assert_array_equal(here, np.arange(6))
    rows = np.arange(12).reshape(6, 2)
    batch = meshes.put(mesh, 6, here, rows)
    np.testing.assert_array_equal(batch, rows)
    assert {shard.data.shape for shard in batch.addressable_shards} == {(3, 2)}
    with pytest.raises(ValueError, match="this process must provide 6 rows: got 5"):
        meshes.put(mesh, 6, here, rows[:5])


def config(fsdp=1, **train):
    return dataclasses.replace(runs.points(**train), devices=DevicesConfig(fsdp=fsdp))


def test_what_does_not_divide_is_refused():
    with pytest.raises(
        UserError, match=r"devices.fsdp is 3, which does not divide the number of devices, 2"
    ):
        meshes.for_training(config(fsdp=3))
    with pytest.raises(UserError, match=r"batch_size is 5, not a multiple of 2 devices$"):
        meshes.for_training(config(batch_size=5))
    assert meshes.for_training(config(batch_size=6)).size == 2
    with pytest.raises(UserError, match="batch_size is 6, not a multiple of 2 devices times 2"):
        meshes.for_training(config(batch_size=6, accumulation_steps=2))


def test_results_take_what_devices_there_are():
    assert dict(meshes.for_results(config(fsdp=3)).shape) == {"data": 2, "fsdp": 1}
    assert dict(meshes.for_results(config(fsdp=4)).shape) == {"data": 1, "fsdp": 2}
