"""The data of the experiments on fields: what their documents say of them."""

import importlib.util
import io
import pathlib
import re
import types

import matplotlib.cbook
import numpy as np

from oracles import within

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


def module(name):
    spec = importlib.util.spec_from_file_location(f"of_test_{name}", EXPERIMENTS / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def documented(made):
    """The numbers of a docstring that have a decimal point."""
    return [float(number) for number in re.findall(r"\d+\.\d{4}", made.__doc__)]


def test_the_expected_bits_of_the_volumes():
    made = module("volumes")
    bits = 0.5 * np.mean(np.log2(2 * np.pi * np.e * made.SPECTRUM))
    white = 0.5 * np.log2(2 * np.pi * np.e)
    assert documented(made) == [round(bits, 4), round(white, 4)]
    x = made.data("test")[..., 0]
    assert x.shape == (20, 32, 32, 32) and x.dtype == np.float32
    found = np.abs(np.fft.fftn(x, axes=(1, 2, 3))) ** 2 / 32**3 / made.SPECTRUM
    # 2¹⁵ numbers a field, of which half are the others' conjugates.
    assert within(found.mean((1, 2, 3)), 1.0)
    assert within(found[:, :3, :3, :3].mean((1, 2, 3)), 1.0)
    assert not np.array_equal(x, made.data("train")[:20, ..., 0])


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
