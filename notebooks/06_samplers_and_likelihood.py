# %% [markdown]
# # Samplers and likelihood
#
# How many calls of the network does a good sample take, and which sampler spends them best? And
# how likely does a trained model find an image: what do the variational bound, its clipped form
# and the probability-flow ODE say about the same digits, and why do they not say the same?
#
# The first half has a mixture of Gaussians as its data. There the best denoiser
# $\varepsilon^*(z, \lambda) = E[\varepsilon \mid z]$ is a formula, so whatever error is left is the
# sampler's alone. The second half trains a small network on real digits, where the model errs too.
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

from vdm import (
    VDM,
    VLB,
    bits_per_dim,
    dequantisation,
    diffusion,
    gaps,
    likelihoods,
    networks,
    noise_levels,
    ode,
    samplers,
    schedules,
    sde,
)
from vdm.run.data import synthetic
from vdm.samplers import grids

jax.config.update("jax_enable_x64", True)  # orders of convergence need more than seven digits

# %% [markdown]
# ## Data whose best denoiser is known
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

# %% [markdown]
# ## A sampler is one step
#
# Every sampler of the library is a value with a function `step`, from $z_t$ at one noise level to
# $z_s$ at a cleaner one. `samplers.sample` compiles the walk along a whole grid of levels into one
# loop, which is what to use. Here many grids are tried, so we compile the step once and walk with
# a plain loop. Both give the same samples.


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


key = jax.random.key(0)
grid = grids.uniform(HIGH, LOW, 16)
by_hand = walker(toy_eps, samplers.ancestral())(key, grid, (100, 2))
by_library = samplers.sample(key, toy_eps, grid, (100, 2), sampler="ancestral")
assert np.allclose(by_hand, by_library, rtol=0.0, atol=1e-10)

# %% [markdown]
# The six names come down to fewer formulas. `exponential` has a noise level $a$ between the ODE
# ($a = 0$) and the reverse SDE ($a = 1$): its ends are `ddim` and `ancestral`. `euler_maruyama` has
# the same two ends, but does not solve the linear part of the equation exactly.

# %%
walks = {
    "ancestral": walker(toy_eps, samplers.ancestral()),
    "exponential(0.5)": walker(toy_eps, sde.exponential(0.5)),
    "euler_maruyama": walker(toy_eps, sde.euler_maruyama()),
    "ddim": walker(toy_eps, samplers.ddim()),
    "heun": walker(toy_eps, samplers.heun()),
    "dpmpp_2m": walker(toy_eps, samplers.dpmpp_2m()),
    "euler_maruyama(0)": walker(toy_eps, sde.euler_maruyama(0.0)),
}
CALLS_A_STEP = {"heun": 2}  # every other sampler calls the network once a step
for name, noise_level in (("ancestral", 1.0), ("ddim", 0.0)):
    same = walker(toy_eps, sde.exponential(noise_level))(key, grid, (100, 2))
    assert np.allclose(walks[name](key, grid, (100, 2)), same, rtol=0.0, atol=1e-10)

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

# %%
for calls, one, two in zip(STEPS[1:], endpoint["dpmpp_2m"][1:], endpoint["heun"][:-1], strict=True):
    print(f"{calls:4d} calls: dpmpp_2m {one:.5f}, heun {two:.5f}")
    assert one < two

# %% [markdown]
# ## Grids: where the steps go
#
# A grid decides where along $\lambda$ the calls are spent. Here are three: even steps in $\lambda$;
# the levels of EDM (Karras et al. 2022, eq. 5: even in $(\sigma/\alpha)^{1/7}$), whose steps in
# $\lambda$ grow towards the data; and even times on a cosine schedule, which lie close together in
# the middle and part at the ends.

# %%
steps_of_edm = np.diff(grids.edm(HIGH, LOW, 16))
assert np.all(np.diff(steps_of_edm) > 0)
cosine = schedules.cosine(HIGH, LOW)
build = {
    "even in λ": lambda n: grids.uniform(HIGH, LOW, n),
    "EDM": lambda n: grids.edm(HIGH, LOW, n),
    "cosine time": lambda n: grids.uniform_in_time(partial(cosine.log_snr, {}), n),
}
print(f"{'dpmpp_2m':>14}" + "".join(f"{n:>10} steps" for n in STEPS))
for name, of in build.items():
    error = np.array([endpoint_error("dpmpp_2m", of(int(n))) for n in STEPS])
    print(f"{name:>14}" + "".join(f"{e:16.5f}" for e in error))
    assert 3.0 < error[-2] / error[-1] < 5.0  # order 2 on every grid: a factor of 4

# %% [markdown]
# The grid moves the constant and not the order. Which one is best depends on the data and on the
# number of steps: it is the cheapest thing to try.
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
for name, error in law.items():
    print(f"{name:>18}" + "".join(f"{e:10.4f}" for e in error))
print(f"exact draws: {floor.mean():.4f}, at most {floor.max():.4f} in {len(floor)} trials")

# %% [markdown]
# The law of an ancestral sample converges at first order: the error halves as the steps double.
# Noise is no help here, for there is no error of a network that it could mend. After 64 steps
# `dpmpp_2m` has come down to the size of the Monte Carlo error, and the others have not.

# %%
for name in ("ancestral", "exponential(0.5)", "ddim"):
    halves = law[name][:-2] / law[name][1:-1]
    assert np.all((halves > 1.6) & (halves < 2.4)), halves
    assert law[name][-1] > 2 * floor.max()
assert law["dpmpp_2m"][-1] < 1.5 * floor.max()

# %% [markdown]
# What it looks like on the way: an ODE's path is smooth and settled early, an ancestral one
# rattles and decides late.

# %%
path_grid = grids.uniform(HIGH, LOW, 100)
paths = {
    name: samplers.trajectory(jax.random.key(4), toy_eps, path_grid, (40, 2), sampler=name)
    for name in ("dpmpp_2m", "ancestral")
}
figure, (left, *rest) = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
for name, error in endpoint.items():
    left.loglog(STEPS * CALLS_A_STEP.get(name, 1), error, "o-", label=name)
left.set(xlabel="calls of the denoiser (NFE)", ylabel="median error of $z_0$", title="End point")
left.legend(fontsize=7)
for axes, (name, path) in zip(rest, paths.items(), strict=True):
    for i in range(path.shape[1]):
        axes.plot(path_grid, path[:, i, 0], lw=0.7, color=plt.cm.viridis(i / path.shape[1]))
    axes.set(xlabel="λ, from noise to data", ylabel="first coordinate of z", title=name)

# %% [markdown]
# *Left: the slopes are the orders. Middle and right: forty paths from noise to data by the ODE and
# by the ancestral chain, from the same forty starts.*
#
# ## The ODE's likelihood, where the truth is a formula
#
# The ODE carries a density as well as points: along it $d \log p(z)/d\lambda = -\tfrac12 \sigma
# (\sigma D - \mathrm{tr}\, \partial\hat\varepsilon/\partial z)$, and at $\lambda_{\min}$ the
# density is the prior's (Song et al. 2021; the rule is that of Chen et al. 2018). With the exact
# denoiser the result is $\log q_{\lambda_{\max}}(z_0)$ up to one term: the ODE ends in
# $q_{\lambda_{\min}}$, and we have put $N(0, I)$ in its place.
#
# The trace costs one product with the Jacobian for each dimension. Hutchinson's estimate takes a
# few random probes instead: unbiased, with a standard error that the solution reports.

# %%
DIM, NUM_POINTS = 8, 100
rng = np.random.default_rng(0)
wide = Mixture(
    weights=jnp.array([0.5, 0.3, 0.2]),
    means=jnp.asarray(rng.normal(size=(3, DIM))),
    widths=jnp.array([0.6, 0.4, 0.25]),
)
component = rng.choice(3, NUM_POINTS, p=wide.weights)
x = wide.means[component] + wide.widths[component, None] * rng.normal(size=(NUM_POINTS, DIM))
z_0 = diffusion.q_sample(x, jnp.asarray(rng.normal(size=x.shape)), jnp.array(HIGH))
solve = partial(ode.solve, eps_fn=exact_denoiser(wide), log_snr_max=HIGH, log_snr_min=LOW)
exact = jax.jit(lambda z: solve(key, z_0=z, num_steps=100))(z_0)

truth = log_density(wide, z_0, jnp.array(HIGH))
log_prior = -0.5 * jnp.sum(jnp.square(exact.latent), 1) - 0.5 * DIM * math.log(2 * math.pi)
correction = log_prior - log_density(wide, exact.latent, jnp.array(LOW))
print(f"log p(z_0), mean of all examples:  {exact.log_prob.mean():.6f} nats")
print(f"closed form:                       {truth.mean():.6f}")
print(f"closed form, N(0, I) at λ_min:     {(truth + correction).mean():.6f}")
assert np.allclose(exact.log_prob, truth + correction, rtol=0.0, atol=1e-4)

# %%
print("probes   error of one example   standard error it reports   mean error, in standard errors")
for num_probes in (2, 32):
    found = jax.jit(
        lambda z, p=num_probes: solve(
            jax.random.split(key, NUM_POINTS),
            z_0=z,
            divergence="hutchinson",
            num_probes=p,
            num_steps=40,
        )
    )(z_0)
    error = found.log_prob - exact.log_prob
    in_its_own = float(error.mean() / (error.std(ddof=1) / math.sqrt(NUM_POINTS)))
    rms, reported = (float(jnp.sqrt(jnp.mean(e**2))) for e in (error, found.standard_error))
    print(f"{num_probes:6d} {rms:22.3f} {reported:27.3f} {in_its_own:33.1f}")
    assert abs(in_its_own) < 5  # unbiased, k = 5
    assert 0.5 < rms / reported < 2.0  # and honest about its error

# %% [markdown]
# ## Why uniform dequantisation is loose
#
# For integers the ODE needs a $z_0$ that is not an integer. A dequantisation draws $z_0$ in the
# pixel's bin from some $q(z_0 \mid x)$, and $\log P(x) \ge E[\log p(z_0) - \log q(z_0 \mid x)]$.
# The bound is tight where $q$ looks like the model's density in the bin. At $\lambda_{\max} = 8$
# the noise left in $z_0$ is $\tau = e^{\lambda_{\max}/2}/V = 3.2$ times narrower than half a bin of
# $V = 17$ grey levels: the model was trained on narrow peaks, and puts its mass there. The
# truncated normal (Zheng et al. 2023) draws from that very peak. The uniform law draws anywhere in
# the bin and loses $KL(\text{uniform} \,\|\, \text{peak}) = \tfrac{\tau^2}{6} + \log
# \frac{\sqrt{2\pi}\,\mathrm{erf}(\tau/\sqrt 2)}{2\tau}$ nats in each dimension.
#
# One pixel with the grey levels of the digits and its exact denoiser shows it: a mixture of
# peaks without width.

# %%
LEVELS, TOP, BOTTOM = 17, 8.0, -6.0
train_set, test_set = synthetic.digits("train"), synthetic.digits("test")
share = np.bincount(train_set.x.ravel(), minlength=LEVELS) / train_set.x.size
likelihood = likelihoods.discretised(LEVELS)
grey = jnp.arange(LEVELS)[:, None]
pixel = Mixture(jnp.asarray(share), likelihood.encode(grey), jnp.zeros(LEVELS))
entropy = -float(np.sum(share * np.log(share)))

tau = math.exp(TOP / 2) / LEVELS
mass = math.erf(tau / math.sqrt(2))
predicted_loss = tau**2 / 6 + math.log(math.sqrt(2 * math.pi) * mass / (2 * tau))
bits = predicted_loss / math.log(2)

one_pixel = jax.jit(
    lambda z: ode.log_prob(
        key, exact_denoiser(pixel), z, log_snr_max=TOP, log_snr_min=BOTTOM, num_steps=150
    )
)
drawn_x = jnp.asarray(rng.choice(LEVELS, 500, p=share))[:, None]
loss = {}
for name in ("truncated_normal", "uniform"):
    z_0, log_weight = dequantisation.dequantiser(likelihood, name).draw(
        key, drawn_x, jnp.array(TOP)
    )
    excess = jnp.log(share[drawn_x[:, 0]]) - (one_pixel(z_0) + log_weight)
    loss[name] = (float(excess.mean()), float(excess.std(ddof=1)) / math.sqrt(len(excess)))
    print(f"{name:>16}: above −log P(x) by {loss[name][0]:.3f} ± {loss[name][1]:.3f} nats")
print(f"{'closed form':>16}: {predicted_loss:.3f} nats for uniform, {bits:.2f} bits")
assert abs(loss["uniform"][0] - predicted_loss) < 5 * loss["uniform"][1]
assert abs(loss["truncated_normal"][0]) < 0.01

# %% [markdown]
# ## Real digits
#
# Now a model that errs: the smallest U-Net, trained for 600 steps on scikit-learn's digits with
# the velocity head and $p(\lambda) \propto \mathrm{sigmoid}(\lambda)$. From here on in float32.

# %%
jax.config.update("jax_enable_x64", False)
SHAPE, NUM_DIMS, TRAIN_STEPS, BATCH = (8, 8, 1), 64, 600, 32
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
params = jax.jit(model.init)(jax.random.key(0), train_set.x[:1])
rate = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 100, TRAIN_STEPS)
optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))


@jax.jit
def train_step(params, state, average, key, batch):
    key_level, key_noise = jax.random.split(key)
    positions = noise_levels.low_discrepancy(key_level, BATCH)
    levels = noise_levels.sigmoid_law(positions, TOP, BOTTOM)

    def loss(params):
        terms = model.vlb(params, key_noise, batch, noise_levels=levels)
        return bits_per_dim(terms.total, NUM_DIMS).mean()

    updates, state = optimiser.update(jax.grad(loss)(params), state)
    params = optax.apply_updates(params, updates)
    return params, state, optax.incremental_update(params, average, 0.01)


state, average = optimiser.init(params), params
for step, key in enumerate(jax.random.split(jax.random.key(1), TRAIN_STEPS)):
    batch = train_set.x[np.random.default_rng(step).integers(0, len(train_set), BATCH)]
    params, state, average = train_step(params, state, average, key, batch)

# %% [markdown]
# ## The variational bound at T steps, and clipped
#
# Every test image is looked at on 8 even times with an offset of its own. The same noise
# serves the plain bound and the one whose $\hat x$ is clipped to the range of the data, so that the
# two can be compared image by image: $\|\varepsilon - \hat\varepsilon\|^2$ is
# $e^\lambda \|x - \hat x\|^2$, and a projection onto a box that contains $x$ can only bring
# $\hat x$ nearer.

# %%
NUM_LEVELS = 8
num_test = len(test_set)
repeated = np.repeat(test_set.x, NUM_LEVELS, axis=0)
offsets = np.repeat(np.random.default_rng(1).uniform(size=num_test), NUM_LEVELS)
times = jnp.asarray((offsets + np.tile(np.arange(NUM_LEVELS), num_test) / NUM_LEVELS) % 1.0)
bound_fn = jax.jit(model.vlb, static_argnames="clip_denoised")


def per_image(values):
    return np.asarray(values, np.float64).reshape(num_test, NUM_LEVELS).mean(1)


def mean_and_error(values):
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


def bound(num_steps, clip=False):
    terms = bound_fn(
        average,
        jax.random.key(2),
        repeated,
        noise_levels=times,
        num_steps=num_steps,
        clip_denoised=clip,
    )
    return VLB(*(per_image(bits_per_dim(term, NUM_DIMS)) for term in terms))


vlb = {num_steps: bound(num_steps) for num_steps in (10, 100, 1000, None)}
clipped = bound(None, clip=True)
for num_steps, terms in vlb.items():
    m, e = mean_and_error(terms.total)
    print(f"T = {'∞' if num_steps is None else num_steps:>4}: {m:.3f} ± {e:.3f} bits per dimension")
gained, error = mean_and_error(vlb[None].total - clipped.total)
print(f"clipping gains {gained:.4f} ± {error:.4f} at T = ∞")
assert np.all(clipped.total <= vlb[None].total + 1e-4) and gained > 4 * error

# %% [markdown]
# What a finite $T$ costs follows a law: for $\lambda$ linear in $t$,
# $L_T - L_\infty \approx \frac{\Delta\lambda}{4T}\,(2 L_\infty + m(\lambda_{\min}) -
# m(\lambda_{\max}))$ with $m = E\|\varepsilon - \hat\varepsilon\|^2$. It is the leading term, good
# when a step in $\lambda$ is small: at $T = 10$ one step is 1.4.

# %%
eps_fn = model.denoiser(average)


@jax.jit
def error_at(key, log_snr):
    x = likelihood.encode(jnp.asarray(test_set.x))
    eps = jax.random.normal(key, x.shape)
    return jnp.mean(jnp.square(eps - eps_fn(diffusion.q_sample(x, eps, log_snr), log_snr)))


at_inf = vlb[None].diffusion.mean()
at_min, at_max = (  # in bits per dimension, as the bound is
    float(error_at(jax.random.key(3), jnp.asarray(end))) / math.log(2) for end in (BOTTOM, TOP)
)
for num_steps in (10, 100, 1000):
    cost, error = mean_and_error(vlb[num_steps].total - vlb[None].total)
    predicted = gaps.steps_law(TOP, BOTTOM, at_inf, at_min, at_max, num_steps)
    print(f"T = {num_steps:4d} costs {cost:.4f} ± {error:.4f}, by the law {predicted:.4f}")
    if num_steps > 10:
        assert cost > 4 * error and abs(cost - predicted) < 4 * error + 0.1 * predicted

# %% [markdown]
# ## The ODE's bound on the same digits
#
# The ODE is another model than the chain: same network, no noise, no decoder. $z_0$ is drawn for
# each of 24 images, once by the uniform dequantisation and $K = 4$ times by the truncated normal.
# With $K$ draws the bound is $\log \frac{1}{K} \sum_k w_k$ (Burda et al. 2016): tighter, and honest
# only with its $-\log K$.
#
# All draws of an image share the steps and one Hutchinson probe, and there are 24 steps, 145 calls
# of the network: whatever noise the weights get from a coarse solver or from fresh probes, the
# average of $K$ weights would take for likelihood.

# %%
NUM_ODE, K = 24, 4
solve_digits = jax.jit(
    lambda z: ode.log_prob(
        jax.random.key(5),
        eps_fn,
        z,
        log_snr_max=TOP,
        log_snr_min=BOTTOM,
        divergence="hutchinson",
        num_steps=24,
    )
)
chosen = jnp.asarray(test_set.x[:NUM_ODE])


def log_weights(name, num_draws):
    dequantise = dequantisation.dequantiser(likelihood, name)
    rows = []
    for key in jax.random.split(jax.random.key(6), num_draws):
        z_0, log_weight = dequantise.draw(key, chosen, jnp.asarray(TOP))
        rows.append(solve_digits(z_0) + log_weight)
    return jnp.stack(rows)


def bpd(log_prob):
    return np.asarray(bits_per_dim(-log_prob, NUM_DIMS), np.float64)


weights = log_weights("truncated_normal", K)
ode_bound = {
    "uniform, K = 1": bpd(log_weights("uniform", 1)[0]),
    "truncated normal, K = 1": bpd(weights.mean(0)),
    f"truncated normal, K = {K}": bpd(dequantisation.importance_weighted(weights)),
}
for name, values in ode_bound.items():
    m, e = mean_and_error(values)
    print(f"{name:>23}: {m:.3f} ± {e:.3f} bits per dimension")
print(f"without −log K it would read {bpd(jax.nn.logsumexp(weights, axis=0)).mean():.3f}")
loosest, single, several = ode_bound.values()
apart, error = mean_and_error(loosest - single)
print(f"uniform − truncated normal, K = 1: {apart:.3f} ± {error:.3f}")
assert apart > 4 * error and np.all(several <= single + 1e-5)

# %% [markdown]
# Uniform dequantisation is loose here too, by less than the closed form of a perfect model says:
# this one is not quite as sure that nothing lies between the grey levels. Nothing is wrong with
# the model: the bound is loose, and a larger $\lambda_{\max}$ makes it looser. With the truncated
# normal, the ODE's bound and the variational bound of the same images can be compared:

# %%
assert apart - 4 * error < bits
for name in list(ode_bound)[1:]:
    m, e = mean_and_error(ode_bound[name] - vlb[None].total[:NUM_ODE])
    print(f"ODE, {name} − variational bound at T = ∞: {m:+.3f} ± {e:.3f}")

# %% [markdown]
# ## Quality against NFE
#
# For digits the law is not known, only held-out examples of it. The sliced Wasserstein distance
# projects samples and 297 test digits on 100 fixed directions and compares the sorted
# projections, root mean square. 297 *training* digits give the floor: what a perfect model would
# show. All rows start from the same noise, so their differences are surer than their values.

# %%
directions = np.random.default_rng(0).normal(size=(NUM_DIMS, 100))
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
        i, j = rng.integers(0, num_test, (2, num_test))
        found.append(distance(one[i], held_out[j]))
    return np.array(found)


clipped_eps = model.denoiser(average, clip_denoised=True)
DIGIT_ROWS = {
    "ancestral": (eps_fn, samplers.ancestral(), (5, 10, 20, 50)),
    "ddim": (eps_fn, samplers.ddim(), (5, 10, 20)),
    "heun": (eps_fn, samplers.heun(), (5, 10)),
    "dpmpp_2m": (eps_fn, samplers.dpmpp_2m(), (5, 10, 20)),
    "dpmpp_2m, clipped": (clipped_eps, samplers.dpmpp_2m(), (5, 10)),
}
floor = bootstraps(train_set.x[:num_test])
quality, drawn = {}, {}
for name, (denoise, sampler, all_steps) in DIGIT_ROWS.items():
    walk = walker(denoise, sampler)
    for num_steps in all_steps:
        nfe = num_steps * CALLS_A_STEP.get(name, 1)
        z = walk(jax.random.key(7), grids.uniform(TOP, BOTTOM, num_steps), (num_test, *SHAPE))
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
at_20 = quality["dpmpp_2m", 20][0]
assert quality["dpmpp_2m", 5][0] < quality["ddim", 5][0] and at_20 > floor[0]
for row in (("dpmpp_2m", 5), ("dpmpp_2m", 10), ("dpmpp_2m, clipped", 5)):
    assert abs(quality[row][0] - at_20) < 0.15 * at_20

# %% [markdown]
# At 5 calls the second-order sampler is nearer than both first-order ones, and more calls change
# its distance little: what is left is not the sampler's error but the network's, and above the
# floor of real digits. The ancestral chain, whose law is what the bound speaks of, needs several
# times as many calls. Whether it then comes out nearer than the ODE's samplers, because the noise
# that it puts in lets later steps correct what the network got wrong earlier (Karras et al. 2022),
# is for the last column to say: count its standard errors. Clipping $\hat x$, which made the bound
# surely tighter, changes these samples little.
#
# ## The whole picture

# %%
figure = plt.figure(figsize=(10, 7), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=(1, 0.85))
left, right = top.subplots(1, 2)
for name in DIGIT_ROWS:
    calls = [nfe for row, nfe in quality if row == name]
    found = [quality[name, nfe] for nfe in calls]
    left.errorbar(
        calls, [f[0] for f in found], [f[1:].std() for f in found], fmt="o-", ms=4, label=name
    )
left.axhspan(floor[0] - floor[1:].std(), floor[0] + floor[1:].std(), color="0.85")
left.axhline(floor[0], color="0.5", lw=1, label="training digits")
left.set_xscale("log")
left.set_xticks([5, 10, 20, 50], labels=["5", "10", "20", "50"])
left.set_xticks([], minor=True)
left.set(
    xlabel="calls of the network (NFE)",
    ylabel="sliced Wasserstein distance",
    title="Distance to held-out digits",
)
left.legend(fontsize=7)

rows = {f"T = {'∞' if t is None else t}": terms.total for t, terms in vlb.items() if t != 10}
rows["T = ∞, x̂ clipped"] = clipped.total
rows |= {f"ODE, {name}": values for name, values in ode_bound.items()}
for i, (name, values) in enumerate(rows.items()):
    m, e = mean_and_error(values)
    right.errorbar(m, i, xerr=2 * e, fmt="o", color="C0" if name.startswith("T") else "C1")
right.set(yticks=range(len(rows)), yticklabels=rows, xlabel="bits per dimension")
right.set_title("Held-out digits by every bound")
right.invert_yaxis()

strip = [("ancestral", 5), ("ancestral", 50), ("ddim", 5), ("dpmpp_2m", 5), ("dpmpp_2m", 20)]
for axes, row in zip(bottom.subplots(len(strip), 1), strip, strict=True):
    axes.imshow(np.hstack([np.pad(image[..., 0], 1) for image in drawn[row][:20]]), cmap="gray")
    axes.set(xticks=[], yticks=[])
    axes.set_ylabel(f"{row[0]}\n{row[1]} calls", rotation=0, ha="right", va="center", fontsize=8)

# %% [markdown]
# *Left: distance to held-out digits over the calls of the network (± one standard deviation of
# bootstraps) and, in grey, what real digits come to. Right: the same model by every bound, ± two
# standard errors (all 297 images for the variational bounds, 24 for the ODE's). Below: the same
# twenty seeds by each sampler.*
