"""Files that are compressed with conditions: what comes back, how long, what is refused."""

import hashlib
import re
import struct
import zlib

import exact_integers as exact
import msgpack
import numpy as np
import pytest
from PIL import Image

import bad_files
import runs
from vdm import few_steps
from vdm.run import cli, config as configs, train, trained
from vdm.run.compression import format as file_format
from vdm.run.workdir import chains

pytestmark = pytest.mark.float32
CASES = [("label",), ("vector",), ("field",), ("label", "vector", "field")]
STEPS = "--steps=60"


def made(folder, kinds, optional=False):
    """Train a run with the exact denoiser, which has nothing to learn; returns its workdir."""
    folder.mkdir(exist_ok=True)
    train_set, test = exact.draw(300, kinds, 1), exact.draw(40, kinds, 2)
    named = {("train" if k == "x" else f"train_{k}"): v for k, v in train_set.items()}
    named |= {("test" if k == "x" else f"test_{k}"): v for k, v in test.items()}
    np.savez(folder / "data.npz", **named)

    def scale(name):
        if name not in train_set:
            return [[], []]
        values = train_set[name].astype(np.float64)
        return [[float(values.mean())], [float(values.std())]]

    network = {
        "name": "exact_integers:network",
        "kinds": list(kinds),
        "vector": scale("cond"),
        "field": scale("cond_field"),
        "optional": optional,
    }
    config = configs.from_dict(
        {
            "data": {"name": "arrays", "path": str(folder / "data.npz")},
            "model": {
                "schedule": {"name": "linear", "log_snr_max": 13.0, "log_snr_min": -8.0},
                "network": network,
                "likelihood": {"name": "discretised", "levels": exact.LEVELS},
            },
            "train": {"num_steps": 1, "batch_size": 16, "cond_dropout": 0.5 * optional},
            "optimizer": {"warmup_steps": 0},
            "compress": {"num_steps": 60, "batch_size": 64, "per_block": 32},
        }
    )
    train.train(config, folder / "run")
    (folder / "data.npz").unlink()  # neither command needs the data
    return folder / "run"


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    return {kinds: made(folder / "_".join(kinds), kinds) for kinds in CASES}


@pytest.fixture(scope="module")
def optional(tmp_path_factory):
    return made(tmp_path_factory.mktemp("optional"), ("field",), optional=True)


def compress(source, out, workdir, *more):
    return cli.main(["compress", str(source), str(out), f"--workdir={workdir}", *more])


def decompress(source, out, workdir, *more):
    return cli.main(["decompress", str(source), str(out), f"--workdir={workdir}", *more])


def refused(capsys, code, pattern):
    error = capsys.readouterr().err
    assert code == cli.EXIT_USER_ERROR
    line = error.splitlines()[-1]
    assert line.startswith("vdm: ") and re.search(pattern, line), error
    assert "Traceback" not in error


def same(path, arrays):
    with np.load(path) as back:
        assert set(back.files) == set(arrays)
        for name, array in arrays.items():
            assert back[name].dtype == array.dtype and back[name].shape == array.shape
            assert back[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("kinds", CASES)
def test_examples_and_their_conditions_come_back(kinds, workdirs, tmp_path):
    arrays = exact.draw(70, kinds, 3)  # in three blocks
    np.savez(tmp_path / "x.npz", **arrays)
    assert compress(tmp_path / "x.npz", tmp_path / "x.vdm", workdirs[kinds]) == 0
    assert file_format.survey(tmp_path / "x.vdm").header.beside
    assert decompress(tmp_path / "x.vdm", tmp_path / "y.npz", workdirs[kinds]) == 0
    same(tmp_path / "y.npz", arrays)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cond", lambda x: x[:, 0]),
        ("cond", lambda x: x.astype(">f8") + 1e-9),
        ("cond", lambda x: np.rint(x).astype(np.int16)),
        ("cond", lambda x: x.astype(np.float16)),
        ("cond", lambda x: np.repeat(x[:1], len(x), 0)),
        ("labels", lambda x: x.astype(np.int64)),
        ("cond_field", lambda x: np.asfortranarray(x)[::-1]),
    ],
)
def test_every_type_of_number_comes_back(name, change, workdirs, tmp_path):
    arrays = exact.draw(9, exact.KINDS, 4)
    arrays[name] = change(arrays[name])
    np.savez(tmp_path / "x.npz", **arrays)
    options = ("--steps=5", "--per_block=4")
    assert compress(tmp_path / "x.npz", tmp_path / "x.vdm", workdirs[exact.KINDS], *options) == 0
    assert decompress(tmp_path / "x.vdm", tmp_path / "y.npz", workdirs[exact.KINDS]) == 0
    same(tmp_path / "y.npz", arrays)


def reported(printed):
    """The rows of the printed table by name, in bits per dimension."""
    rows = re.findall(r"│ *([^│]*?) *│ +(\d+\.\d{4})", printed)
    return {name: float(value) for name, value in rows}


@pytest.mark.parametrize("kinds", [("vector",), exact.KINDS])
def test_the_code_is_as_long_as_the_closed_form(kinds, workdirs, tmp_path, capsys):
    arrays = exact.draw(200, kinds, 5)
    np.savez(tmp_path / "x.npz", **arrays)
    options = ("--steps=200", "--per_block=1000")
    assert compress(tmp_path / "x.npz", tmp_path / "x.vdm", workdirs[kinds], *options) == 0
    rows, truth = reported(capsys.readouterr().out), exact.bits(arrays)
    scores = trained.load(workdirs[kinds]).score(
        arrays["x"], exact.parts_of(arrays), key=0, levels_per_example=64
    )
    gap = scores.bpd - truth
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))
    # Two hundred steps cost about 0.2 bits more than infinitely many; the path, twice 0.05.
    net = rows["of which the coder's bits"]
    assert net == pytest.approx(rows["ideal code of the same latents"], abs=0.05)
    assert -0.2 < net - truth.mean() < 0.6
    said = next(name for name in rows if name.startswith("conditions"))
    num_bytes = int(re.search(r"\(([\d,]+) bytes\)", said)[1].replace(",", ""))
    assert rows[said] == pytest.approx(8 * num_bytes / arrays["x"].size, abs=1e-4)
    parts = ("of which the coder's bits", "start bits", "header and checksums", said)
    assert rows["the file"] == pytest.approx(sum(rows[name] for name in parts), abs=3e-4)
    numbers = sum(array.nbytes for name, array in arrays.items() if name != "x")
    assert num_bytes < 1.05 * numbers + 32


def test_without_conditions_and_with_false_ones_the_file_is_longer(optional, tmp_path, capsys):
    arrays = exact.draw(200, ("field",), 6)
    np.save(tmp_path / "x.npy", arrays["x"])
    wrong = {name: np.roll(array, 1, 0) for name, array in arrays.items() if name != "x"}
    np.savez(tmp_path / "right.npz", **{k: v for k, v in arrays.items() if k != "x"})
    np.savez(tmp_path / "wrong.npz", **wrong)
    net = {}
    for how in ("--unconditional", "right", "wrong"):
        option = how if how.startswith("-") else f"--cond_file={tmp_path / how}.npz"
        words = (option, "--steps=100", "--per_block=1000")
        assert compress(tmp_path / "x.npy", tmp_path / "x.vdm", optional, *words) == 0
        net[how] = reported(capsys.readouterr().out)["of which the coder's bits"]
        assert decompress(tmp_path / "x.vdm", tmp_path / "y.npy", optional) == 0
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), arrays["x"])
    truth, without = exact.bits(arrays).mean(), exact.bits_without_field(arrays).mean()
    assert -0.2 < net["right"] - truth < 0.8 and -0.2 < net["--unconditional"] - without < 0.8
    assert net["right"] + 1.0 < net["--unconditional"] < net["wrong"] - 1.0


def test_options_are_the_conditions_of_every_example(workdirs, tmp_path):
    np.save(tmp_path / "x.npy", exact.draw(40, ("vector",), 7)["x"])
    for kinds, option in ((("vector",), "--cond=291.5"), (("label",), "--label=2")):
        assert compress(tmp_path / "x.npy", tmp_path / "x.vdm", workdirs[kinds], option) == 0
        assert decompress(tmp_path / "x.vdm", tmp_path / "y.npy", workdirs[kinds]) == 0
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.load(tmp_path / "x.npy"))
        header = file_format.survey(tmp_path / "x.vdm").header
        assert [part.kind for part in header.conditions] == list(kinds) and not header.beside


def test_folders_of_images_are_their_classes(tmp_path, capsys):
    workdir = runs.copy_of("classes", tmp_path / "run")
    rng = np.random.default_rng(0)
    for i in range(10):
        (tmp_path / f"in/{i}").mkdir(parents=True)
        Image.fromarray(rng.integers(0, 17, (8, 8), np.uint8)).save(tmp_path / f"in/{i}/a.png")
    options = ("--steps=4", "--per_block=4")
    assert compress(tmp_path / "in", tmp_path / "x.vdm", workdir, *options) == 0
    assert decompress(tmp_path / "x.vdm", tmp_path / "out", workdir) == 0
    for i in range(10):
        one, other = (Image.open(tmp_path / f"{folder}/{i}/a.png") for folder in ("in", "out"))
        np.testing.assert_array_equal(one, other)
    refused(
        capsys,
        compress(tmp_path / "in", tmp_path / "z.vdm", workdir, "--label=3"),
        r"--label is given, and .*in has conditions too \(labels\)",
    )
    (tmp_path / "in/3/a.png").rename(tmp_path / "in/4/b.png")  # nine folders are not ten classes
    (tmp_path / "in/3").rmdir()
    refused(capsys, compress(tmp_path / "in", tmp_path / "z.vdm", workdir), "one of 10 classes")
    assert compress(tmp_path / "in", tmp_path / "z.vdm", workdir, "--label=3", "--steps=4") == 0


def test_damage_in_conditions_costs_its_block(workdirs, tmp_path, capsys):
    arrays, workdir = exact.draw(70, exact.KINDS, 8), workdirs[exact.KINDS]
    np.savez(tmp_path / "x.npz", **arrays)
    assert compress(tmp_path / "x.npz", tmp_path / "x.vdm", workdir, "--steps=5") == 0
    whole = (tmp_path / "x.vdm").read_bytes()
    start, _ = file_format.survey(tmp_path / "x.vdm").blocks[1]
    block = file_format.read_block(tmp_path / "x.vdm", (start, len(whole) - start))
    of_conditions, at = 8, 0
    for _ in exact.KINDS:
        num = 1 + int(block.words[at])
        of_conditions, at = of_conditions + 4 * num, at + num
    chance = np.random.default_rng(0)
    for place in chance.integers(8, of_conditions, 60):
        damaged = bytearray(whole)
        damaged[start + place] ^= 1 << int(chance.integers(8))
        (tmp_path / "z.vdm").write_bytes(damaged)
        found = file_format.survey(tmp_path / "z.vdm")
        assert found.damage is not None and sorted(found.blocks) == [0, 2]
    capsys.readouterr()
    refused(capsys, decompress(tmp_path / "z.vdm", tmp_path / "y.npz", workdir), "is damaged")
    code = decompress(tmp_path / "z.vdm", tmp_path / "y.npz", workdir, "--recover")
    assert code == cli.EXIT_INCOMPLETE and ": 32 to 63" in capsys.readouterr().err
    with np.load(tmp_path / "y.npz") as back:
        for name, array in arrays.items():
            np.testing.assert_array_equal(
                np.delete(back[name], range(32, 64), 0), np.delete(array, range(32, 64), 0)
            )
            assert not back[name][32:64].any()


@pytest.mark.parametrize("how", ["length", "cut", "zlib", "other", "value"])
def test_false_conditions_under_right_checksums_are_noticed(how, workdirs, tmp_path, capsys):
    arrays, workdir = exact.draw(70, ("vector",), 9), workdirs[("vector",)]
    np.savez(tmp_path / "x.npz", **arrays)
    assert compress(tmp_path / "x.npz", tmp_path / "x.vdm", workdir, "--steps=20") == 0
    found = file_format.survey(tmp_path / "x.vdm")
    blocks = [file_format.read_block(tmp_path / "x.vdm", w) for w in found.blocks.values()]
    words = blocks[1].words.copy()
    num = int(words[0])
    if how == "length":
        words[0] = 2**32 - 1
    elif how == "cut":
        words = words[:0]
    elif how == "zlib":
        words[num // 2] ^= 255
    elif how == "other":  # of fewer examples
        words = np.concatenate([blocks[2].words[: int(blocks[2].words[0]) + 1], words[num + 1 :]])
    else:
        words = np.concatenate([blocks[0].words[: int(blocks[0].words[0]) + 1], words[num + 1 :]])
    blocks[1] = blocks[1]._replace(words=words)
    with (tmp_path / "z.vdm").open("wb") as file:
        writer = file_format.Writer(file, found.header)
        for block in blocks:
            writer.block(block)
        writer.end()
    capsys.readouterr()
    refused(capsys, decompress(tmp_path / "z.vdm", tmp_path / "y.npz", workdir), "block 1: ")
    assert not (tmp_path / "y.npz").exists()
    code = decompress(tmp_path / "z.vdm", tmp_path / "y.npz", workdir, "--recover")
    assert code == cli.EXIT_INCOMPLETE and ": 32 to 63" in capsys.readouterr().err


def test_a_run_on_another_scale_is_another_model(workdirs, tmp_path, capsys):
    """Its parameters are the same, but the same condition is given to the model as another."""
    arrays, kinds = exact.draw(5, ("vector",), 10), ("vector",)
    np.savez(tmp_path / "x.npz", **arrays)
    assert compress(tmp_path / "x.npz", tmp_path / "x.vdm", workdirs[kinds], "--steps=5") == 0
    kept = np.load(workdirs[kinds] / "conditions.npz")
    other = {name: kept[name] * (1 + 1e-12 * (name == "vector_mean")) for name in kept.files}
    kept.close()
    whole = (workdirs[kinds] / "conditions.npz").read_bytes()
    np.savez(workdirs[kinds] / "conditions.npz", **other)
    capsys.readouterr()
    code = decompress(tmp_path / "x.vdm", tmp_path / "y.npz", workdirs[kinds])
    refused(capsys, code, "compressed with another model: expected the fingerprint")
    (workdirs[kinds] / "conditions.npz").write_bytes(whole)


def test_what_does_not_fit_is_one_line(workdirs, optional, tmp_path, capsys):
    arrays = exact.draw(9, exact.KINDS, 11)
    x = {"x": arrays["x"]}
    vector, every = ("vector",), exact.KINDS
    bad = arrays["cond"].copy()
    bad[4] = np.nan
    cases = [
        (vector, x, (), r"a vector of 1 numbers \(--cond\).* cond in an \.npz beside x$"),
        (
            every,
            x,
            (),
            r"\(--label\).*\(--cond\).*\(--cond_file.*\).* labels and cond and cond_field in",
        ),
        (every, x, ("--label=1",), "got no --cond"),
        (vector, x, ("--label=1",), "--label is given, but this model has no classes"),
        (vector, x, ("--cond=1,2",), r"--cond has 2 numbers, expected 1 \(cond_dim\)"),
        (vector, x, ("--cond=x",), "--cond must be numbers"),
        (("label",), x, ("--label=3",), "class from 0 to 2"),
        (vector, x, ("--unconditional",), "trained with and without its condition"),
        (vector, {**x, "cond": bad}, (), "finite.*got nan for example 4"),
        (vector, {**x, "cond": arrays["cond"][:5]}, (), r"of shape \[9, 1\]: got \[5, 1\]"),
        (vector, {**x, "cond": arrays["cond"], "labels": arrays["labels"]}, (), "no classes"),
        (vector, {**x, "cond": arrays["cond"]}, ("--cond=3",), r"too \(cond\): expected one"),
        (vector, {**x, "conds": arrays["cond"]}, (), "unknown name 'conds'"),
        (("label",), {**x, "labels": arrays["labels"] + 9}, (), r"x\.npz \(labels\)"),
        (None, x, (), r"cond_field in an \.npz beside x, or --unconditional$"),
        (
            None,
            x,
            ("--unconditional", "--cond_file=a"),
            "--cond_file is given beside --unconditional",
        ),
        (
            None,
            {**x, "cond_field": arrays["cond_field"]},
            ("--unconditional",),
            "has cond_field, which would be lost",
        ),
    ]
    for kinds, given, options, pattern in cases:
        np.savez(tmp_path / "x.npz", **given)
        workdir = optional if kinds is None else workdirs[kinds]
        capsys.readouterr()
        refused(
            capsys, compress(tmp_path / "x.npz", tmp_path / "x.vdm", workdir, *options), pattern
        )
        assert not (tmp_path / "x.vdm").exists()


def test_an_unconditional_model_takes_no_conditions(tmp_path, capsys):
    workdir = runs.copy_of("images", tmp_path / "run")
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 8, 8, 1), np.uint8), labels=np.arange(3))
    capsys.readouterr()
    code = compress(tmp_path / "x.npz", tmp_path / "x.vdm", workdir)
    refused(capsys, code, r"x\.npz \(labels\) is given, but this model has no classes")


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_older_versions_are_read(version, tmp_path):
    """Their bytes are written here as those versions wrote them."""
    workdir = runs.copy_of("images", tmp_path / "run")
    x = np.random.default_rng(0).integers(0, 17, (5, 8, 8, 1), np.uint8)
    run = trained.load(workdir)
    kept = None
    if version == 2:
        levels = np.asarray(few_steps.even(run.model, run.params, 4).log_snrs)
        table = few_steps.Table(np.full((4, *run.shape), 0.1, np.float32))
        about = {"params": run.params, "step": run.step, "kind": run.kind, "num_examples": 9}
        kept = chains.write(workdir, few_steps.Chain(levels, table, True), "table", **about)
    np.save(tmp_path / "x.npy", x)
    assert compress(tmp_path / "x.npy", tmp_path / "x.vdm", workdir, "--steps=4") == 0
    found = file_format.survey(tmp_path / "x.vdm")
    block = file_format.read_block(tmp_path / "x.vdm", found.blocks[0])
    own = found.header
    values = ["npy", b"", 5, [8, 8, 1], "|u1", 5, own.model, own.schedule, own.probe, 4, 16, 2]
    if kept is not None:
        values.append(kept.checksum)
    crc = zlib.crc32(x.tobytes())
    data = bad_files.section(b"\x89VDM", bytes([version]) + msgpack.packb(values))
    data += bad_files.section(b"\x89BLK", struct.pack("<II", 0, crc) + block.words.tobytes())
    data += bad_files.section(b"\x89END", hashlib.sha256(data).digest()[:8])
    (tmp_path / "old.vdm").write_bytes(data)
    assert data == (tmp_path / "x.vdm").read_bytes()
    assert decompress(tmp_path / "old.vdm", tmp_path / "y.npy", workdir) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), x)
