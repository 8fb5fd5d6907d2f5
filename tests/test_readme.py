"""The README's notebook lines run as they stand."""

import pathlib
import re

import jax
import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.mark.float32
def test_the_lines_for_a_notebook_build_train_and_sample_a_model():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert code.count(", 500)") == 1
    names = {}
    exec(compile(code.replace(", 500)", ", 30)"), str(README), "exec"), names)
    model, x, key = names["model"], names["x"], jax.random.key(0)
    untrained = names["bits_per_dim"](model.vlb(model.init(key, x), key, x).total, 64).mean()
    assert float(names["loss"]) < 0.8 * float(untrained)
    assert names["images"].shape == (16, 8, 8)
    assert names["images"].min() >= 0 and names["images"].max() <= 16


def test_no_figure_is_left_open():
    root = README.parent
    for path in [README, root / "CHANGELOG.md", *sorted((root / "experiments").glob("*.py"))]:
        assert "@@" not in path.read_text(), path
