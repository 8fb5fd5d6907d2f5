"""The README's and the guides' commands run in their order, as a reader would type them.

What is made smaller: a run trains for two steps a tiny network on forty images of its set's kind,
and later commands find these in its workdir; the ODE takes two steps, and where a command names
the steps of sampling or of a code, five. All other words of a
command stand as documented.
Only parsed (test_documented_commands.py) are commands for several processes, which
test_processes.py runs, those of runs on sets that have to be downloaded, whose configs
test_experiments.py trains, and without --all `make demo` with another config. Where a page
speaks of a run that another document makes, that document's command makes it.
"""

import json
import math
import re
import shutil
import subprocess

import flax.serialization
import jax
import jaxtyping
import numpy as np
import pytest
from sklearn.datasets import load_digits

import documented
import official
from vdm.run import arguments, cli

pytestmark = pytest.mark.float32

PAGES = [page for page in documented.pages() if page == "README.md" or page.startswith("docs/")]
DOWNLOADED = ("mnist", "cifar10", "downsampled_imagenet", "imagenet_resized")
MAKE = ("train", "import", "demo")  # the commands that make a run
SMALL = {
    "train.num_steps": 2,
    "train.batch_size": 4,
    "train.log_every": 1,
    "evaluate.levels_per_example": 1,
    "evaluate.batch_size": 4,
    "sample.num_steps": 3,
    "sample.batch_size": 16,
    "few_steps.head_steps": 2,
    "few_steps.num_examples": 16,
    "few_steps.batch_size": 16,
}
SMALL_NETWORK = {
    "channels": 8,
    "num_blocks": 1,
    "num_groups": 4,
    "attention": "none",
    "dropout": 0.0,
    "width": 16,
}
SHORTER = {"--ode_steps": 2, "--steps": 5}
SHORTER_LINES = {"num_steps=500": "num_steps=30", "[..., None]": "[:300, ..., None]"}
ALONE = ("--distributed", "--coordinator", "--num_processes", "--process_index")


class Reader:
    """Types commands in a folder, each once, and first those that make the runs it needs."""

    def __init__(self, folder, everything):
        self.folder, self.all = folder, everything
        self.done = set()
        everything = [c for page in documented.pages() for c in documented.commands(page)]
        self.makers = {}
        for command in everything:
            for words in typed(command):
                if words[0] in MAKE and "--dry_run" not in words:
                    self.makers.setdefault(workdirs(words)[0], command)
                if words[0] == "export":
                    self.makers.setdefault(words[-1], command)

    def follow(self, command):
        for words in typed(command):
            if words in self.done or set(ALONE) & {word.split("=")[0] for word in words}:
                continue
            if self.has_to_be_downloaded(words):
                continue
            if "DEMO_CONFIG" in str(command) and not self.all:
                assert words[0] != "train" or config_of(words)
                continue
            makes = words[0] in MAKE
            for workdir in () if makes else workdirs(words):
                there = self.folder / workdir
                if not there.is_file() and not (there / "config.json").exists():
                    assert workdir in self.makers, f"{command}: no document makes {workdir}"
                    self.follow(self.makers[workdir])
            # The annotations do not know the open number of examples of an exported program.
            jaxtyping.config.update("jaxtyping_disable", words[0] == "export")
            code = cli.main(small(words))
            jaxtyping.config.update("jaxtyping_disable", False)
            assert code == 0, f"{command}: exit code {code}"
            self.done.add(words)
            check(words)

    def has_to_be_downloaded(self, words):
        """Whether the run of a command needs a set that is not here."""
        maker = self.makers.get(workdirs(words)[0])
        if "--dry_run" in words or maker is None:
            return False
        made = [typed_words for typed_words in typed(maker) if typed_words[0] == "train"]
        return any(config_of(one).data.name.split("/")[0] in DOWNLOADED for one in made)

    def begin(self, page):
        """Start a page without the runs that it makes in its own way."""
        for command in documented.commands(page):
            for words in typed(command):
                makes = words[0] in MAKE and "--config" in str(words)
                if makes and words not in self.done:
                    shutil.rmtree(self.folder / workdirs(words)[0], ignore_errors=True)


def typed(command):
    """The words after `vdm` of what a command runs: its own, or those of `make demo`."""
    program, *words = command.words
    if program == "vdm" and not command.mention:
        return [tuple(words)]
    if program == "make" and "demo" in words:
        dry = ["make", "--dry-run", "--old-file=.venv/.runtime", *words]
        said = subprocess.run(
            dry, capture_output=True, text=True, check=True, cwd=documented.ROOT
        ).stdout
        joined = re.sub(r"\\\n\s*", " ", said)
        return [tuple(line.split()) for line in re.findall(r"\.venv/bin/vdm (.*)", joined)]
    return []


def workdirs(words):
    return [
        word.removeprefix("--workdir=") for word in words if re.match("(--workdir=|runs/)", word)
    ]


def config_of(words):
    """The config that a training command asks for."""
    options, rest = arguments.parser().parse_known_args(words)
    return cli.read_config([f"--config={options.config}", *rest])


def small(words):
    """The command with less to do: a run's config says it once for all that follows."""
    if words[0] == "import":
        # What the parameters say of the network is not for the command to say.
        few = {key: value for key, value in SMALL.items() if not key.startswith("train.")}
        return [*words, *overrides(few | {"data.name": "arrays", "data.path": "colours.npy"})]
    if words[0] == "fit-chain":  # later commands name its steps
        return [*words]
    if words[0] != "train" or not any(word.startswith("--config=") for word in words):
        shorter = {name: n for name, n in SHORTER.items() if any(w.startswith(name) for w in words)}
        return [*words, *(f"{name}={n}" for name, n in shorter.items())]
    config = config_of(words)
    network = {key: value for key, value in SMALL_NETWORK.items() if key in config.model.network}
    changes = SMALL | {f"model.network.{key}": value for key, value in network.items()}
    if config.train.validation_examples:
        changes |= {"train.validation_examples": 4}
    if config.data.name == "digits":
        changes |= {"data.name": "arrays", "data.path": "few_digits.npz"}
    if config.data.name in DOWNLOADED:  # to be described, not trained
        changes |= {"data.name": "arrays", "data.path": "colours.npy"}
    return [*words, *overrides(changes)]


def overrides(changes):
    return [f"--config.{key}={value}" for key, value in changes.items()]


@pytest.fixture(scope="module")
def reader(tmp_path_factory, pytestconfig):
    """A folder with what the documents say that a reader has: experiments, data, a checkpoint."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("experiments", "Makefile"):
        (folder / name).symlink_to(documented.ROOT / name)
    rng = np.random.default_rng(0)
    digits, labels = load_digits(return_X_y=True)
    digits = digits.reshape(-1, 8, 8, 1).astype(np.uint8)
    np.savez(folder / "few_digits.npz", x=digits[:40], labels=labels[:40])
    np.save(folder / "digits.npy", digits[-3:])
    np.savez(folder / "fields.npz", x=rng.integers(0, 256, (40, 8, 8, 1), np.uint8))
    np.save(folder / "colours.npy", rng.integers(0, 256, (40, 8, 8, 3), np.uint8))
    tree = official.parameters(channels=32, blocks=1)
    single = official.mapped(lambda leaf: np.asarray(leaf, np.float32), tree)
    state = {"step": 3, "params": single, "ema_params": single, "opt_state": {}}
    (folder / "ckpt-1.flax").write_bytes(flax.serialization.msgpack_serialize(state))
    return Reader(folder, pytestconfig.getoption("--all"))


def pages():
    """The README; the guides' commands are others of the same kind, and their words are parsed."""
    return [
        page if page == "README.md" else pytest.param(page, marks=pytest.mark.long)
        for page in PAGES
    ]


@pytest.mark.parametrize("page", pages())
def test_the_commands_of_a_page_run_one_after_the_other(page, reader, monkeypatch):
    monkeypatch.chdir(reader.folder)
    reader.begin(page)
    names = {}
    for kind, text in documented.pieces(page):
        if kind == "python" and re.search(r"\.savez?\(|h5py\.File", text):
            exec(compile(text, page, "exec"), names)
    for command in documented.commands(page):
        reader.follow(command)


def check(words):
    """A command has left behind what it says."""
    if words[0] == "evaluate":
        for workdir in workdirs(words):
            with open(f"{workdir}/evaluation.json") as file:
                assert math.isfinite(json.load(file)["bpd"]["mean"])
    if words[0] == "decompress" and words[2].endswith(".npz"):
        with np.load(words[1].replace(".vdm", ".npz")) as source, np.load(words[2]) as back:
            assert back.files == source.files
            for name in source.files:
                np.testing.assert_array_equal(back[name], source[name])
    elif words[0] == "decompress":
        source, back = (np.load(name) for name in ("digits.npy", words[2]))
        np.testing.assert_array_equal(back, source)
    for out in (word.removeprefix("--out=") for word in words if word.startswith("--out=")):
        with open(out, "rb") as file:
            assert len(file.read()) > 100


def test_the_readmes_lines_for_a_notebook_build_train_and_sample_a_model():
    code, *_ = [text for kind, text in documented.pieces("README.md") if kind == "python"]
    for long, short in SHORTER_LINES.items():
        assert code.count(long) == 1
        code = code.replace(long, short)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    untrained = jax.jit(names["model"].vlb)(names["start"], jax.random.key(0), names["x"])
    assert names["terms"].total.mean() < 0.8 * untrained.total.mean()
    assert names["images"].shape == (16, 8, 8, 1)
    assert names["images"].min() >= 0 and names["images"].max() <= 16
