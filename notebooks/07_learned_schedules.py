# %% [markdown]
# # Learned noise schedules
#
# Which noise levels should training look at? The bound does not depend on it, the variance of its
# estimate does, and the best law depends on the data and on the network (notebook 06). So it has to
# be found while training. Two ways to do that are compared here, on a small network and handwritten
# digits: a schedule that is learned by gradient, as in the VDM paper, and a histogram that counts.

# %%
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import vdm
from vdm import (
    VDM,
    adaptive,
    bits_per_dim,
    diffusion,
    likelihoods,
    losses,
    networks,
    noise_levels,
    schedules,
)

HIGH, LOW = 13.3, -5.0  # the ends of the VDM paper's CIFAR-10 model

# %% [markdown]
# ## Digits, and a network
#
# The best denoiser of a pixel weighs each grey level by its probability and by how well it explains
# the pixel's z. For digits the probability depends on the other pixels, and that is what a small
# MLP is asked for: it sees what every pixel says by itself, and answers with log-probabilities.
#
# The schedule has learned parameters: a monotone network s(t) between pinned ends,
# $\lambda = (1-s)\lambda_{\max} + s\lambda_{\min}$ (VDM, appendix on the noise schedule). But first
# only the denoiser is trained, for a moment, at noise levels drawn by
# $p(\lambda) \propto \mathrm{sigmoid}(\lambda)$.


# %%
class LevelNetwork(nn.Module):
    """x̂ as the mean over 17 grey levels, whose prior probabilities come from all pixels."""

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        levels = likelihoods.discretised(17).encode(jnp.arange(17))
        at = diffusion.expand(log_snr, z)[..., None]
        own = -0.5 * ((z[..., None] - diffusion.alpha(at) * levels) / diffusion.sigma(at)) ** 2
        mlp = networks.MLP(width=128, num_blocks=1, residual=False)
        prior = mlp(jax.nn.softmax(own), log_snr, train=train)
        return jax.nn.softmax(own + prior) @ levels


images = load_digits().images.astype("uint8").reshape(-1, 64)
schedule = schedules.learned_monotone(HIGH, LOW, width=128, learn_ends=False)
model = VDM(schedule, LevelNetwork(), likelihoods.discretised(17), prediction="x")


def look_by_sigmoid(key, n):
    return noise_levels.sigmoid_law(noise_levels.low_discrepancy(key, n), HIGH, LOW)


params, history = vdm.fit(
    model,
    model.init(jax.random.key(30), images[:2]),
    images,
    key=jax.random.key(31),
    optimizer=optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(4e-3, 400))
    ),
    num_steps=400,
    batch_size=64,
    noise_levels=look_by_sigmoid,
)
print(f"bits per dimension over the last 100 steps: {history[-100:].mean():.3f}")

figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
axes.plot(history, linewidth=0.8)
axes.set(xlabel="step", ylabel="loss (bits per dimension)", ylim=(0, 8), title="The denoiser")
plt.show()

# %% [markdown]
# The loss is noisy: every step looks at 64 levels, and a look where the errors are rare and large
# tells little.
#
# ## The best law for this network
#
# From here on the network is held. At a noise level λ its squared error has two moments, measured
# here in bins. They say what the best density is: for independent draws
# $p \propto \sqrt{\mathbb E\|\cdot\|^4}$, and for draws that are spread evenly over the batch
# $p \propto \sqrt{\mathrm{Var}\|\cdot\|^2}$. No law has a smaller variance.

# %%
BATCH, BINS, PER_BIN = 32, 80, 400
BITS = bits_per_dim(np.ones(()), 64)  # one nat, shared by 64 pixels
eps_fn = model.denoiser(params)


def losses_of(key, levels):
    """½ ‖ε − ε̂‖²/p(λ) at the given levels for random digits, in bits per dimension."""
    key_x, key_eps = jax.random.split(key)
    x = model.likelihood.encode(
        jax.random.choice(key_x, jnp.asarray(images), (len(levels.log_snr),))
    )
    eps = jax.random.normal(key_eps, x.shape)
    return bits_per_dim(losses.diffusion_loss_at(x, levels, eps, eps_fn), 64)


@jax.jit
def moments(key, position):
    log_snr = LOW + (HIGH - LOW) * (position + jax.random.uniform(key, (PER_BIN,))) / BINS
    at = noise_levels.NoiseLevels(log_snr, jnp.full((PER_BIN,), 2.0))  # so that a loss is an error
    error = losses_of(key, at) / BITS
    return error.mean(), jnp.mean(error**2)


keys = jax.random.split(jax.random.key(32), BINS)
first, second = np.array([moments(key, k) for k, key in enumerate(keys)], np.float64).T
spread = np.maximum(second - first**2, 0)
centres = LOW + (HIGH - LOW) * (np.arange(BINS) + 0.5) / BINS
bound = 0.5 * np.trapezoid(first, centres) * BITS
best_iid = (0.5 * np.trapezoid(np.sqrt(second), centres) * BITS) ** 2 - bound**2
best_spread = (0.5 * np.trapezoid(np.sqrt(spread), centres) * BITS) ** 2
print(f"diffusion term {bound:.3f} bits per dimension")
print(f"best variance: {best_iid:.3f} independent, {best_spread:.3f} spread")
root = np.sqrt(second)


def show_law(axes, law, style, name):
    """Draw the density of a law over that of the best one."""
    at = law((jnp.arange(4000) + 0.5) / 4000)
    order = np.argsort(at.log_snr)
    axes.plot(at.log_snr[order], 1 / at.inverse_density[order], style, lw=1.2, label=name)


def panel(title):
    """Axes with the best density in grey."""
    _, axes = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    axes.fill_between(centres, root / np.trapezoid(root, centres), color="0.85", label="best")
    axes.set(xlabel="λ = log SNR", ylabel="p(λ)", ylim=(0, 0.22), title=title)
    return axes


axes = panel("Where to look")
axes.plot(centres, np.sqrt(spread) / np.trapezoid(np.sqrt(spread), centres), "k:", label="spread")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Grey: the best density for independent draws. Dotted: for spread ones.
#
# ## By gradient
#
# The gradient of the bound says nothing about the shape of the schedule, for the bound does not
# depend on it. So the shape descends the variance instead, $\mathbb E[L_i^2]$ up to a constant.
# `vdm.fit` does both at once in one backward pass (`vdm.variance`): the network descends the mean,
# the schedule's interior the mean square. Here the network is held, so only the shape learns.

# %%
steps = 400
shape_only = optax.multi_transform(
    {
        "learn": optax.adam(optax.cosine_decay_schedule(0.1, steps)),
        "hold": optax.set_to_zero(),
    },
    {"schedule": "learn", "network": "hold"},
)
learned_params, _ = vdm.fit(
    model,
    params,
    images,
    key=jax.random.key(33),
    optimizer=shape_only,
    num_steps=steps,
    batch_size=128,
)


def along(schedule, params):
    """The law of a schedule at uniform times."""
    return lambda u: noise_levels.from_times(lambda t: schedule.log_snr(params, t), u)


before, learned = along(schedule, params["schedule"]), along(schedule, learned_params["schedule"])
axes = panel("The learned schedule's density")
show_law(axes, before, "C7--", "before")
show_law(axes, learned, "C0-", "after")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## By counting
#
# A histogram over λ with running first and second moments of the error, and λ drawn from what it
# says: `adaptive`. No gradient, no network, and it knows the best density for independent and for
# spread draws alike. A share of the draws stays uniform, so that an error where none was expected
# does not weigh too much; the default is a fiftieth, and after a fit as short as here a tenth is
# safer. While the denoiser changes a bin should forget, by default after a hundred errors; here it
# is held, and may remember a thousand.


# %%
FLOOR = 0.1  # the share of uniform draws


@functools.partial(jax.jit, static_argnames=("steps", "stratified"))
def learn_histogram(key, steps, *, stratified, size=64):
    """The histogram after each of `steps` batches, all in one stacked state."""
    draw = noise_levels.stratified if stratified else noise_levels.uniform

    def step(state, key):
        key_u, key_rest = jax.random.split(key)
        at = adaptive.levels(
            state, draw(key_u, size), HIGH, LOW, stratified=stratified, floor=FLOOR
        )
        error = 2 * losses_of(key_rest, at) / BITS / at.inverse_density
        state = adaptive.update(state, at.log_snr, error, HIGH, LOW, decay=0.999)
        return state, state

    return jax.lax.scan(step, adaptive.init(), jax.random.split(key, steps))[1]


def histogram_law(states, step, *, stratified):
    state = jax.tree.map(lambda leaf: leaf[step - 1], states)
    return lambda u: adaptive.levels(state, u, HIGH, LOW, stratified=stratified, floor=FLOOR)


counted = {
    stratified: learn_histogram(jax.random.key(34), 500, stratified=stratified)
    for stratified in (False, True)
}
axes = panel("The histogram's density")
for count, style in ((1, "C7--"), (10, "C1-"), (100, "C2-"), (500, "C3-")):
    law = histogram_law(counted[False], count, stratified=False)
    show_law(axes, law, style, f"after {64 * count:,} looks")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# A few batches say roughly where to look, and some hundred come near the best density. The hardest
# part lies at high λ, where a pixel is seldom mistaken for its neighbour, and then by much: a short
# look sees too few of these to know how often to come back. The learned schedule has the same
# trouble.
#
# ## What an estimate varies by
#
# Every law is measured on 320 fresh batches of 32, with independent and with low-discrepancy draws.

# %%
compared = {
    name: (law, law)
    for name, law in {
        "linear in λ": along(schedules.linear(HIGH, LOW), {}),
        "cosine": along(schedules.cosine(HIGH, LOW), {}),
        "EDM": along(schedules.edm(HIGH, LOW), {}),
        "sigmoid law": lambda u: noise_levels.sigmoid_law(u, HIGH, LOW),
        "learned": learned,
    }.items()
}
compared["adaptive"] = tuple(
    histogram_law(counted[stratified], 500, stratified=stratified) for stratified in (False, True)
)


@jax.jit
def losses_at(key, levels):
    """Losses at levels of shape [chunks, n], one chunk after the other."""
    keys = jax.random.split(key, len(levels.log_snr))
    return jax.lax.map(lambda chunk: losses_of(*chunk), (keys, levels))


def measure(law, draw, key, batches=320):
    """Means of many batches, drawn as in training."""
    key_u, key_rest = jax.random.split(key)
    u = jax.vmap(lambda key: draw(key, BATCH))(jax.random.split(key_u, batches))
    levels = jax.tree.map(lambda leaf: leaf.reshape(20, -1), law(u.ravel()))
    return np.asarray(losses_at(key_rest, levels), np.float64).reshape(u.shape).mean(1)


def spread_of(batches):
    """The variance per batch slot, and its standard error."""
    square = (batches - batches.mean()) ** 2
    return BATCH * square.mean(), BATCH * square.std() / math.sqrt(len(batches))


table = {}
print(f"{'':18}{'mean':>16}{'independent':>18}{'low-discrepancy':>18}")
for row, (name, pair) in enumerate(compared.items()):
    draws = (noise_levels.uniform, noise_levels.low_discrepancy)
    table[name] = [
        measure(law, draw, jax.random.fold_in(jax.random.key(40 + row), k))
        for k, (law, draw) in enumerate(zip(pair, draws, strict=True))
    ]
    mean, sem = table[name][1].mean(), table[name][1].std() / math.sqrt(320)
    print(f"{name:18}{mean:9.3f} ± {sem:.3f}", end="")
    print("".join("{:10.2f} ± {:5.2f}".format(*spread_of(batches)) for batches in table[name]))

reference = table["adaptive"][1]
for pair in table.values():
    for batches in pair:  # one bound, whatever the law
        apart = batches.mean() - reference.mean()
        assert abs(apart) < 5 * math.hypot(batches.std(), reference.std()) / math.sqrt(320)
found = {name: [spread_of(batches)[0] for batches in pair] for name, pair in table.items()}
for name in ("learned", "adaptive"):
    # Far above what is usual: rare large errors make a measured variance unsure.
    assert found[name][0] < 0.5 * found["linear in λ"][0]

figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
names = list(table)
for shift, k, label, colour in ((0.2, 0, "independent", "C0"), (-0.2, 1, "low-discrepancy", "C1")):
    heights, errors = np.array([spread_of(table[name][k]) for name in names]).T
    axes.barh(np.arange(len(names)) + shift, heights, 0.38, xerr=errors, label=label, color=colour)
for value, colour, label in (
    (best_iid, "C0", "least, independent"),
    (best_spread, "C1", "least, spread"),
):
    axes.axvline(value, color=colour, linestyle=":", linewidth=1.5, label=label)
axes.set(xscale="log", xlabel="variance per batch slot (bits per dimension)²")
axes.set(yticks=np.arange(len(names)), yticklabels=names)
axes.invert_yaxis()
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The dotted lines are the least that any law could reach. A law costs nothing to choose, and a
# variance ten times less is worth a batch ten times larger.
