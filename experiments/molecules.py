"""Real sets of points: where the atoms of small molecules are, hydrogen left out.

    pip install biotite
    vdm train    --config=experiments/molecules.py --workdir=runs/molecules
    vdm evaluate --workdir=runs/molecules --levels_per_example=8
    vdm sample   --workdir=runs/molecules --num=36 --out=runs/molecules/samples.npz
    vdm report   --workdir=runs/molecules

The package biotite carries the Chemical Component Dictionary of the Protein Data Bank, 49,195
molecules with the coordinates of their atoms in ångström as they were first observed; nothing is
downloaded. Taken are those of 3 to 16 heavy atoms, all of H, C, N, O, F, P, S, Cl, Br or I and all
observed: 9,336 and 1,037 molecules. Every tenth in the order of their names is of the test split;
kin of it may be in the training split.

A molecule has no place and no direction, and coordinates whose mean is taken off have no density.
Each is turned at random, and its centre is put at random, normal with a deviation of 1 Å in each
coordinate. Training has each molecule in eight positions.

Hardware and time: seven and a half minutes of one CPU core to train, half a minute to evaluate.
Expected: 0.676 ± 0.024 bits per dimension, in ångström, on the test split. A Gaussian for each
number of atoms has 2.073 ± 0.006 on the same molecules (`gaussian_bits`).
"""

import importlib.util
import math

import numpy as np
from ml_collections import ConfigDict
from scipy.spatial.transform import Rotation

from vdm.run.config import default_values

ELEMENTS = ("H", "D", "C", "N", "O", "F", "P", "S", "CL", "BR", "I")
FEWEST, MOST = 3, 16  # heavy atoms
POSITIONS = {"train": 8, "test": 1}
CENTRE = 1.0  # Å


def molecules(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the atoms of all molecules of a split one after another, and the number of each."""
    if importlib.util.find_spec("biotite") is None:
        raise ImportError("the molecules are in the package biotite: pip install biotite")
    from biotite.structure.info import get_ccd

    atoms = get_ccd()["chem_comp_atom"]  # those of a molecule stand together
    name, element = (atoms[key].as_array() for key in ("comp_id", "type_symbol"))
    columns = [atoms[f"model_Cartn_{axis}"] for axis in "xyz"]
    x = np.stack([column.as_array(float, masked_value=np.nan) for column in columns], axis=1)
    _, first, of = np.unique(name, return_index=True, return_inverse=True)
    heavy = ~np.isin(element, ("H", "D"))
    number = np.bincount(of[heavy], minlength=len(first))
    # Where a hydrogen is was often not observed, and does not matter.
    bad = np.bincount(of, weights=~np.isin(element, ELEMENTS) | (heavy & np.isnan(x).any(axis=1)))
    rank = np.flatnonzero((bad == 0) & (number >= FEWEST) & (number <= MOST))
    taken = rank[9::10] if split == "test" else np.delete(rank, np.s_[9::10])
    kept = heavy & np.isin(of, taken)
    order = np.argsort(of[kept], kind="stable")
    return x[kept][order], number[taken]


def data(split: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the molecules of a split in random positions, and how many atoms each has."""
    x, lengths = molecules(split)
    rng = np.random.default_rng(0 if split == "train" else 1)
    found = []
    for _ in range(POSITIONS[split]):
        turns = Rotation.random(len(lengths), rng).as_matrix()
        means = np.add.reduceat(x, np.cumsum(lengths) - lengths) / lengths[:, None]
        centres = CENTRE * rng.normal(size=means.shape)
        shape = x - np.repeat(means, lengths, axis=0)
        turned = np.einsum("ni,nij->nj", shape, np.repeat(turns, lengths, axis=0))
        found.append(turned + np.repeat(centres, lengths, axis=0))
    every = np.tile(lengths, POSITIONS[split])
    return np.concatenate(found).astype(np.float32), {"lengths": every}


def gaussian_bits() -> np.ndarray:
    """Return −log2 p of every test set per dimension, under a Gaussian for each number of atoms.

    In each coordinate the centre is normal, as it is made, and the atoms are, about it, independent
    and normal with the variance of the training molecules of that number.
    """
    x, numbers = molecules("train")
    squares = _squares(x, numbers)
    counts = np.bincount(numbers, minlength=MOST + 1)
    # A molecule of n atoms has 3 (n − 1) dimensions about its centre.
    variance = np.bincount(numbers, squares, MOST + 1) / np.maximum(
        3 * counts * (np.arange(MOST + 1) - 1), 1
    )
    law = (counts[1:] + 0.5) / (counts[1:] + 0.5).sum()
    x, beside = data("test")
    n = beside["lengths"]
    means = np.add.reduceat(x, np.cumsum(n) - n) / n[:, None]
    v = variance[n]
    # An orthogonal change of coordinates has the centre times √n beside n − 1 others.
    nats = _squares(x, n) / (2 * v) + 1.5 * (n - 1) * np.log(2 * np.pi * v)
    nats += np.sum(means**2, 1) / (2 * CENTRE**2) + 1.5 * np.log(2 * np.pi * CENTRE**2 * n)
    nats -= np.log(law[n - 1]) + np.asarray([math.lgamma(k + 1) for k in n])
    return nats / (3 * n * math.log(2))


def _squares(x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the sum of squared distances from the centre of every set."""
    starts = np.cumsum(lengths) - lengths
    means = np.add.reduceat(x, starts) / lengths[:, None]
    return np.add.reduceat(np.sum((x - np.repeat(means, lengths, axis=0)) ** 2, 1), starts)


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_values()
    config.data.name = "molecules:data"
    config.data.standardise = "per_feature"
    config.model.update(
        {
            # At the end the noise is 0.7 % of an atom's deviation, 0.014 Å.
            "schedule": {"name": "linear", "log_snr_max": 10.0, "log_snr_min": -9.0},
            "network": {
                "name": "set_transformer",
                "channels": 64,
                "num_blocks": 4,
                "num_heads": 8,
                "distances": True,
                "residual": False,
            },
            "likelihood": {"name": "gaussian", "scale": float(np.exp(-5.0))},
            "prediction": "v",
        }
    )
    config.train.update(num_steps=4000, batch_size=64, log_every=250, checkpoint_every=1000)
    config.objective.law = ConfigDict({"name": "sigmoid"})
    config.optimizer.update(learning_rate=4e-3, decay="cosine", clip_norm=1.0, ema_decay=0.99)
    return config
