"""Notebooks are whole by their syntax, and the runner says what went wrong in one."""

import ast
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


def run(tmp_path, code, *flags):
    """Run title and code as a notebook; return the runner's result and the notebook's path."""
    source, target = tmp_path / "sums.py", tmp_path / "out" / "sums.ipynb"
    source.write_text(TITLE + code)
    command = [sys.executable, str(NOTEBOOKS / "run.py"), str(source), str(target), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300), target


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


def test_a_good_notebook_keeps_its_text_and_its_outputs(tmp_path):
    result, target = run(tmp_path, "import os\nprint(os.listdir())\n\n# %%\n" + PICTURE)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"sums … \d+ s\n", result.stdout)
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
def test_a_bad_notebook_is_named_and_not_written(tmp_path, code, flags, message):
    result, target = run(tmp_path, code, *flags)
    assert result.returncode == 1
    assert re.fullmatch(message, result.stderr, flags=re.DOTALL), result.stderr
    assert "nbclient" not in result.stderr
    assert not target.exists()


def test_the_limit_is_for_the_whole_notebook(tmp_path):
    sleeping = "import time\ntime.sleep(1.2)\n"
    result, _ = run(tmp_path, "\n# %%\n".join([sleeping] * 3), "--timeout=3")
    assert result.returncode == 1 and re.search("cell [34] of 4", result.stderr)
    assert "still running after 3 s" in result.stderr


def test_a_missing_notebook_is_one_line(tmp_path):
    command = [sys.executable, str(NOTEBOOKS / "run.py"), "none.py", str(tmp_path / "none.ipynb")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert result.stderr == "none.py: cannot read none.py: No such file or directory\n"
