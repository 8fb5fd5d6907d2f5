"""The README's notebook lines run as they stand."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.mark.float32
def test_the_lines_for_a_notebook_build_train_and_sample_a_model():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names = {}
    exec(compile(code, str(README), "exec"), names)
    assert float(names["loss"]) < 4.0  # a code that knows nothing takes log2(17) = 4.09
    assert names["images"].shape == (16, 8, 8)
    assert names["images"].min() >= 0 and names["images"].max() <= 16
