"""Every documented command is one that the programs take: read by their own parsers, not run.

A renamed option, config key, make target, script or extra fails here, in every document.
tests/documents/test_documented_runs.py runs those of the README and docs/.
"""

import ast
import contextlib
import importlib.util
import io
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import documented
from vdm.run import arguments, cli, config as configs, data, importing, trained
from vdm.run.data import random_fields

MAKEFILE = documented.ROOT / "Makefile"
DIGITS = "--config=experiments/digits.py"
OF_THE_RUN = ("data", "train", "optimizer", "objective", "devices", "evaluate", "sample")
SETTING = re.compile(
    rf"((?:{'|'.join(OF_THE_RUN)})\.(?!py$|json$|npy$|npz$|png$)\w+(?:\.\w+)*)(?: = (\S+))?"
)
# What a reader fills in, by what stands in a document for it.
FILLED = {"HOST:PORT": "localhost:1234", "N": "2", "I": "0"}


def every(*programs):
    """The commands of some programs in all documents, each once a document."""
    found = [c for page in documented.pages() for c in documented.commands(page)]
    found = [command for command in found if command.words[0] in programs]
    assert found
    return [pytest.param(command, id=str(command)) for command in dict.fromkeys(found)]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(documented.ROOT)


def of(words):
    """What the parser of `vdm` makes of some words: (options, rest), or (exit code, output)."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            return arguments.parser().parse_known_args(words)
        except SystemExit as end:
            return end.code, said.getvalue()


def help_of(*words):
    code, text = of([*words, "--help"])
    assert code == 0, f"vdm has no command {words}"
    return text


def options_in(text):
    return set(re.findall(r"--[a-z_]+", text))


def check_config(options, rest):
    """The values for the config are those of its keys: `read_config` raises for any other."""
    if options.command not in ("train", "import"):
        assert not rest
    elif options.config is not None:
        cli.read_config([f"--config={options.config}", *rest])
    elif options.command == "import":
        known = importing.official_values()
        for word in rest:
            assert word.startswith("--config."), word
            assert configs_have(known, word.removeprefix("--config.").split("=")[0]), word
    else:
        assert not rest, "without --config the run's own is taken, and nothing changes it"


def configs_have(values, key):
    for name in key.split("."):
        if name not in values:
            return False
        values = values[name]
    return True


@pytest.mark.parametrize("command", every("vdm"))
def test_vdm_takes_the_command(command):
    words = command.words[1:]
    if not command.mention or any(word.startswith("--config=") for word in words):
        filled = ["=".join(FILLED.get(part, part) for part in word.split("=")) for word in words]
        options, rest = of([*filled, "--workdir=runs/any"] if command.mention else filled)
        assert not isinstance(options, int), rest
        check_config(options, rest)
        return
    names = [word for word in words if not word.startswith("-")][:1]
    assert options_in(" ".join(words)) <= options_in(help_of(*names))


def test_options_that_are_only_named_exist():
    """Inline code such as `--recover` or `--config.train.num_steps=2000`, wherever it stands."""
    commands = re.findall(r"^    ([\w-]+)", help_of(), re.MULTILINE)
    assert {"train", "evaluate", "decompress"} <= set(commands)
    known = {option for name in commands for option in options_in(help_of(name))}
    for script in pathlib.Path("benchmarks").glob("*.py"):
        known |= set(re.findall(r'"(--[a-z_]+)', script.read_text()))
    named = [
        (page, word)
        for page in documented.pages()
        for code in documented.inline(page)
        if code.startswith("--")
        for word in code.split()
        if word.startswith("--")
    ]
    assert len(named) > 10
    for page, word in named:
        if not word.startswith("--config."):
            assert options_in(word) <= known, f"{page}: {word}"
        elif "=" in word:
            assert is_taken(page, word), f"{page}: {word}"


def is_taken(page, word):
    """Whether the experiment itself takes a value, or, elsewhere, any experiment does."""
    own = page.startswith("experiments/")
    files = [page] if own else sorted(map(str, pathlib.Path("experiments").glob("*.py")))
    for file in files:
        with contextlib.suppress(cli.UserError):
            cli.read_config([f"--config={file}", word])
            return True
    return False


def test_keys_of_the_config_that_are_only_named_exist():
    """Inline code such as `devices.fsdp = 8`: the key is there, the value is one it takes."""
    named = 0
    for page in documented.pages():
        for key, value in filter(None, map(setting, documented.inline(page))):
            named += 1
            if value is None:
                assert configs_have(configs.to_dict(cli.read_config([DIGITS])), key), (page, key)
            else:
                assert is_taken(page, f"--config.{key}={value}"), (page, key, value)
    assert named > 5


def setting(code):
    match = SETTING.fullmatch(code)
    if match is None:
        return None
    return match[1], None if match[2] is None else ast.literal_eval(match[2])


@pytest.mark.parametrize("command", every("make"))
def test_make_has_the_target_and_the_variables(command):
    _, *words = command.words
    stamps = [f"--old-file=.venv/{name}" for name in (".runtime", ".test", ".docs")]
    said = subprocess.run(
        ["make", "--dry-run", *stamps, *words], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    used = MAKEFILE.read_text()
    for target in (word for word in words if "=" not in word):  # a phony one may have no rule
        assert re.search(rf"^{target}:", used, re.MULTILINE), f"the Makefile has no {target}"
    for name in (word.split("=")[0] for word in words if "=" in word):
        assert f"$({name})" in used or f"$${{{name}}}" in used, f"the Makefile has no {name}"


class Stop(Exception):
    """Where a script would begin to work."""


@pytest.fixture
def stopped(monkeypatch, tmp_path):
    """Scripts end where they have read their words, or begin with a run's folder or its data."""
    read = cli.read_config

    def read_config(words):
        read(words)
        raise Stop

    def load(*arguments, **options):
        raise Stop

    (tmp_path / "experiments").symlink_to(documented.ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(documented.ROOT / "benchmarks")
    monkeypatch.setattr(cli, "read_config", read_config)
    monkeypatch.setattr(trained, "load", load)
    monkeypatch.setattr(configs, "load", load)
    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(random_fields, "draw", load)
    monkeypatch.setattr("jupytext.read", load)


@pytest.mark.parametrize("command", every("python"))
@pytest.mark.usefixtures("stopped")
def test_python_has_the_script_and_its_flags(command, monkeypatch):
    _, what, *words = command.words
    if what == "-c":
        compile(words[0], str(command), "exec")
    elif what == "-m":
        assert importlib.util.find_spec(words[0]) is not None
    else:
        assert what.startswith(("benchmarks/", "notebooks/"))
        monkeypatch.setattr(sys, "argv", [what, *words])
        with pytest.raises(Stop):
            run_script(documented.ROOT / what)


def run_script(path):
    """Run a script's `main` as `python path` would, in this process."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        arguments = [sys.argv[1:]] if module.main.__code__.co_argcount else []
        module.main(*arguments)
    finally:
        del sys.modules[spec.name]


@pytest.mark.parametrize("command", every("pip"))
def test_pip_finds_the_package_and_its_extras(command):
    _, verb, *words = command.words
    assert verb == "install"
    with (documented.ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    tested = {re.match(r"[\w-]+", line)[0] for line in project["optional-dependencies"]["test"]}
    for word in (word for word in words if not word.startswith("-")):
        name, _, extras = word.removesuffix("]").partition("[")
        known = {".", project["name"], *tested}
        assert name in known, f"{name} is not this package, and no test has it"
        assert set(filter(None, extras.split(","))) <= set(project["optional-dependencies"]), word


def test_shell_blocks_have_no_other_programs():
    for page in documented.pages():
        for line in documented.shell_lines(page):
            assert line.split()[0] in (*documented.PROGRAMS, "git", "cd", "gcloud"), (
                f"{page}: {line}"
            )


PAGES = {
    "inline, over two lines": ("Run `vdm train\n--dry_run` now", ["vdm train --dry_run"]),
    "continued, with a comment": (
        "```\nvdm sample --workdir=a \\\n   --num=4  # four\n```",
        ["vdm sample --workdir=a --num=4"],
    ),
    "indented": ("Text\n\n    make demo\n    python a.py\n", ["make demo", "python a.py"]),
    "a paragraph that goes on": ("Text\n    make demo\n", []),
    "another language": ("```python\nmake = 3\n```\n`make x`", ["make x"]),
    "what stands before": ("```sh\n$ X=1 taskset -c 1 pip install .\n```", ["pip install ."]),
}


@pytest.mark.parametrize("case", PAGES)
def test_commands_are_found_where_they_stand(case, monkeypatch):
    text, expected = PAGES[case]
    monkeypatch.setattr(documented, "prose", lambda page: text)
    found = documented.commands("page.md")
    assert [" ".join(command.words) for command in found] == expected
    assert [command.mention for command in found] == [case.startswith("inline")] * len(found)
