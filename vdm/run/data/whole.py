"""All examples of the user's files, with none held out: what a trained run is to score.

x.npy      examples, the batch axis first
x.npz      x and, if there are any, labels, cond and cond_field; with mask or lengths, sets of
           points (`vdm.run.data.point_sets`)
x.png      one image, or of any other kind that a folder may hold
folder/    images of one size, in subfolders too; where all lie in one, these are their classes
"""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vdm.condition import Conditions
from vdm.run.data import arrays, images, point_sets
from vdm.run.data.beside import Called
from vdm.run.data.dataset import Dataset, Examples, Stored
from vdm.run.data.images import Folder
from vdm.run.data.stores import numpy_files
from vdm.run.data.stores.names import OWN, check_names
from vdm.run.errors import UserError


class Whole(NamedTuple):
    """Examples, what each is conditioned on and the name of each, where there are any."""

    data: Dataset
    beside: Conditions
    names: tuple[str, ...] | None  # of images: their paths in the folder


def load(path: pathlib.Path) -> Whole:
    """Return what a file or a folder of images holds; a .npy may be larger than the memory.

    Raises UserError for a path that is not there or of another kind, and for what is damaged.
    """
    if not path.exists():
        raise UserError(f"no file or folder {str(path)!r}, relative to {path.cwd()}")
    if path.is_dir() or path.suffix.lower() in images.ENDINGS:
        return _images(path)
    if path.suffix.lower() not in numpy_files.ENDINGS:
        known = ", ".join((*numpy_files.ENDINGS, *images.ENDINGS))
        raise UserError(f"expected a folder of images or a file in {known}: got {str(path)!r}")
    return _arrays(path)


def _arrays(path: pathlib.Path) -> Whole:
    found = numpy_files.read_file(path)
    if {*point_sets.FORMS} & {*found}:
        return _sets(found, path)
    check_names(found, ("x", *OWN), path)
    if "x" not in found:
        raise UserError(f"{path} has no array 'x', the examples")
    x, beside = found["x"], Conditions(*(found.get(name) for name in OWN))
    what = f"{path} (x)" if path.suffix == ".npz" else str(path)
    labels = found.get("labels")
    data = arrays.given(x, labels, what)
    if labels is not None:
        arrays.check_labels(labels, len(x), f"{path} (labels)")
    called = Called(*(f"{path} ({name})" for name in OWN))
    return Whole(arrays.conditioned(data, beside, called), beside, None)


def _sets(found: Mapping[str, np.ndarray], path: pathlib.Path) -> Whole:
    check_names(found, ("x", *point_sets.ARRAYS), path)
    if "x" not in found:
        raise UserError(f"{path} has no array 'x', the points")
    made = point_sets.read(found, str(path))
    data = point_sets.dataset(made, "all", version=str(path), what=str(path))
    return Whole(data, Conditions(made.labels, made.vector, made.field), None)


def _images(path: pathlib.Path) -> Whole:
    root, files = (path, images.images_in(path)) if path.is_dir() else (path.parent, [path.name])
    if not files:
        expected = ", ".join(images.ENDINGS)
        raise UserError(f"{str(path)!r} has no images: expected files ending in {expected}")
    if not images.is_unicode(files[0]):  # those of a folder have been looked at
        raise UserError(f"the name of an image is not UTF-8: {str(path)!r}")
    shape, dtype = images.common(root, files)
    depth = int(path.is_dir() and images.has_splits(root))
    classes = images.classes_of(files, depth) if path.is_dir() else None
    labels = None
    if classes is not None:
        labels = np.array([classes.index(file.split("/")[depth]) for file in files], np.int32)
    folder = Folder({"all": tuple(files)}, classes, shape, dtype)
    names = np.array(files)

    def take(index: np.ndarray) -> Examples:
        x = np.stack([images.decode(root / files[i], folder) for i in index])
        return Examples(x, None if labels is None else labels[index], names[index])

    largest = images.largest_of(root, files, folder)
    data = Dataset(
        "images",
        "all",
        Stored(len(files), shape, dtype, take),
        version=str(path),
        num_classes=None if classes is None else len(classes),
        levels=256 if largest is None else None,
        largest=largest,
        files=tuple(files),
    )
    return Whole(data, Conditions(labels), tuple(files))
