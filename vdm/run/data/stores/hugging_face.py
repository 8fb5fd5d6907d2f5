"""The columns of a folder that Hugging Face `datasets` saved (`save_to_disk`).

Its Arrow files are mapped into memory and read with pyarrow alone. A column holds numbers, lists of
numbers of one shape, or images, each in the bytes of its file. The columns of a DatasetDict are
called split/column.
"""

import functools
import io
import math
import pathlib
from typing import Any

import numpy as np

from vdm.run.data import picture
from vdm.run.data.stores.store import TEXT, Rows, Store, Stores, missing, reading
from vdm.run.errors import UserError
from vdm.run.system.files import read_json

SPLITS, STATE = "dataset_dict.json", "state.json"


def is_saved(path: pathlib.Path) -> bool:
    """Return whether a folder is a saved Dataset or DatasetDict."""
    return (path / SPLITS).exists() or (path / STATE).exists()


def stores(path: pathlib.Path) -> Stores:
    """Return the columns of a folder; raises UserError for damaged files."""
    kind = "a folder of Hugging Face datasets"
    with reading(path, kind):
        if (path / SPLITS).exists():
            parts = {f"{name}/": path / name for name in read_json(path / SPLITS)["splits"]}
        else:
            parts = {"": path}
        batches = {prefix: _batches(folder) for prefix, folder in parts.items()}
        columns = {
            f"{prefix}{name}": (found, name)
            for prefix, found in batches.items()
            for name in (found[0].schema.names if found else ())
        }

    def open_one(name: str) -> Store:
        with reading(path, kind):
            return _column(*columns[name], f"{path} ({name})")

    return Stores(tuple(columns), open_one)


def _batches(folder: pathlib.Path) -> list[Any]:
    """Return the tables that follow each other in the files, without reading their values."""
    try:
        import pyarrow as pa  # late: it is needed for these folders alone
    except ImportError as error:
        raise missing("pyarrow", folder) from error
    files = [folder / file["filename"] for file in read_json(folder / STATE)["_data_files"]]
    return [part for file in files for part in pa.ipc.open_stream(pa.memory_map(str(file)))]


def _column(batches: list[Any], name: str, what: str) -> Store:
    import pyarrow as pa

    arrays = [_plain(batch.column(name)) for batch in batches]
    ends = np.cumsum([len(array) for array in arrays])
    size, kind = int(ends[-1]), arrays[0].type
    leaf, depth = kind, 0
    while _is_list(leaf):
        leaf, depth = leaf.value_type, depth + 1
    is_image = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    is_number = pa.types.is_integer(leaf) or pa.types.is_floating(leaf) or pa.types.is_boolean(leaf)
    if not size or not (is_image or is_number):
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return Rows((size,), TEXT if is_text else np.dtype(object), _nothing)
    if is_image:
        first = _decoded(arrays[0][:1], np.arange(1), None, what)
        convert = functools.partial(_decoded, shape=first.shape[1:], what=what)
    else:
        shape = _first_shape(arrays[0], depth, what)
        convert = functools.partial(_numbers, shape=shape, what=what)
        first = convert(arrays[0][:1], np.arange(1))

    def read(rows: np.ndarray | slice) -> np.ndarray:
        index = np.arange(rows.start, rows.stop, rows.step) if isinstance(rows, slice) else rows
        which = np.searchsorted(ends, index, side="right")
        out = np.empty((len(index), *first.shape[1:]), first.dtype)
        for number in np.unique(which):
            here = which == number
            array = arrays[number]
            inner = index[here] - (ends[number] - len(array))
            out[here] = convert(array.take(pa.array(inner)), index[here])
        return out

    return Rows((size, *first.shape[1:]), first.dtype, read)


def _nothing(rows: np.ndarray | slice) -> np.ndarray:
    raise AssertionError("a column of another type is refused before it is read")


def _plain(array: Any) -> Any:
    """Return an array without the types of `datasets`, which are known where it is imported."""
    return getattr(array, "storage", array)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _first_shape(array: Any, depth: int, what: str) -> tuple[int, ...]:
    """Return the shape of the first row of nested lists; raises UserError where it has none."""
    import pyarrow.compute as pc

    shape: list[int] = []
    row = array[:1]
    for _ in range(depth):
        _check_all_there(row, np.zeros(1, int), math.prod(shape), what)
        shape.append(pc.list_value_length(row)[0].as_py() if len(row) else 0)
        row = row.flatten()
    return tuple(shape)


def _numbers(array: Any, index: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Return the numbers [n, *shape] of nested lists; raises UserError for another shape."""
    import pyarrow.compute as pc

    for axis, expected in enumerate(shape):
        per_row = math.prod(shape[:axis])
        _check_all_there(array, index, per_row, what)
        lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
        if (bad := lengths != expected).any():
            first = int(np.argmax(bad))
            raise UserError(
                f"{what} must hold arrays of one shape: number {index[first // per_row]} has "
                f"{lengths[first]} values along axis {axis}, the first one {expected}"
            )
        array = array.flatten()
    _check_all_there(array, index, math.prod(shape), what)
    return array.to_numpy(zero_copy_only=False).reshape(len(index), *shape)


def _check_all_there(array: Any, index: np.ndarray, per_row: int, what: str) -> None:
    if array.null_count:
        first = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        number = index[first // max(1, per_row)]
        raise UserError(f"{what} must hold a value everywhere: number {number} lacks one")


def _decoded(array: Any, index: np.ndarray, shape: tuple[int, ...] | None, what: str) -> np.ndarray:
    """Return images [n, h, w, c]; raises UserError for one of another size than the shape's."""
    found: list[np.ndarray] = []
    for i, content in zip(index, array.field("bytes").to_pylist(), strict=True):
        name = f"number {i} of {what}"
        if content is None:
            raise UserError(f"{name} must be an image in the bytes of its file: it has none")
        picture.head(io.BytesIO(content), name)
        x = picture.decode(content, name, grey=shape is None or shape[-1] == 1)
        shape = shape or x.shape
        if x.shape != shape:
            raise UserError(
                f"the images of {what} differ: number {i} is {list(x.shape)}, the first one "
                f"{list(shape)}; expected one size and one kind"
            )
        found.append(x)
    return np.stack(found)
