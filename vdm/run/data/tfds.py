"""Image sets of tensorflow-datasets, read from array_record files without TensorFlow.

A name may give the config and the version: "downsampled_imagenet/64x64", "cifar10:3.0.2". Beware of
two sets that both have the name 32×32 ImageNet: `downsampled_imagenet` (van den Oord et al. 2016),
whose test images are its split `validation`, and `imagenet_resized`. They are resampled in
different ways, and bits per dimension of one cannot be compared with the other.
"""

import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from vdm.choices import did_you_mean, unknown
from vdm.run.data.dataset import Dataset, Examples, Stored
from vdm.run.errors import UserError

NAME = re.compile(r"(\w+)(/[\w.+-]+)?(:\d+\.\d+\.\d+)?")


def load(name: str, split: str, others: Iterable[str]) -> Dataset:
    """Return a split of an image set that tensorflow-datasets has prepared as array_record.

    Sets are found where tensorflow-datasets keeps them (TFDS_DATA_DIR, else its default folder);
    nothing is downloaded. Raises UserError for a name that is unknown (the `others` are the sets
    from elsewhere), and with the command to run for a set that is not prepared.
    """
    builder = _builder(name, list(others))
    features = dict(builder.info.features) if hasattr(builder.info.features, "keys") else {}
    image = features.get("image")
    if image is None or len(image.shape or ()) != 3:
        raise UserError(
            f"the data set {name!r} has no feature 'image' of one image: it has "
            f"{', '.join(features) or 'no features by name'}"
        )
    splits = list(builder.info.splits)
    if not splits:
        raise _not_prepared(name, builder)
    own = "validation" if split == "test" and "test" not in splits else split
    if own not in splits:
        raise UserError(unknown(f"split of {name}", split, splits))
    try:
        source = builder.as_data_source(split=own)
    except NotImplementedError as error:
        raise UserError(
            f"{name} is in {builder.data_dir} as {builder.info.file_format.value}, not as "
            "array_record: convert the set once, with TensorFlow installed, by tfds convert_format "
            f"--dataset_version_dir={builder.data_dir} --out_file_format=array_record"
        ) from error
    except (KeyError, OSError) as error:
        raise _not_prepared(name, builder) from error

    version = ":".join(builder.info.full_name.rsplit("/", 1))
    has_labels = hasattr(features.get("label"), "num_classes")
    has_ids = "id" in features

    def take(index: np.ndarray) -> Examples:
        examples = _read(source, index, version)
        x = [example["image"] for example in examples]
        if different := [i for i, image in enumerate(x) if image.shape != shape]:
            raise UserError(
                f"the images of {version} differ in size: number {index[different[0]]} is "
                f"{list(x[different[0]].shape)}, number 0 is {list(shape)}; expected one size"
            )
        labels = np.array([e["label"] for e in examples], np.int32) if has_labels else None
        ids = np.array([_text(e["id"]) for e in examples]) if has_ids else None
        return Examples(np.stack(x), labels, ids)

    # Not from the features: those of downsampled_imagenet leave the size open.
    shape = _read(source, np.arange(1), version)[0]["image"].shape
    dtype = np.dtype(image.np_dtype)
    return Dataset(
        name,
        own,
        Stored(len(source), shape, dtype, take),
        version,
        num_classes=features["label"].num_classes if has_labels else None,
        levels=1 + np.iinfo(dtype).max if dtype.kind == "u" else None,
    )


def _builder(name: str, others: list[str]) -> Any:
    import tensorflow_datasets as tfds  # late: it takes a second

    # Read here, for tensorflow-datasets looks at the variable only once, when imported.
    data_dir = os.environ.get("TFDS_DATA_DIR")
    words = NAME.fullmatch(name)
    try:
        if words is None:  # tensorflow-datasets would look for it on other servers
            raise tfds.core.DatasetNotFoundError(name)
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = [*others, *tfds.list_builders(with_community_datasets=False)]
        raise UserError(
            f"unknown data set {name!r}: expected one of {', '.join(others)}, or an image set of "
            f"tensorflow-datasets.{did_you_mean(name, known)}"
        ) from error
    # A config or a version that does not exist; a builder that needs a further package, or a
    # config, or anything else.
    except Exception as error:
        assert words is not None
        if words[2] and isinstance(error, ValueError | AssertionError):
            configs = [config.name for config in tfds.builder_cls(words[1]).BUILDER_CONFIGS]
            if words[2][1:] not in configs:
                known = [f"{words[1]}/{config}" for config in configs] or [words[1]]
                raise UserError(unknown("data set", name, known)) from error
        reason = re.sub(r'^Failed to construct dataset .*?}": ', "", str(error))
        first_line = (reason.splitlines() or [type(error).__name__])[0]
        raise UserError(f"the data set {name!r} cannot be used: {first_line}") from error


def _not_prepared(name: str, builder: Any) -> UserError:
    return UserError(
        f"{name} is not prepared (as array_record) in {builder.data_dir}: prepare the set once, "
        'with TensorFlow installed, by python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\", or set "
        "TFDS_DATA_DIR to its folder"
    )


def _read(source: Any, index: np.ndarray, version: str) -> list[dict[str, Any]]:
    try:
        return source.__getitems__([int(i) for i in index])
    # Whatever error a damaged file causes in a decoder, the file is the cause.
    except Exception as error:
        if len(index) > 1:
            return [_read(source, index[i : i + 1], version)[0] for i in range(len(index))]
        raise UserError(
            f"cannot decode example {index[0]} of {version}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
