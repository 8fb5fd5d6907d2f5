"""How far a small U-Net is above the exact entropy of random fields, padded with zeros or wrapped.

    python benchmarks/fields.py --grids=64x64,16x16x16 --seeds=0,1,2 --steps=1000

The data are periodic Gaussian random fields of a known spectrum (`vdm.run.data.random_fields`). The
excess is what the bound of held-out fields is above their own −log p(x), in bits per dimension:
mean ± standard error over fields in a row, over seeds in the table. A seed says the data, the first
parameters, the batches and the noise, the same for both paddings: the last column, zero less wrap,
is of pairs. What λ_max leaves of the excess, ½ mean_k log2(1 + e^{−λ_max}/P(k)), is below 0.0002.

Rows are kept in runs/fields_benchmark.json once they are done: the same command again resumes, and
other settings are other rows. Seconds are those of the training, compilation included.
"""

import argparse
import functools
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vdm as library
from short_runs import cell, seeds
from vdm import VDM, likelihoods, networks, noise_levels, schedules
from vdm.condition import take
from vdm.run.data import random_fields
from vdm.run.system.files import read_json, write_json

KEPT = pathlib.Path("runs/fields_benchmark.json")
HIGH, LOW = 12.0, -9.0
PADDINGS = ("zero", "wrap")
NUM_TRAIN, NUM_TEST = 2000, 64
LEVELS = 128  # of each field held out
ROWS = 32  # of one call of the network


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--grids", default="64x64,16x16x16", help="one to three sizes each")
    parser.add_argument("--seeds", type=seeds, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--num_blocks", type=int, default=1)
    parser.add_argument("--k0", type=float, default=3.0, help="waves at which the spectrum bends")
    options = parser.parse_args()
    grids = [tuple(int(size) for size in grid.split("x")) for grid in options.grids.split(",")]
    rows = read_json(KEPT) if KEPT.exists() else []
    found = {}
    for shape in grids:
        spectrum = random_fields.power(shape, k0=options.k0)
        for padding in PADDINGS:
            for seed in options.seeds:
                asked = settings(options, shape, padding, seed)
                row = next((row for row in rows if asked.items() <= row.items()), None)
                if row is None:
                    row = asked | measured(options, spectrum, padding, seed)
                    rows.append(row)
                    write_json(KEPT, rows)
                found[shape, padding, seed] = row["excess"]
                print(line(row), flush=True)
    print(
        "\n| grid | entropy | excess, zero | excess, wrap | zero less wrap |\n" + "| --- " * 5 + "|"
    )
    for shape in grids:
        zero, wrap = (np.array([found[shape, p, s] for s in options.seeds]) for p in PADDINGS)
        entropy = random_fields.bits(random_fields.power(shape, k0=options.k0))
        cells = [cell(zero), cell(wrap), cell(zero - wrap)]
        print(f"| {'×'.join(map(str, shape))} | {entropy:.3f} | {' | '.join(cells)} |")


def settings(options, shape, padding, seed):
    """Return what a row is of: with these numbers equal it is the same one."""
    return {
        "shape": list(shape),
        "padding": padding,
        "seed": seed,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "channels": options.channels,
        "num_blocks": options.num_blocks,
        "k0": options.k0,
    }


def measured(options, spectrum, padding, seed):
    """Train one model and return its excess with its error, and the seconds of the training."""
    train, test = (fields(spectrum, num, [seed, i]) for i, num in enumerate((NUM_TRAIN, NUM_TEST)))
    model, optimizer = parts(
        spectrum.ndim, padding, options.channels, options.num_blocks, options.steps
    )
    key_init, key_fit, key_test = jax.random.split(jax.random.key(seed), 3)
    began = time.perf_counter()
    params, _ = library.fit(
        model,
        jax.jit(model.init)(key_init, train[:1]),
        train,
        key=key_fit,
        optimizer=optimizer,
        num_steps=options.steps,
        batch_size=options.batch_size,
        noise_levels=law,
    )
    seconds = time.perf_counter() - began
    above = bounds(model, params, key_test, test) - true_nats(spectrum, test)
    above /= spectrum.size * math.log(2)
    error = above.std(ddof=1) / math.sqrt(len(above))
    return {"excess": float(above.mean()), "error": float(error), "seconds": seconds}


def fields(spectrum, num, seed):
    """Return `num` fields [num, *shape, 1]."""
    spectra = np.broadcast_to(spectrum, (num, *spectrum.shape))
    drawn = random_fields.draw(np.random.default_rng(seed), spectra)
    return drawn[..., None].astype(np.float32)


@functools.cache
def parts(axes, padding, channels, num_blocks, steps):
    """Return a model and an optimiser, the same objects for all seeds: compiled once."""
    network = networks.UNet(
        axes=axes,
        padding=padding,
        channels=channels,
        num_blocks=num_blocks,
        num_groups=4,
        attention="none",
        fourier_exponents=(),
        dropout=0.0,
        residual=False,
        log_snr_max=HIGH,
        log_snr_min=LOW,
    )
    likelihood = likelihoods.gaussian(math.exp(-HIGH / 2))
    model = VDM(schedules.linear(HIGH, LOW), network, likelihood, prediction="v")
    rate = optax.warmup_cosine_decay_schedule(0.0, 5e-3, min(100, steps // 10), steps)
    return model, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def law(key, n):
    """Return levels of density p(λ) ∝ sigmoid(λ), spread evenly over a batch."""
    return noise_levels.sigmoid_law(noise_levels.low_discrepancy(key, n), HIGH, LOW)


def bounds(model, params, key, x):
    """Return the negative bound of every field, the mean over LEVELS noise levels, in nats."""
    total = jax.jit(_total, static_argnums=0)
    found = []
    for i, one in enumerate(x):
        key_levels, key_noise = jax.random.split(jax.random.fold_in(key, i))
        where = law(key_levels, LEVELS)  # spread evenly for each field
        some = jnp.broadcast_to(one, (ROWS, *one.shape))
        nats = [
            total(model, params, jax.random.fold_in(key_noise, start), some, part)
            for start in range(0, LEVELS, ROWS)
            for part in [take(where, slice(start, start + ROWS))]
        ]
        found.append(np.mean(np.concatenate(nats)))
    return np.array(found, np.float64)


def _total(model, params, key, x, where):
    return model.vlb(params, key, x, noise_levels=where).total


def true_nats(spectrum, x):
    """Return −log p(x) = ½ Σ_k [log 2πP(k) + |x_k|²/P(k)] of every field, exactly."""
    axes = tuple(range(1, 1 + spectrum.ndim))
    squares = np.abs(np.fft.fftn(x[..., 0].astype(np.float64), axes=axes)) ** 2 / spectrum.size
    return 0.5 * np.sum(np.log(2 * np.pi * spectrum) + squares / spectrum, axis=axes)


def line(row):
    grid = "×".join(map(str, row["shape"]))
    excess = f"{row['excess']:.4f} ± {row['error']:.4f} bits per dimension above the entropy"
    took = f"{row['steps']} steps in {row['seconds']:.0f} s"
    return f"{grid} {row['padding']} seed {row['seed']}: {excess}, {took}"


if __name__ == "__main__":
    main()
