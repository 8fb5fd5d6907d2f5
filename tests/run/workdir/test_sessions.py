"""What a run was computed with, over turns that end well, are killed or take up again."""

import importlib.metadata
import json
import platform
import time

import jax
import pytest

from vdm.run import mesh
from vdm.run.config import DevicesConfig
from vdm.run.errors import UserError
from vdm.run.workdir import sessions


def records(workdir):
    return json.loads((workdir / sessions.SESSIONS_FILE).read_text())


@pytest.fixture(scope="module")
def two():
    return mesh.make(DevicesConfig(), jax.devices()[:2])


def test_a_turn_that_is_killed_is_kept_as_far_as_it_was_saved(tmp_path, two):
    started = time.perf_counter() - 100.0
    first = sessions.Session(tmp_path, two, 0, started)
    first.reached(10)
    (one,) = records(tmp_path)
    assert (one["from_step"], one["to_step"]) == (0, 10)
    assert 100.0 <= one["seconds"] <= time.perf_counter() - started
    # Killed here, and begun again from the checkpoint before.
    second = sessions.Session(tmp_path, two, 5, time.perf_counter())
    assert [(r["from_step"], r["to_step"]) for r in records(tmp_path)] == [(0, 10), (5, 5)]
    second.reached(20)
    assert records(tmp_path)[0] == one and records(tmp_path)[1]["to_step"] == 20
    assert records(tmp_path)[1]["seconds"] < 100.0
    assert [path.name for path in tmp_path.iterdir()] == [sessions.SESSIONS_FILE]


def test_versions_and_hardware_are_those_of_this_process(tmp_path, two):
    made = sessions.made_with(two)
    assert made.versions["python"] == platform.python_version()
    for name in ("jax", "jaxlib", "flax", "optax", "numpy"):
        assert made.versions[name] == importlib.metadata.version(name)
    hardware = made.hardware
    assert hardware.platform == jax.devices()[0].platform
    assert (hardware.num_devices, hardware.num_processes) == (2, 1)


def test_the_processor_is_named_as_the_system_names_it(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name\t: Some: CPU @ 3 GHz\nmodel name\t: other\n")
    monkeypatch.setattr(sessions, "CPU_NAMES", file)
    assert sessions.processor() == "Some: CPU @ 3 GHz"
    file.write_text("Features : fp\n")  # as ARM has it
    assert sessions.processor() in (platform.processor(), platform.machine()) != ""


@pytest.mark.parametrize("text", ["[", "{}", '[{"began": 3}]'])
def test_a_damaged_file_is_set_aside(tmp_path, two, text, capsys):
    (tmp_path / sessions.SESSIONS_FILE).write_text(text)
    with pytest.raises(UserError):
        sessions.read(tmp_path)
    sessions.Session(tmp_path, two, 0, 0.0).reached(4)
    assert "it is now sessions_damaged.json" in capsys.readouterr().err
    assert (tmp_path / "sessions_damaged.json").read_text() == text
    assert [record.to_step for record in sessions.read(tmp_path)] == [4]
