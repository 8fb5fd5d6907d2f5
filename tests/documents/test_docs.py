"""The pages of docs/: their Python runs, every public module has its entry, no key goes unsaid."""

import importlib
import pathlib
import pkgutil
import re
import sys

import pytest

import runs
import vdm
from vdm.run import arguments, config as configs

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
# conf.py puts it there for Sphinx, which the tests do without.
sys.path.insert(0, str(DOCS / "_ext"))
reference = importlib.import_module("reference")

BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
PAGES = sorted(page for page in DOCS.glob("*.md") if BLOCK.search(page.read_text()))
# Training loops, which a page writes as `..., num_steps = ..., 500`.
STEPS = re.compile(r"(num_steps = .*?)\b\d+$", flags=re.MULTILINE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What the pages call runs/digits, with the result of an evaluation."""
    from vdm.run import evaluate, trained

    workdir = runs.copy_of("images", tmp_path_factory.mktemp("pages") / "runs/digits")
    made = trained.load(workdir)
    evaluate.evaluate(made, "test", made.config.evaluate, workdir)
    return workdir


@pytest.mark.float32
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, run, monkeypatch):
    monkeypatch.chdir(run.parents[1])
    names = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(STEPS.sub(r"\g<1>3", block), str(page), "exec"), names)


def public_modules():
    """Yield every module of the mathematics, and those that a package offers as its own."""
    for module in pkgutil.iter_modules(vdm.__path__):
        if module.name in ("run", "__main__"):
            continue
        name = f"vdm.{module.name}"
        yield name
        package = importlib.import_module(name)
        for inner in getattr(package, "__all__", ()):
            if isinstance(getattr(package, inner), type(vdm)):
                yield f"{name}.{inner}"


def test_every_public_module_is_in_the_api():
    there = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.rst"))
    shown = re.findall(r"^\.\. automodule:: (\S+)$", there, flags=re.MULTILINE)
    assert sorted(shown) == sorted(public_modules())


def test_every_page_is_in_the_table_of_contents():
    listed = (DOCS / "index.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or re.search(rf"^{page.stem}$", listed, flags=re.MULTILINE)
    listed = (DOCS / "api/index.rst").read_text()
    for page in (DOCS / "api").glob("*.rst"):
        assert page.stem == "index" or re.search(rf"^   {page.stem}$", listed, flags=re.MULTILINE)


def test_every_key_of_the_config_has_its_line():
    page = reference.config_page()
    for name in configs.flatten(configs.to_dict(runs.points())):
        # A block's own arguments are listed with the names that it may have.
        name = re.sub(
            r"^((\w+)\.(schedule|network|likelihood|number_law|law|weighting|method))\..*",
            r"\1",
            name,
        )
        (row,) = re.findall(rf"^\| `{re.escape(name)}` \|.*$", page, flags=re.MULTILINE)
        says = row.rstrip(" |").rpartition(" | ")[2]
        assert len(says) > 5 and "`" not in says, row


def test_every_option_of_every_command_is_on_the_page():
    page = reference.fill((DOCS / "cli.md").read_text())
    whole = arguments.parser()
    commands = next(a for a in whole._actions if a.dest == "==SUPPRESS==").choices
    sections = dict(
        re.findall(r"^## vdm ([\w-]+)\n(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
    )
    assert sections.keys() == commands.keys()
    for name, command in commands.items():
        for action in command._actions:
            for word in action.option_strings:
                assert word in sections[name], (name, word)
