"""What lies in a workdir is read as it is, and what is of another form is one line."""

import datetime
import json

import pytest

import runs
from vdm.run import cli, config as configs
from vdm.run.report import read

LINE = {
    "step": 3,
    "loss": 2.0,
    "prior": 0.25,
    "reconstruction": 0.5,
    "diffusion": 1.25,
    "gradient_norm": 1,
    "steps_per_second": 4.0,
    "log_snr_max": 8.0,
    "log_snr_min": -6.0,
}
TURN = {
    "began": "2026-11-26T01:20:29+00:00",
    "from_step": 0,
    "to_step": 3,
    "seconds": 1.5,
    "versions": {"vdm": "0.1.0"},
    "hardware": {
        "platform": "cpu",
        "device": "cpu",
        "num_devices": 1,
        "num_processes": 1,
        "processor": "some",
        "system": "Linux",
    },
}
DATA = {"version": "digits:1", "num_examples": 1500, "shape": [8, 8, 1]}


@pytest.fixture
def workdir(tmp_path):
    configs.keep(runs.images(), tmp_path)
    return tmp_path


def test_what_is_there_is_read_and_the_rest_is_empty(workdir):
    run = read.read(workdir)
    assert (run.data, run.metrics, run.evaluation, run.headline) == (None, (), None, None)
    assert (run.results, run.sessions, run.grids) == ((), (), ())
    (workdir / "data.json").write_text(json.dumps(DATA))
    (workdir / "metrics.jsonl").write_text(f'{json.dumps(LINE)}\n{{"step": 6, "lo')
    (workdir / "sessions.json").write_text(json.dumps([TURN]))
    run = read.read(workdir)
    assert (run.data.version, run.data.num_examples, run.data.shape) == (
        "digits:1",
        1500,
        (8, 8, 1),
    )
    assert run.metrics == (LINE,)
    (turn,) = run.sessions
    assert turn.began == datetime.datetime(2026, 11, 26, 1, 20, 29, tzinfo=datetime.UTC)
    assert (turn.from_step, turn.to_step, turn.seconds) == (0, 3, 1.5)
    assert turn.made_with.versions == {"vdm": "0.1.0"}
    assert turn.made_with.hardware.processor == "some"


def text(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluation.json", "{}", "evaluation.json: bound is missing: expected a text"),
        ("evaluation.json", "[]", "evaluation.json must hold an object: got a list of 0"),
        ("evaluation.json", "{", "evaluation.json is damaged"),
        ("data.json", text({**DATA, "shape": 8}), "data.json: shape must be a list: got 8"),
        ("data.json", "{}", "data.json: version is missing: expected a text"),
        ("sessions.json", "{}", "sessions.json must hold a list: got an object of 0"),
        ("sessions.json", "[{}]", "sessions.json: [0].began is missing"),
        ("sessions.json", text([TURN, {**TURN, "to_step": "3"}]), "[1].to_step must be a whole"),
        ("metrics.jsonl", text(LINE, [1]), "metrics.jsonl: line 2 must be an object: got a list"),
        ("metrics.jsonl", text(LINE, {"step": 6}), "metrics.jsonl: line 2.loss is missing"),
        ("metrics.jsonl", text({**LINE, "loss": None}), "line 1.loss must be a finite number"),
        ("metrics.jsonl", text({**LINE, "prior": float("nan")}), "line 1.prior must be a finite"),
        ("metrics.jsonl", text(LINE) + "x\n", "metrics.jsonl is damaged: line 2: Expecting value"),
    ],
)
def test_a_file_of_another_form_is_one_line(workdir, capsys, name, content, message):
    (workdir / name).write_text(content)
    assert cli.main(["report", f"--workdir={workdir}", "--num=0"]) == cli.EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
