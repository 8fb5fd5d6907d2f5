# %% [markdown]
# # Why a fixed q is enough
#
# A variational autoencoder trains its encoder $q(z \mid x)$, because a bad one leaves the bound
# loose. A diffusion model's $q$ is fixed: it adds noise, whatever the data. Why is its bound not
# loose? Here is the answer by experiment, on data so small that every quantity can be computed
# rather than estimated: the distance between bound and entropy splits into three parts, and each of
# them can be closed without touching $q$.

# %%
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import vdm
from vdm import VDM, diffusion, gaps, likelihoods, losses, networks, noise_levels, schedules

jax.config.update("jax_enable_x64", True)  # sums that are exact are compared to eight digits

# %% [markdown]
# ## A pixel whose law is known
#
# One pixel of scikit-learn's handwritten digits, in eight grey levels. Its law $P$ is a
# histogram, its entropy $H$ a sum of eight terms, and $-\log p(x)$ of any model averages to
# $H$ at the least.

# %%
LEVELS = 8
column = load_digits().images[:, 4, 2].astype(int) * LEVELS // 17
PROBS = jnp.asarray(np.bincount(column, minlength=LEVELS) / len(column))
ENTROPY = float(-jnp.sum(PROBS * jnp.log(PROBS)))
LIKELIHOOD = likelihoods.discretised(LEVELS)
PIXEL = jnp.arange(LEVELS)[:, None]  # every value there is, one per row
X = LIKELIHOOD.encode(PIXEL)  # the same as real numbers in [-1, 1]
print("P:", " ".join(f"{p:.3f}" for p in PROBS))
print(f"H = {ENTROPY:.4f} nats = {ENTROPY / math.log(2):.4f} bits")

# %% [markdown]
# Noised to the level $\lambda = \log(\alpha^2/\sigma^2)$, the pixel is $z = \alpha x +
# \sigma\varepsilon$, and $q(z)$ a mixture of eight Gaussians. Bayes' rule gives the best possible
# denoiser, $\varepsilon^* = \mathbb E[\varepsilon \mid z]$. `gaps.Law` holds what is known.


# %%
def log_joint(z, log_snr):
    """log P(x) + log q(z|x) for every z [b, 1] and every value x: [b, LEVELS]."""
    log_snr = jnp.broadcast_to(log_snr, z.shape[:1])[:, None]
    noise = diffusion.sigma(log_snr)
    residual = (z - diffusion.alpha(log_snr) * X.T) / noise
    log_normal = -0.5 * residual**2 - jnp.log(noise) - 0.5 * math.log(2.0 * math.pi)
    return jnp.log(PROBS)[None] + log_normal


def log_density(z, log_snr):
    return jax.nn.logsumexp(log_joint(z, log_snr), axis=1)


def eps_exact(z, log_snr):
    x_hat = jax.nn.softmax(log_joint(z, log_snr), axis=1) @ X
    per_row = jnp.broadcast_to(log_snr, z.shape[:1])
    return diffusion.convert(x_hat, z, per_row, source="x", target="eps")


LAW = gaps.Law(eps_exact, log_density, lambda x: jnp.log(PROBS)[x[:, 0]])

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.bar(np.arange(LEVELS), PROBS, color="0.6")
left.set(xlabel="grey level", ylabel="P", title="The law of one pixel")
z = jnp.linspace(-3.5, 3.5, 701)[:, None]
for level in (6.0, 3.0, 0.0, -4.0):
    right.plot(z, jnp.exp(log_density(z, jnp.asarray(level))), label=f"λ = {level:g}")
right.set(xlabel="z", ylabel="q(z)", title="The same pixel, noised", ylim=(0, 1.5))
right.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Bound = entropy + three gaps
#
# For discrete data and any denoiser $\hat\varepsilon$, exactly,
#
# $$\mathbb E[-\mathrm{VLB}] = H(x) + \underbrace{\mathrm{KL}\big(q(z_1)\,\|\,\mathcal
# N(0,I)\big)}_\text{prior} + \underbrace{\tfrac12\int\mathbb
# E\,\|\hat\varepsilon-\varepsilon^*\|^2\,d\lambda}_\text{denoiser} + \underbrace{\mathbb
# E\,\mathrm{KL}\big(q(x|z_0)\,\|\,p(x|z_0)\big)}_\text{decoder} .$$
#
# The reason: read backwards, from $q(z_1)$ over $q(z_s|z_t)$ to $q(x|z_0)$, the noising process is
# itself a generative model of the data, and its bound is the entropy. All that $p$ has to do is
# to imitate it in three places. In continuous time each small step back is Gaussian with a
# known variance, so its mean is all there is to learn.
#
# Here every expectation is a sum: over the eight values, over 161 nodes of the Gaussian noise, and
# over 48 Gauss–Legendre nodes between the two ends of $\lambda$. Nothing is drawn at random.

# %%
NODES = np.linspace(-8.0, 8.0, 161)
WEIGHTS = np.exp(-0.5 * NODES**2) / np.exp(-0.5 * NODES**2).sum()
LEGENDRE, LEGENDRE_WEIGHTS = np.polynomial.legendre.leggauss(48)


def over_noise(function, x):
    """E over ε of function(x, ε) for each row of x."""
    rows = jnp.tile(x, (len(NODES), 1))
    eps = jnp.repeat(jnp.asarray(NODES), len(x))[:, None]
    return WEIGHTS @ function(rows, eps).reshape(len(NODES), len(x))


def over_levels(function, high, low):
    """The mean over data, noise and even λ of function(x, levels, ε)."""

    def at(log_snr):
        def value(rows, eps):
            level = jnp.full(len(rows), log_snr)
            return function(
                rows, noise_levels.NoiseLevels(level, jnp.full_like(level, high - low)), eps
            )

        return over_noise(value, X) @ PROBS

    between = low + (high - low) * (jnp.asarray(LEGENDRE) + 1) / 2
    return 0.5 * LEGENDRE_WEIGHTS @ jax.lax.map(at, between)


def bound(eps_fn, high, low):
    """E[−VLB] in continuous time, in nats: prior, reconstruction and diffusion together."""
    prior = losses.prior_kl(X, jnp.asarray(low)) @ PROBS
    reconstruction = over_noise(
        lambda x, eps: losses.reconstruction(x, eps, jnp.asarray(high), LIKELIHOOD), PIXEL
    )

    def loss(x, levels, eps):
        return losses.diffusion_loss_at(x, levels, eps, eps_fn)

    return prior + reconstruction @ PROBS + over_levels(loss, high, low)


def three_gaps(eps_fn, high, low):
    """What the bound loses at its noisy end, on the way, and at its clean end, in nats."""
    prior = over_noise(lambda x, eps: gaps.prior_gap(x, eps, jnp.asarray(low), log_density), X)
    decoder = over_noise(
        lambda x, eps: gaps.decoder_gap(
            x, eps, jnp.asarray(high), LIKELIHOOD, log_density, LAW.log_prob(x)
        ),
        PIXEL,
    )

    def apart(x, levels, eps):
        return gaps.denoiser_gap(x, levels, eps, eps_fn, eps_exact)

    return gaps.Gaps(prior @ PROBS, over_levels(apart, high, low), decoder @ PROBS)


# %% [markdown]
# To see the identity at work, take ends that are too near, and move the exact denoiser by
# $\delta(z) = c \cos 3z$. The bound rises by $\tfrac12\int\mathbb E\|\delta\|^2 d\lambda$: not to
# first order, exactly. The product of $\delta$ with the remaining error $\varepsilon -
# \varepsilon^*$ has mean zero, because no function of $z$ can tell anything about that error.

# %%
NEAR = (4.0, -1.0)


@jax.jit
def moved(c):
    """The bound and its three gaps for δ = c cos 3z."""

    def eps_fn(z, log_snr):
        return eps_exact(z, log_snr) + c * jnp.cos(3.0 * z)

    return bound(eps_fn, *NEAR), three_gaps(eps_fn, *NEAR)


AMOUNTS = np.linspace(0.0, 0.6, 7)
rises = [moved(c) for c in AMOUNTS]
print("  c    prior  denoiser  decoder   H + gaps      bound")
for c, (value, found) in zip(AMOUNTS, rises, strict=True):
    row = " ".join(f"{gap:8.5f}" for gap in found)
    print(f"{c:.1f} {row} {ENTROPY + found.total:10.6f} {value:10.6f}")
    assert abs(value - ENTROPY - found.total) < 1e-8

# %% [markdown]
# The two other gaps vanish as the ends move out. At the noisy end $q(z_1)$ approaches
# $\mathcal N(0, I)$ like a power of $e^{\lambda_\text{min}}$. At the clean end $z_0$ gives the grey
# level away, and the decoder's gap falls like $\exp(-e^{\lambda_\text{max}}\Delta^2/8)$, with
# $\Delta$ the distance of two levels. Both are fixed by the schedule, before any training.

# %%
gaps_between = jax.jit(lambda high, low: three_gaps(eps_exact, high, low))
ends = [gaps_between(3.0 + n, -1.0 - n) for n in range(6)]

HIGH, LOW = 7.0, -6.0
lost = float(bound(eps_exact, HIGH, LOW) - ENTROPY)
print(f"exact denoiser on [{LOW:g}, {HIGH:g}]: bound - H = {lost:.5f} nats")
assert 0 < lost < 1e-3

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
parts = np.array([found for _, found in rises])[:, [2, 0, 1]].T
names, colours = ["decoder gap", "prior gap", "denoiser gap"], ["C2", "C1", "C0"]
left.stackplot(AMOUNTS, *parts, labels=names, colors=colours)
left.plot(AMOUNTS, [value - ENTROPY for value, _ in rises], "ko", label="bound − H")
left.set(xlabel="c", ylabel="nats", title=f"λ from {NEAR[1]:g} to {NEAR[0]:g}, δ = c cos 3z")
left.legend(loc="upper left", fontsize="small")
right.semilogy(range(6), [gap.prior for gap in ends], "C1o-", label="prior, λ_min = −1 − n")
right.semilogy(range(6), [gap.decoder for gap in ends], "C2o-", label="decoder, λ_max = 3 + n")
right.set(xlabel="n", ylabel="gap (nats)", ylim=(1e-9, 1), title="The ends move out")
right.legend(fontsize="small")
plt.show()

# %% [markdown]
# Left, the three gaps add up to what the bound loses; the denoiser's is a parabola in $c$. Right,
# between ends far apart a fixed $q$ has lost less than a thousandth of a nat.
#
# ## Only p has parameters
#
# The bound can be split in another way, that of variational inference. With $T = 64$ steps,
#
# $$\mathrm{VLB}(x) = \log p(x) - \mathrm{KL}\big(q(z_{0\ldots1}|x)\,\|\,p(z_{0\ldots1}|x)\big).$$
#
# A VAE may close the KL by moving $q$ towards $p$'s posterior. Here only $p$ moves, and
# gradient ascent does both at once: it raises $\log p(x)$, and it moves $p$'s posterior towards
# the fixed $q$. In one dimension we can watch that: $\log p(x)$ itself is a chain of integrals,
#
# $$p(z_s) = \int p(z_s|z_t)\,p(z_t)\,dz_t, \qquad p(x) = \int p(x|z_0)\,p(z_0)\,dz_0,$$
#
# which a grid of 1,001 points computes exactly.

# %%
NUM_STEPS = 64
GRID = jnp.linspace(-6.0, 6.0, 1001)[:, None]


def log_snr_fn(t):
    return HIGH + (LOW - HIGH) * t


def log_prob_of_chain(eps_fn):
    """log p(x) of every pixel value under the T-step chain, no bound: [LEVELS]."""
    width = GRID[1, 0] - GRID[0, 0]

    def step(density, i):
        log_snr_t, log_snr_s = log_snr_fn(i / NUM_STEPS), log_snr_fn((i - 1) / NUM_STEPS)
        eps_hat = eps_fn(GRID, log_snr_t)
        x_hat = diffusion.convert(eps_hat, GRID, log_snr_t, source="eps", target="x")
        mean, std = diffusion.posterior(GRID, x_hat, log_snr_t, log_snr_s)
        kernel = jnp.exp(-0.5 * ((GRID.T - mean) / std) ** 2) / (std * math.sqrt(2.0 * math.pi))
        return width * density @ kernel, None

    prior = jnp.exp(-0.5 * GRID[:, 0] ** 2) / math.sqrt(2.0 * math.pi)
    density, _ = jax.lax.scan(step, prior, jnp.arange(NUM_STEPS, 0, -1))

    def log_prob(value):
        x = jnp.full(GRID.shape, value)
        likelihood = jnp.exp(LIKELIHOOD.log_prob(x, GRID, jnp.asarray(HIGH)))
        return jnp.log(width * jnp.sum(density * likelihood))

    return jax.vmap(log_prob)(jnp.arange(LEVELS))


def diffusion_steps(eps_fn):
    """The diffusion term with T = NUM_STEPS for every x, by the sum over all steps."""

    def step(i):
        def value(rows, eps):
            each = jnp.full(len(rows), i)
            return losses.diffusion_loss_steps(
                rows, each, eps, log_snr_fn, eps_fn, num_steps=NUM_STEPS
            )

        return over_noise(value, X)

    return jnp.mean(jax.lax.map(step, jnp.arange(1, NUM_STEPS + 1)), axis=0)


def vlb_of_chain(eps_fn):
    """VLB(x) of every pixel value with T steps: [LEVELS]."""
    reconstruction = over_noise(
        lambda x, eps: losses.reconstruction(x, eps, jnp.asarray(HIGH), LIKELIHOOD), PIXEL
    )
    prior = losses.prior_kl(X, jnp.asarray(LOW))
    return -(prior + reconstruction + diffusion_steps(eps_fn))


best_log_prob, best_vlb = log_prob_of_chain(eps_exact), vlb_of_chain(eps_exact)
best_kl = float((best_log_prob - best_vlb) @ PROBS)
print(f"exact denoiser: -log p(x) = H + {-best_log_prob @ PROBS - ENTROPY:.5f}, KL = {best_kl:.5f}")

# %% [markdown]
# Even the best $p$ with 64 steps leaves a KL, which is the price of $T$ steps
# (notebook 05 is about it). Its $\log p(x)$, on the other hand, is
# nearly perfect: the bound is worse than the model.
#
# Now a network learns, by gradients of the bound in continuous time. `vdm.fit` is called six times,
# and both views of the gap are taken in between. It begins with $\hat v = 0$, that is
# $\hat x = \alpha z$, the best denoiser for data that is itself $\mathcal N(0, 1)$. As in the
# paper, the network is given sines of $z$ beside $z$ itself, with periods of one, two and four
# grey levels, so that it can tell neighbouring levels apart.


# %%
class WithSines(nn.Module):
    """An MLP of z and of sines and cosines of z."""

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        angles = z * jnp.pi * LEVELS * jnp.asarray([[1.0, 0.5, 0.25]])
        features = jnp.concatenate([z, jnp.sin(angles), jnp.cos(angles)], axis=1)
        mlp = networks.MLP(64, 2, residual=False, log_snr_max=HIGH, log_snr_min=LOW)
        return mlp(features, log_snr, cond, train=train)[:, :1]


model = VDM(schedules.linear(HIGH, LOW), WithSines(), LIKELIHOOD, prediction="v")
pixels = column[:, None].astype("int32")
params = model.init(jax.random.key(0), PIXEL)


@jax.jit
def look(params):
    """Both views of the bound for these parameters."""
    eps_fn = model.denoiser(params)
    log_prob, vlb = log_prob_of_chain(eps_fn), vlb_of_chain(eps_fn)
    return three_gaps(eps_fn, HIGH, LOW), log_prob, vlb


LOOKS, views = (0, 5, 20, 60, 200, 600, 2500), []
print(" step   prior  denoiser  decoder   -log p(x) - H   KL(q||p)")
for number, (begun, done) in enumerate(zip((0, *LOOKS), LOOKS, strict=False)):
    if done > begun:
        params, _ = vdm.fit(
            model,
            params,
            pixels,
            key=jax.random.key(number),
            optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, done - begun)),
            num_steps=done - begun,
            batch_size=256,
        )
    found, log_prob, vlb = look(params)
    assert jnp.all(log_prob > vlb), "the KL is positive for every single x"
    cross, kl = float(-log_prob @ PROBS), float((log_prob - vlb) @ PROBS)
    views.append((float(found.prior), float(found.denoiser), float(found.decoder), cross, kl))
    print(
        f"{done:5d} {found.prior:7.4f} {found.denoiser:9.4f} {found.decoder:8.4f}"
        f" {cross - ENTROPY:15.4f} {kl:10.4f}"
    )
views = np.array(views)
assert views[-1, 1] < 0.05 * views[0, 1]
assert abs(views[-1, 4] - best_kl) < 0.05 and views[0, 4] - best_kl > 1.0

# %% [markdown]
# Neither $q$ nor the entropy moved, nor the gaps at the two ends. The denoiser's gap went nearly to
# zero. Most of what the bound gained is the KL: the fresh chain already drew passable pixels, but
# its posterior was far from $q$. Training moved it there, down to the price of 64 steps.
#
# In the picture, left, the bound in continuous time over training: the entropy and the three gaps
# stacked on it. The denoiser's all but vanishes, the two others were never visible. Right, the
# same training with 64 steps: the bound is $-\log p(x)$ and a KL on top, and both are pushed down
# (dashed: where the KL of the exact denoiser would end).

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
place = np.arange(len(LOOKS))
base = np.full(len(LOOKS), ENTROPY)
left.stackplot(
    place,
    base,
    *views[:, [2, 0, 1]].T,
    labels=["entropy", *names],
    colors=["lightgrey", *colours],
)
left.set(title="continuous time", ylabel="nats per pixel")
right.stackplot(
    place,
    base,
    views[:, 3] - ENTROPY,
    views[:, 4],
    labels=["entropy", "log p(x) short of it", "KL(q || p)"],
    colors=["lightgrey", "C3", "C4"],
)
right.plot(place, views[:, 3] + best_kl, "k--", linewidth=0.8)
right.set(title=f"{NUM_STEPS} steps")
top = (views[0, 3] + views[0, 4]) * 1.05
for panel in (left, right):
    panel.axhline(ENTROPY, color="black", linewidth=1)
    panel.set(xlabel="training step", ylim=(0, top), xlim=(0, len(LOOKS) - 1))
    panel.set_xticks(place, LOOKS, rotation=60)
    panel.legend(fontsize="small")
plt.show()
