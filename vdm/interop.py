"""Checkpoints of other code: the parameters of the official VDM code as a model of ours.

The official code (google-research/vdm) writes γ = −λ. Its parameters are a tree
{"gamma", "score_model"}, from whose names and shapes the whole network can be read; what
cannot be read from them are arguments here. Leaves are named by their path in that tree,
joined by slashes: "score_model/down.block_0/conv1/kernel".
"""

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm.likelihoods import discretised
from vdm.model import VDM, Params
from vdm.networks import UNet
from vdm.schedules import Schedule, learned_linear, learned_unpinned, linear
from vdm.schedules.learned import MIN_RANGE

Leaves = dict[str, np.ndarray]
FOURIER_EXPONENTS = (6, 7)
# Our names of the layers that are called otherwise there.
LAYERS = {"norm": "GroupNorm_0", "norm1": "GroupNorm_0", "norm2": "GroupNorm_1"}
LAYERS["norm_out"] = "GroupNorm_0"
SCALAR = ("b", "w")
MONOTONE = ("l1", "l2", "l3")
# Beyond it e^λ is next to the ends of float32; the published models lie within ±14.
MAX_LOG_SNR = 80.0
SHOWN = 80


def official(
    tree: Mapping[str, Any],
    *,
    log_snr_max: float = 13.3,
    log_snr_min: float = -5.0,
    levels: int = 256,
    num_groups: int = 32,
    dropout: float = 0.1,
    keep_conditioning: bool = True,
) -> tuple[VDM, Params]:
    """Return the model and the parameters that an official parameter tree holds.

    `tree` is {"gamma", "score_model"} as nested mappings of arrays. Width, number of blocks,
    attention, Fourier features, data channels, and the kind of schedule are inferred from it:
    b + |w| t becomes `learned_linear`, the network `learned_unpinned`, and a tree without
    "gamma" has the fixed schedule, `linear`. The arguments are what the leaves do not show:
    the configured ends −γ_min and −γ_max, on which the network sees the noise level whatever the
    schedule has learned since, the data's levels, the groups of GroupNorm and the dropout.

    The official network is always also conditioned on one number, 0 for every example of the
    published sets in evaluation, in training with augmentation 1 where an image was changed. It is
    kept as a condition of one float, cond_dim=1; without `keep_conditioning` its row of dense0's
    kernel is left out, which changes nothing where the number is 0.

    Leaves keep their precision, float32 at least. Raises ValueError naming the first leaf, in
    alphabetical order, that is missing, unexpected, of another shape than its place in the network
    has, or not made of finite real numbers in the precision kept; for a learned λ that is not
    within ±80 or falls by no more than 0.01; and as `UNet`, `VDM` and the schedules do.
    """
    leaves = flatten(tree)
    seen = _infer(leaves)
    conditioned = seen.conditioned and keep_conditioning
    network = UNet(
        channels=seen.channels,
        num_blocks=seen.num_blocks,
        fourier_exponents=FOURIER_EXPONENTS if seen.fourier else (),
        attention="everywhere" if seen.attention_everywhere else "middle",
        num_groups=num_groups,
        dropout=dropout,
        cond_dim=1 if conditioned else None,
        log_snr_max=log_snr_max,
        log_snr_min=log_snr_min,
    )
    schedule: Schedule = linear(log_snr_max, log_snr_min)
    if seen.schedule == "scalar":
        schedule = learned_linear(log_snr_max, log_snr_min)
    elif seen.schedule == "monotone":
        schedule = learned_unpinned(log_snr_max, log_snr_min, width=seen.schedule_width)
    model = VDM(schedule, network, discretised(levels))

    places, layout = jax.tree_util.tree_flatten_with_path(_shapes(model, seen, conditioned))
    names = [_name([key.key for key in path]) for path, _ in places]
    expected = {name: leaf.shape for name, (_, leaf) in zip(names, places, strict=True)}
    first = "score_model/dense0/kernel"
    if seen.conditioned and not conditioned:
        rows, columns = expected[first]
        expected[first] = (rows + 1, columns)
    _check(leaves, expected | _schedule_shapes(seen))
    if seen.conditioned and not conditioned:
        leaves = leaves | {first: leaves[first][:-1]}
    ends = _ends(leaves, seen.schedule)
    if seen.schedule == "monotone":
        _check_range(
            leaves, *schedule.log_snr({"ends": ends, "shape": {}}, jnp.asarray([0.0, 1.0]))
        )
    return model, {
        "schedule": {"ends": ends, "shape": {}},
        "network": jax.tree.unflatten(layout, [_real(leaves[name]) for name in names]),
    }


def flatten(tree: Any, prefix: str = "") -> Leaves:
    """Return the leaves of a tree by their names, keys joined by slashes.

    Raises ValueError for a tree that is not a mapping, for an empty mapping in it, for a name that
    occurs twice and for a leaf that is not an array of real numbers.
    """
    where = prefix[:-1]
    if not isinstance(tree, Mapping):
        if not where:
            raise ValueError(f"the tree itself must be a mapping: got {type(tree).__name__}")
        leaf = np.asarray(tree)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"leaf {shown(where)} must be an array of real numbers: got "
                f"{leaf.dtype if leaf.ndim or leaf.dtype != object else type(tree).__name__}"
            )
        return {where: leaf}
    if where and not tree:
        raise ValueError(
            f"{shown(where)} is an empty mapping: expected leaves in it, or no such key"
        )
    leaves: Leaves = {}
    for name, part in tree.items():
        more = flatten(part, f"{prefix}{name}/")
        if twice := sorted(leaves.keys() & more.keys()):
            raise ValueError(f"leaf {shown(twice[0])} occurs twice: does a key contain a slash?")
        leaves |= more
    return leaves


def shown(value: Any) -> str:
    """Return what a file holds as one line of at most 80 characters, for messages."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


class Seen(NamedTuple):
    """What the names and shapes of the leaves say of the model."""

    channels: int
    num_blocks: int
    attention_everywhere: bool
    data_channels: int
    fourier: bool
    conditioned: bool
    schedule: str  # "fixed", "scalar" or "monotone"
    schedule_width: int


def _infer(leaves: Leaves) -> Seen:
    """Return what most of the leaves agree on, so that a bad one is found and not followed."""

    def sizes(pattern: str, axis: int) -> list[int]:
        found = [leaf.shape for name, leaf in leaves.items() if re.fullmatch(pattern, name)]
        return [shape[axis] for shape in found if -len(shape) <= axis < len(shape)]

    def blocks(pattern: str) -> set[int]:
        found = [re.match(f"score_model/{pattern}_([0-9]{{1,9}})/", name) for name in leaves]
        return {int(match[1]) for match in found if match}

    def count(indices: set[int]) -> int:
        # Never more than there are in the file, and not the one whose index is astray.
        return sum(i < len(indices) for i in indices)

    channels = sizes(r"score_model/(.*/conv[12]|conv_in)/bias", 0)
    inputs = sizes("score_model/conv_in/kernel", -2)
    outputs = sizes("score_model/conv_out/(kernel|bias)", -1)
    down, up = blocks(r"down\.block"), blocks(r"up\.block")
    if not (channels and outputs and down | up):
        roots = sorted({name.split("/")[0] for name in leaves})[:8]
        raise ValueError(
            "expected the parameters of the official network, {'gamma', 'score_model'} with "
            "score_model/conv_in, score_model/down.block_0, ...: got a tree of "
            + (", ".join(map(shown, roots)) or "nothing")
        )
    width = _most(channels)
    of_inputs = [share for n in inputs for share in (n, n // 5) if share in (n, n / 5)]
    data_channels = _most([*outputs, *of_inputs])
    if width < 1 or data_channels < 1:
        raise ValueError(
            "the leaves of score_model/conv_in and score_model/conv_out must have at least one "
            f"channel: got {data_channels} of the data and {width} of the network"
        )
    num_blocks = max(count(down), count(up) - 1, 1)
    attention = len(blocks(r"down\.attn")) + len(blocks(r"up\.attn"))
    gamma = {name.split("/")[1] for name in leaves if name.startswith("gamma/")}
    schedule = "fixed"
    if gamma:
        schedule = "monotone" if gamma & set(MONOTONE) and not gamma & set(SCALAR) else "scalar"
    hidden = [*sizes("gamma/l2/(kernel|bias)", -1), *sizes("gamma/l3/kernel", 0)]
    return Seen(
        channels=width,
        num_blocks=num_blocks,
        attention_everywhere=attention > num_blocks,
        data_channels=data_channels,
        fourier=inputs != [data_channels],
        conditioned=sizes("score_model/dense0/kernel", -2) != [width],
        schedule=schedule,
        schedule_width=_most(hidden or [1]),
    )


def _shapes(model: VDM, seen: Seen, conditioned: bool) -> dict[str, Any]:
    """Return the shapes of the network's parameters, a tree of ours.

    Only a network of one block a side is traced, whatever number of blocks a file claims: those of
    a side are alike.
    """
    assert isinstance(model.network, UNet)  # ours, of the official one's form
    small = dataclasses.replace(model, network=model.network.clone(num_blocks=1))
    x = jax.ShapeDtypeStruct((1, 4, 4, seen.data_channels), jnp.int32)
    cond = jax.ShapeDtypeStruct((1, 1), jnp.float32) if conditioned else None
    found = dict(jax.eval_shape(small.init, jax.random.key(0), x, cond)["network"])
    for side, count in (("down", seen.num_blocks), ("up", seen.num_blocks + 1)):
        for kind in ("block", "attn"):
            if (one := found.get(f"{side}_{kind}_0")) is not None:
                found |= {f"{side}_{kind}_{i}": one for i in range(count)}
    return found


def _most(values: Iterable[int]) -> int:
    return Counter(values).most_common(1)[0][0]


def _name(path: list[str]) -> str:
    """Return the official name of a leaf of our network: mid_block_1/norm1 is mid.block_1/..."""
    *layers, kind = [LAYERS.get(part, part) for part in path]
    layers[0] = re.sub(r"^(down|mid|up)_(?=block|attn)", r"\1.", layers[0])
    return "/".join(["score_model", *layers, kind])


def _schedule_shapes(seen: Seen) -> dict[str, tuple[int, ...]]:
    n = seen.schedule_width
    kinds: dict[str, dict[str, tuple[int, ...]]] = {
        "fixed": {},
        "scalar": {"b": (1,), "w": (1,)},
        "monotone": {
            "l1/bias": (1,),
            "l1/kernel": (1, 1),
            "l2/bias": (n,),
            "l2/kernel": (1, n),
            "l3/kernel": (n, 1),
        },
    }
    return {f"gamma/{name}": shape for name, shape in kinds[seen.schedule].items()}


def _check(leaves: Leaves, expected: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(leaves.keys() | expected.keys()):
        if name not in leaves:
            raise ValueError(
                f"missing leaf {name!r} of shape {expected[name]}"
                + _nearest("; there is", name, leaves.keys() - expected.keys())
            )
        if name not in expected:
            missing = expected.keys() - leaves.keys()
            raise ValueError(
                f"unexpected leaf {shown(name)} of shape {leaves[name].shape}"
                + _nearest("; expected was", name, missing or expected)
            )
        if leaves[name].shape != expected[name]:
            raise ValueError(
                f"leaf {name!r} has another shape than the model inferred from the others: got "
                f"{leaves[name].shape}, expected {expected[name]}"
            )
        kept = _real(leaves[name])
        if not np.all(np.isfinite(kept)):
            raise ValueError(f"leaf {name!r} must be finite in {kept.dtype}: got NaN or infinity")


def _nearest(words: str, name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"{words} {shown(close[0])}" if close else ""


def _ends(leaves: Leaves, schedule: str) -> dict[str, Any]:
    """Return the learned ends of ours, computed in float64; γ = −λ turns the signs."""
    of = {
        name.removeprefix("gamma/"): leaf.astype(np.float64)
        for name, leaf in leaves.items()
        if name.startswith("gamma/")
    }
    if schedule == "fixed":
        return {}
    if schedule == "scalar":
        start, end = -of["b"][0], -of["b"][0] - abs(of["w"][0])
        _check_range(leaves, start, end)
        return dict(learned_linear(float(start), float(end)).init(jax.random.key(0))["ends"])
    ends = {
        "offset": -of["l1/bias"][0],
        "slope": of["l1/kernel"][0, 0],
        "hidden_slope": of["l2/kernel"][0],
        "hidden_bias": of["l2/bias"],
        "hidden_weight": of["l3/kernel"][:, 0],
    }
    return {name: jnp.asarray(value, float) for name, value in ends.items()}


def _check_range(leaves: Leaves, start: Any, end: Any) -> None:
    """Raise ValueError unless λ falls from λ(0) to λ(1) and both are within reason."""
    start, end = float(start), float(end)
    # NaN is not within the bound either.
    if not all(abs(level) <= MAX_LOG_SNR for level in (start, end)):
        moving = [f"gamma/{name}" for name in ("b", "w", "l1/bias", "l1/kernel", "l3/kernel")]
        largest = max(leaves.keys() & moving, key=lambda name: np.max(np.abs(leaves[name])))
        raise ValueError(
            f"leaf {largest!r} takes λ outside ±{MAX_LOG_SNR:g}: it runs from {start:g} to {end:g}"
        )
    if not start - end > MIN_RANGE:
        falls = "gamma/w" if "gamma/w" in leaves else "gamma/l1/kernel"
        raise ValueError(
            f"leaf {falls!r} gives λ almost no range: it must fall by more than {MIN_RANGE}, got "
            f"{start:g} to {end:g}"
        )


def _real(leaf: np.ndarray) -> jax.Array:
    """Return the leaf in the precision that it is kept in, float32 at least."""
    dtype = jax.dtypes.canonicalize_dtype(np.promote_types(np.float32, leaf.dtype))
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        return jnp.asarray(leaf.astype(dtype, copy=False))
