# %% [markdown]
# # Likelihood
#
# How likely does a trained model find an image? What do the variational bound, its clipped form and
# the probability-flow ODE say about the same digits, and why do they not say the same?
#
# The first half has a mixture of Gaussians as its data: there the best denoiser $\varepsilon^*(z,
# \lambda) = E[\varepsilon \mid z]$ is a formula, and so is the density. The second half trains a
# small network on real digits. Throughout, $\lambda = \log \alpha^2/\sigma^2$ and $z = \alpha x +
# \sigma \varepsilon$.

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
    schedules,
)
from vdm.run.data import synthetic

jax.config.update("jax_enable_x64", True)  # likelihoods are compared to four digits

# %% [markdown]
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


key = jax.random.key(0)
HIGH, LOW = 8.0, -8.0  # λ at the data and at the noise
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
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(truth + correction, exact.log_prob, "o", ms=4)
left.axline((float(truth.mean()),) * 2, slope=1, color="0.6", lw=0.8)
left.set(xlabel="closed form (nats)", ylabel="log p(z_0) by the ODE", title="Exact trace")
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
    right.hist(error, bins=20, alpha=0.6, label=f"{num_probes} probes")
right.set(xlabel="error of log p(z_0) (nats)", ylabel="examples", title="Hutchinson's estimate")
right.legend()
plt.show()

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

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
z = jnp.linspace(-0.2, 0.2, 801)[:, None]
axes.plot(z, jnp.exp(log_density(pixel, z, jnp.array(TOP))), label="the model's density of z_0")
edges = (jnp.arange(LEVELS + 1) - LEVELS / 2) * 2 / LEVELS
for edge in edges[jnp.abs(edges) < 0.2]:
    axes.axvline(edge, color="0.6", lw=0.8, linestyle="--")
axes.set(xlabel="z_0", ylabel="density", title="Bins (dashed) and peaks of the grey levels")
axes.legend(loc="upper left")
plt.show()

# %% [markdown]
# ## Real digits: the variational bound at T steps, and clipped
#
# Now a model that errs: the smallest U-Net, trained for 600 steps on scikit-learn's digits with
# the velocity head and $p(\lambda) \propto \mathrm{sigmoid}(\lambda)$. From here on in float32.

# %%
jax.config.update("jax_enable_x64", False)
NUM_DIMS, TRAIN_STEPS = 64, 600
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
        params,
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
# What a finite $T$ costs follows the law of notebook 05, whose two errors at the ends are measured
# here. It is the leading term, good when a step in $\lambda$ is small: at $T = 10$ one step is 1.4.


# %%
@jax.jit
def error_at(key, log_snr):
    x = likelihood.encode(jnp.asarray(test_set.x))
    eps = jax.random.normal(key, x.shape)
    return jnp.mean(jnp.square(eps - eps_fn(diffusion.q_sample(x, eps, log_snr), log_snr)))


at_inf = vlb[None].diffusion.mean()
at_min, at_max = (  # in bits per dimension, as the bound is
    float(error_at(jax.random.key(3), jnp.asarray(end))) / math.log(2) for end in (BOTTOM, TOP)
)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
costs = {T: mean_and_error(vlb[T].total - vlb[None].total) for T in (10, 100, 1000)}
law = [gaps.steps_law(TOP, BOTTOM, at_inf, at_min, at_max, T) for T in costs]
left.errorbar(list(costs), *np.array(list(costs.values())).T, fmt="o", label="measured")
left.plot(list(costs), law, "k-", lw=0.8, label="law in 1/T")
left.set(xscale="log", yscale="log", xlabel="T", ylabel="bits per dimension above T = ∞")
left.legend()
right.plot(vlb[None].total, clipped.total, "o", ms=3)
right.axline((2.0, 2.0), slope=1, color="0.6", lw=0.8)
right.set(xlabel="bound of one image", ylabel="with x̂ clipped", title="bits per dimension")
plt.show()
assert abs(costs[100][0] - law[1]) < 4 * costs[100][1] + 0.1 * law[1]

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
# normal, the ODE's bound and the variational bound of the same images can be compared.

# %%
for name in list(ode_bound)[1:]:
    m, e = mean_and_error(ode_bound[name] - vlb[None].total[:NUM_ODE])
    print(f"ODE, {name} − variational bound at T = ∞: {m:+.3f} ± {e:.3f}")

rows = {f"T = {'∞' if t is None else t}": v.total[:NUM_ODE] for t, v in vlb.items() if t != 10}
rows["T = ∞, x̂ clipped"] = clipped.total[:NUM_ODE]
rows |= {f"ODE, {name}": values for name, values in ode_bound.items()}
figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
for i, (name, values) in enumerate(rows.items()):
    m, e = mean_and_error(values)
    axes.errorbar(m, i, xerr=2 * e, fmt="o", color="C0" if name.startswith("T") else "C1")
axes.set(yticks=range(len(rows)), yticklabels=rows, xlabel="bits per dimension")
axes.set_title(f"The same {NUM_ODE} held-out digits by every bound")
axes.invert_yaxis()
plt.show()

# %% [markdown]
# *± two standard errors of each mean. The bars are wide because digits differ, easy ones from hard
# ones. All bounds have the same digits, so that their differences are surer than their values.*
