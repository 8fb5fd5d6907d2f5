"""Which arrays of a file are the examples, and which their classes, vectors and fields."""

import pathlib
from collections.abc import Collection
from typing import NamedTuple

from vdm.choices import unknown
from vdm.run.errors import UserError

GROUPS = ("train", "test")
OWN = ("labels", "cond", "cond_field")  # beside x
SPLIT_NAMES = (*GROUPS, *(f"{split}_{name}" for name in OWN for split in GROUPS))
BY_KEY = " An array of any name is taken by data.key"


class Named(NamedTuple):
    """The names of the arrays of a split: examples and, if there are any, what stands beside."""

    x: str
    labels: str | None = None
    cond: str | None = None
    cond_field: str | None = None


class Keys(NamedTuple):
    """The names of arrays that a config gives, empty for none: data.key and those beside it."""

    key: str = ""
    label_key: str = ""
    cond_key: str = ""
    cond_field_key: str = ""


def splits(names: tuple[str, ...], keys: Keys, path: pathlib.Path) -> dict[str, Named]:
    """Return the arrays of each split, "train" and "test", or of "x", which has no splits.

    The keys name other arrays than the documented ones, or arrays that the groups train and test
    both have. Raises UserError for arrays that are not there, and, without a key, for those of
    which nothing would be made.
    """
    if keys.key:
        return _by_keys(names, keys, path)
    for field, key in list(keys._asdict().items())[1:]:
        if key:
            raise UserError(f"data.{field}={key!r} needs data.key, the name of the examples")
    if "x" in names:
        check_names(names, ("x", *OWN), path, BY_KEY)
        return {"x": _there(Named("x", *OWN), names)}
    forms = {split: Named(split, *(f"{split}_{name}" for name in OWN)) for split in GROUPS}
    known: tuple[str, ...] = ("x", *SPLIT_NAMES)
    if any(name.startswith(("train/", "test/")) for name in names):
        forms = {s: Named(f"{s}/x", *(f"{s}/{name}" for name in OWN)) for s in GROUPS}
        known = tuple(name for form in forms.values() for name in form if name is not None)
    check_names(names, known, path, BY_KEY)
    if missing := [form.x for form in forms.values() if form.x not in names]:
        raise UserError(
            f"{path} has neither an array 'x' nor {missing[0]!r}; its arrays with a known "
            f"name: {', '.join(names) or 'none'}. Expected a file x.npy, an .npz or a store with "
            "'x', or with 'train' and 'test', or a folder with train.npy and test.npy"
        )
    return {split: _there(form, names) for split, form in forms.items()}


def unused(names: tuple[str, ...], keys: Keys) -> list[str]:
    """Return which conditions of a documented name the keys leave out, a line for each."""
    lines = []
    for name in OWN[1:]:
        field = f"{name}_key"
        there = [own for own in names if own in (name, *(f"{split}/{name}" for split in GROUPS))]
        if keys.key and not getattr(keys, field) and there:
            lines.append(f"{there[0]} is not used: data.{field}={name!r} takes it")
    return lines


def _there(form: Named, names: Collection[str]) -> Named:
    """Return a split's names with None for arrays that there are not."""
    x, *beside = form
    return Named(x, *(name if name in names else None for name in beside))


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


def _by_keys(names: tuple[str, ...], keys: Keys, path: pathlib.Path) -> dict[str, Named]:
    examples = _in_splits(names, keys.key, "data.key", path)
    found = {split: Named(name) for split, name in examples.items()}
    for field, name in zip(("label_key", "cond_key", "cond_field_key"), OWN, strict=True):
        key = getattr(keys, field)
        if not key:
            continue
        arrays = _in_splits(names, key, f"data.{field}", path)
        if arrays.keys() != examples.keys():
            raise UserError(
                f"{path}: {examples[max(examples)]} and {arrays[max(arrays)]} differ in their "
                "splits: expected both in the groups train and test, or none"
            )
        found = {split: form._replace(**{name: arrays[split]}) for split, form in found.items()}
    return found


def _in_splits(names: tuple[str, ...], key: str, field: str, path: pathlib.Path) -> dict[str, str]:
    if key in names:
        return {"x": key}
    found = {split: f"{split}/{key}" for split in GROUPS}
    if all(name in names for name in found.values()):
        return found
    raise UserError(unknown(f"array of {path} ({field})", key, names or ("none",)))
