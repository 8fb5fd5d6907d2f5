"""Computing blocks twice spares memory in the steps of a run on a CPU as well."""

import pytest

import runs
from vdm.run import dry_run
from vdm.run.training import parts

pytestmark = pytest.mark.float32
NETWORK = runs.DIT | {"patch": 1, "channels": 16, "num_blocks": 6, "dropout": 0.0}


def test_a_step_with_remat_takes_less_memory():
    work = []
    for remat in (False, True):
        made = parts.prepare(runs.images(NETWORK | {"remat": remat}, batch_size=32))
        memory = dry_run.lowered(made).compile().memory_analysis()
        work.append(memory.temp_size_in_bytes)
    assert work[1] < 0.7 * work[0], work
