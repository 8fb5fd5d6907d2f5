# %% [markdown]
# # Samplers
#
# How many calls of the network does a good sample take, and which sampler spends them best?
#
# First the data is a mixture of Gaussians. There the best denoiser
# $\varepsilon^*(z, \lambda) = E[\varepsilon \mid z]$ is a formula, so whatever error is left is the
# sampler's alone. Then a small network is trained on real digits, where the model errs too.
#
# Throughout, $\lambda = \log \alpha^2/\sigma^2$ is the log signal-to-noise ratio,
# $z = \alpha x + \sigma \varepsilon$, and NFE is the number of calls of the network that one
# sample takes.

# %%
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import vdm
from vdm import VDM, diffusion, likelihoods, networks, noise_levels, ode, samplers, schedules, sde
from vdm.run.data import synthetic
from vdm.samplers import grids

jax.config.update("jax_enable_x64", True)  # orders of convergence need more than seven digits

# %% [markdown]
# ## Data whose best denoiser is known, and paths through it
#
# Noised to level $\lambda$, the mixture $\sum_k w_k N(m_k, s_k^2 I)$ is again a mixture,
# $\sum_k w_k N(\alpha m_k, (\alpha^2 s_k^2 + \sigma^2) I)$. Its score $\nabla \log q_\lambda(z)$
# is the derivative of a formula, and $\varepsilon^* = -\sigma \nabla \log q_\lambda(z)$ (Tweedie's
# formula; Song et al. 2021 train a network to be this score).


# %%
class Mixture(NamedTuple):
    weights: jax.Array  # [k]
    means: jax.Array  # [k, d]
    widths: jax.Array  # [k]


def log_density(mixture, z, log_snr):
    alpha, sigma = diffusion.alpha(log_snr), diffusion.sigma(log_snr)
    variance = alpha**2 * mixture.widths**2 + sigma**2
    square = jnp.sum(jnp.square(z[:, None] - alpha * mixture.means), axis=-1)
    log_normal = -0.5 * (square / variance + z.shape[1] * jnp.log(2 * math.pi * variance))
    return jax.nn.logsumexp(jnp.log(mixture.weights) + log_normal, axis=1)


def exact_denoiser(mixture):
    def eps_fn(z, log_snr):
        score = jax.grad(lambda z: log_density(mixture, z, log_snr).sum())(z)
        return diffusion.convert(score, z, log_snr, source="score", target="eps")

    return eps_fn


toy = Mixture(
    weights=jnp.array([0.6, 0.3, 0.1]),
    means=jnp.array([[-1.0, -0.5], [1.0, 0.2], [1.5, 1.8]]),
    widths=jnp.array([0.5, 0.25, 0.15]),
)
toy_eps = exact_denoiser(toy)
HIGH, LOW = 8.0, -8.0  # λ at the data and at the noise

key = jax.random.key(0)
path_grid = grids.uniform(HIGH, LOW, 100)
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for axes, name in zip(panels, ("dpmpp_2m", "ancestral"), strict=True):
    path = samplers.trajectory(jax.random.key(4), toy_eps, path_grid, (40, 2), sampler=name)
    for i in range(path.shape[1]):
        axes.plot(path_grid, path[:, i, 0], lw=0.7, color=plt.cm.viridis(i / path.shape[1]))
    axes.set(xlabel="λ, from noise to data", ylabel="first coordinate of z", title=name)
plt.show()

# %% [markdown]
# Forty paths from noise to data, from the same starts: an ODE's path is smooth and settled early,
# an ancestral one rattles and decides late.
#
# Every sampler of the library is a value with a function `step`, from $z_t$ at one noise level to
# $z_s$ at a cleaner one. `samplers.sample` compiles the walk along a whole grid of levels into one
# loop, which is what to use. Here many grids are tried, so we compile the step once and walk with
# a plain loop.
#
# The names come down to fewer formulas. `exponential` has a noise level $a$ between the ODE
# ($a = 0$) and the reverse SDE ($a = 1$): its ends are `ddim` and `ancestral`. `euler_maruyama` has
# the same two ends, but does not solve the linear part of the equation exactly.


# %%
def walker(eps_fn, sampler):
    step = jax.jit(partial(sampler.step, eps_fn))

    def walk(key, log_snrs, shape):
        def noise(n):
            return jax.random.normal(jax.random.fold_in(key, n), shape, log_snrs.dtype)

        z = noise(0)
        carry = sampler.init(z)
        for n in range(len(log_snrs) - 1):
            z, carry = step(z, carry, noise(n + 1), log_snrs[n], log_snrs[n + 1])
        return z

    return walk


walks = {
    "ancestral": walker(toy_eps, samplers.ancestral()),
    "exponential(0.5)": walker(toy_eps, sde.exponential(0.5)),
    "ddim": walker(toy_eps, samplers.ddim()),
    "heun": walker(toy_eps, samplers.heun()),
    "dpmpp_2m": walker(toy_eps, samplers.dpmpp_2m()),
    "euler_maruyama(0)": walker(toy_eps, sde.euler_maruyama(0.0)),
}
CALLS_A_STEP = {"heun": 2}  # every other sampler calls the network once a step

# %% [markdown]
# ## Deterministic samplers: the error of the end point
#
# With no noise on the way, all samplers solve one equation, the probability-flow ODE
# $dz/d\lambda = \tfrac12 \sigma (\sigma z - \hat\varepsilon)$ (Song et al. 2021). From the same
# noise $z_1$ they should all arrive at the same $z_0$, and `ode.decode` says where that is, to ten
# digits. A method of order $p$ errs by a constant times $N^{-p}$ after $N$ steps.
#
# The error shown is the median over 512 starts. A few starts lie near the border between two
# components, where a small error decides for one or the other; a mean would be about those few.

# %%
NUM_STARTS = 512
z_1 = jax.random.normal(jax.random.fold_in(key, 0), (NUM_STARTS, 2))
tight = partial(ode.decode, log_snr_max=HIGH, log_snr_min=LOW, rtol=1e-10, atol=1e-10)
z_0 = jax.jit(partial(tight, toy_eps))(z_1)


def endpoint_error(name, grid):
    return float(jnp.median(jnp.linalg.norm(walks[name](key, grid, z_1.shape) - z_0, axis=1)))


STEPS = np.array([8, 16, 32, 64, 128])
DECLARED = {"euler_maruyama(0)": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2}
endpoint = {
    name: np.array([endpoint_error(name, grids.uniform(HIGH, LOW, int(n))) for n in STEPS])
    for name in DECLARED
}
print(f"{'sampler':>18}" + "".join(f"{n:>10} steps" for n in STEPS) + f"{'order':>8}")
for name, error in endpoint.items():
    order = math.log2(error[-2] / error[-1])
    print(f"{name:>18}" + "".join(f"{e:16.5f}" for e in error) + f"{order:8.2f}")
    assert abs(order - DECLARED[name]) < 0.15

# %% [markdown]
# Each method shows its declared order. At equal NFE `dpmpp_2m`, which remembers the last call,
# has the advantage over `heun`, which makes two calls a step and so only half the steps.
#
# A grid decides where along $\lambda$ the calls are spent. Here are three: even steps in $\lambda$;
# the levels of EDM (Karras et al. 2022, eq. 5: even in $(\sigma/\alpha)^{1/7}$), whose steps in
# $\lambda$ grow towards the data; and even times on a cosine schedule, which lie close together in
# the middle and part at the ends.

# %%
cosine = schedules.cosine(HIGH, LOW)
build = {
    "even in λ": lambda n: grids.uniform(HIGH, LOW, n),
    "EDM": lambda n: grids.edm(HIGH, LOW, n),
    "cosine time": lambda n: grids.uniform_in_time(partial(cosine.log_snr, {}), n),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
for name, error in endpoint.items():
    left.loglog(STEPS * CALLS_A_STEP.get(name, 1), error, "o-", label=name)
left.set(xlabel="calls of the denoiser (NFE)", ylabel="median error of $z_0$", title="Samplers")
left.legend(fontsize=7)
for name, of in build.items():
    error = [endpoint_error("dpmpp_2m", of(int(n))) for n in STEPS]
    right.loglog(STEPS, error, "o-", label=name)
right.set(xlabel="calls of the denoiser (NFE)", title="Grids, for dpmpp_2m")
right.legend(fontsize=7)
plt.show()

# %% [markdown]
# The slopes are the orders. The grid moves the constant and not the order. Which one is best
# depends on the data and on the number of steps: it is the cheapest thing to try.
#
# ## Samplers with noise: the error of the law
#
# An ancestral sample has no end point to be compared with, only a law. That of $z_0$ is known, so
# we compare the covariance of 32,768 samples with it, as a share of the covariance's norm. Exact
# draws would not show 0 but the Monte Carlo error of so many, and no sampler can be seen to be
# better.

# %%
NUM_SAMPLES = 2**15
at_data = jnp.array(HIGH)
mean = toy.weights @ toy.means
between = jnp.einsum("k,ki,kj->ij", toy.weights, toy.means - mean, toy.means - mean)
covariance = diffusion.alpha(at_data) ** 2 * (
    between + toy.weights @ toy.widths**2 * jnp.eye(2)
) + diffusion.sigma(at_data) ** 2 * jnp.eye(2)


def covariance_error(z):
    return float(jnp.linalg.norm(jnp.cov(z.T) - covariance) / jnp.linalg.norm(covariance))


def exact_draws(key):
    key_k, key_x, key_z = jax.random.split(key, 3)
    k = jax.random.choice(key_k, len(toy.weights), (NUM_SAMPLES,), p=toy.weights)
    x = toy.means[k] + toy.widths[k, None] * jax.random.normal(key_x, (NUM_SAMPLES, 2))
    return diffusion.q_sample(x, jax.random.normal(key_z, x.shape), at_data)


floor = np.array([covariance_error(exact_draws(k)) for k in jax.random.split(key, 20)])
LAW_STEPS = np.array([8, 16, 32, 64])
law = {
    name: np.array(
        [
            covariance_error(walks[name](key, grids.uniform(HIGH, LOW, int(n)), (NUM_SAMPLES, 2)))
            for n in LAW_STEPS
        ]
    )
    for name in ("ancestral", "exponential(0.5)", "ddim", "dpmpp_2m")
}
figure, axes = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
for name, error in law.items():
    axes.loglog(LAW_STEPS, error, "o-", label=name)
axes.axhspan(floor.min(), floor.max(), color="0.85", label="exact draws, 20 trials")
axes.set(xlabel="steps", ylabel="relative error of the covariance", title="32,768 samples")
axes.legend(fontsize=7)
plt.show()
halves = law["ancestral"][:-2] / law["ancestral"][1:-1]
assert np.all((halves > 1.6) & (halves < 2.4)) and law["ancestral"][-1] > 2 * floor.max()

# %% [markdown]
# The law of an ancestral sample converges at first order: the error halves as the steps double.
# Noise is no help here, for there is no error of a network that it could mend. After 64 steps
# `dpmpp_2m` has come down to the size of the Monte Carlo error, and the others have not.

# %% [markdown]
# ## Real digits: quality against NFE
#
# Now a model that errs: the smallest U-Net, trained for 600 steps on scikit-learn's digits with
# the velocity head and $p(\lambda) \propto \mathrm{sigmoid}(\lambda)$. From here on in float32.

# %%
jax.config.update("jax_enable_x64", False)
LEVELS, TOP, BOTTOM, TRAIN_STEPS = 17, 8.0, -6.0, 600
train_set, test_set = synthetic.digits("train"), synthetic.digits("test")
likelihood = likelihoods.discretised(LEVELS)
octave = math.log2(LEVELS / 2)  # sine and cosine of z with a period of one grey level
model = VDM(
    schedules.linear(TOP, BOTTOM),
    networks.UNet(
        channels=16,
        num_blocks=1,
        num_groups=8,
        attention="none",
        fourier_exponents=(octave - 2, octave - 1, octave),
        dropout=0.0,
        residual=False,
        log_snr_max=TOP,
        log_snr_min=BOTTOM,
    ),
    likelihood,
    prediction="v",
)
rate = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 100, TRAIN_STEPS)
params, _ = vdm.fit(
    model,
    jax.jit(model.init)(jax.random.key(0), train_set.x[:1]),
    train_set.x,
    key=jax.random.key(1),
    optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99)),
    num_steps=TRAIN_STEPS,
    batch_size=32,
    noise_levels=lambda key, n: noise_levels.sigmoid_law(
        noise_levels.low_discrepancy(key, n), TOP, BOTTOM
    ),
)
eps_fn = model.denoiser(params)

# %% [markdown]
# For digits the law is not known, only held-out examples of it. The sliced Wasserstein distance
# projects samples and 297 test digits on 100 fixed directions and compares the sorted
# projections, root mean square. 297 *training* digits give the floor: what a perfect model would
# show. All rows start from the same noise, so their differences are surer than their values.

# %%
directions = np.random.default_rng(0).normal(size=(64, 100))
directions /= np.linalg.norm(directions, axis=0)
NUM_BOOTSTRAPS = 30


def project(x):
    return np.asarray(x, np.float64).reshape(len(x), -1) / (LEVELS - 1) @ directions


def distance(one, other):
    return np.sqrt(np.mean((np.sort(one, axis=0) - np.sort(other, axis=0)) ** 2))


held_out = project(test_set.x)


def bootstraps(x):
    """The distance, and those of resampled samples and digits: the same draws for every row."""
    rng, one = np.random.default_rng(1), project(x)
    found = [distance(one, held_out)]
    for _ in range(NUM_BOOTSTRAPS):
        i, j = rng.integers(0, len(one), (2, len(one)))
        found.append(distance(one[i], held_out[j]))
    return np.array(found)


DIGIT_ROWS = {
    "ancestral": (samplers.ancestral(), (5, 10, 20, 50)),
    "ddim": (samplers.ddim(), (5, 10, 20)),
    "heun": (samplers.heun(), (5, 10)),
    "dpmpp_2m": (samplers.dpmpp_2m(), (5, 10, 20)),
}
floor = bootstraps(train_set.x[: len(test_set)])
quality, drawn = {}, {}
for name, (sampler, all_steps) in DIGIT_ROWS.items():
    walk = walker(eps_fn, sampler)
    for num_steps in all_steps:
        nfe = num_steps * CALLS_A_STEP.get(name, 1)
        z = walk(jax.random.key(7), grids.uniform(TOP, BOTTOM, num_steps), test_set.x.shape)
        drawn[name, nfe] = np.asarray(likelihood.decode(z, jnp.asarray(TOP)))
        quality[name, nfe] = bootstraps(drawn[name, nfe])

print(f"{'sampler':>18} {'NFE':>4} {'distance':>10} {'− ancestral, 50 calls':>30}")
print(f"{'training digits':>18} {'':>4} {floor[0]:10.4f} ± {floor[1:].std():.4f}")
for (name, nfe), found in quality.items():
    apart = found - quality["ancestral", 50]
    line = f"{name:>18} {nfe:>4} {found[0]:10.4f} ± {found[1:].std():.4f}"
    print(line + (f" {apart[0]:+12.4f} ± {apart[1:].std():.4f}" if apart[0] else ""))


def surely_better(one, other):
    """Whether one row's distance is lower by more than 4 standard errors of the difference."""
    apart = quality[other] - quality[one]
    return apart[0] > 4 * apart[1:].std()


assert surely_better(("dpmpp_2m", 5), ("ancestral", 5))
assert surely_better(("ancestral", 50), ("ancestral", 5))

# %%
figure = plt.figure(figsize=(10, 7), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=(1, 0.85))
axes = top.subplots()
for name in DIGIT_ROWS:
    calls = [nfe for row, nfe in quality if row == name]
    found = [quality[name, nfe] for nfe in calls]
    axes.errorbar(
        calls, [f[0] for f in found], [f[1:].std() for f in found], fmt="o-", ms=4, label=name
    )
axes.axhspan(floor[0] - floor[1:].std(), floor[0] + floor[1:].std(), color="0.85")
axes.axhline(floor[0], color="0.5", lw=1, label="training digits")
axes.set_xscale("log")
axes.set_xticks([5, 10, 20, 50], labels=["5", "10", "20", "50"])
axes.set_xticks([], minor=True)
axes.set(
    xlabel="calls of the network (NFE)",
    ylabel="sliced Wasserstein distance",
    title="Distance to held-out digits",
)
axes.legend(fontsize=7)

strip = [("ancestral", 5), ("ancestral", 50), ("ddim", 5), ("dpmpp_2m", 5), ("dpmpp_2m", 20)]
for axes, row in zip(bottom.subplots(len(strip), 1), strip, strict=True):
    axes.imshow(np.hstack([np.pad(image[..., 0], 1) for image in drawn[row][:20]]), cmap="gray")
    axes.set(xticks=[], yticks=[])
    axes.set_ylabel(f"{row[0]}\n{row[1]} calls", rotation=0, ha="right", va="center", fontsize=8)
plt.show()

# %% [markdown]
# *Above: distance to held-out digits over the calls of the network (± one standard deviation of
# bootstraps) and, in grey, what real digits come to. Below: the same twenty seeds by each sampler.*
#
# At 5 calls the second-order sampler is nearer than the ancestral one, and more calls change its
# distance little: what is left is not the sampler's error but the network's, and above the floor of
# real digits. The ancestral chain, whose law the bound describes, needs several times as
# many calls. The noise that it puts in may let later steps correct what the network got wrong
# earlier (Karras et al. 2022); the table's last column says whether it does here.
