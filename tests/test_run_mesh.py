"""One device, eight, and two processes of four: the same numbers, however the arrays are cut."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from vdm.run import mesh as meshes
from vdm.run.config import DevicesConfig
from vdm.run.errors import UserError

TESTS = pathlib.Path(__file__).parent


def several(out, *arguments, processes=1):
    """Run tests/several.py, in as many processes as asked; returns what process 0 wrote."""
    more = [[]]
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        more = [
            [f"--port={port}", f"--processes={processes}", f"--index={i}"] for i in range(processes)
        ]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(TESTS / "several.py"), str(out), *arguments]
    running = [
        subprocess.Popen(
            command + extra, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for extra in more
    ]
    texts = [process.communicate(timeout=300)[0].decode() for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(texts)
    return np.load(out)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return several(tmp_path_factory.mktemp("alone") / "out.npz", "--devices=1")


@pytest.mark.parametrize(
    ("arguments", "processes"),
    [
        (["--devices=8"], 1),
        (["--devices=8", "--fsdp=4"], 1),
        (["--devices=8", "--fsdp=2", "--parts=4"], 1),
        (["--devices=1", "--dispatch=3"], 1),
        (["--devices=4"], 2),
        (["--devices=4", "--fsdp=8"], 2),
    ],
    ids=["8", "8 fsdp", "8 fsdp, 4 parts", "3 steps a dispatch", "2x4", "2x4 fsdp"],
)
def test_five_steps_are_the_same_on_every_mesh(alone, tmp_path, arguments, processes):
    other = several(tmp_path / "out.npz", *arguments, processes=processes)
    assert int(other["devices"]) == processes * int(arguments[0].removeprefix("--devices="))
    assert (int(other["cut"]) > 0) == any("fsdp" in word for word in arguments)
    assert set(alone) == set(other)
    dropout = "--parts=4" in arguments  # drawn anew for every micro-batch
    for key in alone:
        if key in ("cut", "devices") or dropout:
            continue
        one, two = alone[key], other[key]
        assert one.dtype == np.float64
        np.testing.assert_allclose(two, one, rtol=1e-9, atol=1e-9 * np.abs(one).max(), err_msg=key)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_arrays_are_cut_along_their_largest_axis_that_fits(fsdp):
    mesh = meshes.make(DevicesConfig(fsdp=fsdp))
    shapes = {"kernel": (3, 3, 4, 6), "odd": (3, 5), "bias": (2,), "scalar": ()}
    leaves = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    cut = {
        name: sharding.shard_shape(shapes[name])
        for name, sharding in meshes.of_state(mesh, leaves).items()
    }
    whole = fsdp == 1
    assert cut["kernel"] == ((3, 3, 4, 6) if whole else (3, 3, 4, 3))
    assert cut["odd"] == (3, 5) and cut["scalar"] == ()
    assert cut["bias"] == ((2,) if whole else (1,))


def test_a_batch_is_put_together_from_each_devices_rows():
    mesh = meshes.make(DevicesConfig(fsdp=2))
    rows = np.arange(12).reshape(6, 2)
    asked = []

    def take(where):
        asked.append(where.tolist())
        return rows[where]

    batch = meshes.batch(mesh, 6, take)
    np.testing.assert_array_equal(batch, rows)
    assert sorted(asked) == [[0, 1, 2], [3, 4, 5]]
    assert {shard.data.shape for shard in batch.addressable_shards} == {(3, 2)}


def test_what_does_not_divide_is_refused():
    with pytest.raises(UserError, match="devices.fsdp is 3, which does not divide the 2 devices"):
        meshes.make(DevicesConfig(fsdp=3))
    mesh = meshes.make(DevicesConfig())
    meshes.check_batch(mesh, 6, 3)
    with pytest.raises(UserError, match="batch_size is 6, not a multiple of 2 devices times 2"):
        meshes.check_batch(mesh, 6, 2)
