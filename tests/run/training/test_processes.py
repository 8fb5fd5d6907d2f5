"""Two processes as one run: one of them writes, both end together, and nothing else differs."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import runs
from vdm.run import cli, config as configs, mesh
from vdm.run.config import DevicesConfig
from vdm.run.system import lock
from vdm.run.training import parts, program
from vdm.run.workdir import checkpoint
from vdm.run.workdir.metrics import METRICS_FILE

pytestmark = pytest.mark.float32


# Joins the others, then runs commands one after the other and prints their exit codes.
COMMANDS = """
import json, sys
from vdm.run import cli
from vdm.run.system import processes
address, index, commands = sys.argv[1:]
processes.start(address, 2, int(index))
print(json.dumps([cli.main(command) for command in json.loads(commands)]))
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    config = runs.points(num_steps=100_000, log_every=1, checkpoint_every=10)
    path = runs.write_config_file(tmp_path_factory.mktemp("config") / "points.py", config)
    return [
        "train",
        f"--config={path}",
        "--config.devices.fsdp=4",
        "--config.train.batch_size=48",
        "--config.model.network.width=64",
    ]


def start(command):
    """Start two processes of four devices each; `command` is a function of address and index."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    }
    return [
        subprocess.Popen(
            [sys.executable, *command(address, str(index))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def wait(processes):
    """Return the exit codes, what was printed, and the messages, of each process."""
    texts = [process.communicate(timeout=120) for process in processes]
    codes = [process.returncode for process in processes]
    print(codes, texts)
    return codes, [out for out, _ in texts], [err for _, err in texts]


def records(workdir):
    path = workdir / METRICS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def stopped(arguments, tmp_path_factory):
    """A run of two processes with four devices each that SIGTERM ended: its workdir and step."""
    workdir = tmp_path_factory.mktemp("stopped")

    def command(address, index):
        where = [f"--coordinator={address}", "--num_processes=2", f"--process_index={index}"]
        return ["-m", "vdm", *arguments, f"--workdir={workdir}", *where]

    processes = start(command)
    end = time.monotonic() + 120
    while len(records(workdir)) < 12:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)  # not the one that writes
    codes, printed, texts = wait(processes)
    assert codes == [cli.EXIT_TERMINATED, cli.EXIT_TERMINATED]
    steps = [record["step"] for record in records(workdir)]
    assert steps == list(range(1, len(steps) + 1))
    assert all(f"stopped by SIGTERM at step {steps[-1]}" in text for text in texts)
    assert (workdir / f"checkpoints/{steps[-1]}").is_dir()
    assert "train 1/" in texts[0] and "train 1/" not in texts[1]
    # Gloo's own lines may run into each other.
    assert not any(word in printed[1] for word in ("train", "step", "loss"))
    return workdir, steps[-1]


def test_two_processes_take_the_steps_of_one_and_one_goes_on_from_there(
    stopped, arguments, tmp_path, capsys
):
    workdir, step = shutil.copytree(stopped[0], tmp_path / "run"), stopped[1]
    # Now, and alone, on the two devices of this process.
    more = [*arguments, f"--config.train.num_steps={step + 3}", "--config.devices.fsdp=1"]
    assert cli.main([*more, f"--workdir={tmp_path / 'alone'}"]) == 0
    shorter = json.loads((workdir / "config.json").read_text())
    shorter["train"]["num_steps"] = step
    (workdir / "config.json").write_text(json.dumps(shorter))
    assert cli.main([*more, f"--workdir={workdir}"]) == 0
    ours, alone = records(workdir), records(tmp_path / "alone")
    assert [record["step"] for record in ours] == list(range(1, step + 4))
    for one, other in zip(ours, alone, strict=True):
        # Rounding differs with the number of devices, and Adam makes the most of it.
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert ours[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-6)


def test_a_checkpoint_of_eight_devices_is_restored_to_one(stopped):
    workdir, step = stopped
    config = dataclasses.replace(configs.load(workdir), devices=DevicesConfig())
    made = parts.prepare(config)
    one = mesh.make(DevicesConfig(), jax.devices()[:1])
    # The checksum of all bits was taken on eight devices, and is compared on one.
    state = checkpoint.load(workdir, program.template(made.trainer, one, made.example))
    assert int(state.step) == step
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(state))


def test_two_processes_evaluate_and_sample_like_one_and_stop_together(
    stopped, arguments, tmp_path, capsys
):
    ours, alone = (shutil.copytree(stopped[0], tmp_path / name) for name in ("ours", "alone"))

    def commands(workdir):
        return [
            # The ODE's bound goes through the same rows.
            ["evaluate", f"--workdir={workdir}", "--batch_size=999"],
            ["sample", f"--workdir={workdir}", "--num=9", "--steps=3", f"--out={workdir}/x.npy"],
        ]

    assert [cli.main(command) for command in commands(alone)] == [0, 0]
    asked = [*commands(ours), [*arguments, f"--workdir={tmp_path / 'held'}"]]
    with lock.held(tmp_path / "held"):
        processes = start(lambda *where: ["-c", COMMANDS, *where, json.dumps(asked)])
        codes, printed, errors = wait(processes)
    assert codes == [0, 0]
    for text in printed:
        assert json.loads(text.splitlines()[-1]) == [0, 0, cli.EXIT_USER_ERROR]
    assert "bits per dimension" in printed[0] and "bits per dimension" not in printed[1]
    assert "another run is training in" in errors[0]
    assert "another process stopped this run; its output says why" in errors[1]
    one, other = (
        json.loads((workdir / "evaluation.json").read_text())["results"]
        for workdir in (alone, ours)
    )
    for a, b in zip(one, other, strict=True):
        assert a["ids_checksum"] == b["ids_checksum"]
        assert a["bpd"]["mean"] == pytest.approx(b["bpd"]["mean"], rel=1e-5)
    x, y = (np.load(workdir / "x.npy") for workdir in (alone, ours))
    assert x.shape == (9, 2)
    np.testing.assert_allclose(x, y, atol=1e-4)


def test_two_processes_give_every_result_of_one(stopped, tmp_path):
    """Of parameters that no process holds whole: both bounds, whole paths, chains and scores."""
    ours, alone = (shutil.copytree(stopped[0], tmp_path / name) for name in ("ours", "alone"))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32))
    fit = ["fit-chain", "--steps=3", "--variance=table", "--num_levels=8", "--num_examples=20"]
    assert cli.main([*fit, f"--workdir={alone}"]) == 0
    shutil.copytree(alone / "chains", ours / "chains")
    config = configs.load(ours)
    divided = dataclasses.replace(config, devices=DevicesConfig(fsdp=8))
    configs.keep(divided, ours)

    def commands(workdir):
        x, out = tmp_path / "x.npy", f"--out={workdir}/x.csv"
        bounds = ["--bound=vlb,ode", "--ode_steps=3", "--num_steps=3:chain,3", "--num_paths=2"]
        return [
            ["evaluate", f"--workdir={workdir}", "--batch_size=4000", *bounds],
            ["sample", f"--workdir={workdir}", "--num=9", "--steps=3", "--chain", out[:-3] + "npy"],
            ["score", str(x), f"--workdir={workdir}", out],
        ]

    assert [cli.main(command) for command in commands(alone)] == [0, 0, 0]
    asked = json.dumps([*commands(ours), [*fit, f"--workdir={ours}", "--num_processes=2"]])
    codes, printed, errors = wait(start(lambda *where: ["-c", COMMANDS, *where, asked]))
    assert codes == [0, 0]
    for text in printed:
        assert json.loads(text.splitlines()[-1]) == [0, 0, 0, cli.EXIT_USER_ERROR]
    assert "is for train, evaluate, score and sample: this command is one process" in errors[0]
    assert "5 examples:" in printed[0] and "5 examples:" not in printed[1]
    one, other = (
        json.loads((workdir / "evaluation.json").read_text())["results"]
        for workdir in (alone, ours)
    )
    assert [(a["bound"], "chain" in a) for a in one][:3] == [
        ("vlb", False),
        ("vlb", True),
        ("ode", False),
    ]
    for a, b in zip(one, other, strict=True):
        assert a["bpd"]["mean"] == pytest.approx(b["bpd"]["mean"], rel=1e-4)
        if a["bound"] == "vlb":
            found = (result["paths"]["bpd"]["mean"] for result in (a, b))
            assert next(found) == pytest.approx(next(found), rel=1e-4)
    x, y = (np.load(workdir / "x.npy") for workdir in (alone, ours))
    np.testing.assert_allclose(x, y, atol=1e-4)
    x, y = (
        np.genfromtxt(workdir / "x.csv", delimiter=",", skip_header=1) for workdir in (alone, ours)
    )
    assert x.shape == (5, 6)
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--num_processes=2"], "--coordinator, --num_processes and --process_index go together"),
        (
            ["--coordinator=localhost:1", "--num_processes=2", "--process_index=2"],
            "--process_index must be in 0 to 1: got 2",
        ),
    ],
)
def test_an_incomplete_address_is_one_line(given, message, arguments, tmp_path, capsys):
    assert cli.main([*arguments, f"--workdir={tmp_path}", *given]) == cli.EXIT_USER_ERROR
    assert capsys.readouterr().err == f"vdm: {message}\n"
