"""Checkpoints: a damaged one is passed over, and a place that cannot take them is refused."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import runs
from vdm.run import cli, data, train, trained
from vdm.run.config import DataConfig
from vdm.run.errors import UserError
from vdm.run.system import disk
from vdm.run.training import build, program
from vdm.run.training.step import Batch, init_state
from vdm.run.workdir import checkpoint
from vdm.run.workdir.checksum import checksum

pytestmark = pytest.mark.float32


def config(**changed):
    return runs.points(**{"num_steps": 4, "checkpoint_every": 1, "log_every": 4, **changed})


def assert_equal_bits(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four steps, with checkpoints after the third and the fourth."""
    workdir = tmp_path_factory.mktemp("whole")
    return train.train(config(), workdir), workdir


@pytest.fixture
def workdir(whole, tmp_path):
    return shutil.copytree(whole[1], tmp_path / "run")


def data_files(step):
    """Return the files that hold the numbers."""
    files = [path for path in step.rglob("*") if path.is_file() and path.parent.name == "d"]
    assert files
    return files


def truncate(step):
    for path in data_files(step):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(step):
    for path in data_files(step):
        path.write_bytes(np.random.RandomState(0).bytes(path.stat().st_size))


def lose_the_numbers(step):
    for path in data_files(step):
        path.unlink()


def lose_the_index(step):
    (step / "state/_METADATA").unlink()


def lose_the_state(step):
    shutil.rmtree(step / "state")


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


DAMAGES = [truncate, garble, lose_the_numbers, lose_the_index, lose_the_state, empty]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, whole, workdir, capsys):
    damage(workdir / "checkpoints/4")
    before = sorted(workdir.rglob("*"))
    assert trained.load(workdir).step == 3
    error = capsys.readouterr().err
    assert "checkpoints/4 is damaged: " in error
    assert (
        error.strip().endswith("; using the checkpoint of step 3 instead")
        and error.count("\n") == 1
    )
    assert sorted(workdir.rglob("*")) == before  # who only reads writes nothing

    assert_equal_bits(train.train(config(), workdir), whole[0])
    assert "using the checkpoint of step 3 instead" in capsys.readouterr().err
    # The step has a good checkpoint again, and the damaged one is not lost.
    assert trained.load(workdir).step == 4
    assert capsys.readouterr().err == ""
    assert [path.name for path in (workdir / "checkpoints_damaged").iterdir()] == ["4"]


def test_numbers_that_can_be_read_but_are_not_those_written(workdir, monkeypatch, capsys):
    def wrong(state):
        return checksum(state) + np.uint32(int(state.step) == 5)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "checksum", wrong)
        train.train(config(num_steps=5), workdir)
    assert trained.load(workdir).step == 4
    assert "checkpoints/5 is damaged" in capsys.readouterr().err


def test_when_no_checkpoint_can_be_read_the_latest_is_named(workdir):
    for step in (3, 4):
        truncate(workdir / f"checkpoints/{step}")
    with pytest.raises(
        UserError, match=r"checkpoints/4 is damaged: .*; there is no other that can be read"
    ):
        train.train(config(), workdir)
    assert not (workdir / "checkpoints_damaged").exists()


def test_a_state_is_restored_to_the_devices_that_are_asked_for(whole):
    state, workdir = whole
    trainer = build.trainer(config())
    batch = Batch(data.load(DataConfig("mixture"), "train").x[:1], None)
    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(lambda: init_state(trainer, batch)),
    )
    restored = checkpoint.load(workdir, template)
    assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(restored))
    assert_equal_bits(restored, state)


@pytest.fixture
def no_step(monkeypatch):
    """Fail if a step is taken."""

    def taken(*arguments, **settings):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(program, "train_step", taken)


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize("place", ["file", "file/below", "run"])
def test_a_workdir_that_cannot_be_written_is_refused_before_the_first_step(place, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("")  # whoever may write anywhere stops at a file
    with pytest.raises(UserError, match="cannot write to"):
        train.train(config(), tmp_path / place)


@pytest.mark.usefixtures("no_step")
def test_a_disk_too_full_for_the_checkpoints_is_refused_before_the_first_step(
    tmp_path, monkeypatch, capsys
):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 2500, 2500))
    path = runs.write_config_file(tmp_path / "config.py", config())
    assert cli.main(["train", f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "has 2.5 kB free, but 3 checkpoints of" in error and error.count("\n") == 1


def test_room_counts_what_old_checkpoints_will_free(tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(3000, 2000, 1000))
    with pytest.raises(UserError, match=r"2 checkpoints of 1\.0 kB"):
        disk.check_room(tmp_path, 1000, 1)
    (tmp_path / "old").write_bytes(bytes(1000))
    disk.check_room(tmp_path, 1000, 1)


def test_the_size_of_a_state_is_that_of_its_arrays():
    tree = {"a": jnp.zeros((3, 5), jnp.float32), "b": (jnp.zeros((), jnp.int8),)}
    assert disk.num_bytes(tree) == 61 == disk.num_bytes(jax.eval_shape(lambda: tree))


LEAVES = {
    "float32": np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4),
    "bfloat16": jnp.linspace(-3, 3, 24, dtype=jnp.bfloat16).reshape(4, 6),
    "int8": np.arange(24, dtype=np.int8),
    "bool": np.arange(24) % 3 == 0,
}


@pytest.mark.parametrize("name", LEAVES)
def test_every_changed_element_changes_the_checksum(name):
    leaf = np.asarray(LEAVES[name])
    before = checksum({"other": np.ones(3), "leaf": leaf})
    for i in range(leaf.size):
        changed = leaf.copy()
        of_bytes = changed.reshape(-1).view(np.uint8).reshape(leaf.size, -1)
        of_bytes[i, -1] ^= 1  # the lowest bit of the highest byte
        assert checksum({"other": np.ones(3), "leaf": changed}) != before


def test_exchanged_elements_change_the_checksum():
    leaf = LEAVES["float32"]
    assert checksum([leaf]) != checksum([leaf[:, ::-1]])
    assert checksum([leaf, leaf + 1]) != checksum([leaf + 1, leaf])


def test_the_checksum_does_not_depend_on_the_layout():
    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    leaf = jnp.asarray(LEAVES["float32"])
    spread = jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("devices")))
    assert len(spread.sharding.device_set) == 2
    assert checksum([spread]) == checksum([leaf])


def test_fields_have_the_names_in_files_that_they_had_in_the_first_release(whole):
    names = ["step", "params", "ema", "opt_state", "levels", "rollbacks"]
    assert list(checkpoint._named(whole[0])) == names
