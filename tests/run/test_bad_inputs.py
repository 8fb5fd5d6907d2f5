"""Several hundred bad inputs: each is one clear line, and leaves nothing behind."""

import contextlib
import io
import os
import pathlib
import shlex
import typing
from collections.abc import Mapping

import pytest

import bad_files
from vdm.run import arguments, cli, config as configs, trained
from vdm.run.config import fields, rules

pytestmark = [pytest.mark.float32, pytest.mark.usefixtures("unchecked")]
LINES = (pathlib.Path(__file__).parent / "bad_inputs.txt").read_text().splitlines()


def of_the_table():
    """The words of every line, and what its message must name."""
    head = ""
    for line in LINES:
        if line.startswith("["):
            head = line.strip("[]")
        elif line and not line.startswith("#"):
            words, _, named = line.partition(" => ")
            yield f"{head} {words}".strip(), named


def beyond(field):
    """Texts of values that a field does not take, each with what the message must name."""
    if field.kind is bool:
        return {"2": field.flag, "perhaps": field.flag}
    if isinstance(field.rule, rules.Number):
        bounds = (field.rule.at_least, field.rule.above, field.rule.at_most, field.rule.below)
        low, high = (bound for bound in bounds if bound is not None)
        found = {str(low - 1): field.flag, "many": field.flag, "[1]": field.flag}
        found[str(high * 10 + 1)] = field.flag
        if field.kind is float:
            return found | {"nan": "finite", "-inf": "finite"}
        return found | {"1.5": field.flag, "1" + 30 * "0": field.flag}
    if isinstance(field.rule, rules.Counts):
        return {"0": "'0'", "-1": "'-1'", "2.5": "'2.5'", "many": "'many'", "9" * 30: "99999"}
    if isinstance(field.rule, rules.Name | rules.Word | rules.Words):
        words = field.rule.options if isinstance(field.rule, rules.Name) else field.rule.words
        longest = max(words, key=len)
        return {f"{longest}x": f"{longest!r}", "1": field.name}
    return {}


def of_the_config():
    """Every field of the config beyond its bounds, of another type and misspelt."""
    for name, block in typing.get_type_hints(configs.Config).items():
        if name == "seed":
            continue
        for field in fields.of(block):
            key = f"{name}.{field.name}"
            train = "train --config=points.py --workdir=new"
            yield f"{train} --config.{key}z=1", f"'{key}'"
            # Of many bounds two; `test_config_fields.py` tries them all.
            for value in list(beyond(field))[:2] if field.kind is not Mapping else ():
                yield f"{train} --config.{key}={value}", field.name
            if field.kind is Mapping and name == "model":
                yield f"{train} --config.{key}.name=x{field.name}", f"'x{field.name}'"


def of_the_options():
    """Every option that replaces a value of the config."""
    commands = {
        "evaluate --workdir=points": configs.EvaluateConfig,
        "score none.npy --workdir=points": configs.EvaluateConfig,
        "sample --workdir=points": configs.SampleConfig,
        "compress arrays/good.npy out.vdm --workdir=images": configs.CompressConfig,
    }
    for command, block in commands.items():
        left_out = arguments.NOT_SCORED if command.startswith("score") else ()
        for field in (field for field in fields.of(block) if field.name not in left_out):
            yield f"{command} --{field.flag}z=1", f"--{field.flag}z"
            for value, named in beyond(field).items():
                yield f"{command} --{field.flag}={value}", named


CASES = dict([*of_the_table(), *of_the_config(), *of_the_options()])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad") / "WORLD"
    folder.mkdir()
    bad_files.make(folder)
    return folder


@pytest.fixture(autouse=True)
def here(world, monkeypatch):
    """In the folder, where a run that could be loaded once is not loaded again."""
    monkeypatch.chdir(world)
    load, loaded = trained.load, LOADED.setdefault(world, {})

    def once(workdir, params="ema", **devices):
        key = (str(workdir), params, *devices)
        if key not in loaded:
            loaded[key] = load(workdir, params, **devices)
        return loaded[key]

    monkeypatch.setattr(trained, "load", once)


LOADED = {}


def tree(folder):
    """Everything in a folder: names, sizes and times of change, but of folders and locks."""
    found, folders = {}, [os.fspath(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                plain = entry.is_file() and entry.name != ".lock"
                found[entry.path] = (status.st_size, status.st_mtime_ns) if plain else None
                if entry.is_dir():
                    folders.append(entry.path)
    return found


def test_there_are_several_hundred():
    assert len(CASES) >= 300
    assert {words.split()[0] for words in CASES} >= set(cli.RUN)


@pytest.mark.parametrize("words", CASES)
def test_a_bad_input_is_one_line_and_leaves_nothing(words, world):
    before, said = tree(world), io.StringIO()
    with contextlib.redirect_stderr(said):
        code = cli.main(shlex.split(words))
    line = said.getvalue()
    assert code == cli.EXIT_USER_ERROR
    assert line.startswith("vdm: ") and line.count("\n") == 1 and len(line) < 1000, line
    assert CASES[words] in line, line
    assert tree(world) == before
