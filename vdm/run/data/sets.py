"""The data sets by name: digits, two toys, the user's arrays and images, tensorflow-datasets."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping

from vdm.choices import unknown
from vdm.run.config import Config, DataConfig, own as names
from vdm.run.config.words import SPLITS
from vdm.run.data import arrays, images, own, point_sets, synthetic, tfds as tfds_images
from vdm.run.data.dataset import Dataset
from vdm.run.data.stores.names import Keys
from vdm.run.errors import UserError
from vdm.run.system import document
from vdm.run.system.document import Count, Whole
from vdm.run.system.files import write_json

DATA_FILE = "data.json"


@functools.lru_cache(maxsize=4)
def load(config: DataConfig, split: str) -> Dataset:
    """Return a split of a data set, without decoding what is stored in files.

    Any name that is not in DATASETS or FILES is one of tensorflow-datasets. Raises UserError for an
    unknown name or split, and for files that are missing or bad. Read once: the caller must not
    write into the arrays.
    """
    if names.is_own_set(config.name):
        if split not in SPLITS:
            raise UserError(unknown("split", split, SPLITS))
        return own.load(config.name, config.path, split)
    known = (*DATASETS, *FILES, *EXAMPLES_OF_TFDS)
    if config.name in FILES and not config.path:
        raise UserError(f"the data set {config.name!r} needs data.path, a file or a folder")
    if config.path and config.name not in FILES:
        raise UserError(
            f"data.path is for the data sets {' and '.join(FILES)}: got name={config.name!r}"
        )
    for field, key in _keys(config)._asdict().items():
        if key and config.name != "arrays":
            raise UserError(f"data.{field} is for the data set arrays: got name={config.name!r}")
    if config.name not in (*DATASETS, *FILES):
        return tfds_images.load(config.name, split, known)
    if split not in SPLITS:
        raise UserError(unknown("split", split, SPLITS))
    if config.name in FILES:
        return FILES[config.name](config, split)
    return DATASETS[config.name](split)


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a workdir keeps of the data that its run is trained on: the keys of data.json."""

    version: str
    num_examples: Whole
    shape: tuple[Count, ...]
    # A relative data.path as seen from the workdir. The same data may be moved.
    path: str | None = dataclasses.field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.num_examples} examples {list(self.shape)} of {self.version}"


def seen_from(workdir: pathlib.Path, path: str) -> str | None:
    """Return a relative data.path as seen from a workdir; None for others, which need no such."""
    return os.path.relpath(path, workdir) if path and not os.path.isabs(path) else None


def keep(dataset: Dataset, workdir: pathlib.Path, path: str | None = None) -> None:
    """Write into the workdir what a run is trained on; raises UserError as `check_kept`.

    `path` is that of `seen_from`.
    """
    now = dataclasses.replace(check_kept(dataset, workdir), path=path)
    write_json(workdir / DATA_FILE, document.plain(now))


def check_kept(dataset: Dataset, workdir: pathlib.Path) -> Kept:
    """Return what a run is trained on; raises UserError if the workdir holds other data.

    Batches name examples by their number: with other data, a resumed run would see other batches
    than an uninterrupted one.
    """
    now = Kept(dataset.version, len(dataset), dataset.shape)
    before = kept(workdir) if (workdir / DATA_FILE).exists() else now
    if before != now:
        raise UserError(
            f"{workdir} holds a run on other data: {before} there, {now} here. Use another "
            "--workdir, or the same data to resume"
        )
    return now


def kept(workdir: pathlib.Path) -> Kept:
    """Return what a workdir's run was trained on; raises UserError where it cannot be read."""
    path = workdir / DATA_FILE
    if not path.exists():
        raise UserError(
            f"{workdir} has no {DATA_FILE}, which says what its run was trained on: the same "
            "`vdm train` again writes it"
        )
    return document.load(Kept, path)


def kept_shape(workdir: pathlib.Path) -> tuple[int, ...]:
    """Return the shape of an example that a workdir's run was trained on; raises UserError."""
    return kept(workdir).shape


def located(config: Config, workdir: pathlib.Path) -> Config:
    """Return a workdir's config with the data.path that leads to its data from any current folder.

    A relative path leads there from the folder in which the run was trained.
    """
    if not config.data.path or os.path.isabs(config.data.path):
        return config
    seen = kept(workdir).path if (workdir / DATA_FILE).exists() else None
    if seen is None:
        return config
    # The workdir may be a link, then as now (`seen_from` does not follow it) or only now.
    for path in (os.path.normpath(workdir / seen), os.path.realpath(workdir / seen)):
        if os.path.exists(path):
            return dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))
    return config


def _keys(config: DataConfig) -> Keys:
    return Keys(config.key, config.label_key, config.cond_key, config.cond_field_key)


DATASETS: Mapping[str, Callable[[str], Dataset]] = {
    "digits": synthetic.digits,
    "swirl": synthetic.swirl,
    "mixture": synthetic.mixture,
}
FILES: Mapping[str, Callable[[DataConfig, str], Dataset]] = {
    "arrays": lambda config, split: arrays.load(config.path, split, _keys(config)),
    "images": lambda config, split: images.load(config.path, split),
    "sets": lambda config, split: point_sets.load(config.path, split),
}
# A few of them, for messages.
EXAMPLES_OF_TFDS = ("cifar10", "mnist", "downsampled_imagenet")
