"""Any text as the value of any option: one line, or the value is taken and the work would begin."""

import contextlib
import io
import typing

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import runs
from vdm.run import (
    arguments,
    cli,
    compress,
    config as configs,
    evaluate,
    export,
    fit_chain,
    packaged,
    sample,
    score,
    train,
    trained,
)
from vdm.run.config import fields
from vdm.run.errors import UserError
from vdm.run.filling import fill
from vdm.run.film import frames
from vdm.run.report import write

pytestmark = [pytest.mark.float32, pytest.mark.usefixtures("unchecked", "no_work")]
FUZZ = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}
BEGINS = "the work would begin"
COMMANDS = next(a for a in arguments.parser()._actions if a.dest == "==SUPPRESS==").choices
# What a command needs before the option in question; files are in the current folder.
NEEDED = {
    "train": ["--config=config.py"],
    "score": ["x.npy"],
    "infer": ["x.npy", "--grid=0:1:2"],
    "report": ["run"],
    "import": ["config.py", "--format=official"],
    "compress": ["x.npy", "out.vdm"],
    "decompress": ["x.vdm", "out.npy"],
}
OPTIONS = [
    (name, action.option_strings[0])
    for name, command in COMMANDS.items()
    for action in command._actions
    # --distributed and its like wait for other processes.
    if action.option_strings and not {"-h", "--distributed"} & {*action.option_strings}
]
KEYS = [
    f"{name}.{field.name}"
    for name, block in typing.get_type_hints(configs.Config).items()
    if name != "seed"
    for field in fields.of(block)
]
# Never an absolute path, nor one that leads out of the folder.
TEXT = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=8)
VALUES = st.one_of(
    TEXT,
    st.integers().map(str),
    st.integers(-(10**40), 10**40).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["1" * 5000, "1e999", "0x1f", "1_0", "١", "", "-", "--", "=", ",", "inf,", "𝟏"]
    ),
    st.sampled_from(["ode", "vlb,ode", "heun:churn=0.1", "{}", "[1]", "()", "None", "True", "λ\n"]),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    runs.copy_of("images", folder / "run")
    runs.write_config_file(folder / "config.py", runs.images())
    return folder


LOADED = {}


@pytest.fixture
def no_work(folder, monkeypatch):
    """In the folder, with the run in hand, and with no command that does more than begin."""

    def begin(*arguments, **settings):
        raise UserError(BEGINS)

    load = trained.load

    def once(workdir, params="ema", **devices):
        if str(workdir) != "run":
            return load(workdir, params, **devices)
        if params not in LOADED:
            LOADED[params] = load(workdir, params)
        return LOADED[params]

    monkeypatch.chdir(folder)
    monkeypatch.setattr(trained, "load", once)
    for module, name in (
        *((train, "train"), (evaluate, "measure"), (sample, "sample"), (write, "write")),
        *((compress, "compress"), (compress, "decompress"), (score, "score")),
        *((fill, "fill"), (frames, "draw")),
        *((export, "write"), (packaged, "write"), (fit_chain, "fit")),
    ):
        monkeypatch.setattr(module, name, begin)


def check(words):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = cli.main(words)
    line = said.getvalue()
    assert code == cli.EXIT_USER_ERROR
    assert line.startswith("vdm: ") and line.count("\n") == 1 and line[:-1].isprintable()
    return line


def check_option(option, value):
    command, flag = option
    workdir = [] if command == "report" or flag == "--workdir" else ["--workdir=run"]
    check([command, *NEEDED.get(command, []), *workdir, f"{flag}={value}"])


def check_key(key, value):
    check(["train", "--config=config.py", "--workdir=new", f"--config.{key}={value}"])


def test_the_commands_would_begin():
    """Otherwise a value that is taken would not be seen to be."""
    for words in (
        ["train", "--config=config.py", "--workdir=new"],
        ["evaluate", "--workdir=run", "--batch_size=7"],
        ["fit-chain", "--workdir=run", "--steps=3"],
        ["sample", "--workdir=run", "--num=3", "--seed=5"],
        ["sample", "--workdir=run", "--trajectory"],
        ["report", "run", "--num=0"],
        ["decompress", "x.vdm", "out.npy", "--workdir=run"],
    ):
        assert BEGINS in check(words)


@settings(max_examples=200, **FUZZ)
@given(st.sampled_from(OPTIONS), VALUES)
def test_any_value_of_an_option(option, value):
    check_option(option, value)


@settings(max_examples=150, **FUZZ)
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_a_key(key, value):
    check_key(key, value)


@settings(max_examples=150, **FUZZ)
@given(st.lists(TEXT | st.sampled_from([*COMMANDS, "--workdir", "--num", "--", "-"]), max_size=4))
def test_any_words(words):
    if not {"-h", "--help", "--version"} & {*words}:
        check(words)


@pytest.mark.long
@settings(max_examples=5_000, **FUZZ)
@given(st.sampled_from(OPTIONS), VALUES)
def test_many_values_of_options(option, value):
    check_option(option, value)


@pytest.mark.long
@settings(max_examples=2_000, **FUZZ)
@given(st.sampled_from(KEYS), VALUES)
def test_many_values_of_keys(key, value):
    check_key(key, value)
