# %% [markdown]
# # Which parameters made this field?
#
# A model of p(x|θ) is trained on simulations, with θ as its condition. Then one field is observed,
# and the question is the other way round: which θ? The bound is an estimate of log p(x|θ) with a
# gradient, which is all that a sampler such as NUTS needs.
#
# The fields here are Gaussian, so that the posterior of θ is also known exactly.

# %%
import math

import blackjax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import vdm
from vdm import VDM, inference, likelihoods, networks, schedules

# %% [markdown]
# ## The simulator
#
# A periodic field on a line of 32 cells has the spectrum $P_\theta(k) = e^a (1 + k^2/4)^{-s} +
# 0.02$ with $\theta = (a, s)$: its amplitude and its slope. Given $\theta$ its Fourier modes are
# independent, and with $\tilde x$ the discrete Fourier transform over $\sqrt n$
#
# $$-\log p(x|\theta) = \tfrac12 \sum_k \left[\log 2\pi P_\theta(k) + |\tilde x_k|^2 / P_\theta(k)
# \right].$$

# %%
CELLS = 32
LOW, HIGH = np.asarray([-1.0, 0.5]), np.asarray([1.0, 2.5])  # of the amplitude a and the slope s
WAVES = CELLS * np.fft.fftfreq(CELLS)
rng = np.random.default_rng(0)


def spectrum(theta):
    amplitude, slope = jnp.exp(theta[..., :1]), theta[..., 1:]
    return amplitude * (1.0 + WAVES**2 / 4.0) ** -slope + 0.02


def simulate(num):
    theta = rng.uniform(LOW, HIGH, (num, 2))
    white = np.fft.fft(rng.normal(size=(num, CELLS)), axis=1)
    x = np.fft.ifft(white * np.sqrt(np.asarray(spectrum(theta))), axis=1).real
    return theta.astype(np.float32), x[..., None].astype(np.float32)


def exact_log_prob(theta, x):
    power = spectrum(theta)
    square = np.abs(np.fft.fft(x[..., 0], axis=-1)) ** 2 / CELLS
    return -0.5 * jnp.sum(jnp.log(2 * math.pi * power) + square / power, axis=-1)


theta, x = simulate(20_000)
figure, panels = plt.subplots(1, 3, figsize=(10, 2.4), sharey=True, layout="constrained")
for axes, one, field in zip(panels, theta, x, strict=False):
    axes.plot(field[:, 0])
    axes.set(title=f"a = {one[0]:.2f}, s = {one[1]:.2f}", xlabel="cell")
plt.show()

# %% [markdown]
# ## The model
#
# A small transformer over the cells, periodic, is given θ as a vector.

# %%
network = networks.DiT(
    axes=1,
    patch=2,
    channels=48,
    num_blocks=3,
    num_heads=4,
    padding="wrap",
    fourier_exponents=(),
    cond_dim=2,
    residual=False,
    log_snr_max=10.0,
    log_snr_min=-10.0,
)
model = VDM(schedules.linear(10.0, -10.0), network, likelihoods.gaussian(math.exp(-5.0)), "v")
params = model.init(jax.random.key(0), x[:1], theta[:1])
num_steps = 3000
params, losses = vdm.fit(
    model,
    params,
    x,
    cond=theta,
    key=jax.random.key(1),
    optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)),
    num_steps=num_steps,
    batch_size=64,
)

smooth = np.convolve(losses, np.ones(100) / 100, mode="valid")
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.plot(smooth)
axes.set(xlabel="step", ylabel="loss, bits per dimension", title="mean of 100 steps")
plt.show()

# %% [markdown]
# ## One field is observed
#
# `log_prob_fn` gives −VLB(x|θ) as a function of θ, with its noise fixed: pairs ±ε at even times of
# the schedule. The prior is flat on the box that the simulations fill. NUTS (Hoffman & Gelman 2014,
# by blackjax) moves in a coordinate without ends, $\theta = $ low + (high − low) sigmoid(u), whose
# Jacobian is a part of the density.

# %%
truth = np.asarray([[0.3, 1.2]], np.float32)
white = np.fft.fft(np.random.default_rng(7).normal(size=(1, CELLS)), axis=1)
seen = np.fft.ifft(white * np.sqrt(np.asarray(spectrum(truth))), axis=1).real[..., None]
seen = seen.astype(np.float32)
log_prob = inference.log_prob_fn(model, params, seen, jax.random.key(2), num_samples=32)


figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
axes.plot(seen[0, :, 0])
axes.set(xlabel="cell", title="what is observed")
plt.show()


def to_theta(u):
    return (LOW + (HIGH - LOW) * jax.nn.sigmoid(u)).astype(np.float32)


def log_density(u):
    jacobian = jnp.sum(jax.nn.log_sigmoid(u) + jax.nn.log_sigmoid(-u))
    return log_prob(to_theta(u)) + jacobian


def nuts(key, start, warmup=100, num=300):
    key_warmup, key_run = jax.random.split(key)
    adapt = blackjax.window_adaptation(blackjax.nuts, log_density)
    (state, tuned), _ = adapt.run(key_warmup, start, num_steps=warmup)
    step = blackjax.nuts(log_density, **tuned).step

    def one(state, key):
        state, _ = step(key, state)
        return state, state.position

    return jax.lax.scan(one, state, jax.random.split(key_run, num))[1]


drawn = np.asarray(jax.vmap(to_theta)(jax.jit(nuts)(jax.random.key(3), jnp.zeros(2))), np.float64)

# %% [markdown]
# ## Beside the exact posterior
#
# On a fine grid the exact posterior is a sum. The sampler's mean has an error of its own: draws of
# a chain are not independent, and blackjax says how many independent ones they are worth.

# %%
grid = [np.linspace(low, high, 81) for low, high in zip(LOW, HIGH, strict=True)]
points = np.stack([part.ravel() for part in np.meshgrid(*grid, indexing="ij")], axis=1)
logs = np.asarray(exact_log_prob(jnp.asarray(points), seen[0]), np.float64)
exact = np.exp(logs - logs.max())
exact /= exact.sum()
mean = exact @ points
std = np.sqrt(exact @ points**2 - mean**2)
worth = np.asarray(blackjax.diagnostics.effective_sample_size(drawn[None]))
error = drawn.std(axis=0, ddof=1) / np.sqrt(worth)
for i, name in enumerate(("amplitude a", "slope s")):
    print(
        f"{name}: NUTS on the bound {drawn[:, i].mean():.3f} ± {error[i]:.3f}, width "
        f"{drawn[:, i].std():.3f}; exact {mean[i]:.3f}, width {std[i]:.3f}; true {truth[0, i]:.1f}"
    )

assert np.all(np.abs(drawn.mean(axis=0) - mean) < 0.7 * std)
assert np.all(np.abs(np.log(drawn.std(axis=0) / std)) < 0.35)

# %% [markdown]
# Does the answer depend on the number of steps of the bound? In continuous time it has none; with
# few steps the gap between the bound and log p(x|θ) moves with θ, and bends the posterior.

# %%
three = np.asarray([[0.3, 0.9], [0.3, 1.2], [0.3, 1.5]], np.float32)
table = inference.dependence(
    model, params, seen, three, jax.random.key(4), num_steps=(10, 50, None), num_samples=512
)
print("nats above the lowest of s = 0.9, 1.2, 1.5:")
for name, excess, sem in zip(table.bound, table.excess, table.excess_sem, strict=True):
    print(f"{name:>6}", *(f"{e:.2f} ± {s:.2f}" for e, s in zip(excess[0], sem[0], strict=True)))
true_excess = -np.asarray(exact_log_prob(jnp.asarray(three), seen[0]))
print(" exact", *(f"{e:.2f}" for e in true_excess - true_excess.min()))

# %%
figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
axes.contour(*grid, exact.reshape(81, 81).T, levels=6, colors="black", linewidths=0.8)
axes.scatter(*drawn.T, s=5, alpha=0.4, label="NUTS on the bound")
axes.scatter(*truth[0], marker="*", s=120, color="C3", label="true θ")
axes.set(xlabel="amplitude a", ylabel="slope s", title="contours: the exact posterior")
axes.legend()
plt.show()
