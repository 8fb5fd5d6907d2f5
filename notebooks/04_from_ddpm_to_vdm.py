# %% [markdown]
# # From DDPM to variational diffusion
#
# How does a variational lower bound become "predict the noise, squared error"? And what is DDPM's
# own loss, in the terms of that bound? We walk the way on data so small that every term can be
# computed exactly, and compare each term with a number from elsewhere. What is left once the number
# of steps goes to infinity is the subject of notebook 05.
#
# The data: one pixel with eight grey levels. Its law is a table, so its entropy is known, and so
# is the best denoiser. There is no training in this notebook, and hence no training noise.

# %%
import math

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from vdm import ddpm, diffusion, likelihoods, losses, weightings

LN2 = math.log(2.0)


# %% [markdown]
# ## One latent: the ELBO twice
#
# A model with a latent variable has $p(x) = \int p(x|z)\,p(z)\,dz$. For any density $q(z|x)$,
# Jensen's inequality moves the logarithm inside an expectation:
#
# $$\log p(x) = \log \mathbb E_{q}\Big[\frac{p(x,z)}{q(z|x)}\Big]
#   \;\ge\; \mathbb E_{q}\Big[\log\frac{p(x,z)}{q(z|x)}\Big] = \mathrm{ELBO}.$$
#
# Jensen does not say how much is lost. Bayes' rule, $p(x,z) = p(x)\,p(z|x)$, does:
#
# $$\mathrm{ELBO} = \log p(x) - \mathrm{KL}\big(q(z|x)\,\|\,p(z|x)\big).$$
#
# Take $z \sim N(0,1)$ and $x|z \sim N(1.5 z, 0.8^2)$. Then $p(x)$ and $p(z|x)$ are Gaussian, and
# both right-hand sides can be computed apart: the first by quadrature over $z$, without any
# knowledge of $p(z|x)$; the second from the closed form of the KL between two Gaussians.


# %%
def log_normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance))


def kl_normal(mean_q, variance_q, mean_p, variance_p):
    """KL(N(mean_q, variance_q) ‖ N(mean_p, variance_p)), elementwise, in nats."""
    ratio = variance_q / variance_p
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean_q - mean_p) ** 2 / variance_p)


gain, noise, x_seen = 1.5, 0.8**2, 1.2
log_p = log_normal(x_seen, 0.0, gain**2 + noise)
posterior_variance = 1 / (1 + gain**2 / noise)
posterior_mean = posterior_variance * gain * x_seen / noise

nodes, weights = np.polynomial.hermite_e.hermegauss(40)  # exact for what is integrated here
weights = weights / weights.sum()


def elbo(mean, variance):
    z = mean + np.sqrt(variance) * nodes
    log_joint = log_normal(z, 0.0, 1.0) + log_normal(x_seen, gain * z, noise)
    return weights @ (log_joint - log_normal(z, mean, variance))


means = np.linspace(-0.6, 1.8, 61)
figure, axes = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for factor in (1, 2, 4):
    variance = factor * posterior_variance
    first = np.array([elbo(mean, variance) for mean in means])
    second = log_p - kl_normal(means, variance, posterior_mean, posterior_variance)
    assert np.allclose(first, second, rtol=0, atol=1e-10)
    axes.plot(means, first, label=f"q with {factor} × the posterior's variance")
axes.axhline(log_p, color="black", linewidth=1, linestyle="--", label="log p(x)")
axes.set(xlabel="mean of q(z|x)", ylabel="ELBO (nats)", title="One datum, many q")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Each curve is a choice of q's width. Only the q that *is* the posterior touches the dashed line.
# The loss of a bound is a KL, so it has a floor of zero, and one can ask which q reaches it.

# %% [markdown]
# ## The data, and its best denoiser
#
# Eight levels with the probabilities below, placed in $[-1, 1]$ as the library places grey levels.
# A noised pixel is $z = \alpha x + \sigma\varepsilon$ with $\alpha^2 = \mathrm{sigmoid}(\lambda)$,
# $\sigma^2 = \mathrm{sigmoid}(-\lambda)$: everything is said by
# $\lambda = \log \alpha^2/\sigma^2$, the log signal-to-noise ratio, which falls as time runs from
# 0 (data) to 1 (noise).
#
# The best guess of the noise, $\hat\varepsilon = E[\varepsilon|z]$, follows from Bayes' rule:
# weigh the eight levels by how well each explains $z$.

# %%
probs = np.array([0.30, 0.05, 0.02, 0.10, 0.25, 0.03, 0.05, 0.20])
likelihood = likelihoods.discretised(8)
levels = likelihood.encode(jnp.arange(8))  # the eight values of x
entropy = -np.sum(probs * np.log(probs))
print(f"entropy H(x) = {entropy / LN2:.4f} bits; a code that knows nothing takes 3")


def exact_eps(z, log_snr):
    """E[ε|z], z of shape [b, 1]."""
    log_snr = diffusion.expand(log_snr, z)
    gap = (z - diffusion.alpha(log_snr) * levels[None]) / diffusion.sigma(log_snr)  # ε, if x were k
    share = jax.nn.softmax(jnp.log(probs)[None] - 0.5 * gap**2, axis=1)
    return jnp.sum(share * gap, axis=1, keepdims=True)


# %% [markdown]
# Expectations over data and noise are sums here: eight values of x, and a fine grid of ε. The
# trapezoidal rule is exact to many digits for a smooth function times a Gaussian. `expect` takes
# any function of `(x, eps)`, such as the library's losses, and averages it exactly.

# %%
grid = np.linspace(-8.5, 8.5, 171)
grid_weights = np.exp(-0.5 * grid**2) / np.exp(-0.5 * grid**2).sum()
x_nodes = jnp.repeat(jnp.arange(8), len(grid))[:, None]
eps_nodes = jnp.tile(grid, 8)[:, None]
node_weights = jnp.asarray(np.outer(probs, grid_weights).ravel())


def expect(loss):
    """E over x ~ P and ε ~ N(0, 1) of a loss of shape [b]."""
    return node_weights @ loss(likelihood.encode(x_nodes), eps_nodes)


@jax.jit
def mean_error(log_snrs):
    """m(λ) = E‖ε − ε̂‖² for each λ: the one curve that everything below is made of."""
    return jax.lax.map(
        lambda log_snr: expect(lambda x, eps: losses.noise_error(x, eps, log_snr, exact_eps)),
        log_snrs,
    )


figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
curve = jnp.linspace(-10, 9, 401)
axes.plot(curve, mean_error(curve))
axes.set(xlabel="λ = log SNR", ylabel="m(λ)", title="The best denoiser's mean squared error")
plt.show()

# %% [markdown]
# In pure noise the noise is all there is to see, and the error is 0. Where the signal is strong
# (λ > 6) the level is plain, and with it the noise. In between the denoiser must guess.
#
# ## Many latents: a chain
#
# A diffusion model is a hierarchical VAE whose q is fixed: $z_0, z_1, \dots, z_T$, each a little
# noisier than the one before. (Times $t = i/T$; we write the index.) The model runs backwards,
# $p(z_T)\,p(z_{T-1}|z_T)\cdots p(z_0|z_1)\,p(x|z_0)$, and the bound is, as before, the mean over q
# of $\log q - \log p$. There are two ways to cut it in pieces.
#
# **First form.** q as it is generated, from clean to noisy:
#
# $$-\mathrm{ELBO} = \mathbb E_q\Big[-\log p(x|z_0)
#  + \sum_{i=0}^{T-1} \log\frac{q(z_i|z_{i-1})}{p(z_i|z_{i+1})}
#  + \log\frac{q(z_T|z_{T-1})}{p(z_T)}\Big], \qquad q(z_0|z_{-1}) := q(z_0|x).$$
#
# Each "consistency" term asks whether $z_i$, come from its cleaner neighbour, also looks as if it
# came from its noisier one. It needs three neighbours at once.
#
# **Second form.** q turned round by Bayes' rule,
# $q(z_i|z_{i-1}) = q(z_{i-1}|z_i, x)\,q(z_i|x)/q(z_{i-1}|x)$; the quotients telescope, and
#
# $$-\mathrm{ELBO} = \mathbb E_q\Big[-\log p(x|z_0)
#  + \sum_{i=1}^{T} \log\frac{q(z_{i-1}|z_i,x)}{p(z_{i-1}|z_i)}\Big]
#  + \mathrm{KL}(q(z_T|x)\,\|\,p(z_T)).$$
#
# Now each term compares two Gaussians for the same variable given the same $z_i$, so the average
# over $z_{i-1}$ can be done in closed form: $\mathrm{KL}(q(z_{i-1}|z_i,x)\|p(z_{i-1}|z_i))$. This
# is the step from eq. 3 to eq. 5 of Ho et al. (2020). It replaces a sample by its conditional
# mean, which keeps the expectation and can only lower the variance (Rao and Blackwell).
#
# How much does it matter? We run the chain many times for one value of x and keep every term. The
# model's mean is that of $q(z_{i-1}|z_i,\hat x)$ with the denoiser's $\hat x$ in the place of x,
# and its variance is the same.

# %%
high, low = 9.2, -10.1  # about the ends of DDPM's chain
x_one, num_paths = 3, 4000


def log_q(z, mean, std):
    return jnp.sum(-0.5 * ((z - mean) / std) ** 2 - jnp.log(std) - 0.5 * math.log(2 * math.pi), 1)


def model_step(z_t, log_snr_t, log_snr_s):
    x_hat = diffusion.convert(exact_eps(z_t, log_snr_t), z_t, log_snr_t, source="eps", target="x")
    return diffusion.posterior(z_t, x_hat, log_snr_t, log_snr_s)


def run_chain(key, num_steps):
    """Every term of three estimators for x_one, each [T or so, paths], one set of paths for all."""
    x = jnp.full((num_paths, 1), levels[x_one])
    at = jnp.linspace(high, low, num_steps + 1)
    keys = jax.random.split(key, num_steps + 1)
    z_0 = diffusion.q_sample(x, jax.random.normal(keys[0], x.shape), at[0])
    start = log_q(z_0, diffusion.alpha(at[0]) * x, diffusion.sigma(at[0]))

    def step(carry, inputs):
        z_s, log_forward_s = carry
        s, t, key = inputs
        mean, std = diffusion.transition(z_s, s, t)
        z_t = mean + std * jax.random.normal(key, z_s.shape)
        backward_p = log_q(z_s, *model_step(z_t, t, s))
        mean_q, std_q = diffusion.posterior(z_t, x, t, s)
        kl = jnp.sum((mean_q - model_step(z_t, t, s)[0]) ** 2 / (2 * std_q**2), 1)
        terms = (log_forward_s - backward_p, log_q(z_s, mean_q, std_q) - backward_p, kl)
        return (z_t, log_q(z_t, mean, std)), terms

    (z_T, last), terms = jax.lax.scan(step, (z_0, start), (at[:-1], at[1:], keys[1:]))
    decoder = -likelihood.log_prob(jnp.full((num_paths, 1), x_one), z_0, at[0])
    prior = log_q(z_T, 0.0, 1.0)
    end = log_q(z_T, diffusion.alpha(low) * x, diffusion.sigma(low)) - prior
    ends = (last - prior + decoder, end + decoder, losses.prior_kl(x, at[-1]) + decoder)
    return [jnp.concatenate([t, e[None]]) for t, e in zip(terms, ends, strict=True)]


names = ("first form", "second form, sampled", "second form, KL")
chains = {
    num_steps: [np.asarray(v) for v in jax.jit(run_chain, static_argnums=1)(key, num_steps)]
    for num_steps, key in zip((10, 100, 1000), jax.random.split(jax.random.key(1), 3), strict=True)
}
for num_steps, (first, second, closed) in chains.items():
    # The two forms are the same number on every path, and the closed one has the same mean.
    assert np.allclose(first.sum(0), second.sum(0), rtol=0, atol=1e-8)
    difference = second.sum(0) - closed.sum(0)
    assert abs(difference.mean()) < 5 * difference.std() / num_paths**0.5
    print(f"T = {num_steps:4d}:  −ELBO = {first.sum(0).mean() / LN2:.3f} (sampled), ", end="")
    print(f"{closed.sum(0).mean() / LN2:.3f} bits (closed KL); difference ", end="")
    print(f"{difference.mean() / LN2:+.3f} ± {difference.std() / LN2 / num_paths**0.5:.3f}")

# %% [markdown]
# In practice nobody simulates whole paths: each term is estimated from draws of its own. Then the
# variances of the terms add up. Here is that sum.

# %%
variances = {T: [v.var(1, ddof=1).sum() for v in terms] for T, terms in chains.items()}
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for row, name in enumerate(names):
    axes.loglog(list(variances), [v[row] for v in variances.values()], "o-", label=name)
axes.set(
    xlabel="number of steps T", ylabel="variance (nats²)", title="One number, estimated thrice"
)
axes.legend(frameon=False)
plt.show()
assert variances[1000][0] > 3e3 * variances[1000][2]

# %% [markdown]
# Three estimators of one number, and three laws. The first form grows like T: each of its terms
# compares noise that was drawn in two different steps, and brings a variance of about 1 that does
# not shrink with the step. The sampled second form settles at twice the sum of the KLs. The closed
# form falls like 1/T. At a thousand steps the first needs thousands of times as many draws as the
# last. From here on the closed form is the only one we need.

# %% [markdown]
# ## DDPM, term by term
#
# DDPM states its process by a thousand variances,
# $x_n = \sqrt{1-\beta_n}\,x_{n-1} + \sqrt{\beta_n}\,\varepsilon$, with β rising linearly from 10⁻⁴
# to 0.02 (Ho et al. 2020, section 4). The mean and variance of $q(x_{n-1}|x_n, x_0)$ (eq. 6 and 7)
# are what Bayes' rule makes of a product of two Gaussians, $q(x_{n-1}|x_0)\,q(x_n|x_{n-1})$.
#
# The model's mean has the same form with $\hat x$ for x. For its variance there are two usual
# choices, the posterior's own $\tilde\beta_n$ or $\beta_n$ itself (section 3.2 there). With
# $\tilde\beta_n$ the term is
#
# $$L_{n-1} = \tfrac12\Big(\frac{\mathrm{SNR}_{n-1}}{\mathrm{SNR}_n} - 1\Big)
#           \|\varepsilon-\hat\varepsilon\|^2
#           = \tfrac12\,\mathrm{expm1}(\lambda_{n-1}-\lambda_n)\,
#           \|\varepsilon-\hat\varepsilon\|^2 .$$
#
# No α, no β: nothing but differences of λ. With $\beta_n$ the squared error counts
# $\tilde\beta_n/\beta_n$ times as much, and there is a constant on top for the wrong width.
# `ddpm.step_kl` does either, and `expect` averages it over all x and ε.


# %%
chain = ddpm.from_betas(np.linspace(1e-4, 0.02, 1000))


@jax.jit
def chain_terms(n):
    return jnp.stack(
        [
            expect(lambda x, eps, v=v: ddpm.step_kl(x, n, eps, chain, exact_eps, variance=v))
            for v in ddpm.chain.VARIANCES
        ]
    )


every = jnp.arange(2, chain.num_latents + 1)
kl_posterior, kl_beta = np.asarray(jax.lax.map(chain_terms, every)).T / LN2

# The same terms from the curve m(λ) alone.
by_curve = 0.5 * np.expm1(-np.diff(chain.log_snrs)) * mean_error(jnp.asarray(chain.log_snrs[1:]))
assert np.allclose(kl_posterior, by_curve / LN2, rtol=1e-10)

prior = expect(lambda x, eps: losses.prior_kl(x, jnp.asarray(chain.log_snrs[-1]))) / LN2
decoder = (
    expect(lambda x, eps: losses.reconstruction(x_nodes, eps, chain.log_snr(1), likelihood)) / LN2
)
print(f"L_T (prior)         {prior:.6f} bits")
print(f"Σ L_n−1             {kl_posterior.sum():.6f} with σ² = β̃,  {kl_beta.sum():.6f} with σ² = β")
print(f"−log p(x|z_0)       {decoder:.6f}")
print(f"bound, σ² = β̃       {prior + kl_posterior.sum() + decoder:.6f}")
print(f"entropy             {entropy / LN2:.6f}")
assert entropy / LN2 < prior + kl_posterior.sum() + decoder < 1.05 * entropy / LN2
assert kl_beta.sum() > kl_posterior.sum()

# %% [markdown]
# With the exact denoiser the bound is above the entropy, as it must be, by less than 5 %; the
# decoder costs nothing, for the first latent gives the level away. Where are the bits? Fifty steps
# to a bar:

# %%
edges = np.arange(0, 1000, 50)
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
for shift, name, terms in (
    (0, r"$\sigma^2 = \tilde\beta_n$", kl_posterior),
    (20, r"$\sigma^2 = \beta_n$", kl_beta),
):
    heights = np.add.reduceat(np.append(0.0, terms), edges)
    axes.bar(edges + 5 + shift, heights, width=20, align="edge", label=name)
axes.set(xlabel="step n (fifty to a bar)", ylabel="Σ L (bits)", title="DDPM's bound, by step")
axes.legend(frameon=False)
plt.show()

first_share = kl_posterior[:199].sum() / kl_posterior.sum()
print(f"the first 200 of 1000 steps hold {first_share:.0%} of the bits")
assert first_share > 0.75

# %% [markdown]
# Most bits are in the first steps, where grey levels are told apart; most of the thousand
# steps hardly count. The wider σ² = β costs something extra, at the first steps above all.

# %% [markdown]
# ## L_simple is a weighting
#
# At a given z and λ, the noise, the data, $v = \alpha\varepsilon - \sigma x$ (Salimans & Ho 2022)
# and the score $-\varepsilon/\sigma$ determine each other (`diffusion.convert`). So it is no
# question of *what* is learned; the errors differ only by factors of λ:
#
# $$\|x-\hat x\|^2 = e^{-\lambda}\|\varepsilon-\hat\varepsilon\|^2,\qquad
#   \|v-\hat v\|^2 = (1+e^{-\lambda})\|\varepsilon-\hat\varepsilon\|^2 .$$
#
# Which of the errors is averaged over which levels is a question of *weight*, and of nothing else.
#
# DDPM trains on $L_{\text{simple}}$ (eq. 14): the same squared errors, all steps alike. The bound
# weighs step n by $\tfrac12\mathrm{expm1}(\lambda_{n-1}-\lambda_n)$. In terms of λ: uniform steps
# have some density p(λ), a plain mean over them is $\int p(\lambda)\,m(\lambda)\,d\lambda$, and
# the bound is $\tfrac12\int m(\lambda)\,d\lambda$. So $L_{\text{simple}}$ is the bound with a
# weight $w \propto p$, and p is nothing but one over how fast λ falls. For the cosine schedule of
# Nichol & Dhariwal (2021) it is $\tfrac{1}{2\pi}\,\mathrm{sech}(\lambda/2)$; `weightings.simple`
# is that one (Kingma & Gao 2023).

# %%
linear_chain = jnp.asarray(chain.log_snrs)
between = 0.5 * (linear_chain[1:] + linear_chain[:-1])
density_linear = 1 / (999 * -jnp.diff(linear_chain))

curve = jnp.linspace(chain.log_snrs[-1], chain.log_snrs[0], 1001)
error_curve = mean_error(curve)
weight_simple = jnp.interp(curve, between[::-1], density_linear[::-1])

weights = {
    "bound": jnp.ones_like(curve),
    "L_simple, DDPM's β": weight_simple / jnp.max(weight_simple),
    "L_simple, cosine": weightings.simple(curve),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
for name, weight in weights.items():
    left.plot(curve, weight, label=name)
    shares = weight * error_curve / (weight * error_curve).sum()
    right.plot(curve, shares / (curve[1] - curve[0]), label=name)
    print(f"{name:20} {shares[curve > 3.0].sum():.1%} of the loss comes from λ > 3")
left.set(xlabel="λ = log SNR", ylabel="w(λ), peak 1", title="What a squared error counts")
right.set(xlabel="λ = log SNR", ylabel="w(λ) m(λ), area 1", title="Where the loss then comes from")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# Both forms of $L_{\text{simple}}$ draw attention to λ around 1, where the coarse shape of things
# is decided, and take it from the fine differences at λ > 3, which hold two fifths of the bits
# here. Ho et al. (2020) report just that: better pictures than from training on the bound, and
# slightly worse likelihoods.
