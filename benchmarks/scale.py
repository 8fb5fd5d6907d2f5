r"""Training steps compiled for TPU slices that are not here: what fits, what is sent, how long.

    python benchmarks/scale.py
    python benchmarks/scale.py scaling precision
    python benchmarks/scale.py --config=experiments/cifar10.py --topology=v5e:4x4 \
        --config.train.batch_size=512

The first makes all tables below, at full depth, in half an hour or so; the second only the tables
that it names, the third a row for another config or slice.

Needs the compiler for TPUs (`pip install 'vdm-jax[aot]'`, or TPU_LIBRARY_PATH), no TPU and no data:
the images are zeros of the right shape. Nothing runs: memory, bytes and collectives are those of
the compiled program, times are what its arithmetic and its memory allow at best, and the compiler's
own model where the program has no loops. It is compiled with little effort; a program that runs is
compiled with more and may take less.
"""

import argparse
import pathlib
import sys
import time

import jax
import numpy as np

from vdm.run import cli, dry_run
from vdm.run.compiled import chips, cost, topology
from vdm.run.compiled.cost import Cost, DoesNotFit
from vdm.run.data.dataset import Dataset, Examples
from vdm.run.training import parts

BF16 = "model.network.dtype=bfloat16"
REMAT = "model.network.remat=True"
NO_LOOP = "devices.scan_blocks=no"
FSDP, BATCH = "devices.fsdp=4", "train.batch_size=512"
UNROLLED = (NO_LOOP, "model.network.num_blocks=1", "devices.steps_per_dispatch=1")
# By table: a config, a slice, and what differs from the config.
TABLES = {
    "fits": [
        ("cifar10", "v5e:2x2", ()),
        ("cifar10", "v5e:2x2", (BF16,)),
        ("cifar10", "v5e:2x2", (BF16, NO_LOOP)),
        ("cifar10_fast", "v5e:2x2", ()),
        ("cifar10", "v5e:4x4", (BF16, "train.batch_size=512")),
        ("cifar10", "v5e:16x16", (BF16, "train.batch_size=8192")),
        ("cifar10", "v5p:2x2x1", (BF16,)),
        ("cifar10", "v6e:4x4", (BF16, "train.batch_size=512")),
        ("imagenet64", "v5e:4x4", (BF16, "devices.fsdp=4")),
        ("imagenet64", "v5e:4x4", (BF16, FSDP, BATCH, REMAT)),
        ("imagenet64", "v5e:4x4", (BF16, FSDP, BATCH, "train.accumulation_steps=4")),
        ("imagenet64", "v5e:4x4", (BF16, FSDP, BATCH, REMAT, "train.accumulation_steps=2")),
        ("imagenet64", "v5e:4x4", (BF16, FSDP, BATCH, REMAT, NO_LOOP)),
        ("imagenet64", "v5p:2x2x1", (BF16, FSDP, REMAT)),
    ],
    "scaling": [
        ("cifar10", "v5e:2x2", (BF16, *UNROLLED, "train.batch_size=128")),
        ("cifar10", "v5e:4x4", (BF16, *UNROLLED, "train.batch_size=512")),
        ("cifar10", "v5e:16x16", (BF16, *UNROLLED, "train.batch_size=8192")),
    ],
    "precision": [
        ("cifar10", "v5e:2x2", UNROLLED),
        ("cifar10", "v5e:2x2", (BF16, *UNROLLED)),
    ],
}
EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"
COLUMNS = (
    *("config", "slice", "differs by", "a chip: state + work, GB", "TFLOP a step"),
    *("GB moved a chip", "collectives a step", "at least, ms", "MFU at most"),
    *("compiler's own, ms", "compiled in, CPU s"),
)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES])
    parser.add_argument("--config", type=pathlib.Path)
    parser.add_argument("--topology")
    options, rest = parser.parse_known_args(arguments)
    tables = {name: TABLES[name] for name in options.tables or TABLES}
    if options.config is not None:
        changes = tuple(word.removeprefix("--config.") for word in rest)
        tables = {"asked": [(options.config, options.topology, changes)]}
    for name, rows in tables.items():
        print(f"\n{name}\n\n| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
        for row in rows:
            print(f"| {' | '.join(measured(*row))} |", flush=True)


def measured(config: str | pathlib.Path, name: str, changes: tuple[str, ...]) -> list[str]:
    """Return a row of the table."""
    path = config if isinstance(config, pathlib.Path) else EXPERIMENTS / f"{config}.py"
    said = [f"--config.{change}" for change in changes]
    made = cli.read_config([f"--config={path}", *said])
    started = time.process_time()
    with topology.little_effort():
        of_run = parts.of(
            made, zeros(made.data.name, made.train.batch_size), topology.devices(name)
        )
        found = dry_run.step(of_run)
    seconds = time.process_time() - started
    shown = [path.stem, name, ", ".join(change.split(".")[-1] for change in changes) or "nothing"]
    ending = [f"{seconds:.0f}"]
    if isinstance(found.cost, DoesNotFit):
        needed, there = found.cost
        text = "does not fit" + (f": {needed / 1e9:.1f} of {there / 1e9:.1f}" if needed else "")
        return [*shown, text, f"{found.flops / 1e12:.3g}", *[""] * 5, *ending]
    assert isinstance(found.cost, Cost)
    chip = chips.of(of_run.mesh.devices.flat[0].device_kind)
    assert chip is not None
    flops, steps = found.flops / of_run.mesh.size, dry_run.steps_of(of_run)
    best = cost.best_seconds(flops, found.cost.moved / steps, chip)
    sent = [
        f"{one.times / steps:.5g} {one.kind} {one.num_bytes / steps / 1e6:,.0f} MB "
        f"{'+'.join(sorted(one.dtypes))}"
        for one in found.cost.collectives
    ]
    own = found.cost.seconds
    return [
        *shown,
        f"{found.cost.held / 1e9:.2f} + {found.cost.work / 1e9:.2f}",
        f"{found.flops / 1e12:.3g}",
        f"{found.cost.moved / steps / 1e9:.3g}",
        "; ".join(sent) or "none",
        f"{1e3 * best:.3g}",
        f"{flops / chip.flops / best:.0%}",
        "" if own is None else f"{1e3 * own / steps:.4g}",
        *ending,
    ]


def zeros(name: str, size: int) -> Dataset:
    """Return images of zeros of the shape that the set has."""
    side = 64 if "64x64" in name else 32
    x = np.broadcast_to(np.zeros((), np.uint8), (max(size, 50_000), side, side, 3))
    return Dataset(name, "train", Examples(x), "zeros", levels=256)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(sys.argv[1:])
