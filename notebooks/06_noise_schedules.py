# %% [markdown]
# # Noise schedules, and where to look
#
# Which noise schedule is best? For the bound in continuous time the question has no answer:
# between the same two ends every schedule gives the same number. But a training step sees the
# bound only through a few random noise levels, and how much that estimate varies depends on the
# schedule a great deal. So the question becomes: at which noise levels should one look, and how
# often?
#
# We measure it for data whose answer is known in closed form, and for grey pixels with their exact
# denoiser. The next notebook lets the schedule be learned.

# %%
import functools
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from vdm import (
    bits_per_dim,
    diffusion,
    likelihoods,
    losses,
    noise_levels,
    schedules,
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
def along(schedule):
    """The law of a schedule at uniform times."""
    params = schedule.init(jax.random.key(0))
    return lambda u: noise_levels.from_times(lambda t: schedule.log_snr(params, t), u)


laws = {
    "linear in λ": along(schedules.linear(HIGH, LOW)),
    "cosine": along(schedules.cosine(HIGH, LOW)),
    "cosine, shifted": along(schedules.cosine(HIGH, LOW, shift=2 * math.log(64 / 8))),
    "β linear (DDPM)": along(schedules.beta_linear(HIGH, LOW)),
    "flow matching": along(schedules.flow_matching(HIGH, LOW)),
    "EDM": along(schedules.edm(HIGH, LOW)),
    "sigmoid law": lambda u: noise_levels.sigmoid_law(u, HIGH, LOW),
}
u = (jnp.arange(4000) + 0.5) / 4000

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, law in laws.items():
    at = law(u)
    left.plot(u, at.log_snr, label=name)
    right.plot(at.log_snr, 1 / at.inverse_density, label=name)
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
# ## Gaussian data: the best law in closed form
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
# One number, seven spreads. And there is a best one. A sample has the variance $\tfrac14\int
# \mathbb E\|\cdot\|^4/p\;d\lambda - L^2$. Only the first part depends on p, and by the
# Cauchy–Schwarz inequality
#
# $$\int \frac{\mathbb E\|\cdot\|^4}{p}\,d\lambda \cdot \int p\,d\lambda
#   \;\ge\; \Big(\int \sqrt{\mathbb E\|\cdot\|^4}\,d\lambda\Big)^2
#   \quad\text{with equality for}\quad
#   p \propto \sqrt{\mathbb E\|\varepsilon-\hat\varepsilon\|^4\,|\,\lambda}.$$
#
# For Gaussian data the fourth moment is $3m^2$, so the best density is proportional to m itself:
# exactly the sigmoid law for $s=1$. Its variance is $3L^2 - L^2$.

# %%
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.barh(list(stds), [std**2 for std in stds.values()], color="C0")
axes.axvline(2 * truth**2, color="black", linestyle=":", label="the least possible, 2 L²")
axes.set(xscale="log", xlabel="variance of one sample (nats²)", title="Gaussian data")
axes.invert_yaxis()
axes.legend(frameon=False)
plt.show()
assert abs(stds["sigmoid law"] ** 2 / (2 * truth**2) - 1) < 0.1

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
probs = np.array([0.30, 0.05, 0.02, 0.10, 0.25, 0.03, 0.05, 0.20])
values = likelihoods.discretised(8).encode(jnp.arange(8))


def exact_eps(z, log_snr):
    """E[ε|z], pixel by pixel."""
    log_snr = diffusion.expand(log_snr, z)[..., None]
    gap = (z[..., None] - diffusion.alpha(log_snr) * values) / diffusion.sigma(log_snr)
    share = jax.nn.softmax(jnp.log(probs) - 0.5 * gap**2)
    return jnp.sum(share * gap, axis=-1)


@jax.jit
def pixel_moments(log_snr):
    """E‖·‖² and E‖·‖⁴ of one pixel's error."""
    x, eps = jnp.repeat(values, len(grid))[:, None], jnp.tile(jnp.asarray(grid), 8)[:, None]
    error = losses.noise_error(x, eps, log_snr, exact_eps)
    weights = jnp.asarray(np.outer(probs, grid_weights).ravel())
    return weights @ error, weights @ error**2


fine = np.linspace(LOW, HIGH, 401)
of_one, square_of_one = np.array([pixel_moments(level) for level in fine], np.float64).T
first, spread = 64 * of_one, 64 * np.maximum(square_of_one - of_one**2, 0)
second = spread + first**2

# %% [markdown]
# From the moments follow the bound, the variance of any law, and the least that a law can have, in
# bits per dimension. And all of it can be measured, on batches of 32 drawn as in training.


# %%
BITS = bits_per_dim(np.ones(()), 64)  # one nat, shared by 64 pixels
bound = 0.5 * np.trapezoid(first, fine) * BITS
best_iid = (0.5 * np.trapezoid(np.sqrt(second), fine) * BITS) ** 2 - bound**2
best_spread = (0.5 * np.trapezoid(np.sqrt(spread), fine) * BITS) ** 2


def predicted(law):
    """The variance of a law, with independent draws and, in the limit, with spread ones."""
    at = law((jnp.arange(20_000) + 0.5) / 20_000)
    look = np.asarray(0.5 * at.inverse_density, np.float64) * BITS
    of_iid, of_spread = (
        np.mean(look**2 * np.interp(at.log_snr, fine, moment)) for moment in (second, spread)
    )
    return of_iid - bound**2, of_spread


@jax.jit
def losses_at(key, levels):
    """½ ‖ε − ε̂‖²/p(λ) in bits per dimension, at levels [chunks, n], one chunk after the other."""

    def of_chunk(chunk):
        key, levels = chunk
        key_x, key_eps = jax.random.split(key)
        x = jax.random.choice(key_x, values, (len(levels.log_snr), 64), p=jnp.asarray(probs))
        eps = jax.random.normal(key_eps, x.shape)
        return bits_per_dim(losses.diffusion_loss_at(x, levels, eps, exact_eps), 64)

    return jax.lax.map(of_chunk, (jax.random.split(key, len(levels.log_snr)), levels))


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


entropy = -np.sum(probs * np.log2(probs))
print(f"diffusion term {bound:.4f} bits per pixel, of an entropy of {entropy:.4f}")
measured, expected = {}, {}
print(f"{'':18}{'mean':>16}{'variance':>18}{'predicted':>11}{'÷ best':>8}")
for row, (name, law) in enumerate(laws.items()):
    batches = measure(law, noise_levels.uniform, jax.random.key(row))
    sem = batches.std() / math.sqrt(len(batches))
    measured[name], expected[name] = spread_of(batches), predicted(law)[0]
    print(f"{name:18}{batches.mean():9.3f} ± {sem:.3f}", end="")
    print("{:10.2f} ± {:5.2f}".format(*measured[name]), end="")
    print(f"{expected[name]:11.2f}{expected[name] / best_iid:8.2f}")
    assert abs(batches.mean() - bound) < 5 * sem  # one bound, whatever the law
assert min(expected, key=expected.get) == "EDM" and expected["EDM"] > best_iid

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
root = np.sqrt(second)
left.fill_between(fine, root / np.trapezoid(root, fine), color="0.85", label="the best")
for name in ("linear in λ", "EDM", "sigmoid law", "β linear (DDPM)"):
    at = laws[name](u)
    left.plot(at.log_snr, 1 / at.inverse_density, label=name)
left.set(xlabel="λ = log SNR", ylabel="p(λ)", title="Where each law looks", ylim=(0, 0.22))
left.legend(frameon=False, fontsize=8)
heights, errors = np.array(list(measured.values())).T
right.barh(list(measured), heights, xerr=errors, color="C0")
right.plot(list(expected.values()), list(expected), "k|", markersize=12, label="predicted")
right.axvline(best_iid, color="black", linestyle=":", label="the least possible")
right.set(xscale="log", xlabel="variance per batch slot (bits per dimension)²")
right.invert_yaxis()
right.legend(loc=(0.35, 0.16), fontsize=8)
plt.show()

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
names = ("linear in λ", "sigmoid law", "EDM")
table = {
    draw: [
        spread_of(measure(laws[name], function, jax.random.fold_in(jax.random.key(10 + row), k)))
        for row, name in enumerate(names)
    ]
    for k, (draw, function) in enumerate(draws.items())
}
for (iid, iid_error), (even, even_error) in zip(
    table["independent"][:2], table["low-discrepancy"], strict=False
):
    assert iid - even > 5 * math.hypot(iid_error, even_error)

figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
place = np.arange(len(names))
for shift, (draw, found) in zip((-0.27, 0.0, 0.27), table.items(), strict=True):
    heights, errors = np.array(found).T
    axes.bar(place + shift, heights, 0.25, yerr=errors, label=draw)
axes.hlines([predicted(laws[name])[1] for name in names], place - 0.4, place + 0.4, "k", ":")
axes.axhline(best_spread, color="0.5", linewidth=0.8, label="the least possible, spread")
axes.set(yscale="log", ylabel="variance per batch slot", title="Three ways to draw a batch")
axes.set_xticks(place, names)
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Dotted: the limit of many levels, $\mathbb E_\lambda[\mathrm{Var}(\cdot|\lambda)]$ alone. What is
# left is the variance at each level, weighted by how often the law looks there. The best law knows
# moments that depend on data and denoiser, so it has to be learned: that is the next notebook.
