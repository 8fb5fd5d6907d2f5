"""A folder of runs, configs and data, most of them wrong in one way that their name says."""

import io
import json
import os
import pathlib
import shutil
import struct
import zipfile
import zlib

import flax.serialization
import msgpack
import numpy as np
from PIL import Image

import official
import runs
from vdm.run import config as configs
from vdm.run.compression import format as file_format, header as headers

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(40, 2)).astype(np.float32)
COUNTS = RNG.integers(0, 17, (40, 8, 8, 1), np.uint8)
PIXELS = RNG.integers(0, 256, (8, 8, 3), np.uint8)


def make(folder):
    """Write everything into an empty folder."""
    for name in runs.MADE:
        runs.copy_of(name, folder / name)
    (folder / "file").write_text("not a folder")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    _configs(folder)
    _broken_runs(folder)
    _arrays(folder / "arrays")
    _masks(folder / "masks")
    _sets(folder / "sets")
    _conditions(folder / "given")
    _pictures(folder / "pictures")
    _compressed(folder / "compressed", folder)
    _official(folder / "official")


def _sets(folder):
    folder.mkdir()
    lengths = np.asarray([2, 1, 3] * 10)
    x = RNG.normal(size=(60, 2)).astype(np.float32)
    padded, mask = np.zeros((30, 3, 2), np.float32), np.arange(3) < lengths[:, None]
    padded[mask] = x
    nan = padded.copy()
    nan[4, 0, 1] = np.nan
    empty, fewer = mask.copy(), lengths.copy()
    empty[7], fewer[5] = False, 0
    for name, arrays in {
        "good": {"x": x, "lengths": lengths},
        "other_mask": {"x": padded, "mask": mask[:, :2]},
        "counted_mask": {"x": padded, "mask": mask * 2},
        "real_mask": {"x": padded, "mask": mask.astype(float)},
        "empty": {"x": padded, "mask": empty},
        "empty_length": {"x": x, "lengths": fewer},
        "nan": {"x": nan, "mask": mask},
        "sum": {"x": x[1:], "lengths": lengths},
        "both": {"x": padded, "mask": mask, "lengths": lengths},
        "neither": {"x": padded},
        "flat": {"x": x[:, 0], "lengths": lengths},
        "real_lengths": {"x": x, "lengths": lengths.astype(float)},
        "one_axis": {"x": padded[..., 0], "mask": mask},
        "labels": {"x": x, "lengths": lengths, "labels": lengths[1:]},
        "cond": {"x": x, "lengths": lengths, "cond": lengths[1:]},
        "field": {"x": x, "lengths": lengths, "cond_field": x[1:]},
        "no_test": {"train": x, "train_lengths": lengths},
        "kinds": {
            "train": x,
            "train_lengths": lengths,
            "test": x[:, :1],
            "test_lengths": lengths,
        },
        "more": {"x": x, "lengths": lengths, "y": x},
        "many": {"x": np.repeat(x, 2, axis=0), "lengths": 2 * lengths},
        "wide": {"x": np.repeat(x, 2, axis=1), "lengths": lengths},
        "text": {"x": x.astype(str), "lengths": lengths},
    }.items():
        np.savez(folder / f"{name}.npz", **arrays)
    np.save(folder / "x.npy", x)


def _configs(folder):
    for name, config in runs.MADE.items():
        runs.write_config_file(folder / f"{name}.py", config())
    runs.write_config_file(folder / "dit.py", runs.images(runs.DIT))
    runs.write_config_file(folder / "unet.py", runs.images(runs.UNET))
    runs.write_config_file(folder / "sets.py", runs.sets("sets/good.npz", batch_size=2))
    for name, config, data in (
        ("real", runs.points(batch_size=2), "arrays"),
        ("counts", runs.images(batch_size=2), "arrays"),
        ("labelled", runs.images(num_classes=3, batch_size=2), "arrays"),
        ("pictures", runs.images(batch_size=2), "images"),
        ("vectors", runs.images(batch_size=2), "arrays"),
        ("standard", runs.points(batch_size=2), "arrays"),
    ):
        values = configs.to_dict(config)
        values["data"] |= {"name": data, "path": "none"}
        if name == "pictures":
            values["model"]["likelihood"]["levels"] = 256
        if name == "vectors":
            values["model"]["network"]["cond_dim"] = 2
        if name == "standard":
            values["data"]["standardise"] = "all"
            values["model"]["likelihood"]["mean"] = 5.0
        runs.write_config_file(folder / f"{name}.py", configs.from_dict(values))
    for name, text in {
        "no_function": "x = 1",
        "syntax": "def get_config(:",
        "raises": "def get_config():\n    raise RuntimeError('first\\nsecond')",
        "leaves": "import sys\nsys.exit(3)",
        "none": "def get_config():\n    return None",
        "dictionary": "def get_config():\n    return {'train': 1}",
        "argument": "def get_config(x):\n    return x",
        "imports": "import no_such_module",
        "divides": "def get_config():\n    return 1 / 0",
        "not_utf8": "# \udcff",
        "no_blocks": "import ml_collections\n\ndef get_config():\n"
        "    return ml_collections.ConfigDict({})",
        "text_block": "import ml_collections\n\ndef get_config():\n"
        "    return ml_collections.ConfigDict({'train': 'x', 'data': 3, 'model': None})",
        "array_value": "import ml_collections\nimport numpy as np\nfrom vdm.run import config\n\n"
        "def get_config():\n    values = config.default_values()\n"
        "    values.data.name = np.zeros((3, 3))\n    return values",
        "no_name": "import ml_collections\nfrom vdm.run import config\n\n"
        "def get_config():\n    values = config.default_values()\n"
        "    values.data.name = 'digits'\n    values.model.schedule = {'log_snr_max': 3.0}\n"
        "    return values",
    }.items():
        (folder / f"bad_{name}.py").write_bytes(text.encode(errors="surrogateescape"))


# A file of a run and what is in it in place of what was.
FILES = {
    "config": (
        "config.json",
        {
            "empty": "",
            "cut": '{"data": ',
            "list": "[]",
            "null": "null",
            "nan": "NaN",
            "deep": "[" * 5000,
            "not_utf8": b"\xff\xfe",
            "no_train": lambda value: value.pop("train"),
            "other_key": lambda value: value.update(trane={}),
            "text": lambda value: value["train"].update(num_steps="4"),
            "zero": lambda value: value["train"].update(num_steps=0),
            "no_network": lambda value: value["model"].pop("network"),
            "network": lambda value: value["model"].update(network={"name": "mpl"}),
            "block": lambda value: value["model"].update(schedule="linear"),
            "width": lambda value: value["model"]["network"].update(width=24),
            "blocks": lambda value: value["model"]["network"].update(num_blocks=2),
            "heads": lambda value: value["model"].update(prediction="epss"),
            "huge": lambda value: value["train"].update(batch_size=10**400),
        },
    ),
    "data": (
        "data.json",
        {
            "gone": None,
            "empty": "",
            "list": "[1]",
            "no_shape": lambda value: value.pop("shape"),
            "negative": lambda value: value.update(shape=[-2]),
            "text": lambda value: value.update(shape="2"),
            "flat": lambda value: value.update(shape=2),
            "real": lambda value: value.update(num_examples=2.5),
            "version": lambda value: value.update(version=1),
            "wide": lambda value: value.update(shape=[3]),
        },
    ),
    "metrics": (
        "metrics.jsonl",
        {
            "word": "loss\n",
            "list": "[]\n",
            "text": '{"step": 1, "loss": "a"}\n',
            "no_step": '{"loss": 1.0}\n',
            "nan": '{"step": 1, "loss": NaN}\n',
        },
    ),
    "sessions": (
        "sessions.json",
        {
            "cut": "[{",
            "object": "{}",
            "began": '[{"began": "today"}]',
            "steps": '[{"began": "2026-01-01T00:00:00+00:00", "from_step": -1}]',
        },
    ),
    "evaluation": (
        "evaluation.json",
        {
            "cut": '{"results"',
            "list": "[1]",
            "results": '{"results": 3}',
            "empty": '{"results": []}',
            "bound": '{"results": [{"bound": "elbo"}]}',
        },
    ),
    "checkpoint": (
        "checkpoints/4/state/_METADATA",
        {"empty": "", "object": "{}", "gone": None},
    ),
}
# Of these the checkpoint is looked at, too.
READ = (
    *("config_width", "config_blocks", "data_wide", "data_list"),
    *(f"checkpoint_{how}" for how in FILES["checkpoint"][1]),
)


def _broken_runs(folder):
    for what, (file, changes) in FILES.items():
        for how, change in changes.items():
            path = shutil.copytree(folder / "points", folder / f"{what}_{how}") / file
            if f"{what}_{how}" not in READ:
                shutil.rmtree(path.parent / "checkpoints", ignore_errors=True)
            if change is None:
                path.unlink()
            elif callable(change):
                value = json.loads(path.read_text())
                change(value)
                path.write_text(json.dumps(value))
            else:
                path.write_bytes(change if isinstance(change, bytes) else change.encode())
    for what, file in (("config", "config.json"), ("data", "data.json")):
        path = shutil.copytree(folder / "points", folder / f"{what}_folder") / file
        path.unlink()
        path.mkdir()
    shutil.rmtree(shutil.copytree(folder / "points", folder / "no_checkpoint") / "checkpoints")
    renamed = shutil.copytree(folder / "points", folder / "renamed") / "checkpoints"
    (renamed / "4").rename(renamed / "7")


def _arrays(folder):
    folder.mkdir()
    labels = np.arange(40) % 3
    real, counts = REAL.copy(), COUNTS.astype(np.int64)
    real[17, 1], counts[5, 0, 0, 0] = np.nan, -1
    infinite, large = REAL.copy(), REAL.astype(np.float64)
    infinite[3, 0], large[2, 1] = -np.inf, 1e39
    arrays = {
        "good": COUNTS,
        "points": REAL,
        "nan": real,
        "infinite": infinite,
        "large": large,
        "negative": counts,
        "eighteen": COUNTS + 1,
        "complex": REAL + 1j,
        "text": np.array([["a", "b"]]),
        "dates": np.zeros((3, 2), "M8[s]"),
        "records": np.zeros((3, 2), [("a", "i4")]),
        "one_axis": REAL[:, 0],
        "scalar": np.float32(1),
        "none": REAL[:0],
        "no_values": REAL[:, :0],
        "single": COUNTS[:1],
        "far": REAL + 1e6,
        "small": REAL * 1e-6,
        "rank": np.zeros((40, 8, 8), np.uint8) + 3,
    }
    for name, x in arrays.items():
        np.save(folder / f"{name}.npy", x)
    np.save(folder / "objects.npy", np.array([[1, "a"]], object), allow_pickle=True)
    whole = (folder / "good.npy").read_bytes()
    (folder / "cut.npy").write_bytes(whole[:900])
    (folder / "longer.npy").write_bytes(whole + b"abc")
    (folder / "blank.npy").write_bytes(b"")
    (folder / "word.npy").write_text("x = 1")
    (folder / "table.csv").write_text("1,2\n")
    archives = {
        "other_name": {"arr_0": COUNTS},
        "no_test": {"train": COUNTS},
        "shapes": {"train": COUNTS, "test": COUNTS[:, :4]},
        "kinds": {"train": COUNTS, "test": COUNTS.astype(float)},
        "only_labels": {"labels": labels},
        "real_labels": {"x": COUNTS, "labels": labels.astype(float)},
        "negative_labels": {"x": COUNTS, "labels": labels - 1},
        "short_labels": {"x": COUNTS, "labels": labels[:-1]},
        "wide_labels": {"x": COUNTS, "labels": labels[:, None]},
        "three_classes": {"x": COUNTS, "labels": np.arange(40) % 3},
        "four_classes": {"x": COUNTS, "labels": np.arange(40) % 4},
        "one_side": {"train": COUNTS, "test": COUNTS, "test_labels": labels},
        "more": {"x": COUNTS, "y": COUNTS},
        "nothing": {},
        "pickled": {"x": np.array([[1, "a"]], object)},
    }
    for name, found in archives.items():
        np.savez(folder / f"{name}.npz", **found)
    archive = (folder / "more.npz").read_bytes()
    (folder / "cut.npz").write_bytes(archive[:900])
    (folder / "archive.npy").write_bytes(archive)
    (folder / "array.npz").write_bytes(whole)
    with zipfile.ZipFile(folder / "word.npz", "w") as file:
        file.writestr("x", b"no array")
    with zipfile.ZipFile(folder / "member.npz", "w") as file:
        file.writestr("x.npy", b"no array")
    for name, files in {
        "no_files": {},
        "other_file": {"x.npy": COUNTS},
        "one_split": {"train.npy": COUNTS},
        "split_shapes": {"train.npy": COUNTS, "test.npy": COUNTS[:, 1:]},
    }.items():
        (folder / name).mkdir()
        for file, x in files.items():
            np.save(folder / name / file, x)
    shutil.copytree(folder / "split_shapes", folder / "split_twice")
    np.savez(folder / "split_twice/train.npz", x=COUNTS)
    os.mkfifo(folder / "pipe.npy")
    (folder / "folder.npy").mkdir()


def _conditions(folder):
    folder.mkdir()
    labels, cond, field = np.arange(4) % 3, RNG.normal(size=(4, 2)), RNG.normal(size=(4, 8, 8, 1))
    many = RNG.normal(size=(40, 2))
    broken = many.copy()
    broken[7, 1] = np.nan
    for name, found in {
        "some": {"labels": labels, "cond": cond, "cond_field": field},
        "field": {"cond_field": field[:1]},
        "wide_field": {"cond_field": np.zeros((1, 8, 9, 1))},
        "nan_field": {"cond_field": np.full((1, 8, 8, 1), np.nan)},
        "real_labels": {"labels": labels / 2, "cond": cond, "cond_field": field},
        "other": {"conds": cond},
        "empty": {},
        "bad_score": {"x": COUNTS, "cond": broken},
        "short_score": {"x": COUNTS, "cond": many[:39]},
        "good": {"x": COUNTS, "cond": many},
        "nan_cond": {"x": COUNTS, "cond": broken},
        "short_cond": {"x": COUNTS, "cond": many[:39]},
        "wide_cond": {"x": COUNTS, "cond": np.zeros((40, 3))},
        "shape_field": {"x": COUNTS, "cond": many, "cond_field": np.zeros((40, 8, 7, 1))},
    }.items():
        np.savez(folder / f"{name}.npz", **found)
    np.save(folder / "vectors.npy", cond)
    (folder / "vectors.txt").write_text("1,2")
    for name, text in {
        "word": "temperature,pressure\n1,2\nwarm,3\n",
        "nan": "temperature,pressure\n1,nan\n",
        "twice": "temperature,temperature\n1,2\n",
        "short": "temperature,pressure\n1,2\n3\n",
        "header": "temperature,pressure\n",
        "no_header": "1,2\n3,4\n",
        "named": "file,temperature,pressure\nx.png,1,2\n",
    }.items():
        (folder / f"{name}.csv").write_text(text)


def _masks(folder):
    folder.mkdir()
    half, but_one = np.zeros((8, 8), bool), np.ones((8, 8), bool)
    half[:4], but_one[7, 7] = True, False
    masks = {
        "half": half,
        "all_but_one": but_one,
        "grey": 0.5 * half,
        "words": np.where(half, "1", "0"),
        "all": half | ~half,
        "nothing": half & ~half,
        "three": np.stack([half] * 3),
        "first": np.stack([[True, True]] * 39 + [[True, False]]),
    }
    for name, mask in masks.items():
        np.save(folder / f"{name}.npy", mask)


def _pictures(folder):
    image, other = Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])
    grey = Image.fromarray(PIXELS[..., 0])
    good = io.BytesIO()
    image.save(good, "PNG")
    transparent = image.quantize(8)
    transparent.info["transparency"] = 0
    turned = Image.Exif()
    turned[0x0112] = 6
    cases = {
        "one": {"a.png": image},
        "none": {},
        "no_images": {"notes.txt": b"x"},
        "only_train": {"train/a.png": image},
        "sizes": {"a.png": image, "b.png": Image.fromarray(PIXELS[:7])},
        "kinds": {"a.png": image, "b.png": grey},
        "alpha": {"a.png": image.convert("RGBA"), "b.png": image.convert("RGBA")},
        "four_colours": {"a.jpg": image.convert("CMYK"), "b.jpg": image.convert("CMYK")},
        "transparent": {"a.png": transparent, "b.png": transparent},
        "real": {"a.tif": Image.fromarray(np.float32(PIXELS[..., 0])), "b.png": grey},
        "text": {"a.png": image, "b.png": b"no image"},
        "blank": {"a.png": image, "b.png": b""},
        "cut": {"a.png": image, "b.png": good.getvalue()[:20]},
        "vector": {"a.png": image, "b.png": b"%!PS-Adobe-3.0 EPSF-3.0\n"},
    }
    for name, files in cases.items():
        (folder / name).mkdir(parents=True)
        for file, content in files.items():
            path = folder / name / file
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content.save(path)
    for name in ("frames", "turned", "pipe"):
        (folder / name).mkdir()
        image.save(folder / name / "a.png")
    image.save(folder / "frames/b.gif", save_all=True, append_images=[other])
    image.save(folder / "turned/b.jpg", exif=turned)
    os.mkfifo(folder / "pipe/b.png")
    shutil.copytree(folder / "one", folder / "with_notes")
    (folder / "with_notes/notes.txt").write_text("x")


def section(mark, body):
    """A section of the compressed format whose two checksums are right, whatever is in it."""
    start = struct.pack("<4sII", mark, len(body), zlib.crc32(body))
    return start + struct.pack("<I", zlib.crc32(start)) + body


HEADER = headers.Header(
    kind="npy",
    names=(),
    num_examples=5,
    shape=(8, 8, 1),
    dtype="|u1",
    per_block=2,
    model=bytes(8),
    schedule=bytes(4),
    probe=bytes(4),
    num_steps=4,
    batch_size=2,
    resolution=2,
)


PARTS = (headers.Part("vector", "<f4", (2,)),)


def compressed(header=HEADER):
    """A compressed file whose checksums are right, of words that mean nothing."""
    file = io.BytesIO()
    writer = file_format.Writer(file, header)
    for number in range(3):
        writer.block(file_format.Block(number, 0, np.arange(8, dtype=np.uint32)))
    writer.end()
    return file.getvalue()


def _compressed(folder, whole_folder):
    folder.mkdir()
    whole = compressed()
    names = ("a.png", "b.png", "c.png", "d.png", "e.png")
    files = {
        "other_model": whole,
        "other_shape": compressed(HEADER._replace(shape=(8, 8, 3))),
        "images": compressed(HEADER._replace(kind="images", names=names)),
        "archive": compressed(HEADER._replace(kind="npz", names=("x",))),
        "with_conditions": compressed(HEADER._replace(conditions=PARTS)),
        "bad_beside": compressed(HEADER._replace(conditions=PARTS, beside=True)),
        "bad_conditions": compressed(HEADER._replace(conditions=PARTS * 2)),
        "cut": whole[:-30],
        "flipped": whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:],
        "longer": whole + b"x",
        "blank": b"",
        "word": b"no such file",
        "header_only": whole[: whole.index(file_format.BLOCK)],
        "header_flipped": whole[:30] + bytes([whole[30] ^ 1]) + whole[31:],
        "version": section(file_format.HEADER, b"\x07"),
        "no_values": section(file_format.HEADER, b"\x01" + msgpack.packb([])),
        "an_object": section(file_format.HEADER, b"\x01" + msgpack.packb({"kind": "npy"})),
        "no_msgpack": section(file_format.HEADER, b"\x01\xc1"),
    }
    for field, value in {
        "kind": "exe",
        "names": ("x",),
        "num_examples": 2**60,
        "shape": (-8, 8, 1),
        "dtype": "f4",
        "per_block": 0,
        "model": b"short",
        "num_steps": 2**70 % 2**64,
        "batch_size": 0,
        "resolution": -1,
    }.items():
        files[f"bad_{field}"] = compressed(HEADER._replace(**{field: value}))
    many = HEADER._replace(num_examples=2**40)
    files["many_examples"] = compressed(many)
    for name, content in files.items():
        (folder / f"{name}.vdm").write_bytes(content)


def _official(folder):
    folder.mkdir()
    small = {"channels": 8, "blocks": 1, "schedule": "scalar"}

    def tree():
        made = official.parameters(seed=1, **small)
        return official.mapped(lambda leaf: np.asarray(leaf, np.float32), made)

    def nested(depth):
        inner = {"x": np.zeros(2, np.float32)}
        for _ in range(depth):
            inner = {"a": inner}
        return inner

    changes = {
        "good": lambda params: None,
        "no_gamma_b": lambda params: params["gamma"].pop("b"),
        "nan": lambda params: params["gamma"].update(w=np.full(1, np.nan, np.float32)),
        "integers": lambda params: params["gamma"].update(w=np.zeros(1, np.int32)),
        "text": lambda params: params["gamma"].update(w="x"),
        "no_conv_out": lambda params: params["score_model"].pop("conv_out"),
        "no_blocks": lambda params: [
            params["score_model"].pop(name) for name in list(params["score_model"]) if "." in name
        ],
        "twice": lambda params: params["score_model"].update({"conv_in/bias": np.zeros(8)}),
        "empty_block": lambda params: params["score_model"].update({"down.block_0": {}}),
        "more_blocks": lambda params: params["score_model"].update(
            {f"down.block_{i}": {"conv1": {"bias": np.zeros(8)}} for i in range(1, 40)}
        ),
        "extra": lambda params: params.update(extra={f"x{i}": np.zeros(2) for i in range(5000)}),
        "deep": lambda params: params.update(deep=nested(400)),
        "range": lambda params: params["gamma"].update(w=np.full(1, 200, np.float32)),
    }
    for name, change in changes.items():
        params = tree()
        change(params)
        state = {"step": 3, "params": params, "ema_params": params, "opt_state": {}}
        content = flax.serialization.msgpack_serialize(state)
        (folder / f"{name}.flax").write_bytes(content)
    pack = flax.serialization.msgpack_serialize
    good = {"step": 3, "params": tree(), "ema_params": tree()}
    for name, content in {
        "blank": b"",
        "word": b"model_checkpoint_path",
        "cut": (folder / "good.flax").read_bytes()[:5000],
        "pickle": b"\x80\x04N.",
        "list": pack([1, 2]),
        "number": pack(3),
        "weights": pack({"weights": np.zeros(2)}),
        "empty": pack({}),
        "no_tree": pack({"params": 3}),
        "step_text": pack(good | {"step": "3"}),
        "step_negative": pack(good | {"step": -3}),
        "step_many": pack(good | {"step": np.arange(3)}),
        "step_huge": pack(good | {"step": 2**40}),
        "ema_other": pack(good | {"ema_params": {"gamma": tree()["gamma"]}}),
        "very_deep": b"\x81\xa1a" * 5000 + b"\x01",
    }.items():
        (folder / f"{name}.flax").write_bytes(content)
    np.save(folder / "x.npy", RNG.integers(0, 256, (40, 6, 5, 3), np.uint8))
    np.save(folder / "grey.npy", RNG.integers(0, 256, (40, 6, 5, 1), np.uint8))
    values = configs.to_dict(runs.images({"name": "unet", "num_groups": 4}))
    values["data"] = {"name": "arrays", "path": str(pathlib.Path("official/x.npy"))}
    values["model"]["likelihood"]["levels"] = 256
    values["model"]["network"]["channels"] = 64
    runs.write_config_file(folder / "config.py", configs.from_dict(values))
