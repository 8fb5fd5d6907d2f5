"""vdm compress and vdm decompress: what comes back is what went in, or a clear refusal."""

import os
import random
import re
import signal
import time

import numpy as np
import pytest
from PIL import Image

import runs
from vdm import codec
from vdm.run import cli, compress as compressing, data, train
from vdm.run.compression import format as file_format
from vdm.run.config import DataConfig
from vdm.run.system import files, signals

pytestmark = pytest.mark.float32
STEPS = ["--steps=4", "--batch_size=8"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return runs.copy_of("images", tmp_path_factory.mktemp("model") / "run")


@pytest.fixture(scope="module")
def digits():
    return data.load(DataConfig("digits"), "test").take(np.arange(20)).x


def compress(source, out, workdir, *more):
    return cli.main(["compress", str(source), str(out), f"--workdir={workdir}", *STEPS, *more])


def decompress(source, out, workdir, *more):
    return cli.main(["decompress", str(source), str(out), f"--workdir={workdir}", *more])


@pytest.fixture(scope="module")
def compressed(workdir, digits, tmp_path_factory):
    """Twenty digits in three blocks."""
    folder = tmp_path_factory.mktemp("compressed")
    np.save(folder / "x.npy", digits)
    assert compress(folder / "x.npy", folder / "x.vdm", workdir, "--per_block=8") == 0
    return folder / "x.vdm"


def refused(capsys, code, pattern):
    error = capsys.readouterr().err
    assert code == cli.EXIT_USER_ERROR
    line = error.splitlines()[-1]
    assert line.startswith("vdm: ") and re.search(pattern, line), error
    assert "Traceback" not in error


@pytest.mark.parametrize("kind", ["digits", "noise", "constant", "one", "int64"])
def test_arrays_come_back(kind, workdir, digits, tmp_path):
    rng = np.random.default_rng(0)
    x = {
        "digits": digits,
        "noise": rng.integers(0, 17, (5, 8, 8, 1), dtype=np.uint8),
        "constant": np.full((9, 8, 8, 1), 16, np.uint8),
        "one": digits[:1],
        "int64": digits[:3].astype(np.int64),
    }[kind]
    np.save(tmp_path / "x.npy", x)
    assert compress(tmp_path / "x.npy", tmp_path / "x.vdm", workdir) == 0
    assert decompress(tmp_path / "x.vdm", tmp_path / "y.npy", workdir) == 0
    y = np.load(tmp_path / "y.npy")
    assert y.dtype == x.dtype and np.array_equal(x, y)
    names = {"config", "x.npy", "x.vdm", "y.npy"}
    assert {path.name for path in tmp_path.iterdir()} <= names


def test_a_folder_of_pictures_comes_back(workdir, digits, tmp_path):
    (tmp_path / "in/more").mkdir(parents=True)
    for name, image in zip(("b.png", "more/a.png", "c.png"), digits, strict=False):
        Image.fromarray(image[..., 0]).save(tmp_path / "in" / name)
    assert compress(tmp_path / "in", tmp_path / "x.vdm", workdir) == 0
    assert decompress(tmp_path / "x.vdm", tmp_path / "out", workdir) == 0
    for name, image in zip(("b.png", "more/a.png", "c.png"), digits, strict=False):
        np.testing.assert_array_equal(Image.open(tmp_path / "out" / name), image[..., 0])


def test_the_report_is_of_the_file(workdir, digits, tmp_path, capsys):
    np.save(tmp_path / "x.npy", digits)
    assert compress(tmp_path / "x.npy", tmp_path / "x.vdm", workdir, "--per_block=8") == 0
    printed = capsys.readouterr().out
    size = (tmp_path / "x.vdm").stat().st_size
    assert f"20 examples, {size:,} bytes" in printed
    said = [float(number) for number in re.findall(r"│ +(\d+\.\d{4})", printed)]
    file, net, seed, rest, ideal, bound = said
    assert file == pytest.approx(8 * size / digits.size, abs=1e-4)
    assert file == pytest.approx(net + seed + rest, abs=2e-4)
    found = file_format.survey(tmp_path / "x.vdm")
    words = sum(length - 8 for _, length in found.blocks.values())
    assert rest == pytest.approx(8 * (size - words) / digits.size, abs=64 * 3 / digits.size + 1e-4)
    # Of a model that has learned nothing: latents that it finds impossible have short codes.
    assert ideal == pytest.approx(bound, rel=0.2) and 0 < net < ideal


def test_what_is_there_is_not_spoilt(workdir, digits, compressed, tmp_path, capsys):
    np.save(tmp_path / "x.npy", digits)
    refused(
        capsys, compress(tmp_path / "x.npy", tmp_path / "x.npy", workdir), "expected another OUT"
    )
    refused(
        capsys, compress(tmp_path / "x.npy", tmp_path, workdir), "exists already and is not a file"
    )
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), digits)
    (tmp_path / "link.vdm").symlink_to(tmp_path / "there.vdm")
    assert compress(tmp_path / "x.npy", tmp_path / "link.vdm", workdir) == 0
    assert (tmp_path / "link.vdm").is_symlink() and (tmp_path / "there.vdm").stat().st_size > 100
    capsys.readouterr()
    # Nothing of it is intact: there is nothing to recover.
    found = file_format.survey(compressed)
    (tmp_path / "x.vdm").write_bytes(compressed.read_bytes()[: found.blocks[0][0]])
    code = decompress(tmp_path / "x.vdm", tmp_path / "y.npy", workdir, "--recover")
    refused(capsys, code, "0 of its 3 blocks are intact$")
    assert not (tmp_path / "y.npy").exists()


def test_sigterm_leaves_nothing_half_written(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(SystemExit) as left,
        signals.sigterm_leaves(),
        files.replacing(tmp_path / "x.vdm") as temporary,
    ):
        temporary.write_text("half of it")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)  # not that long: the handler raises
    assert left.value.code == cli.EXIT_TERMINATED and not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before


def test_options_out_of_range_are_refused(workdir, digits, tmp_path, capsys):
    np.save(tmp_path / "x.npy", digits)
    for option, value in (("steps", 10**7), ("resolution", 21), ("batch_size", 2**21)):
        code = compress(tmp_path / "x.npy", tmp_path / "x.vdm", workdir, f"--{option}={value}")
        refused(capsys, code, "must be at most")
    for option in ("steps", "batch_size", "per_block"):
        code = compress(tmp_path / "x.npy", tmp_path / "x.vdm", workdir, f"--{option}=0")
        refused(capsys, code, f"--{option} must be at least 1: got 0")
    code = compress(tmp_path / "x.npy", tmp_path / "x.vdm", workdir, "--resolution=-1")
    refused(capsys, code, "--resolution must be at least 0")
    assert not (tmp_path / "x.vdm").exists()


@pytest.mark.parametrize(
    ("x", "pattern"),
    [
        (np.zeros((2, 9, 8, 1), np.uint8), r"of shape \[8, 8, 1\]: got 2 of shape \[9, 8, 1\]"),
        (np.full((2, 8, 8, 1), 17, np.uint8), r"from 0 to 16: got 17 at \[0, 0, 0, 0\]"),
        (np.full((2, 8, 8, 1), -1), r"from 0 to 16: got -1"),
        (np.zeros((2, 8, 8, 1)), "expected integers"),
    ],
)
def test_examples_that_the_model_is_not_of_are_refused(x, pattern, workdir, tmp_path, capsys):
    np.save(tmp_path / "x.npy", x)
    refused(capsys, compress(tmp_path / "x.npy", tmp_path / "x.vdm", workdir), pattern)
    assert not (tmp_path / "x.vdm").exists()


def test_models_that_cannot_code_files_are_refused(tmp_path, digits, capsys):
    np.save(tmp_path / "x.npy", digits)
    workdir = runs.copy_of("classes", tmp_path / "classes")
    capsys.readouterr()
    code = compress(tmp_path / "x.npy", tmp_path / "x.vdm", workdir)
    refused(capsys, code, "is conditioned on one of 10 classes")
    workdir = runs.copy_of("points", tmp_path / "points")
    capsys.readouterr()
    code = compress(tmp_path / "x.npy", tmp_path / "x.vdm", workdir)
    refused(capsys, code, "only integers can be compressed")


def test_another_model_is_refused(compressed, workdir, tmp_path, capsys):
    other = runs.copy_of("images", tmp_path / "other")
    train.train(runs.images(num_steps=4), other)
    capsys.readouterr()
    code = decompress(compressed, tmp_path / "y.npy", other)
    refused(capsys, code, "compressed with another model: expected the fingerprint")
    assert not (tmp_path / "y.npy").exists()


def test_a_machine_that_computes_otherwise_is_found_before_anything_is_written(
    compressed, workdir, tmp_path, capsys, monkeypatch
):
    whole = codec.Codec._predict

    def one_bit_off(self, *args):
        predict = whole(self, *args)

        def off(z, level):
            found = predict(z, level)
            return found._replace(eps_hat=np.nextafter(found.eps_hat, np.inf))

        return off

    monkeypatch.setattr(codec.Codec, "_predict", one_bit_off)
    code = decompress(compressed, tmp_path / "y.npy", workdir)
    refused(capsys, code, "cannot be decompressed here: the model computes other numbers")
    assert not (tmp_path / "y.npy").exists()


def test_damage_is_told_and_what_is_intact_is_restored(
    compressed, workdir, digits, tmp_path, capsys
):
    whole = compressed.read_bytes()
    found = file_format.survey(compressed)
    start, length = found.blocks[1]
    damaged = bytearray(whole)
    damaged[start + length // 2] ^= 4
    (tmp_path / "x.vdm").write_bytes(damaged)
    code = decompress(tmp_path / "x.vdm", tmp_path / "y.npy", workdir)
    refused(
        capsys, code, "is damaged: the section at byte .*2 of its 3 blocks are intact; --recover"
    )
    assert not (tmp_path / "y.npy").exists()
    code = decompress(tmp_path / "x.vdm", tmp_path / "y.npy", workdir, "--recover")
    assert code == cli.EXIT_INCOMPLETE
    assert "are lost (zeros in an array, no files in a folder): 8 to 15" in capsys.readouterr().err
    y = np.load(tmp_path / "y.npy")
    np.testing.assert_array_equal(np.delete(y, range(8, 16), 0), np.delete(digits, range(8, 16), 0))
    assert not y[8:16].any()


def test_a_false_number_of_examples_makes_no_file_without_end(
    compressed, workdir, tmp_path, capsys
):
    """Blocks are intact, and the header's own checksum is right."""
    found = file_format.survey(compressed)
    blocks = [file_format.read_block(compressed, where) for where in found.blocks.values()]
    for kind, names in (("npy", ()), ("npz", ("x",))):
        header = found.header._replace(kind=kind, names=names, num_examples=2**40)
        with (tmp_path / "x.vdm").open("wb") as file:
            writer = file_format.Writer(file, header)
            for block in blocks[:2]:  # the third has fewer examples
                writer.block(block)
        code = decompress(tmp_path / "x.vdm", tmp_path / f"y.{kind}", workdir, "--recover")
        refused(capsys, code, r"its header says 1,099,511,627,776 examples, and .* at most")
        assert [path.name for path in tmp_path.iterdir()] == ["x.vdm"]


def test_one_block_of_many_is_recovered(compressed, workdir, digits, tmp_path, capsys):
    """A thousand times as many examples may be lost as there are: the rest of a file is gone."""
    found = file_format.survey(compressed)
    header = found.header._replace(num_examples=8_000)
    with (tmp_path / "x.vdm").open("wb") as file:
        writer = file_format.Writer(file, header)
        writer.block(file_format.read_block(compressed, found.blocks[0]))
    code = decompress(tmp_path / "x.vdm", tmp_path / "y.npy", workdir, "--recover")
    assert code == cli.EXIT_INCOMPLETE and "8 to 7999" in capsys.readouterr().err
    y = np.load(tmp_path / "y.npy")
    np.testing.assert_array_equal(y[:8], digits[:8])
    assert y.shape == (8_000, 8, 8, 1) and not y[8:].any()


def test_the_lost_examples_are_those_between_the_restored():
    between = compressing._between
    assert between([range(8, 16)], 20) == (range(0, 8), range(16, 20))
    assert between([range(0, 8), range(8, 20)], 20) == ()


def test_words_that_are_wrong_under_a_right_checksum_are_noticed(
    compressed, workdir, digits, tmp_path, capsys
):
    found = file_format.survey(compressed)
    blocks = [file_format.read_block(compressed, where) for where in found.blocks.values()]
    words = blocks[1].words.copy()
    words[len(words) // 2] ^= 1
    for changed in (blocks[1]._replace(words=words), blocks[1]._replace(data_crc=1)):
        with (tmp_path / "x.vdm").open("wb") as file:
            writer = file_format.Writer(file, found.header)
            for block in (blocks[0], changed, blocks[2]):
                writer.block(block)
            writer.end()
        code = decompress(tmp_path / "x.vdm", tmp_path / "y.npy", workdir)
        refused(capsys, code, "block 1: ")
        assert not (tmp_path / "y.npy").exists()
        code = decompress(tmp_path / "x.vdm", tmp_path / "y.npy", workdir, "--recover")
        assert code == cli.EXIT_INCOMPLETE
        assert "): 8 to 15" in capsys.readouterr().err
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy")[16:], digits[16:])
        (tmp_path / "y.npy").unlink()


def test_garbage_of_all_lengths_is_refused_in_one_line(compressed, workdir, tmp_path, capsys):
    chance = random.Random(2)
    whole = compressed.read_bytes()
    for start in (b"", whole[:4], whole[:20], whole[:-9]):
        (tmp_path / "x.vdm").write_bytes(start + chance.randbytes(50))
        refused(capsys, decompress(tmp_path / "x.vdm", tmp_path / "y.npy", workdir), "x.vdm")
