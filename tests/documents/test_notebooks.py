"""Notebooks are whole by their syntax, and the runner says what went wrong in one."""

import ast
import importlib.util
import itertools
import pathlib
import re
import subprocess
import sys

import pytest

jupytext = pytest.importorskip("jupytext", reason="needs the notebooks extra")

NOTEBOOKS = pathlib.Path(__file__).parents[2] / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("[0-9]*.py"))
TITLE = """\
# %% [markdown]
# # A title
# Inline $x_1 \\le 2$, *stars*, a trailing backslash \\
# and `code`.

# %%
"""
PICTURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\n"


def cells(path):
    return jupytext.read(path, fmt="py:percent").cells


def calls(source):
    """The last name of everything that is called, `axes.plot` as "plot"."""
    found = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {func.attr for func in found if isinstance(func, ast.Attribute)}


@pytest.fixture(scope="module")
def main():
    """The runner's `main`, imported once: a process of its own would import all of it anew."""
    pytest.importorskip("nbclient", reason="needs the notebooks extra")
    spec = importlib.util.spec_from_file_location("notebook_runner", NOTEBOOKS / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def run(main, tmp_path, capfd):
    """Run title and code as a notebook; returns exit code, stdout, stderr and the target."""

    def of(code, *flags):
        source, target = tmp_path / "sums.py", tmp_path / "out" / "sums.ipynb"
        source.write_text(TITLE + code)
        returned = main([str(source), str(target), *flags])
        said = capfd.readouterr()
        return returned, said.out, said.err, target

    return of


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_has_one_title_and_headings_in_order(path):
    first, *rest = cells(path)
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    text = "\n".join(cell.source for cell in (first, *rest) if cell.cell_type == "markdown")
    depths = [len(marks) for marks in re.findall(r"^(#+) ", text, flags=re.MULTILINE)]
    assert depths.count(1) == 1
    assert all(deeper <= depth + 1 for depth, deeper in itertools.pairwise(depths))
    assert not re.search(r"</?[a-z]+[ />]", text), "raw HTML"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_every_section_has_a_picture(path):
    assert len(path.read_text().splitlines()) <= 400
    pictures = [False]  # of what stands before the first section, and of every section
    for cell in cells(path):
        if cell.cell_type == "code":
            pictures[-1] |= "show" in calls(cell.source)
        else:
            pictures += [False] * len(re.findall(r"^## ", cell.source, flags=re.MULTILINE))
    assert all(pictures[1:]), pictures


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_checks_its_claims_and_ends_in_a_picture(path):
    code = [cell.source for cell in cells(path) if cell.cell_type == "code"]
    assert not any(re.search(r"^\s*[%!]", source, flags=re.MULTILINE) for source in code)
    whole = ast.parse("\n".join(code))
    assert any(isinstance(node, ast.Assert) for node in ast.walk(whole))
    drawing = [number for number, source in enumerate(code) if "subplots" in calls(source)]
    printing = [
        number for number, source in enumerate(code) if re.search(r"^print\(", source, re.M)
    ]
    assert drawing and drawing[-1] >= max(printing, default=0)


def test_a_good_notebook_keeps_its_text_and_its_outputs(run):
    returned, out, err, target = run("import os\nprint(os.listdir())\n\n# %%\n" + PICTURE)
    assert returned == 0, err
    assert re.fullmatch(r"sums … \d+ s\n", out)
    text, files, picture = jupytext.read(target).cells
    assert text.source == "\n".join(line[2:] for line in TITLE.splitlines()[1:4])
    assert files.outputs[0].text == "[]\n"
    assert any("image/png" in output.get("data", {}) for output in picture.outputs)
    assert [path.name for path in target.parent.iterdir()] == ["sums.ipynb"]


@pytest.mark.parametrize(
    ("code", "flags", "message"),
    [
        (
            "three = 4\nassert three == 3, f'got {three}'\n",
            (),
            r"sums\.py: cell 2 of 2\n.*three = 4\n.*AssertionError: got 4\n",
        ),
        (
            "pass\n\n# %%\nimport time\ntime.sleep(200)\n",
            ("--timeout=1.5",),
            r"sums\.py: cell 3 of 3\n.*time\.sleep\(200\)\nstill running after 1\.5 s, .*\n",
        ),
        (PICTURE + "\n# %%\nprint(1)\n", (), r"sums\.py: ends without a picture.*\n"),
        ("import os\nos._exit(3)\n", (), r"sums\.py: cell 2 of 2\n.*the kernel died\n"),
    ],
    ids=["failing", "slow", "without a picture", "dead"],
)
def test_a_bad_notebook_is_named_and_not_written(run, code, flags, message):
    returned, _, err, target = run(code, *flags)
    assert returned == 1
    assert re.fullmatch(message, err, flags=re.DOTALL), err
    assert "nbclient" not in err
    assert not target.exists()


def test_the_limit_is_for_the_whole_notebook(run):
    sleeping = "import time\ntime.sleep(1.2)\n"
    returned, _, err, _ = run("\n# %%\n".join([sleeping] * 3), "--timeout=3")
    assert returned == 1 and re.search("cell [34] of 4", err)
    assert "still running after 3 s" in err


def test_a_missing_notebook_is_one_line(tmp_path):
    command = [sys.executable, str(NOTEBOOKS / "run.py"), "none.py", str(tmp_path / "none.ipynb")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert result.stderr == "none.py: cannot read none.py: No such file or directory\n"
