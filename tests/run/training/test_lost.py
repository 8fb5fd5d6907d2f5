"""A process of several is killed: the others end in one line, and the same command resumes."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

import documented
import runs
from vdm.run import train
from vdm.run.system import lost
from vdm.run.workdir.metrics import METRICS_FILE

pytestmark = pytest.mark.float32

STEPS = 130
LINE = (
    r"vdm: process {index} of {count} has gone; "
    r"(the last checkpoint is of step \d+: run the same command to resume from there"
    r"|there is no checkpoint yet: run the same command to start again)"
)


def config(num_steps):
    return runs.points(num_steps=num_steps, batch_size=48, log_every=1, checkpoint_every=10)


class Launcher:
    """Starts the same command in several processes of one device each, as often as asked."""

    def __init__(self, folder, count, num_steps, around=lambda index: []):
        folder.mkdir(exist_ok=True)
        self.workdir, self._folder, self._count = folder / "run", folder, count
        self._around = around
        path = runs.write_config_file(folder / "points.py", config(num_steps))
        self._command = ["train", f"--config={path}", f"--workdir={self.workdir}"]
        self._environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            "PAUSE": "2",
        }

    def start(self):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"--coordinator=localhost:{probe.getsockname()[1]}"
        self._stderr = [self._folder / f"stderr_{index}" for index in range(self._count)]
        processes = []
        for index, path in enumerate(self._stderr):
            where = [address, f"--num_processes={self._count}", f"--process_index={index}"]
            with path.open("w") as stderr:
                around = self._around(index)
                command = [*around, sys.executable, "-m", "vdm", *self._command, *where]
                process = subprocess.Popen(
                    command, env=self._environment, stdout=subprocess.DEVNULL, stderr=stderr
                )
            processes.append(process)
        return processes

    def said(self, index):
        """Return the lines that a process printed, but those of training itself."""
        lines = self._stderr[index].read_text(errors="replace").splitlines()
        return [line for line in lines if not line.startswith("train ")]

    def wait_for(self, processes, happened, timeout=120.0):
        end = time.monotonic() + timeout
        while not happened():
            assert time.monotonic() < end, "waited in vain"
            assert all(process.poll() is None for process in processes), self._all_said()
            time.sleep(0.005)

    def records(self):
        path = self.workdir / METRICS_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def step(self):
        return max((record["step"] for record in self.records()), default=0)

    def kill(self, processes, index):
        """Kill one, see that the others end as they should; returns their seconds."""
        began = time.monotonic()
        processes[index].send_signal(signal.SIGKILL)
        codes = [process.wait(timeout=60) for process in processes]
        seconds = time.monotonic() - began
        expected = [lost.EXIT_LOST] * self._count
        expected[index] = -signal.SIGKILL
        assert codes == expected, self._all_said()
        for other in range(self._count):
            if other != index:
                (line,) = self.said(other)
                assert re.fullmatch(LINE.format(index=index, count=self._count), line)
        return seconds

    def finish(self, processes):
        assert [process.wait(timeout=240) for process in processes] == [0] * self._count
        assert [self.said(index) for index in range(self._count)] == [[]] * self._count

    def _all_said(self):
        return [self.said(index) for index in range(self._count)]


def test_the_others_end_in_one_line_and_the_documented_loop_resumes(tmp_path):
    page = (documented.ROOT / "docs/many_devices.md").read_text()
    loop = tmp_path / "again.sh"
    loop.write_text(re.search(r"```sh\n(#!/bin/sh\n.*?)```", page, re.DOTALL)[1])
    # It says which process is the one to kill: the loop's own is the shell's.
    named = ["sh", loop, "sh", "-c", f'echo $$ > {tmp_path}/process_"$0"; exec "$@"']
    launcher = Launcher(tmp_path, 2, 40, around=lambda index: [*named, str(index)])
    loops = launcher.start()
    for index, steps in ((1, 12), (0, 23)):
        launcher.wait_for(loops, lambda steps=steps: launcher.step() >= steps)
        killed, other = (int((tmp_path / f"process_{i}").read_text()) for i in (index, 1 - index))
        # One that is merely slow, as in a long compilation, is not taken for a dead one.
        os.kill(other, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(other, signal.SIGCONT)
        launcher.wait_for(loops, lambda steps=steps: launcher.step() > steps)
        os.kill(killed, signal.SIGKILL)
        code = f"again.sh: exit code {lost.EXIT_LOST}, the same command again"
        launcher.wait_for(
            loops, lambda other=1 - index, code=code: code in launcher.said(other), timeout=30
        )
        *_, line, last = launcher.said(1 - index)
        assert last == code and re.fullmatch(LINE.format(index=index, count=2), line)
        assert "again.sh: exit code 137, the same command again" in launcher.said(index)
    assert [loop.wait(timeout=120) for loop in loops] == [0, 0]

    # A run on the two devices of this process, which nobody disturbed.
    train.train(config(40), tmp_path / "whole")
    whole = [json.loads(line) for line in (tmp_path / "whole" / METRICS_FILE).open()]
    assert [record["step"] for record in launcher.records()] == list(range(1, 41))
    for one, other in zip(launcher.records(), whole, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 4])
def test_ten_rounds_of_kill_9(count, tmp_path):
    chance = random.Random(count)
    launcher = Launcher(tmp_path, count, STEPS)
    whole = Launcher(tmp_path / "undisturbed", count, STEPS)
    taken = []
    for round in range(10):
        reached = launcher.step()
        processes = launcher.start()
        if round % 5 == 4:  # while it compiles or reads the checkpoint
            before = (launcher.workdir / ".lock").stat().st_mtime_ns
            launcher.wait_for(
                processes,
                lambda before=before: (launcher.workdir / ".lock").stat().st_mtime_ns != before,
            )
            time.sleep(chance.uniform(0.0, 2.0))
        else:
            step = reached + chance.randint(1, 12)
            launcher.wait_for(processes, lambda step=step: launcher.step() >= step)
            time.sleep(chance.uniform(0.0, 0.1))
        index = chance.randrange(count)
        taken.append(launcher.kill(processes, index))
        print(f"round {round}: process {index} of {count}, {taken[-1]:.2f} s, after {reached}")
    launcher.finish(launcher.start())
    whole.finish(whole.start())
    steps = [record["step"] for record in launcher.records()]
    assert steps == list(range(1, STEPS + 1))
    ours, undisturbed = ([record["loss"] for record in one.records()] for one in (launcher, whole))
    assert ours == undisturbed
    print(f"{count} processes: {min(taken):.2f} to {max(taken):.2f} s from the kill to the end")
