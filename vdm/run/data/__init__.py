"""The data sets by name, the user's own, and the augmentation and condition of examples."""

from vdm.run.data.sets import (
    DATA_FILE,
    DATASETS,
    EXAMPLES_OF_TFDS,
    FILES,
    SPLITS,
    Kept,
    check_kept,
    keep,
    kept,
    kept_shape,
    load,
    located,
    seen_from,
)

__all__ = [
    "DATASETS",
    "DATA_FILE",
    "EXAMPLES_OF_TFDS",
    "FILES",
    "SPLITS",
    "Kept",
    "check_kept",
    "keep",
    "kept",
    "kept_shape",
    "load",
    "located",
    "seen_from",
]
