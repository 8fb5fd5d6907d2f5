"""The chains of few steps that were fitted to a run, each in a file of its own beside the model.

A chain belongs to the parameters that it was fitted to, by a checksum of theirs. `chains/` has a
file for every chain that was ever fitted, named by its own checksum, since a compressed file may
need it; `chains/chains.json` says which one is taken for parameters and a number of steps.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from vdm.few_steps.chain import Chain, Head, Table
from vdm.few_steps.head import VarianceHead
from vdm.model import Params
from vdm.networks import stacked
from vdm.run.errors import UserError
from vdm.run.system import document, tensors
from vdm.run.system.document import Count, Place, Whole
from vdm.run.system.files import read_json, write_json

FOLDER = "chains"
INDEX_FILE = "chains.json"
ENDING = ".safetensors"
FORMAT = "vdm chain 1"
COMMAND = "vdm fit-chain"
SUM_BYTES = 8
# The arrays of a file.
LEVELS, TABLE, HEAD = "log_snrs", "table", "head"


class Kept(NamedTuple):
    """A chain, the name of its variance, how many examples it was fitted to, and its checksum."""

    chain: Chain
    variance: str
    num_examples: int
    checksum: bytes  # the first 8 of the file's SHA-256


class _About(NamedTuple):
    """What a file says of a chain beside its arrays."""

    variance: str
    clip_denoised: bool
    num_examples: Count
    head: dict[str, int | None] | None = None  # the fields of a VarianceHead


@dataclasses.dataclass(frozen=True)
class Entry:
    """A chain in the index: how many steps, of which parameters, and its checksum in hex."""

    num_steps: Count
    params: str
    step: Whole
    kind: str
    checksum: str


class _Index(NamedTuple):
    chains: tuple[Entry, ...]


def params_sum(params: Params) -> bytes:
    """Return 8 bytes of the SHA-256 of all parameters, in either layout of a U-Net's."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(stacked.unstack(params)):
        found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.asarray(leaf).tobytes())
    return found.digest()[:SUM_BYTES]


def write(
    workdir: pathlib.Path,
    chain: Chain,
    variance: str,
    *,
    params: Params,
    step: int,
    kind: str,
    num_examples: int,
) -> Kept:
    """Keep a chain in a workdir, for these parameters in place of an earlier one of as many steps.

    `step` and `kind` say where the parameters come from. The file of the earlier one stays. The
    index is written last: what it names is there.
    """
    texts, arrays = _document(chain, variance, num_examples)
    made = tensors.checksum(texts, arrays)[: 2 * SUM_BYTES]
    tensors.write(_file(workdir, made), texts, arrays)
    entry = Entry(chain.num_steps, params_sum(params).hex(), step, kind, made)
    others = [
        other
        for other in index(workdir)
        if (other.num_steps, other.params) != (entry.num_steps, entry.params)
    ]
    write_json(workdir / FOLDER / INDEX_FILE, document.plain(_Index((*others, entry))))
    return Kept(chain, variance, num_examples, bytes.fromhex(made))


def index(workdir: pathlib.Path) -> tuple[Entry, ...]:
    """Return the chains of a workdir, for all parameters; raises UserError for a damaged index."""
    path = workdir / FOLDER / INDEX_FILE
    if not path.exists():
        return ()
    return document.read(_Index, read_json(path), Place(path)).chains


def steps(workdir: pathlib.Path, params: Params) -> tuple[int, ...]:
    """Return the numbers of steps that there are chains for, of these parameters, in order."""
    own = params_sum(params).hex()
    return tuple(sorted(entry.num_steps for entry in index(workdir) if entry.params == own))


def find(workdir: pathlib.Path, params: Params, num_steps: int) -> Kept:
    """Return the chain of these parameters with so many steps.

    Raises UserError where there is none, also where there is one of other parameters only.
    """
    own, known = params_sum(params).hex(), index(workdir)
    for entry in known:
        if (entry.num_steps, entry.params) == (num_steps, own):
            return _read(_file(workdir, entry.checksum))
    fit = f"fit one with `{COMMAND} --workdir={workdir} --steps={num_steps}`"
    if others := [entry for entry in known if entry.num_steps == num_steps]:
        raise UserError(
            f"the chain of {num_steps} steps in {workdir} belongs to other parameters than these: "
            f"those of step {others[-1].step} ({others[-1].kind}); {fit}"
        )
    have = ", ".join(map(str, steps(workdir, params)))
    got = f"of {have} steps" if have else "none"
    raise UserError(f"{workdir} has no chain of {num_steps} steps: got {got}; {fit}")


def by_checksum(workdir: pathlib.Path, checksum: bytes) -> Kept:
    """Return a chain of a workdir by its checksum; raises UserError where it is missing."""
    path = _file(workdir, checksum.hex())
    if not path.exists():
        raise UserError(f"{workdir} has no chain {checksum.hex()}: expected {path}")
    return _read(path)


def _file(workdir: pathlib.Path, checksum: str) -> pathlib.Path:
    return workdir / FOLDER / f"{checksum}{ENDING}"


def _document(
    chain: Chain, variance: str, num_examples: int
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the texts and the arrays of a chain's file."""
    arrays, head = {LEVELS: np.asarray(chain.log_snrs)}, None
    if isinstance(chain.variance, Table):
        arrays[TABLE] = np.asarray(chain.variance.values)
    elif isinstance(chain.variance, Head):
        module = chain.variance.module
        assert isinstance(module, VarianceHead), "another head has no name to be found by"
        head = {name: getattr(module, name) for name in _HEAD_FIELDS}
        flat = flax.traverse_util.flatten_dict(chain.variance.params, sep="/")
        arrays |= {f"{HEAD}/{name}": np.asarray(leaf) for name, leaf in flat.items()}
    about = _About(variance, chain.clip_denoised, num_examples, head)
    return {"format": FORMAT, "chain": json.dumps(document.plain(about))}, arrays


_HEAD_FIELDS = ("width", "num_layers", "levels")


def _read(path: pathlib.Path) -> Kept:
    found = tensors.read(path, FORMAT, f"chain: expected one that `{COMMAND}` wrote")
    if not found.checksum.startswith(path.stem):
        raise UserError(
            f"{path} holds another chain than its name says: expected {path.stem}, got "
            f"{found.checksum[: 2 * SUM_BYTES]}"
        )
    about = document.read(_About, json.loads(found.about["chain"]), Place(path))
    variance: Table | Head | None = None
    if TABLE in found.arrays:
        variance = Table(found.arrays[TABLE])
    elif about.head is not None:
        variance = Head(VarianceHead(**_fields(about.head)), _params(found.arrays))
    chain = Chain(found.arrays[LEVELS], variance, about.clip_denoised)
    checksum = bytes.fromhex(found.checksum)[:SUM_BYTES]
    return Kept(chain, about.variance, about.num_examples, checksum)


def _fields(head: Mapping[str, Any]) -> dict[str, Any]:
    return {name: head[name] for name in _HEAD_FIELDS}


def _params(arrays: Mapping[str, np.ndarray]) -> Params:
    """Return the head's parameters as a tree."""
    flat = {
        name.removeprefix(f"{HEAD}/"): array
        for name, array in arrays.items()
        if name.startswith(f"{HEAD}/")
    }
    tree: Params = flax.traverse_util.unflatten_dict(flat, sep="/")
    return tree
