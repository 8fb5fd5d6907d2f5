"""The comparison of networks: rows of equal work, splits that do not overlap, tables of curves."""

import math

import numpy as np
import pytest

import documented
from vdm.run.errors import UserError

pytestmark = pytest.mark.float32


@pytest.fixture
def compared(monkeypatch):
    monkeypatch.chdir(documented.ROOT)
    monkeypatch.syspath_prepend(documented.ROOT / "benchmarks")
    import networks

    return networks


@pytest.mark.parametrize("chosen", ["digits", "mnist", "patches64"])
def test_the_rows_of_a_set_take_equal_work(compared, chosen, capsys):
    flops = {}
    for row in compared.ROWS:
        config = compared.make_config(f"{row}@0.003", chosen, [], 100, 0)
        assert config.optimizer.learning_rate == 0.003
        assert config.optimizer.decay == "constant"
        assert not config.model.network["residual"]  # for its v head
        flops[row] = compared.step_flops(config, compared.SHAPES[chosen])
    compared.check_equal(flops)
    assert capsys.readouterr().out.count("MFLOP a step") == 3
    with pytest.raises(UserError, match=r"dit takes 1\.2. times as much as plain"):
        compared.check_equal({"plain": 100e6, "dit": 125e6})


@pytest.mark.parametrize("row", ["unet", "dit@", "dit@fast", "dit+head"])
def test_a_row_that_is_none_is_one_line(compared, row):
    with pytest.raises(UserError, match="expected such as dit@"):
        compared.make_config(row, "digits", [], 100, 0)


def test_patches_that_are_held_out_share_no_pixel_with_those_of_training(compared):
    size = 2 * 46 * 57
    image, row, column = np.unravel_index(np.arange(size), (2, 46, 57))
    trained, held_out = compared.race.strips(size)
    assert len(held_out) == 2 * 6
    assert column[trained].max() * 8 + 64 <= column[held_out].min() * 8
    corners = set(zip(image[held_out], row[held_out] * 8, strict=True))
    assert corners == {(i, 64 * k) for i in range(2) for k in range(6)}


def test_a_curve_is_read_between_its_evaluations(compared):
    points = [{"seconds": 2.0, "ema": 4.0}, {"seconds": 4.0, "ema": 3.0}]
    assert compared.race.at(points, 3.0) == 3.5
    assert compared.race.at(points, 4.0) == 3.0
    assert math.isnan(compared.race.at(points, 1.0))
