"""The scales of a run's conditions and some of its training conditions, kept in its workdir.

So sampling and scoring need no data set. The file is conditions.npz; an exported run has the same
arrays: vector_mean, vector_std and field_mean, field_std, and some_label, some_vector, some_field,
some_mask; and vector_names, the names of a vector's numbers as the bytes of a JSON list, where they
have any.
"""

import contextlib
import dataclasses
import json
import pathlib
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from vdm.condition import Conditions
from vdm.run.data.condition import KINDS, Condition, Scale
from vdm.run.errors import UserError
from vdm.run.system.files import replacing

CONDITIONS_FILE = "conditions.npz"
DAMAGE = (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error)
NEAR = 1e-6  # of a standard deviation, by which sums differ between machines


def to_arrays(condition: Condition) -> dict[str, np.ndarray]:
    """Return what is to be kept of a condition by name; nothing of one with classes alone."""
    found: dict[str, np.ndarray] = {}
    for kind in ("vector", "field"):
        scale: Scale | None = getattr(condition, kind)
        if scale is not None:
            found[f"{kind}_mean"] = np.asarray(scale.mean)
            found[f"{kind}_std"] = np.asarray(scale.std)
            if scale.names:  # neither .npz without pickle nor safetensors hold texts
                found[f"{kind}_names"] = np.frombuffer(json.dumps(scale.names).encode(), np.uint8)
    if found and condition.some is not None:
        some = condition.some._asdict()
        found |= {f"some_{kind}": np.asarray(p) for kind, p in some.items() if p is not None}
    return found


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Condition:
    """Return what `to_arrays` has kept; raises KeyError, TypeError or ValueError for another."""
    scales: dict[str, Scale] = {}
    for kind in ("vector", "field"):
        if f"{kind}_mean" in arrays:
            mean, std = arrays[f"{kind}_mean"], arrays[f"{kind}_std"]
            good = mean.ndim == 1 and mean.shape == std.shape and np.all(std > 0)
            if not (good and np.all(np.isfinite(mean)) and np.all(np.isfinite(std))):
                raise ValueError(f"{kind}_mean and {kind}_std are no means and deviations")
            names = _names(arrays.get(f"{kind}_names"))
            if names and len(names) != len(mean):
                raise ValueError(f"{kind}_names are of another number than {kind}_mean")
            scales[kind] = Scale(tuple(mean.tolist()), tuple(std.tolist()), names)
    some = Conditions(**{kind: arrays.get(f"some_{kind}") for kind in Conditions._fields})
    if scales and len({len(p) for p in some if p is not None}) != 1:
        raise ValueError("its conditions are of several numbers of examples")
    for kind, scale in scales.items():
        part = getattr(some, kind)
        if part is None or part.shape[-1] != len(scale.mean):
            raise ValueError(f"some_{kind} is of another size than its scale")
    return Condition(None, None, scales.get("vector"), scales.get("field"), some)


def _names(packed: np.ndarray | None) -> tuple[str, ...]:
    if packed is None:
        return ()
    found = json.loads(packed.tobytes().decode())
    if not (isinstance(found, list) and all(isinstance(name, str) for name in found)):
        raise ValueError("names are no texts")
    return tuple(found)


def write(workdir: pathlib.Path, condition: Condition) -> None:
    """Write what is to be kept of a run's condition into its workdir, whole or not at all."""
    arrays = to_arrays(condition)
    if arrays:
        with replacing(workdir / CONDITIONS_FILE) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # names of our own


def read(workdir: pathlib.Path, network: object) -> Condition:
    """Return what a workdir keeps for a network; raises UserError where that is not there."""
    wanted = {
        kind: getattr(network, argument)
        for kind, argument, _ in KINDS[1:]
        if getattr(network, argument, None)
    }
    if not wanted:
        return Condition()
    path = workdir / CONDITIONS_FILE
    if not path.exists():
        raise UserError(
            f"{workdir} has no {CONDITIONS_FILE}, which says how its run's conditions are "
            "standardised: the same `vdm train` again writes it"
        )
    try:
        # Opened here: of a damaged file np.load would leave it open.
        with path.open("rb") as file, np.load(file) as arrays:
            found = from_arrays({name: arrays[name] for name in arrays.files})
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged: delete it, and the same `vdm train` writes it again"
        ) from error
    check_sizes(found, network, str(path))
    return found


def names(workdir: pathlib.Path) -> tuple[str, ...]:
    """Return what the numbers of a vector are called in a workdir's run, () where none are.

    Of a damaged file too, which `read` refuses.
    """
    path = workdir / CONDITIONS_FILE
    with contextlib.suppress(*DAMAGE), path.open("rb") as file, np.load(file) as arrays:
        return _names(arrays.get("vector_names"))
    return ()


def check_sizes(kept: Condition, network: object, where: str) -> None:
    """Raise UserError unless the scales are those of a network's vectors and fields."""
    for kind, argument, _ in KINDS[1:]:
        size, scale = getattr(network, argument, None), getattr(kept, kind)
        have = None if scale is None else len(scale.mean)
        if size and have != size:
            raise UserError(
                f"{where} belongs to another run: model.network.{argument} is {size}, and its "
                f"{kind}s have {have or 'no scale'}"
            )


def resumed(
    condition: Condition, kept: Condition, workdir: pathlib.Path, *, own: bool
) -> Condition:
    """Return a run's condition with the scales that it began with.

    Where these are of its `own` data, raises UserError if those of its data are others by now.
    """
    for kind in ("vector", "field"):
        now, before = getattr(condition, kind), getattr(kept, kind)
        if now is None or before is None or not own:
            continue
        std = np.asarray(before.std)
        moved = np.abs(np.asarray(now.mean) - before.mean) + np.abs(np.asarray(now.std) - std)
        if np.any(moved > NEAR * (std + np.abs(before.mean))):
            raise UserError(
                f"{workdir} holds a run on other {kind}s: their means and deviations were "
                f"{_short(before)}, and are {_short(now)}. Use another --workdir, or the same data "
                "to resume"
            )
    return dataclasses.replace(
        condition, vector=kept.vector, field=kept.field, some=kept.some or condition.some
    )


def _short(scale: Scale) -> str:
    pairs = [f"{m:.6g} ± {s:.6g}" for m, s in zip(scale.mean, scale.std, strict=True)]
    return ", ".join(pairs[:3]) + ", ..." * (len(pairs) > 3)
