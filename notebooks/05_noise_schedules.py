# %% [markdown]
# # Noise schedules, and where to look
#
# Which noise schedule is best? For the bound in continuous time the question has no answer:
# between the same two ends every schedule gives the same number. But a training step sees the
# bound only through a few random noise levels, and how much that estimate varies depends on the
# schedule a great deal. So the question becomes: at which noise levels should one look, and how
# often?
#
# We measure it for data whose answer is known in closed form, then for grey pixels with their
# exact denoiser, then for a small network trained on handwritten digits.

# %%
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

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
    variance,
)

HIGH, LOW = 13.3, -5.0  # the ends of the VDM paper's CIFAR-10 model
BATCH = 32

# %% [markdown]
# ## The integral that nobody can change
#
# With $\lambda = \log \mathrm{SNR}$, falling from $\lambda_{\max}$ at $t=0$ to $\lambda_{\min}$ at
# $t=1$, the diffusion term of the bound at T = ∞ is (Kingma et al. 2021, eq. 17, in λ)
#
# $$L = \tfrac12\int_{\lambda_{\min}}^{\lambda_{\max}} m(\lambda)\,d\lambda
#     = \tfrac12\,\mathbb E_{t}\big[-\lambda'(t)\,m(\lambda(t))\big],
#  \qquad m(\lambda) = \mathbb E\|\varepsilon-\hat\varepsilon\|^2 .$$
#
# A schedule at uniform times is a way to draw λ, with density $p(\lambda) = -1/\lambda'(t)$. And
# any density serves: $\tfrac12\|\varepsilon-\hat\varepsilon\|^2/p(\lambda)$ at $\lambda\sim p$ has
# the mean L. The schedules of the literature are so many densities. We call a *law* what turns
# uniform positions $u\in[0,1)$ into noise levels with their $1/p$:


# %%
def along(schedule, params=None):
    """The law of a schedule at uniform times."""
    params = schedule.init(jax.random.key(0)) if params is None else params
    return lambda u: noise_levels.from_times(lambda t: schedule.log_snr(params, t), u)


def laws_between(high, low):
    """The laws of the literature between the same two ends."""
    return {
        "linear in λ": along(schedules.linear(high, low)),
        "cosine": along(schedules.cosine(high, low)),
        "cosine, shifted": along(schedules.cosine(high, low, shift=2 * math.log(64 / 8))),
        "β linear (DDPM)": along(schedules.beta_linear(high, low)),
        "flow matching": along(schedules.flow_matching(high, low)),
        "EDM": along(schedules.edm(high, low)),
        "sigmoid law": lambda u: noise_levels.sigmoid_law(u, high, low),
    }


laws = laws_between(HIGH, LOW)
u = (jnp.arange(4000) + 0.5) / 4000

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, law in laws.items():
    at = law(u)
    left.plot(u, at.log_snr, label=name)
    right.plot(at.log_snr, 1 / at.inverse_density, label=name)
    assert abs(np.trapezoid((1 / at.inverse_density)[::-1], at.log_snr[::-1]) - 1) < 0.01
left.set(xlabel="t", ylabel="λ = log SNR", title="Schedules between the same ends")
right.set(xlabel="λ = log SNR", ylabel="p(λ) = −1/λ'(t)", title="... and the density each implies")
right.set_ylim(0, 0.2)
left.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The shifted cosine is meant for images of another size: by $2\log(64/8)$ for images 8 pixels wide
# (Hoogeboom et al. 2023). EDM draws λ from a normal law, and the sigmoid law from
# $p \propto \mathrm{sigmoid}(\lambda)$ (Zheng et al. 2023).

# %% [markdown]
# ## Gaussian data: everything in closed form
#
# For $x \sim N(0, s^2)$ the best denoiser leaves $\varepsilon-\hat\varepsilon \sim N(0, m)$ with
# $m(\lambda) = \mathrm{sigmoid}(\lambda + 2\log s)$, so
#
# $$L = \tfrac12\log\frac{1+s^2e^{\lambda_{\max}}}{1+s^2e^{\lambda_{\min}}}.$$
#
# Every law has to give that mean. Their spreads are another matter.

# %%
scale = 1.0
num = 40_000


def gaussian_eps(z, log_snr):
    alpha, sigma = (f(diffusion.expand(log_snr, z)) for f in (diffusion.alpha, diffusion.sigma))
    return sigma * z / (alpha**2 * scale**2 + sigma**2)


key_x, key_eps, key_u = jax.random.split(jax.random.key(0), 3)
x = scale * jax.random.normal(key_x, (num, 1))
eps = jax.random.normal(key_eps, (num, 1))
positions = noise_levels.uniform(key_u, num)
truth = 0.5 * math.log((1 + scale**2 * math.exp(HIGH)) / (1 + scale**2 * math.exp(LOW)))

print(f"closed form {truth:.4f} nats")
stds = {}
for name, law in laws.items():
    values = np.asarray(losses.diffusion_loss_at(x, law(positions), eps, gaussian_eps), np.float64)
    error = values.std(ddof=1) / math.sqrt(num)
    print(f"{name:18} {values.mean():.4f} ± {error:.4f}   std of one sample {values.std():7.2f}")
    assert abs(values.mean() - truth) < 5 * error
    stds[name] = values.std()
assert min(stds, key=stds.get) == "sigmoid law" and max(stds, key=stds.get) == "EDM"

# %% [markdown]
# One number, seven spreads. For standard normal data the sigmoid law is as good as it gets, and we
# can say why.
#
# ## The best law
#
# One sample has the variance $\tfrac14\int \mathbb E\|\cdot\|^4/p\;d\lambda - L^2$. Only the first
# part depends on p, and by the Cauchy–Schwarz inequality
#
# $$\int \frac{\mathbb E\|\cdot\|^4}{p}\,d\lambda \cdot \int p\,d\lambda
#   \;\ge\; \Big(\int \sqrt{\mathbb E\|\cdot\|^4}\,d\lambda\Big)^2
#   \quad\text{with equality for}\quad
#   p \propto \sqrt{\mathbb E\|\varepsilon-\hat\varepsilon\|^4\,|\,\lambda}.$$
#
# For Gaussian data the fourth moment is $3m^2$, so the best density is proportional to m itself:
# exactly the sigmoid law for $s=1$. Its variance is $3L^2 - L^2$.

# %%
values = np.asarray(
    losses.diffusion_loss_at(x, laws["sigmoid law"](positions), eps, gaussian_eps), np.float64
)
squares = (values - truth) ** 2
print(f"variance {squares.mean():.2f}, the least possible 2 L² = {2 * truth**2:.2f}")
assert abs(squares.mean() - 2 * truth**2) < 5 * squares.std() / math.sqrt(num)

# %% [markdown]
# ## What the ends do
#
# The interior is free, the ends are not. At $\lambda_{\max}$ the decoder $p(x|z_0)$ must tell the
# grey levels apart by itself, and at $\lambda_{\min}$ the prior pays for what is left of the data.
# Both are closed expectations: `losses.reconstruction` and `losses.prior_kl`.

# %%
grid = np.linspace(-8.5, 8.5, 171)
grid_weights = np.exp(-0.5 * grid**2) / np.exp(-0.5 * grid**2).sum()


@functools.partial(jax.jit, static_argnums=0)
def decoder_bits(num_levels, log_snr):
    """E −log₂ p(x|z_0) of one pixel, for each of its levels."""
    likelihood = likelihoods.discretised(num_levels)
    x = jnp.repeat(jnp.arange(num_levels), len(grid))[:, None]
    eps_0 = jnp.tile(jnp.asarray(grid, jnp.float32), num_levels)[:, None]
    nats = losses.reconstruction(x, eps_0, jnp.asarray(log_snr), likelihood)
    return bits_per_dim(nats, 1).reshape(num_levels, -1) @ grid_weights


def prior_bits(mean_square, log_snr):
    x = jnp.full((1, 1), math.sqrt(mean_square))
    return bits_per_dim(losses.prior_kl(x, jnp.asarray(log_snr)), 1).item()


tops, bottoms = np.linspace(2.0, 15.0, 27), np.linspace(-10.0, 0.0, 21)
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
for num_levels in (2, 17, 256):
    left.semilogy(
        tops,
        [decoder_bits(num_levels, top).mean() for top in tops],
        label=f"{num_levels} levels",
    )
left.set(xlabel="λ_max", ylabel="decoder (bits per dimension)", ylim=(1e-5, 10))
for mean_square in (0.1, 0.25, 1.0):
    right.semilogy(
        bottoms,
        [prior_bits(mean_square, bottom) for bottom in bottoms],
        label=f"E x² = {mean_square}",
    )
right.set(xlabel="λ_min", ylabel="prior (bits per dimension)")
left.legend(frameon=False, loc=(0.23, 0.05), fontsize=8)
right.legend(frameon=False)
plt.show()

print(f"8-bit decoder: {decoder_bits(256, 13.3).mean():.4f} bits at λ_max = 13.3, ", end="")
print(f"{decoder_bits(256, 8.0).mean():.3f} at 8; prior {prior_bits(0.25, -5.0):.5f} at λ_min = −5")
print(f"decoder of 17 grey levels: {decoder_bits(17, 8.0).mean():.4f} bits at λ_max = 8")
assert decoder_bits(256, 13.3).mean() < 0.02 and decoder_bits(17, 8.0).mean() < 0.02
# At λ = 8 the noise is wide beside a level: the decoder's bits are the noise's entropy in levels.
spacing = 2 / 256 * math.exp(4.0)
assert abs(decoder_bits(256, 8.0)[128] - 0.5 * math.log2(2 * math.pi * math.e / spacing**2)) < 1e-3
# The prior's KL is ½ E x² e^λ to leading order.
assert abs(prior_bits(0.25, -5.0) - 0.5 * 0.25 * math.exp(-5.0) / math.log(2)) < 2e-5

# %% [markdown]
# The decoder takes its bits pixel by pixel, blind to the neighbours and to how common a level is:
# what is left to it by too low a $\lambda_{\max}$ can no longer be had cheaper. 8-bit data needs
# an end at about 13, while 17 grey levels are content with 8. An end put too far out costs
# nothing, if the law does not look there. That is why wide ends and a good law go together.

# %% [markdown]
# ## Sixty-four pixels
#
# Real data are nothing like Gaussian. Take an image of 64 independent pixels, each with eight grey
# levels of known probabilities. The best denoiser of a pixel weighs the levels by how well they
# explain z. As x has eight values and ε can be put on a fine grid, the moments of a pixel's error
# are sums; and those of the image follow, for means and variances of independent pixels add up.


# %%
class Problem(NamedTuple):
    """Data and a denoiser that is held fixed."""

    draw: Callable  # (key, n) → encoded examples
    eps_fn: Callable
    num_dims: int

    def losses(self, key, levels):
        """½ ‖ε − ε̂‖²/p(λ) at the given levels for random examples, in bits per dimension."""
        key_x, key_eps = jax.random.split(key)
        x = self.draw(key_x, len(levels.log_snr))
        eps = jax.random.normal(key_eps, x.shape)
        return bits_per_dim(losses.diffusion_loss_at(x, levels, eps, self.eps_fn), self.num_dims)


probs = np.array([0.30, 0.05, 0.02, 0.10, 0.25, 0.03, 0.05, 0.20])
values = likelihoods.discretised(8).encode(jnp.arange(8))


def exact_eps(z, log_snr):
    """E[ε|z], pixel by pixel."""
    log_snr = diffusion.expand(log_snr, z)[..., None]
    gap = (z[..., None] - diffusion.alpha(log_snr) * values) / diffusion.sigma(log_snr)
    share = jax.nn.softmax(jnp.log(probs) - 0.5 * gap**2)
    return jnp.sum(share * gap, axis=-1)


pixels = Problem(
    lambda key, n: jax.random.choice(key, values, (n, 64), p=jnp.asarray(probs)), exact_eps, 64
)


class Moments(NamedTuple):
    """E‖·‖² and E‖·‖⁴ of the error on a grid of λ."""

    log_snr: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @property
    def variance(self):
        return np.maximum(self.second - self.first**2, 0)


@jax.jit
def pixel_moments(log_snr):
    x, eps = jnp.repeat(values, len(grid))[:, None], jnp.tile(jnp.asarray(grid), 8)[:, None]
    error = losses.noise_error(x, eps, log_snr, exact_eps)
    weights = jnp.asarray(np.outer(probs, grid_weights).ravel())
    return weights @ error, weights @ error**2


fine = np.linspace(LOW, HIGH, 401)
of_one, square_of_one = np.array([pixel_moments(level) for level in fine], np.float64).T
exact = Moments(fine, 64 * of_one, 64 * (square_of_one - of_one**2) + (64 * of_one) ** 2)

# %% [markdown]
# From the moments follow the bound, the variance of any law, and the least that a law can have. In
# bits:


# %%
BITS = bits_per_dim(np.ones(()), 1)  # one nat


def bound(moments, num_dims):
    return 0.5 * np.trapezoid(moments.first, moments.log_snr) * BITS / num_dims


def best(moments, num_dims):
    """The least variance of a batch slot: with independent draws, and with spread ones."""
    iid, spread = (
        0.5 * np.trapezoid(np.sqrt(moment), moments.log_snr) * BITS / num_dims
        for moment in (moments.second, moments.variance)
    )
    return iid**2 - bound(moments, num_dims) ** 2, spread**2


def predicted(law, moments, num_dims):
    """The variance of a law, with independent draws and, in the limit, with spread ones."""
    at = law((jnp.arange(20_000) + 0.5) / 20_000)
    look = np.asarray(0.5 * at.inverse_density, np.float64) * BITS / num_dims
    second, spread = (
        np.mean(look**2 * np.interp(at.log_snr, moments.log_snr, moment))
        for moment in (moments.second, moments.variance)
    )
    return second - bound(moments, num_dims) ** 2, spread


@functools.partial(jax.jit, static_argnums=0)
def losses_at(problem, key, levels):
    """Losses at levels of shape [chunks, n], one chunk after the other."""
    keys = jax.random.split(key, len(levels.log_snr))
    return jax.lax.map(lambda chunk: problem.losses(*chunk), (keys, levels))


def measure(problem, law, draw, key, batches=320):
    """Means of many batches, drawn as in training."""
    key_u, key_rest = jax.random.split(key)
    u = jax.vmap(lambda key: draw(key, BATCH))(jax.random.split(key_u, batches))
    levels = jax.tree.map(lambda leaf: leaf.reshape(20, -1), law(u.ravel()))
    return np.asarray(losses_at(problem, key_rest, levels), np.float64).reshape(u.shape).mean(1)


def spread_of(batches):
    """The variance per batch slot, and its standard error."""
    square = (batches - batches.mean()) ** 2
    return BATCH * square.mean(), BATCH * square.std() / math.sqrt(len(batches))


best_iid, best_spread = best(exact, 64)
entropy = -np.sum(probs * np.log2(probs))
print(f"diffusion term {bound(exact, 64):.4f} bits per pixel, of an entropy of {entropy:.4f}")
print(f"best variance: {best_iid:.3f} independent, {best_spread:.3f} spread\n")
assert abs(bound(exact, 64) - entropy) < 0.02

ratios = {}
print(f"{'':18}{'mean':>16}{'variance':>18}{'predicted':>11}{'÷ best':>8}")
for row, (name, law) in enumerate(laws.items()):
    batches = measure(pixels, law, noise_levels.uniform, jax.random.key(row))
    found, error = spread_of(batches)
    expected = predicted(law, exact, 64)[0]
    sem = batches.std() / math.sqrt(len(batches))
    print(f"{name:18}{batches.mean():9.3f} ± {sem:.3f}{found:10.2f} ± {error:5.2f}", end="")
    print(f"{expected:11.2f}{expected / best_iid:8.2f}")
    assert abs(batches.mean() - bound(exact, 64)) < 5 * sem
    assert expected >= best_iid and abs(found - expected) < 5 * error
    ratios[name] = expected / best_iid
assert min(ratios, key=ratios.get) == "EDM" and ratios["linear in λ"] > 5 * ratios["EDM"]
at = {name: laws[name](u).log_snr for name in ("linear in λ", "sigmoid law", "β linear (DDPM)")}
assert all(jnp.mean(at[name] > 7) > 1 / 3 for name in ("linear in λ", "sigmoid law"))
assert jnp.mean(at["β linear (DDPM)"] < 0) > 0.5

# %% [markdown]
# All means agree, and the measured variances are the predicted ones. The order of the laws is
# another than for Gaussian data. The linear schedule and the sigmoid law look at λ > 7 for a third
# of the time and more, where every pixel is already known; the β-linear one looks below 0, where
# little can be learned. EDM's normal law, the worst of all for Gaussian data, is nearest to the
# best: it happens to look where these pixels are decided. No fixed law is good for all data.

# %% [markdown]
# ## Spreading the draws
#
# A batch needs several noise levels, and they need not be independent. Take them evenly over the
# interval: one random offset for all (`low_discrepancy`; VDM, appendix I.1) or one draw in each of
# n strata (`stratified`). Each position is uniform by itself, so the mean is unchanged. Of the
# variance,
#
# $$\mathrm{Var} = \mathbb E_\lambda\big[\mathrm{Var}(\cdot|\lambda)\big]
#  + \mathrm{Var}_\lambda\big(\mathbb E[\cdot|\lambda]\big),$$
#
# the second part goes away: where one looks no longer adds to the noise. The best density is then
# another, $p \propto \sqrt{\mathrm{Var}(\|\varepsilon-\hat\varepsilon\|^2|\lambda)}$, as in
# Neyman's allocation of samples to strata.

# %%
draws = {
    "independent": noise_levels.uniform,
    "low-discrepancy": noise_levels.low_discrepancy,
    "stratified": noise_levels.stratified,
}
print(f"{'variance per slot':18}" + "".join(f"{name:>18}" for name in draws) + "   limit if spread")
for row, name in enumerate(("linear in λ", "sigmoid law")):
    found = []
    for column, draw in enumerate(draws.values()):
        key = jax.random.fold_in(jax.random.key(10 + row), column)
        found.append(spread_of(measure(pixels, laws[name], draw, key)))
    limit = predicted(laws[name], exact, 64)[1]
    print(f"{name:18}" + "".join(f"{v:10.2f} ± {e:5.2f}" for v, e in found) + f"{limit:18.2f}")
    (iid, iid_error), *spread = found
    for value, error in spread:
        assert iid - value > 5 * math.hypot(error, iid_error) and value > limit - 5 * error

# %% [markdown]
# ## Learning the law
#
# The best density asks for moments that depend on the network. There are two ways to find it while
# training.
#
# **By gradient.** A monotone network s(t) between pinned ends,
# $\lambda = (1-s)\lambda_{\max} + s\lambda_{\min}$ (VDM, appendix on the noise schedule). The
# gradient of the bound says nothing about it, for the bound does not depend on it; so it descends
# the variance instead, $\mathbb E[L_i^2]$ up to a constant. `variance.two_gradients` gives both
# gradients in one backward pass: that of the mean for network and ends, that of the mean square
# for the shape. Here the denoiser is held, so only the shape has something to learn.


# %%
def learn_schedule(problem, key, steps, size=128, rate=0.1):
    schedule = schedules.learned_monotone(HIGH, LOW, width=128, learn_ends=False)
    start = schedule.init(jax.random.key(1))
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, key):
        shape, state = carry
        key_t, key_rest = jax.random.split(key)
        t = noise_levels.low_discrepancy(key_t, size)

        def loss(params, levels):
            values = problem.losses(key_rest, levels)
            return values.mean(), (None, values)

        def levels_fn(params):
            return noise_levels.from_times(lambda t: schedule.log_snr(params, t), t)

        _, gradient, _ = variance.two_gradients(
            jax.value_and_grad(loss, argnums=(0, 1), has_aux=True),
            levels_fn,
            {"schedule": {"ends": {}, "shape": shape}},
        )
        updates, state = optimiser.update(gradient["schedule"]["shape"], state)
        return (optax.apply_updates(shape, updates), state), None

    @jax.jit
    def run(shape, keys):
        return jax.lax.scan(step, (shape, optimiser.init(shape)), keys)[0][0]

    shape = run(start["shape"], jax.random.split(key, steps))
    return along(schedule, start), along(schedule, {"ends": {}, "shape": shape})


before, learned = learn_schedule(pixels, jax.random.key(20), steps=800)
for name, law in (("before", before), ("after", learned)):
    iid = predicted(law, exact, 64)[0]
    print(f"learned schedule, {name:7} variance {iid:6.2f}, {iid / best_iid:.2f} × the best")
assert predicted(learned, exact, 64)[0] < 0.3 * predicted(before, exact, 64)[0]

# %% [markdown]
# **By counting.** A histogram over λ with running first and second moments of the error, and λ
# drawn from what it says: `adaptive`. No gradient, no network, and it knows the best density for
# independent and for spread draws alike. A share of the draws stays uniform, so that an error
# where none was expected does not weigh too much; the default is a fiftieth, and after a fit as
# short as here a tenth is safer. While the denoiser changes a bin should forget, by default after
# a hundred errors; here it is held, and may remember a thousand. How many batches does it take?


# %%
FLOOR = 0.1  # the share of uniform draws


def learn_histogram(problem, key, steps, *, stratified, size=64):
    """The histogram after each of `steps` batches, all in one stacked state."""
    draw = noise_levels.stratified if stratified else noise_levels.uniform

    def step(state, key):
        key_u, key_rest = jax.random.split(key)
        at = adaptive.levels(
            state, draw(key_u, size), HIGH, LOW, stratified=stratified, floor=FLOOR
        )
        bits = problem.losses(key_rest, at)
        error = 2 * bits * problem.num_dims / BITS / at.inverse_density
        state = adaptive.update(state, at.log_snr, error, HIGH, LOW, decay=0.999)
        return state, state

    keys = jax.random.split(key, steps)
    return jax.jit(lambda keys: jax.lax.scan(step, adaptive.init(), keys)[1])(keys)


def histogram_law(states, step, *, stratified):
    state = jax.tree.map(lambda leaf: leaf[step - 1], states)
    return lambda u: adaptive.levels(state, u, HIGH, LOW, stratified=stratified, floor=FLOOR)


histograms = learn_histogram(pixels, jax.random.key(21), 300, stratified=False)
course = {}
for count in (10, 100, 200, 300):
    law = histogram_law(histograms, count, stratified=False)
    course[count] = predicted(law, exact, 64)[0] / best_iid
    print(f"after {count:4d} batches of 64: {course[count]:.2f} × the best")
assert course[300] < course[10] < 0.5 * ratios["linear in λ"]

# %% [markdown]
# Ten batches take it most of the way from where it started, and a few hundred bring it near the
# best variance. What is left lies at high λ, where a pixel
# is seldom mistaken for its neighbour, and then by much: a short look sees too few of these to know
# how often to come back. The learned schedule has the same trouble.

# %% [markdown]
# ## Handwritten digits
#
# Now real images, and a network. The exact denoiser above weighs each grey level by its
# probability and by how well it explains the pixel's z. For digits the probability depends on the
# other pixels, and that is what a small MLP is asked for: it sees what every pixel says by itself,
# and answers with log-probabilities. We train it for a moment, then hold it and ask what each law
# would make of it. (A training that goes on moves the best density, but slowly.)


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
model = VDM(
    schedules.linear(HIGH, LOW), LevelNetwork(), likelihoods.discretised(17), prediction="x"
)
params = model.init(jax.random.key(30), images[:2])
train_steps = 400
optimiser = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(4e-3, train_steps))
)


@jax.jit
def train_step(params, state, key):
    key_x, key_u, key_noise = jax.random.split(key, 3)
    x = jax.random.choice(key_x, jnp.asarray(images), (64,))
    at = laws["sigmoid law"](noise_levels.low_discrepancy(key_u, 64))

    def loss(params):
        return bits_per_dim(model.vlb(params, key_noise, x, noise_levels=at).total, 64).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimiser.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


state, history = optimiser.init(params), []
for key in jax.random.split(jax.random.key(31), train_steps):
    params, state, value = train_step(params, state, key)
    history.append(value)
print(f"bits per dimension over the last 100 steps: {np.mean(history[-100:]):.3f}")
assert np.mean(history[-100:]) < 2.6

digits = Problem(
    lambda key, n: model.likelihood.encode(jax.random.choice(key, jnp.asarray(images), (n,))),
    model.denoiser(params),
    64,
)

# %% [markdown]
# Its moments are measured in bins of λ. The laws are fitted to it as they were to the pixels, by
# gradient and by counting, and then everything is measured on fresh batches.

# %%
bins, per_bin = 80, 400


@jax.jit
def digit_moments(key, position):
    log_snr = LOW + (HIGH - LOW) * (position + jax.random.uniform(key, (per_bin,))) / bins
    at = noise_levels.NoiseLevels(log_snr, jnp.full((per_bin,), 2.0))  # so that a loss is an error
    error = digits.losses(key, at) * 64 / BITS
    return error.mean(), jnp.mean(error**2)


keys = jax.random.split(jax.random.key(32), bins)
found = np.array([digit_moments(key, k) for k, key in enumerate(keys)], np.float64).T
centres = LOW + (HIGH - LOW) * (np.arange(bins) + 0.5) / bins
estimated = Moments(centres, *found)
best_iid, best_spread = best(estimated, 64)

_, learned = learn_schedule(digits, jax.random.key(33), steps=400)
counted = {
    stratified: learn_histogram(digits, jax.random.key(34), 500, stratified=stratified)
    for stratified in (False, True)
}
compared = {
    **{name: (law, law) for name, law in laws.items()},
    "learned": (learned, learned),
    "adaptive": tuple(
        histogram_law(counted[stratified], 500, stratified=stratified)
        for stratified in (False, True)
    ),
}
table = {}
print(f"best variance: {best_iid:.3f} independent, {best_spread:.3f} spread")
print(f"{'':18}{'mean':>16}{'independent':>18}{'low-discrepancy':>18}")
for row, (name, pair) in enumerate(compared.items()):
    table[name] = [
        measure(digits, law, draw, jax.random.fold_in(jax.random.key(40 + row), k))
        for k, (law, draw) in enumerate(
            zip(pair, (noise_levels.uniform, noise_levels.low_discrepancy), strict=True)
        )
    ]
    (iid, iid_error), (low, low_error) = (spread_of(batches) for batches in table[name])
    mean, sem = table[name][1].mean(), table[name][1].std() / math.sqrt(320)
    print(f"{name:18}{mean:9.3f} ± {sem:.3f}{iid:10.2f} ± {iid_error:5.2f}", end="")
    print(f"{low:10.2f} ± {low_error:5.2f}")

reference = table["adaptive"][1]
for pair in table.values():
    for batches in pair:  # one bound, whatever the law
        apart = batches.mean() - reference.mean()
        assert abs(apart) < 5 * math.hypot(batches.std(), reference.std()) / math.sqrt(320)
found = {name: [spread_of(batches)[0] for batches in pair] for name, pair in table.items()}
for name in ("learned", "adaptive"):
    # Far above what is usual: rare large errors make a measured variance unsure.
    assert found[name][0] < 0.5 * found["linear in λ"][0]
    assert found[name][1] < 0.9 * found["linear in λ"][1]

# %% [markdown]
# ## Everything in one picture

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
root = np.sqrt(estimated.second)
left.fill_between(
    centres, root / np.trapezoid(root, centres), color="0.85", label="best, independent draws"
)
for name, style in (
    ("linear in λ", "C7--"),
    ("cosine", "C2-"),
    ("sigmoid law", "C1-"),
    ("learned", "C0-"),
    ("adaptive", "C3-"),
):
    at = compared[name][0](u)
    order = np.argsort(at.log_snr)
    left.plot(at.log_snr[order], 1 / at.inverse_density[order], style, linewidth=1.2, label=name)
left.set(xlabel="λ = log SNR", ylabel="p(λ)", title="Where each law looks", ylim=(0, 0.22))
left.legend(frameon=False, fontsize=8)

names = list(table)
for shift, k, label, colour in ((0.2, 0, "independent", "C0"), (-0.2, 1, "low-discrepancy", "C1")):
    heights, errors = np.array([spread_of(table[name][k]) for name in names]).T
    right.barh(np.arange(len(names)) + shift, heights, 0.38, xerr=errors, label=label, color=colour)
for value, colour, label in (
    (best_iid, "C0", "least, independent"),
    (best_spread, "C1", "least, spread"),
):
    right.axvline(value, color=colour, linestyle=":", linewidth=1.5, label=label)
right.set(xscale="log", xlabel="variance per batch slot (bits per dimension)²")
right.set(title="What the estimate varies by", yticks=np.arange(len(names)), yticklabels=names)
right.invert_yaxis()
right.legend(frameon=False)
plt.show()

# %% [markdown]
# Left: each law's density of λ over the best one (grey). Where a law lies below the grey, its rare
# looks weigh too much; where it lies above, looks are wasted. Right: what an estimate varies by,
# with independent and with spread draws; the dotted lines are the least that any law could reach.
# A law costs nothing to choose, and a variance ten times less is worth a batch ten times larger.
