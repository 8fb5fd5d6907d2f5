"""Which arrays of a file are the examples, and which their classes."""

import pathlib
from collections.abc import Collection
from typing import NamedTuple

from vdm.choices import unknown
from vdm.run.errors import UserError

SPLIT_NAMES = ("train", "test", "train_labels", "test_labels")
GROUPS = ("train", "test")
BY_KEY = " An array of any name is taken by data.key"


class Pair(NamedTuple):
    """The names of an array of examples and of the array of their classes, if there are any."""

    x: str
    labels: str | None


def pairs(names: tuple[str, ...], key: str, label_key: str, path: pathlib.Path) -> dict[str, Pair]:
    """Return the arrays of each split, "train" and "test", or of "x", which has no splits.

    `key` and `label_key` name other arrays than the documented ones, or arrays that the groups
    train and test both have. Raises UserError for arrays that are not there, and, without a key,
    for those of which nothing would be made.
    """
    if key:
        return _named(names, key, label_key, path)
    if label_key:
        raise UserError(f"data.label_key={label_key!r} needs data.key, the name of the examples")
    if "x" in names:
        check_names(names, ("x", "labels"), path, BY_KEY)
        return {"x": Pair("x", "labels" if "labels" in names else None)}
    forms = {split: Pair(split, f"{split}_labels") for split in GROUPS}
    known: tuple[str, ...] = ("x", *SPLIT_NAMES)
    if any(name.startswith(("train/", "test/")) for name in names):
        forms = {split: Pair(f"{split}/x", f"{split}/labels") for split in GROUPS}
        known = tuple(name for pair in forms.values() for name in pair if name is not None)
    check_names(names, known, path, BY_KEY)
    if missing := [pair.x for pair in forms.values() if pair.x not in names]:
        raise UserError(
            f"{path} has neither an array 'x' nor {missing[0]!r}; its arrays with a known "
            f"name: {', '.join(names) or 'none'}. Expected a file x.npy, an .npz or a store with "
            "'x', or with 'train' and 'test', or a folder with train.npy and test.npy"
        )
    return {
        split: Pair(pair.x, pair.labels if pair.labels in names else None)
        for split, pair in forms.items()
    }


def check_names(
    names: Collection[str], known: tuple[str, ...], where: pathlib.Path, or_else: str = ""
) -> None:
    """Raise UserError for an array that nothing would be done with."""
    for name in names:
        if name not in known:
            raise UserError(
                f"{where} has an array that would not be used: {unknown('name', name, known)}"
                f"{or_else}"
            )


def _named(names: tuple[str, ...], key: str, label_key: str, path: pathlib.Path) -> dict[str, Pair]:
    examples = _in_splits(names, key, "data.key", path)
    if not label_key:
        return {split: Pair(name, None) for split, name in examples.items()}
    labels = _in_splits(names, label_key, "data.label_key", path)
    if labels.keys() != examples.keys():
        raise UserError(
            f"{path}: {examples[max(examples)]} and {labels[max(labels)]} differ in their splits: "
            "expected both in the groups train and test, or none"
        )
    return {split: Pair(name, labels[split]) for split, name in examples.items()}


def _in_splits(names: tuple[str, ...], key: str, field: str, path: pathlib.Path) -> dict[str, str]:
    if key in names:
        return {"x": key}
    found = {split: f"{split}/{key}" for split in GROUPS}
    if all(name in names for name in found.values()):
        return found
    raise UserError(unknown(f"array of {path} ({field})", key, names or ("none",)))
