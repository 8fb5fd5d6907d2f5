"""The data of the experiments on fields: what their documents say of them."""

import io
import math
import re
import types

import matplotlib.cbook
import numpy as np
import pytest

from documents_of import module
from oracles import within


def dense(power):
    """The covariance [d, d] of a periodic field: that of two cells depends on their distance."""
    of_distance = np.fft.ifftn(power).real
    cells = np.indices(power.shape).reshape(power.ndim, -1)
    return of_distance[tuple(cells[:, :, None] - cells[:, None, :])]


def log2_det(matrix):
    return np.linalg.slogdet(matrix)[1] / math.log(2)


def documented(made):
    """The numbers of a docstring that have a decimal point."""
    return [float(number) for number in re.findall(r"\d+\.\d{4}", made.__doc__)]


def test_the_expected_bits_of_the_volumes():
    made = module("volumes")
    bits = 0.5 * np.mean(np.log2(2 * np.pi * np.e * made.SPECTRUM))
    white = 0.5 * np.log2(2 * np.pi * np.e)
    x = made.data("test")[..., 0]
    assert x.shape == (20, 32, 32, 32) and x.dtype == np.float32
    found = np.abs(np.fft.fftn(x, axes=(1, 2, 3))) ** 2 / 32**3 / made.SPECTRUM
    true = 0.5 * np.mean(np.log2(2 * np.pi * made.SPECTRUM) + found * np.log2(np.e))
    assert documented(made) == [round(number, 4) for number in (bits, true, white)]
    # 2¹⁵ numbers a field, of which half are the others' conjugates.
    assert within(found.mean((1, 2, 3)), 1.0)
    assert within(found[:, :3, :3, :3].mean((1, 2, 3)), 1.0)
    assert not np.array_equal(x, made.data("train")[:20, ..., 0])


def test_the_expected_bits_of_fields_given_their_parameters_and_a_picture(monkeypatch):
    """Against the dense covariance of x given y, Σ_xx − Σ_xy Σ_yy⁻¹ Σ_yx, of one θ."""
    made = module("conditional_fields")
    expected = [made.bits("test"), made.bits("test", observed=False)]
    assert documented(made)[:2] == [round(number, 4) for number in expected]
    monkeypatch.setitem(made.NUM_EXAMPLES, "test", 1)
    theta = made._parameters(np.random.default_rng(1), "test")
    waves = np.fft.fftfreq(32, 1 / 32)
    squares = waves[:, None] ** 2 + waves[None, :] ** 2
    smooth = (1 + squares / theta[0, 0] ** 2) ** -theta[0, 1]
    cov = dense(0.98 * smooth / smooth.mean() + 0.02)
    blur = dense(np.exp(-squares / 32))
    of_y = blur @ cov @ blur.T + 0.01 * np.eye(1024)
    given = cov - cov @ blur.T @ np.linalg.solve(of_y, blur @ cov)
    for covariance, observed in ((given, True), (cov, False)):
        bits = 0.5 * log2_det(2 * np.pi * np.e * covariance) / 1024
        assert made.bits("test", observed) == pytest.approx(bits, abs=1e-9)


def test_fields_and_their_pictures_have_the_documented_law():
    """The mean of −log p(x|y, θ), from the formula of the document, is the expected number."""
    made = module("conditional_fields")
    x, given = made.data("test")
    assert set(given) == {"cond", "cond_field"}
    theta, y = given["cond"].astype(float), given["cond_field"][..., 0]
    squares = np.fft.fftfreq(32, 1 / 32)[:, None] ** 2 + np.fft.fftfreq(32, 1 / 32) ** 2
    blur = np.exp(-squares / 32)
    smooth = (1 + squares / theta[:, :1, None] ** 2) ** -theta[:, 1:, None]
    power = 0.98 * smooth / smooth.mean((1, 2), keepdims=True) + 0.02
    variance = 1 / (1 / power + blur**2 / 0.01)
    x_k, y_k = (np.fft.fft2(array) / 32 for array in (x[..., 0], y))
    errors = np.abs(x_k - variance * blur / 0.01 * y_k) ** 2 / variance
    nats = 0.5 * np.mean(np.log(2 * np.pi * variance) + errors, axis=(1, 2))
    # θ is the same on both sides: its scatter does not count.
    expected = 0.5 * np.mean(np.log(2 * np.pi * np.e * variance), axis=(1, 2))
    assert within(nats - expected, 0.0)
    assert expected.mean() / math.log(2) == pytest.approx(made.bits("test"), abs=1e-4)
    alone = 0.5 * np.mean(np.log(2 * np.pi * power) + np.abs(x_k) ** 2 / power)
    true = [nats.mean() / math.log(2), alone / math.log(2)]
    assert documented(made)[2:] == [round(number, 4) for number in true]


def test_no_patch_of_training_has_a_pixel_of_the_test_split(monkeypatch):
    """Photographs whose pixels are their own numbers."""
    made = module("patches64")
    numbers = np.arange(2 * 427 * 640 * 3).reshape(2, 427, 640, 3)
    monkeypatch.setattr(made, "load_sample_images", lambda: types.SimpleNamespace(images=numbers))
    train, test = made.data("train"), made.data("test")
    assert train.shape[1:] == test.shape[1:] == (64, 64, 3) and len(train) > 5000
    assert not np.isin(np.unique(test), np.unique(train)).any()
    assert len(np.unique(test)) == test.size  # nor do they overlap themselves
    # Rows, columns and colours lie as in the photograph.
    assert train[0, 3, 5, 2] - train[0, 0, 0, 0] == (3 * 640 + 5) * 3 + 2


def test_no_piece_of_training_has_a_sample_of_the_test_split(monkeypatch):
    """A recording whose samples are their own numbers; and the real one has the named levels."""
    made = module("series")
    x = [made.data(split) for split in ("train", "test")]
    assert min(part.min() for part in x) == 0 and max(part.max() for part in x) == 292
    with matplotlib.cbook.get_sample_data("membrane.dat") as file:
        volts = np.frombuffer(file.read(), np.float32)
    # To what the converter resolves, 10 / 4096.
    first = volts[:64] - volts.min()
    assert np.abs(x[0][0, :, 0] * 10 / 4096 - first).max() < 0.5 * 10 / 4096
    numbers = (np.arange(12_000) + 0.4).astype(np.float32) * np.float32(made.STEP)
    content = numbers.tobytes()

    monkeypatch.setattr(matplotlib.cbook, "get_sample_data", lambda name: io.BytesIO(content))
    train, test = made.data("train"), made.data("test")
    assert train.max() < 9_000 <= test.min() and len(np.unique(test)) == test.size
    assert train.max() == 8_999 or train.max() == 8_998
    np.testing.assert_array_equal(np.diff(train[:, :, 0], axis=1), 1)


class Opened(dict):
    """The arrays of an open file."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def test_no_piece_of_the_map_is_in_both_splits_and_each_has_its_place(monkeypatch):
    """A map that rises by a metre for each row and by a thousand for each column."""
    made = module("relief")
    for split in ("train", "test"):
        x, conditions = made.data(split)
        assert x.min() == 0 and x.max() < made.LEVELS and conditions["cond"].shape == (len(x), 3)
    rows, columns = np.indices((344, 403))
    heights = rows + 1000 * columns
    file = Opened(elevation=heights, dx=np.float64(0.5), xmin=np.float64(10), ymin=np.float64(90))
    monkeypatch.setattr(matplotlib.cbook, "get_sample_data", lambda name: file)
    pixels = {}
    for split in ("train", "test"):
        x, conditions = made.data(split)
        east, north, lowest = conditions["cond"].T
        pixels[split] = np.unique(x[..., 0] + lowest[:, None, None])
        # The lowest cell is the one in the north-west corner, 7.5 cells from the middle.
        np.testing.assert_allclose(east, 10 + 0.5 * (lowest // 1000 + 7.5))
        np.testing.assert_allclose(north, 90 - 0.5 * (lowest % 1000 + 7.5))
        assert x[0, 3, 5, 0] == 3 + 5000
    assert not np.isin(pixels["train"], pixels["test"]).any()


def test_no_piece_of_the_brain_is_in_both_splits(monkeypatch):
    pytest.importorskip("nilearn")
    made = module("brain")
    train, test = made.data("train"), made.data("test")
    assert train.shape[1:] == test.shape[1:] == (16, 16, 16, 1) and train.dtype == np.uint8
    assert len(train) > 500 and len(test) > 20
    assert (train > 0).mean((1, 2, 3, 4)).min() > 0.9
    # The template is symmetric: a piece must not be another's mirror image.
    whole = {cube.tobytes() for cube in np.concatenate([train, test])}
    assert not any(cube[::-1].tobytes() in whole for cube in test)

    # An image whose planes from back to front are their own numbers, from 1 to 233.
    planes = np.broadcast_to(np.arange(1, 234)[None, :, None] / 255, (197, 233, 189))
    image = types.SimpleNamespace(get_fdata=lambda: planes)
    monkeypatch.setattr("nilearn.datasets.load_mni152_template", lambda resolution: image)
    assert made.data("train").max() <= made.FIRST_OF_TEST < made.data("test").min()
    np.testing.assert_array_equal(np.diff(made.data("test")[:, 0, :, 0, 0].astype(int)), 1)
