"""How much one batch's estimate of the bound varies, for every way to draw noise levels.

    python benchmarks/variance.py

Trains a digits model on λ ∈ [−13.3, 13.3], then holds its network fixed and measures the
variance of the diffusion term's estimate from one batch, in (bits per dimension)², at equal
network evaluations; then the same for a synthetic mixture, whose best denoiser is known. The
learned schedule and the histograms are fitted to the fixed network on the same number of
examples. Variances are per batch slot: a batch of n has 1/n of them.

Beside each law stands the best that any density p(λ) could do, measured over bins of λ:
    independent   (½ ∫ √E[‖ε − ε̂‖⁴|λ] dλ)² − L²
    stratified    (½ ∫ √Var[‖ε − ε̂‖²|λ] dλ)²
Writes runs/variance/variance.json and a picture of the laws; the trained model is kept in
runs/variance/digits and used again.
"""

import argparse
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from vdm import VDM, adaptive, bits_per_dim, likelihoods, losses, noise_levels, schedules
from vdm.run import cli, config as configs, data, train, trained
from vdm.run.system.files import write_json
from vdm.run.system.progress import bar
from vdm.run.training import objective as objectives
from vdm.run.training.step import Batch, Noise, Trainer, gradients

HIGH, LOW = 13.3, -13.3
WORKDIR = pathlib.Path("runs/variance")
BINS = 200


class Problem(NamedTuple):
    """A fixed denoiser and the data it is for."""

    name: str
    model: VDM
    params: Any
    x: np.ndarray

    @property
    def num_dims(self):
        return math.prod(self.x.shape[1:])


class MixtureDenoiser(nn.Module):
    """E[ε|z] of a mixture of three Gaussians in the plane, one wide, one narrow, one a needle."""

    weights = np.array([0.5, 0.3, 0.2])
    means = np.array([[-0.8, 0.3], [0.9, 0.6], [0.1, -1.1]])
    widths = np.array([0.3, 0.03, 0.003])

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        a, s = (jnp.sqrt(jax.nn.sigmoid(level))[:, None] for level in (log_snr, -log_snr))
        variance = jnp.square(a * self.widths[None]) + jnp.square(s)
        gap = z[:, None] - a[..., None] * self.means[None]
        log_density = -0.5 * jnp.sum(jnp.square(gap), -1) / variance - jnp.log(variance)
        share = jax.nn.softmax(log_density + jnp.log(self.weights)[None])
        return s * jnp.sum((share / variance)[..., None] * gap, 1)


def mixture(num=4096):
    rng, law = np.random.default_rng(0), MixtureDenoiser
    k = rng.choice(3, num, p=law.weights)
    x = law.means[k] + law.widths[k][:, None] * rng.normal(size=(num, 2))
    model = VDM(schedules.linear(HIGH, LOW), MixtureDenoiser(), likelihoods.gaussian(0.01))
    return Problem("mixture", model, {}, x.astype(np.float32))


def digits(steps):
    config = cli.read_config(
        [
            "--config=experiments/digits.py",
            f"--config.train.num_steps={steps}",
            "--config.train.batch_size=16",
            "--config.model.network.num_blocks=1",
            "--config.model.network.attention=none",
            "--config.model.network.dropout=0.0",
            f"--config.model.schedule.log_snr_max={HIGH}",
            f"--config.model.schedule.log_snr_min={LOW}",
            "--config.optimizer.ema_decay=0.998",
        ]
    )
    train.train(config, WORKDIR / "digits")
    run = trained.load(WORKDIR / "digits")
    x = data.load(config.data, "train").x
    return Problem("digits", run.model, run.params["network"], x)


def drawn(problem, key, n):
    """A random batch of examples."""
    return jax.random.choice(key, jnp.asarray(problem.x), (n,), axis=0)


def errors(problem, key, x, log_snr):
    """‖ε − ε̂‖² of each example at its noise level."""
    encoded = problem.model.likelihood.encode(x)
    eps_fn = problem.model.denoiser({"schedule": {}, "network": problem.params})
    return losses.noise_error(encoded, jax.random.normal(key, encoded.shape), log_snr, eps_fn)


def profile(problem, per_bin=512):
    """The moments of the error in even bins of λ: mean, mean square, variance."""

    @jax.jit
    def in_bin(key, b):
        key_x, key_u, key_eps = jax.random.split(key, 3)
        position = (b + jax.random.uniform(key_u, (per_bin,))) / BINS
        log_snr = (1 - position) * HIGH + position * LOW
        error = errors(problem, key_eps, drawn(problem, key_x, per_bin), log_snr)
        return error.mean(), jnp.square(error).mean(), error.var(ddof=1)

    keys = jax.random.split(jax.random.key(1), BINS)
    return np.array([in_bin(key, b) for b, key in enumerate(keys)], np.float64).T


def optima(problem, moments):
    """The bound, and the least variances per slot that independent and stratified draws allow."""
    first, second, variance = moments
    width = (HIGH - LOW) / BINS
    bits = bits_per_dim(np.ones(1), problem.num_dims)[0]
    bound = 0.5 * width * first.sum() * bits
    iid = (0.5 * width * np.sqrt(second).sum() * bits) ** 2 - bound**2
    return bound, iid, (0.5 * width * np.sqrt(variance).sum() * bits) ** 2


def step_keys(seed, step):
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 3)


def learn_schedule(problem, size, steps, rate=3e-2):
    """Parameters of a monotone schedule before and after it has descended the variance."""
    schedule = schedules.learned_monotone(HIGH, LOW, learn_ends=False)
    model = dataclasses.replace(problem.model, schedule=schedule)
    config = configs.from_dict(
        {
            "data": {"name": problem.name},
            "model": {part: {"name": ""} for part in ("schedule", "network", "likelihood")},
            "train": {"num_steps": steps, "batch_size": size},
        }
    )
    objective = objectives.build(config.objective, model)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    trainer = Trainer(model, optimizer, objective, config)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(shape, opt_state, step):
        key_x, key_u, key_eps = step_keys(2, step)
        params = {"schedule": {"ends": {}, "shape": shape}, "network": problem.params}
        state = train.TrainState(step, params, params, opt_state, (), jnp.zeros((), jnp.int32))
        u = objective.positions(key_u, size)
        noise = Noise(u, jax.random.split(key_eps, size), jax.random.split(key_eps, 1))
        batch = Batch(drawn(problem, key_x, size), None)
        _, _, gradient, _ = gradients(trainer, state, batch, noise)
        updates, opt_state = optimizer.update(gradient["schedule"]["shape"], opt_state)
        return optax.apply_updates(shape, updates), opt_state

    start = schedule.init(jax.random.key(3))
    shape = jax.tree.map(jnp.copy, start["shape"])
    opt_state = optimizer.init(shape)
    with bar(f"{problem.name}: learned schedule", steps) as advance:
        for step in range(steps):
            shape, opt_state = update(shape, opt_state, step)
            if (step + 1) % 500 == 0:
                advance(step + 1, "")
    return schedule, start, {"ends": {}, "shape": shape}


def learn_histogram(problem, size, steps, *, stratified):
    """A histogram after as many batches as the schedule had."""
    draw = noise_levels.stratified if stratified else noise_levels.uniform

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, step):
        key_x, key_u, key_eps = step_keys(4, step)
        levels = adaptive.levels(state, draw(key_u, size), HIGH, LOW, stratified=stratified)
        error = errors(problem, key_eps, drawn(problem, key_x, size), levels.log_snr)
        return adaptive.update(state, levels.log_snr, error, HIGH, LOW)

    state = adaptive.init()
    with bar(f"{problem.name}: histogram", steps) as advance:
        for step in range(steps):
            state = update(state, step)
            if (step + 1) % 500 == 0:
                advance(step + 1, "")
    return state


class Law(NamedTuple):
    """A row of the table: positions of a batch, and the noise levels they are mapped to."""

    draw: Callable
    levels: Callable


def along(schedule, params=None):
    params = schedule.init(jax.random.key(0)) if params is None else params
    return lambda u: noise_levels.from_times(lambda t: schedule.log_snr(params, t), u)


def make_laws(learned, before, after, histogram, histogram_iid):
    iid, low, even = noise_levels.uniform, noise_levels.low_discrepancy, noise_levels.stratified
    linear, cosine = schedules.linear(HIGH, LOW), schedules.cosine(HIGH, LOW)
    closed = functools.partial(noise_levels.sigmoid_law, log_snr_max=HIGH, log_snr_min=LOW)
    ends = {"log_snr_max": HIGH, "log_snr_min": LOW}
    return {
        "iid uniform λ": Law(iid, along(linear)),
        "iid α-cosine": Law(iid, along(cosine)),
        "iid β-linear": Law(iid, along(schedules.beta_linear(HIGH, LOW))),
        "iid closed form": Law(iid, closed),
        "iid learned, before": Law(iid, along(learned, before)),
        "iid learned": Law(iid, along(learned, after)),
        "iid adaptive": Law(
            iid, functools.partial(adaptive.levels, histogram_iid, stratified=False, **ends)
        ),
        "low-discrepancy uniform λ": Law(low, along(linear)),
        "low-discrepancy α-cosine": Law(low, along(cosine)),
        "low-discrepancy closed form": Law(low, closed),
        "low-discrepancy learned": Law(low, along(learned, after)),
        "stratified uniform λ": Law(even, along(linear)),
        "stratified learned": Law(even, along(learned, after)),
        "stratified adaptive": Law(even, functools.partial(adaptive.levels, histogram, **ends)),
        "low-discrepancy adaptive": Law(low, functools.partial(adaptive.levels, histogram, **ends)),
    }


def measure(problem, law, size, batches, *, fixed, seed):
    """Mean and variance per slot of the estimate from one batch, each with its standard error."""
    key_images = jax.random.key(5)
    together = max(1, 512 // size)  # batches a call

    @jax.jit
    def estimates(step):
        def one(key):
            key_x, key_u, key_eps = jax.random.split(key, 3)
            x = drawn(problem, key_images if fixed else key_x, size)
            return x, law.levels(law.draw(key_u, size)), jax.random.split(key_eps, 1)[0]

        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), together)
        x, levels, key_eps = jax.vmap(one)(keys)
        flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (x, levels))
        error = errors(problem, key_eps[0], flat[0], flat[1].log_snr)
        bits = bits_per_dim(0.5 * flat[1].inverse_density * error, problem.num_dims)
        return bits.reshape(together, size).mean(1)

    calls = -(-batches // together)
    values = np.concatenate([np.asarray(estimates(i), np.float64) for i in range(calls)])
    n, mean, variance = len(values), values.mean(), values.var(ddof=1)
    kurtosis = np.mean((values - mean) ** 4) / variance**2
    return {
        "mean": mean,
        "mean_sem": math.sqrt(variance / n),
        "variance": size * variance,
        "variance_sem": size * variance * math.sqrt((kurtosis - 1) / n),
    }


def study(problem, options):
    """Fit, measure and print everything for one problem."""
    moments = profile(problem)
    bound, best_iid, best_even = optima(problem, moments)
    learned, before, after = learn_schedule(problem, options.size, options.fit_steps)
    histograms = [
        learn_histogram(problem, options.size, options.fit_steps, stratified=stratified)
        for stratified in (True, False)
    ]
    laws = make_laws(learned, before, after, *histograms)
    rows = {}
    with bar(f"{problem.name}: laws", len(laws)) as advance:
        for i, (name, law) in enumerate(laws.items()):
            rows[name] = {
                kind: measure(problem, law, options.size, options.batches, fixed=fixed, seed=10 + i)
                for kind, fixed in (("redrawn", False), ("fixed", True))
            }
            advance(i + 1, name)
    means, sems = (
        np.array([row["redrawn"][key] for row in rows.values()]) for key in ("mean", "mean_sem")
    )
    pooled = np.average(means, weights=1 / sems**2)
    linear = rows["iid uniform λ"]["redrawn"]["variance"]
    official = rows["low-discrepancy uniform λ"]["redrawn"]["variance"]
    print(f"\n{problem.name}: diffusion term {bound:.4f} bpd, batch {options.size}, per slot")
    print(f"iid optimum {best_iid:.4f} (uniform λ / optimum {linear / best_iid:.1f}), ", end="")
    print(f"stratified optimum {best_even:.4f}")
    print(f"all means are {pooled:.4f} within {np.abs((means - pooled) / sems).max():.1f} sem")
    print("| law | mean | variance | / optimum | iid uniform / it | low-d. uniform / it | fixed |")
    for name, row in rows.items():
        one, fixed = row["redrawn"], row["fixed"]
        best = best_iid if name.startswith("iid") else best_even
        print(
            f"| {name} | {one['mean']:.4f} ± {one['mean_sem']:.4f} | {one['variance']:.3f} ± "
            f"{one['variance_sem']:.3f} | {one['variance'] / best:.2f} | "
            f"{linear / one['variance']:.1f} | {official / one['variance']:.2f} | "
            f"{fixed['variance']:.3f} ± {fixed['variance_sem']:.3f} |"
        )
    draw_laws(problem, moments, learned, before, after, histograms)
    return {"bound": bound, "iid_optimum": best_iid, "stratified_optimum": best_even, "laws": rows}


def draw_laws(problem, moments, learned, before, after, histograms):
    """λ(t) before and after, and the densities beside the best ones."""
    _, second, variance = moments
    centre = HIGH - (HIGH - LOW) * (np.arange(BINS) + 0.5) / BINS
    t = jnp.linspace(0.0, 1.0, 1001)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    left.plot(t, learned.log_snr(before, t), label="before")
    left.plot(t, learned.log_snr(after, t), label="after")
    left.set(xlabel="t", ylabel="λ(t)", title=f"{problem.name}: learned schedule")
    at = along(learned, after)(t)
    for axis, title, moment, histogram, stratified in (
        (middle, "independent draws", second, histograms[1], False),
        (right, "stratified draws", variance, histograms[0], True),
    ):
        best = np.sqrt(moment) / np.sqrt(moment).sum() * BINS / (HIGH - LOW)
        axis.fill_between(centre, best, color="0.85", label="best density")
        probs = np.asarray(adaptive.probabilities(histogram, stratified=stratified))
        edges = np.linspace(HIGH, LOW, len(probs) + 1)[::-1]
        axis.stairs(probs[::-1] * len(probs) / (HIGH - LOW), edges, label="adaptive")
        axis.set(xlabel="λ", title=f"p(λ), {title}")
    middle.plot(at.log_snr, 1 / at.inverse_density, label="learned")
    for axis in (left, middle, right):
        axis.legend(frameon=False)
    figure.savefig(WORKDIR / f"{problem.name}.png", dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--train_steps", type=int, default=4000, help="of the digits model")
    parser.add_argument("--fit_steps", type=int, default=15000, help="of schedule and histograms")
    parser.add_argument("--size", type=int, default=32, help="of a batch")
    parser.add_argument("--batches", type=int, default=4000, help="to measure a variance with")
    options = parser.parse_args()
    WORKDIR.mkdir(parents=True, exist_ok=True)
    problems = (mixture(), digits(options.train_steps))
    results = {problem.name: study(problem, options) for problem in problems}
    write_json(WORKDIR / "variance.json", {"options": vars(options), "results": results})


if __name__ == "__main__":
    main()
