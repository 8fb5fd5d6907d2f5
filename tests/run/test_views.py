"""What an example looks like, against pixels that follow from its values."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vdm.run import figures, sample, views
from vdm.run.report import pictures
from vdm.run.views import Ends


def test_each_shape_has_its_form():
    found = {shape: views.form(shape) for shape in [(2,), (3,), (7, 2), (4, 5, 1), (2, 3, 4, 1)]}
    assert list(found.values()) == ["points", "lines", "lines", "image", "slice"]
    without = [(), (1,), (1, 1), (1, 3), (1, 1, 1, 1, 1)]
    assert [views.form(shape) for shape in without] == [None] * 5


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_real_fields_are_grey_from_the_least_to_the_most_of_all(channels):
    x = np.random.default_rng(0).normal(size=(4, 5, 6, channels))
    seen = views.of(x, views.ends(x, None))
    shown = x if channels == 3 else x[..., :1]  # three are colours
    share = (shown - shown.min()) / (shown.max() - shown.min())
    np.testing.assert_array_equal(seen, np.round(255 * share))
    assert seen.shape == (4, *views.size(x.shape[1:]), 3 if channels == 3 else 1)
    np.testing.assert_array_equal(views.of(0 * x + 7, views.ends(0 * x + 7, None)), 0)


def test_values_beyond_the_ends_are_black_and_white():
    x = np.array([-5.0, 0.0, 1.0, 9.0]).reshape(1, 2, 2, 1)
    assert views.of(x, Ends(0.0, 1.0)).ravel().tolist() == [0, 0, 255, 255]


def test_a_volume_is_seen_by_its_middle_slice():
    x = np.zeros((1, 5, 3, 4, 1), np.uint8)
    x[0, 2, 1, 3] = 16
    (seen,) = views.of(x, views.ends(x, 17))
    assert seen.shape == (3, 4, 1) and np.argwhere(seen).tolist() == [[1, 3, 0]]
    assert seen[1, 3] == 255


def test_a_line_goes_from_the_first_value_to_the_last():
    rising = np.linspace(0, 1, 50)[None, :, None]
    (seen,) = views.of(np.concatenate([rising, 1 - rising], axis=2), Ends(0.0, 1.0))
    height, width = views.size((50, 2))
    assert seen.shape == (height, width, 3)
    for colour, (left, right) in zip(
        views.COLOURS, ((height - 2, 1), (1, height - 2)), strict=False
    ):
        rows, columns = np.nonzero((seen == colour).all(-1))
        assert (columns.min(), columns.max()) == (1, width - 2)
        assert rows[columns == 1].tolist() == [left] and rows[columns == width - 2].tolist() == [
            right
        ]


@pytest.mark.parametrize("shape", [(6, 7, 1), (6, 7, 2), (4, 6, 7, 3), (20, 1), (9,)])
def test_every_kind_becomes_a_grid(shape, tmp_path):
    x = np.random.default_rng(1).normal(size=(5, *shape))
    figures.write(x, tmp_path / "x.png", levels=None)
    page = np.asarray(Image.open(tmp_path / "x.png"))
    seen = views.of(x, views.ends(x, None))
    height, width = seen.shape[1:3]
    times = figures.enlargement(height, width)
    small = page[::times, ::times].reshape(2 * (height + 1) + 1, 3 * (width + 1) + 1, -1)
    np.testing.assert_array_equal(small[height + 2 : -1, width + 2 : 2 * width + 2], seen[4])


@pytest.mark.parametrize("shape", [(6, 7, 1), (6, 7, 3), (5, 40, 1), (4, 6, 7, 1), (20, 2)])
def test_the_cells_of_a_grid_of_training_are_the_views(shape, tmp_path):
    x = np.random.default_rng(1).normal(size=(sample.GRID_SIZE, *shape))
    figures.write(x, tmp_path / "step_000007.png", levels=None)
    gallery = pictures.while_training([tmp_path / "step_000007.png"], shape, cells=True)
    (name, cells), seen = gallery.rows[0], views.of(x, views.ends(x, None))
    assert name == "step 7" and len(cells) == 8
    for cell, view in zip(cells, seen, strict=False):
        with Image.open(io.BytesIO(base64.b64decode(cell.source.split(",")[1]))) as image:
            found = np.asarray(image)
        np.testing.assert_array_equal(found.reshape(view.shape), view)


def test_a_long_low_field_is_not_enlarged():
    assert figures.enlargement(1, 1024) == 1 and figures.enlargement(8, 8) == 6
