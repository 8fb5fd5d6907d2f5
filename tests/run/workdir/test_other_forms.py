"""JSON of any form in the files of a workdir: read, or one line that names the file."""

import json
import pathlib
import tempfile

import pytest
from hypothesis import given, settings, strategies as st

from vdm.run import config, data
from vdm.run.errors import UserError
from vdm.run.evaluation import files as evaluations
from vdm.run.workdir import sessions

KEYS = st.sampled_from(
    [
        *("version", "num_examples", "shape", "began", "from_step", "to_step", "seconds"),
        *("versions", "hardware", "bound", "bpd", "mean", "sem", "n", "terms", "results"),
        *("num_steps", "dataset", "split", "num_dims", "step", "data", "model", "train", "name"),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["vlb", "ode", "inf", "2026-01-01T00:00:00+00:00", "digits"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=8),
    max_leaves=20,
)
READERS = {
    data.DATA_FILE: data.kept,
    sessions.SESSIONS_FILE: sessions.read,
    evaluations.RESULT_FILE: evaluations.read,
    config.CONFIG_FILE: config.load,
}


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(value=JSON)
def test_another_form_is_one_line(name, value):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / name
        path.write_text(json.dumps(value))
        try:
            READERS[name](pathlib.Path(folder))
        except UserError as error:
            assert "\n" not in str(error) and name in str(error)
