# %% [markdown]
# # The bound and its mutual information
#
# How much does the latent $z_\lambda$ know about the data, and what part of the bound pays for it?
# A diffusion model's bound hides several mutual informations. Written out, they cancel, all but
# the entropy; and each of them can be read off one curve, the error of the denoiser. So the
# same curve that is trained on shows where in the noise the bits of the data are.

# %%
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import vdm
from vdm import (
    VDM,
    bits_per_dim,
    diffusion,
    gaps,
    information,
    likelihoods,
    losses,
    networks,
    noise_levels,
    schedules,
)

jax.config.update("jax_enable_x64", True)  # quadrature is compared to eight digits below

# %% [markdown]
# ## Data whose best denoiser is known
#
# A single pixel with eight grey levels, with a skewed law $P$. Noised, $z = \alpha x + \sigma
# \varepsilon$ follows a mixture of eight Gaussians, so $q(z)$ is known, and by Bayes' rule so is
# $\varepsilon^* = \mathbb E[\varepsilon \mid z]$, the best estimate of the noise there is.
# A binary pixel $x = \pm 1$ is the same with two values.

# %%
LEVELS = 8
PROBS = jnp.asarray([0.30, 0.18, 0.02, 0.05, 0.10, 0.03, 0.12, 0.20])
LIKELIHOOD = likelihoods.discretised(LEVELS)
PIXEL = jnp.arange(LEVELS)[:, None]  # every value, one per row
ENTROPY = float(-jnp.sum(PROBS * jnp.log(PROBS)))


def joint(z, log_snr, values, probs):
    """log P(x) + log q(z|x) of every z [b, 1] and value: [b, values]."""
    log_snr = jnp.broadcast_to(log_snr, z.shape[:1])[:, None]
    residual = (z - diffusion.alpha(log_snr) * values[None]) / diffusion.sigma(log_snr)
    scale = jnp.log(diffusion.sigma(log_snr)) + 0.5 * math.log(2.0 * math.pi)
    return jnp.log(probs)[None] - 0.5 * residual**2 - scale


def law_of(values, probs):
    """The exact denoiser of data with these values, and its log q(z)."""

    def eps_fn(z, log_snr):
        posterior = jax.nn.softmax(joint(z, log_snr, values, probs), axis=1)
        x_hat = posterior @ values[:, None]
        per_row = jnp.broadcast_to(log_snr, z.shape[:1])
        return diffusion.convert(x_hat, z, per_row, source="x", target="eps")

    def log_density(z, log_snr):
        return jax.nn.logsumexp(joint(z, log_snr, values, probs), axis=1)

    return eps_fn, log_density


eps_exact, log_density = law_of(LIKELIHOOD.encode(PIXEL)[:, 0], PROBS)
eps_binary, log_density_binary = law_of(jnp.asarray([-1.0, 1.0]), jnp.asarray([0.5, 0.5]))
print(f"H(x) = {ENTROPY:.4f} nats = {ENTROPY / math.log(2):.4f} bits for the pixel with 8 levels")

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
z = jnp.linspace(-1.2, 1.2, 801)[:, None]
for level in (0.0, 4.0, 7.0):
    rows = jnp.full(len(z), level)
    x_hat = diffusion.convert(eps_exact(z, rows), z, rows, source="eps", target="x")
    axes.plot(z, x_hat, label=f"λ = {level:g}")
axes.set(xlabel="z", ylabel="E[x | z]", title="The best guess of the pixel")
axes.legend()
plt.show()

# %%
# Nothing here is drawn at random: an expectation over one Gaussian number is a sum over nodes.
NODES = np.linspace(-8.5, 8.5, 301)
WEIGHTS = np.exp(-0.5 * NODES**2) / np.exp(-0.5 * NODES**2).sum()
LOG_SNRS = np.linspace(-10.0, 9.0, 761)


def over_noise(function, x):
    """E over ε of function(x, ε) for each row of x."""
    rows = jnp.tile(x, (len(NODES), 1))
    eps = jnp.repeat(jnp.asarray(NODES), len(x))[:, None]
    return WEIGHTS @ function(rows, eps).reshape(len(NODES), len(x))


def errors_of(eps_fn, x):
    """E‖ε − ε̂‖² for every λ of the grid and every row of x: [levels, rows]."""

    @jax.jit
    def at(log_snr):
        return over_noise(lambda rows, eps: losses.noise_error(rows, eps, log_snr, eps_fn), x)

    return jax.lax.map(at, jnp.asarray(LOG_SNRS))


# %% [markdown]
# ## Information is the area under an error
#
# Guo, Shamai & Verdú (2005) found that for Gaussian noise information and estimation are two sides
# of one thing. In terms of $\lambda$,
#
# $$\frac{d\,I(x; z_\lambda)}{d\lambda} = \tfrac12\,\mathbb E\,\|\varepsilon - \varepsilon^*\|^2 ,$$
#
# so the mutual information at every noise level is a running integral of the best denoiser's error.
# `information.mutual_information` takes it from the bottom of the grid, where next to nothing is
# known: what lies below is half the error there.


# %%
def information_of(eps_fn, x, probs):
    """I(x; z_λ) in nats on the grid, by I-MMSE."""
    errors = errors_of(eps_fn, x)
    running = information.mutual_information(jnp.asarray(LOG_SNRS), errors)
    return np.asarray((running.values + 0.5 * errors[:1]) @ probs)


def eps_normal(z, log_snr):
    """E[ε|z] for x ~ N(0, 1)."""
    return diffusion.sigma(log_snr) * z


signs = jnp.asarray([[-1.0], [1.0]])
of_pixel = information_of(eps_exact, LIKELIHOOD.encode(PIXEL), PROBS)
of_binary = information_of(eps_binary, signs, jnp.asarray([0.5, 0.5]))
normal = jnp.asarray(NODES)[:, None]  # x ~ N(0, 1): the same nodes serve as data
of_normal = information_of(eps_normal, normal, jnp.asarray(WEIGHTS))

# %% [markdown]
# Three truths to hold these against, none of which knows of denoisers:
#
# - for $x \sim \mathcal N(0, 1)$, $I = \tfrac12 \log(1 + \mathrm{SNR})$ with
#   $\mathrm{SNR} = e^\lambda$;
# - for $x = \pm1$, $I = \mathrm{SNR} - \mathbb E \log\cosh(\mathrm{SNR} +
#   \sqrt{\mathrm{SNR}}\,\varepsilon)$;
# - for the pixel, $I = h(z) - h(z \mid x)$: the entropy of a mixture less that of the noise,
#   $\tfrac12 \log 2\pi e \sigma^2$.

# %%
snr = np.exp(LOG_SNRS)
true_normal = 0.5 * np.log1p(snr)
inside = np.abs(snr[:, None] + np.sqrt(snr)[:, None] * NODES)
true_binary = snr - (np.logaddexp(inside, -inside) - math.log(2)) @ WEIGHTS


def by_entropies(log_snr, log_density, x, probs):
    """I(x; z) = h(z) − h(z|x) at one noise level."""

    def log_q(rows, eps):
        return log_density(diffusion.q_sample(rows, eps, log_snr), log_snr)

    noise = 0.5 * math.log(2 * math.pi * math.e) + jnp.log(diffusion.sigma(log_snr))
    return -over_noise(log_q, x) @ probs - noise


encoded = LIKELIHOOD.encode(PIXEL)
by_mixture = jax.jit(lambda log_snr: by_entropies(log_snr, log_density, encoded, PROBS))
true_pixel = np.asarray(jax.lax.map(by_mixture, jnp.asarray(LOG_SNRS)))

curves = {
    "Gaussian": (of_normal, true_normal),
    "binary": (of_binary, true_binary),
    "pixel, 8 levels": (of_pixel, true_pixel),
}
for found, truth in curves.values():
    np.testing.assert_allclose(found, truth, atol=5e-5)

# %% [markdown]
# Any other denoiser errs by more, and its area is an *upper bound* of the information. For the
# binary pixel take the best *linear* denoiser: it makes the same errors as for Gaussian data of
# the same variance, so its area is $\tfrac12\log(1+\mathrm{SNR})$. It believes in information that
# is not there, without end.

# %%
of_linear = information_of(eps_normal, signs, jnp.asarray([0.5, 0.5]))

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for colour, (name, (found, truth)) in enumerate(curves.items()):
    axes.plot(LOG_SNRS, found / math.log(2), color=f"C{colour}", label=name)
    axes.plot(LOG_SNRS[::38], truth[::38] / math.log(2), "o", color=f"C{colour}", markersize=4)
axes.plot(LOG_SNRS, of_linear / math.log(2), "k:", label="binary, linear denoiser")
for height, name in ((1.0, "log 2"), (ENTROPY / math.log(2), "H(P)")):
    axes.axhline(height, color="grey", linestyle="--", linewidth=0.8)
    axes.annotate(name, (-9.8, height + 0.05), color="grey")
axes.set(xlabel="λ = log SNR", ylabel="I(x; z) in bits", ylim=(-0.1, 3.6), xlim=(-10, 9))
axes.legend(loc="center left", fontsize="small")
plt.show()

# %% [markdown]
# Lines are areas under the error, dots the closed forms. A real-valued $x$ can hold any amount of
# information: its curve goes on rising, by half a nat for each unit of $\lambda$. A discrete $x$
# holds $H(x)$ and no more. Its curve ends at the dashed line, at $\log 2$ or at $H(P)$: the area
# under the whole error is the entropy.
#
# ## The bound with its informations written out
#
# Hoffman & Johnson (2016) took the KL term of a variational autoencoder apart. With
# $q(z) = \sum_x P(x)\, q(z \mid x)$,
#
# $$\mathbb E_x\, \mathrm{KL}\big(q(z|x)\,\|\,p(z)\big)
#   = I_q(x; z) + \mathrm{KL}\big(q(z)\,\|\,p(z)\big).$$
#
# The same surgery on all three terms of the diffusion bound, with $z_0$ the least and $z_1$ the
# most noisy latent, gives an information and a gap each:
#
# $$
# \begin{aligned}
# \text{prior} &= I(x; z_1) &&+\; \mathrm{KL}\big(q(z_1)\,\|\,\mathcal N(0, I)\big)\\
# \text{diffusion} &= I(x; z_0) - I(x; z_1) &&+\;
#   \tfrac12 \textstyle\int \mathbb E\,\|\hat\varepsilon - \varepsilon^*\|^2\, d\lambda\\
# \text{reconstruction} &= H(x) - I(x; z_0) &&+\;
#   \mathbb E\,\mathrm{KL}\big(q(x|z_0)\,\|\,p(x|z_0)\big)\\
# -\mathrm{ELBO} &= H(x) &&+\; \text{three gaps, each at least } 0
# \end{aligned}
# $$
#
# Each information enters twice, with opposite signs. Let us measure every entry, for the exact
# denoiser and for one that is off by a known function, between ends so near that no gap is small.

# %%
HIGH, LOW, OFF = 4.0, -1.0, 0.4
nodes, weights = np.polynomial.legendre.leggauss(60)
between = LOW + (HIGH - LOW) * (nodes + 1) / 2


def eps_wrong(z, log_snr):
    return eps_exact(z, log_snr) + OFF * jnp.cos(3.0 * z)


def over_levels(function):
    """The mean over data and noise of function(x, levels, ε), λ being even between the ends."""

    def at(log_snr):
        def value(rows, eps):
            even = jnp.full(len(rows), HIGH - LOW)  # 1/p(λ)
            return function(rows, noise_levels.NoiseLevels(jnp.full(len(rows), log_snr), even), eps)

        return over_noise(value, encoded) @ PROBS

    return 0.5 * weights @ np.asarray(jax.lax.map(at, jnp.asarray(between)))


def anatomy(eps_fn):
    """Every term of the bound, its information and its gap, in nats."""
    top, bottom = jnp.asarray(HIGH), jnp.asarray(LOW)
    prior = losses.prior_kl(encoded, bottom) @ PROBS
    diffusion_term = over_levels(
        lambda x, levels, eps: losses.diffusion_loss_at(x, levels, eps, eps_fn)
    )
    reconstruction = (
        over_noise(lambda x, eps: losses.reconstruction(x, eps, top, LIKELIHOOD), PIXEL) @ PROBS
    )
    prior_gap = over_noise(lambda x, eps: gaps.prior_gap(x, eps, bottom, log_density), encoded)
    denoiser_gap = over_levels(
        lambda x, levels, eps: gaps.denoiser_gap(x, levels, eps, eps_fn, eps_exact)
    )
    decoder_gap = over_noise(
        lambda x, eps: gaps.decoder_gap(
            x, eps, top, LIKELIHOOD, log_density, jnp.log(PROBS)[x[:, 0]]
        ),
        PIXEL,
    )
    i_0, i_1 = by_mixture(top), by_mixture(bottom)
    return {
        "prior": (prior, i_1, prior_gap @ PROBS),
        "diffusion": (diffusion_term, i_0 - i_1, denoiser_gap),
        "reconstruction": (reconstruction, ENTROPY - i_0, decoder_gap @ PROBS),
    }


tables = {}
for name, eps_fn in (("exact denoiser", eps_exact), ("wrong denoiser", eps_wrong)):
    rows = {term: [float(v) for v in row] for term, row in anatomy(eps_fn).items()}
    tables[name] = np.array(list(rows.values()))
    rows["sum"] = tables[name].sum(0)
    print(f"{name:15s} {'term':>8s} {'inform.':>8s} {'gap':>8s}")
    for term, row in rows.items():
        print(f"  {term:13s}", *(f"{value:8.4f}" for value in row))
    assert np.allclose(tables[name][:, 0], tables[name][:, 1:].sum(1), rtol=0, atol=1e-8)
    assert abs(rows["sum"][1] - ENTROPY) < 1e-10

figure, panels = plt.subplots(1, 2, figsize=(9, 2.6), sharex=True, layout="constrained")
for panel, (name, table) in zip(panels, tables.items(), strict=True):
    panel.barh(list(rows)[:3], table[:, 1], color="0.7", label="information")
    panel.barh(list(rows)[:3], table[:, 2], left=table[:, 1], color="C0", label="gap")
    panel.set(title=name, xlabel="nats")
    panel.invert_yaxis()
panels[0].legend(frameon=False)
plt.show()

# %% [markdown]
# Compare the two. All informations, the prior's gap and the decoder's are the same: they
# belong to $q$, which is *fixed* by the data and the noise schedule. The denoiser's gap is the
# only entry that training can move, and nothing in the bound pulls it away from zero. In a
# variational autoencoder $I_q(x; z)$ belongs to a trained encoder: the KL term pushes it
# down, and with a strong decoder to zero (posterior collapse). Here it cannot be pushed.
#
# ## Where the bits of digits are
#
# For real images nobody knows $\varepsilon^*$, but a trained network's error is an upper bound of
# the best one in the mean, and so is its area of $I(x; z_\lambda) - I(x; z_{\lambda_\text{min}})$.
# Here is a small network for scikit-learn's handwritten digits: 8 × 8 pixels, 17 grey levels.

# %%
images = load_digits().images.astype("uint8")[..., None]
held_out = np.random.default_rng(0).permutation(len(images)) < 297
train, test = jnp.asarray(images[~held_out]), jnp.asarray(images[held_out])
TOP, BOTTOM, NUM_STEPS, BATCH, PIXELS = 8.0, -6.0, 1000, 16, 64
grey_level = math.log2(17 / 2)  # sines of z with a period of one grey level, and of 2 and 4
network = networks.UNet(
    channels=32,
    num_blocks=1,
    num_groups=8,
    attention="none",
    fourier_exponents=(grey_level - 2, grey_level - 1, grey_level),
    dropout=0.0,
    log_snr_max=TOP,
    log_snr_min=BOTTOM,
)
model = VDM(schedules.linear(TOP, BOTTOM), network, likelihoods.discretised(17))


def look_at(key, n):
    """Noise levels by p(λ) ∝ sigmoid(λ), evenly spread over the batch."""
    return noise_levels.sigmoid_law(noise_levels.low_discrepancy(key, n), TOP, BOTTOM)


params, _ = vdm.fit(
    model,
    model.init(jax.random.key(0), train[:1]),
    train,
    key=jax.random.key(1),
    optimizer=optax.adam(optax.cosine_decay_schedule(5e-3, NUM_STEPS)),
    num_steps=NUM_STEPS,
    batch_size=BATCH,
    noise_levels=look_at,
)

# %% [markdown]
# The profile of its error on held-out digits, at 29 levels with two draws of the noise at each.
# The whole area must be the diffusion term of the bound, which `VDM.vlb` estimates in another
# way, at random levels: they agree within 5 standard errors.

# %%
levels = jnp.linspace(BOTTOM, TOP, 29)
x = model.likelihood.encode(test)
profile = jax.jit(
    lambda params, key: information.profile(key, x, levels, model.denoiser(params), num_draws=2)
)(params, jax.random.key(2))
known = information.mutual_information(profile.log_snr, profile.values)
bits = np.asarray(bits_per_dim(known.mean, PIXELS))
bits_error = float(bits_per_dim(known.standard_error[-1], PIXELS))

vlb = jax.jit(model.vlb)
keys = jax.random.split(jax.random.key(3), 16)
drawn = np.array([bits_per_dim(vlb(params, k, test).diffusion.mean(), PIXELS) for k in keys])
whole, whole_error = drawn.mean(), drawn.std(ddof=1) / math.sqrt(len(drawn))
print(f"area           {bits[-1]:.4f} ± {bits_error:.4f} bits per pixel")
print(f"diffusion term {whole:.4f} ± {whole_error:.4f}")
assert abs(bits[-1] - whole) < 5 * math.hypot(bits_error, whole_error)

# %% [markdown]
# Half of what the latents come to know is learnt in a narrow range of noise levels, which is
# why it pays to look more often there (`vdm.adaptive` does, without being told where).

# %%
quarter, most = np.interp([0.25 * bits[-1], 0.75 * bits[-1]], bits, levels)
print(f"half of the bits lies between λ = {quarter:.1f} and {most:.1f}, of {BOTTOM:g} to {TOP:g}")
assert most - quarter < 0.45 * (TOP - BOTTOM)

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
edges, at_edges = np.asarray(levels[::2]), bits[::2]
axes.bar(edges[:-1], np.diff(at_edges), width=np.diff(edges), align="edge", edgecolor="white")
axes.set(xlabel="λ = log SNR", ylabel="bits per pixel in each unit of λ")
axes.set_title("handwritten digits")
sum_axis = axes.twinx()
sum_axis.plot(levels, bits, color="C1")
sum_axis.set_ylabel("running sum, bits per pixel", color="C1")
sum_axis.set_ylim(bottom=0.0)
plt.show()

# %% [markdown]
# Bars: what each stretch of $\lambda$ adds. Line: the running sum. The coarse form of a digit is on
# the left, the last grey levels on the right, where the sum begins to saturate as the pixels'
# values give themselves away.
