"""Image sets of tensorflow-datasets, read whole into one uint8 array, without TensorFlow."""

import os

import numpy as np

from vdm.run.dataset import Dataset
from vdm.run.errors import UserError


def load(name: str, split: str) -> Dataset:
    """Return a split of an image set that tensorflow-datasets has prepared as array_record.

    Sets are looked for where tensorflow-datasets keeps them (TFDS_DATA_DIR, else its
    default folder); nothing is downloaded. Raises UserError, with the command to run,
    when the extra is not installed or the set is not there.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"{name} needs the extra: pip install 'vdm[tfds]'") from error
    try:
        # Read here, for tensorflow-datasets looks at the variable only once, when imported.
        data_dir = os.environ.get("TFDS_DATA_DIR")
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        source = builder.as_data_source(split=split)
    # What a missing set raises depends on what is there instead: nothing gives a KeyError
    # about splits, a set in another format a NotImplementedError.
    except (KeyError, NotImplementedError, OSError) as error:
        raise UserError(
            f"no prepared {split} split of {name}: prepare the set once, with TensorFlow "
            f"installed, by python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
            "file_format='array_record').download_and_prepare()\", or point TFDS_DATA_DIR to it"
        ) from error
    examples = source.__getitems__(range(len(source)))
    x = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples], np.int32)
    num_classes = builder.info.features["label"].num_classes
    return Dataset(name, split, x, labels, num_classes, levels=256)
