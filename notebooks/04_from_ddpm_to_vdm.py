# %% [markdown]
# # From DDPM to variational diffusion
#
# How does a variational lower bound become "predict the noise, squared error"? And what is left of
# DDPM's thousand variances β once the number of steps goes to infinity? We walk the whole way on
# data so small that every term can also be computed exactly, and stop wherever a term can be held
# against a number from elsewhere.
#
# The data: one pixel with eight grey levels. Its law is a table, so its entropy is known, and so
# is the best denoiser. There is no training in this notebook, and hence no training noise.

# %%
import itertools
import math

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from vdm import ddpm, diffusion, gaps, likelihoods, losses, schedules, weightings

LN2 = math.log(2.0)


def agrees(draws, truth, k=5):
    """Whether the mean of independent draws lies within k standard errors of the truth."""
    draws = np.asarray(draws)
    return abs(draws.mean() - truth) <= k * draws.std(ddof=1) / math.sqrt(len(draws))


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
curves = {
    f"{factor:g} × the posterior's variance": [
        (elbo(m, factor * posterior_variance), log_p - kl)
        for m in means
        for kl in [kl_normal(m, factor * posterior_variance, posterior_mean, posterior_variance)]
    ]
    for factor in (1, 2, 4)
}
for pairs in curves.values():
    first, second = np.array(pairs).T
    assert np.allclose(first, second, rtol=0, atol=1e-10) and np.all(first <= log_p + 1e-10)

figure, axes = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for name, pairs in curves.items():
    axes.plot(means, np.array(pairs)[:, 0], label=f"q with {name}")
axes.axhline(log_p, color="black", linewidth=1, linestyle="--", label="log p(x)")
axes.set(xlabel="mean of q(z|x)", ylabel="ELBO (nats)", title="One datum, many q")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Each curve is a choice of q's width. Only the q that *is* the posterior touches the dashed line.
# What to see: the loss of a bound is a KL, so it has a floor of zero, and one can ask which q
# reaches it.

# %% [markdown]
# ## The closed form, and why we want it
#
# The same KL is an expectation, so it could be sampled: draw $z$ from q, average
# $\log q(z) - \log p(z)$. Both are right. But they are not equally good: the closed form has no
# variance.

# %%
rng = np.random.default_rng(0)
z = 0.3 + 0.9 * rng.normal(size=20_000)
draws = log_normal(z, 0.3, 0.81) - log_normal(z, 0.0, 1.2)
exact = kl_normal(0.3, 0.81, 0.0, 1.2)
assert agrees(draws, exact)
print(
    f"closed form {exact:.5f}   sampled {draws.mean():.5f}, one draw's std {draws.std():.3f} nats"
)

# %% [markdown]
# The case that matters below: two Gaussians of the *same* variance. The logarithm is gone, and the
# KL is a squared distance, $\|\mu_q - \mu_p\|^2/(2\sigma^2)$. There a single draw of the log ratio
# is itself Gaussian, with variance $2\,\mathrm{KL}$. A sampled KL of 2 nats has a standard
# deviation of 2 nats.

# %%
z = rng.normal(size=20_000)
draws = log_normal(z, 0.0, 1.0) - log_normal(z, 2.0, 1.0)
exact = kl_normal(0.0, 1.0, 2.0, 1.0)
assert exact == 2.0 and agrees(draws, exact) and agrees((draws - exact) ** 2, 2 * exact)

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


# %% [markdown]
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
    assert agrees(difference, 0.0)
    print(f"T = {num_steps:4d}:  −ELBO = {first.sum(0).mean() / LN2:.3f} (sampled), ", end="")
    print(f"{closed.sum(0).mean() / LN2:.3f} bits (closed KL); difference ", end="")
    print(f"{difference.mean() / LN2:+.3f} ± {difference.std() / LN2 / num_paths**0.5:.3f}")

# %% [markdown]
# In practice nobody simulates whole paths: each term is estimated from draws of its own. Then the
# variances of the terms add up. Here is that sum, in nats²:

# %%
variances = {T: [v.var(1, ddof=1).sum() for v in terms] for T, terms in chains.items()}
print(f"{'':24}" + "".join(f"T = {T:<8d}" for T in chains))
for row, name in enumerate(names):
    print(f"{name:24}" + "".join(f"{variances[T][row]:<12.3f}" for T in chains))

for _, second, closed in chains.values():
    # Given z_i the sampled term varies by 2 KL, and its KL varies itself: the variances differ by
    # twice the sum of the KLs. The last term has another form and is left out.
    apart = second[:-1] - closed[:-1]
    assert agrees((apart**2 - 2 * closed[:-1]).sum(0), 0.0)
assert variances[1000][0] > 3e3 * variances[1000][2]
assert 8 < variances[1000][0] / variances[100][0] < 12
assert variances[1000][2] < 0.2 * variances[100][2] < 0.04 * variances[10][2]

# %% [markdown]
# Three estimators of one number, and three laws. The first form grows like T: each of its terms
# compares noise that was drawn in two different steps, and brings a variance of about 1 that does
# not shrink with the step. The sampled second form settles at 2 ΣKL. The closed form falls like
# 1/T. At a thousand steps the first needs thousands of times as many draws as the last.
#
# Beware of one shortcut. It is tempting to write the consistency terms as KL divergences too,
# $\mathbb E\,\mathrm{KL}(q(z_i|z_{i-1})\|p(z_i|z_{i+1}))$ over the two outer neighbours, and
# expositions of the subject do. But $z_{i+1}$ was made from $z_i$: given both neighbours, $z_i$ no
# longer follows $q(z_i|z_{i-1})$, and that average is another number. For the middle term of the
# ten-step chain:


# %%
def middle_term(key, num_steps=10):
    i = num_steps // 2
    s, t, u = jnp.linspace(high, low, num_steps + 1)[i - 1 : i + 2]
    keys = jax.random.split(key, 3)
    noises = [jax.random.normal(k, (200_000, 1)) for k in keys]
    before = diffusion.q_sample(jnp.full_like(noises[0], levels[x_one]), noises[0], s)
    mean, std = diffusion.transition(before, s, t)
    here = mean + std * noises[1]
    mean_next, std_next = diffusion.transition(here, t, u)
    mean_p, std_p = model_step(mean_next + std_next * noises[2], u, t)
    joint = log_q(here, mean, std) - log_q(here, mean_p, std_p)
    return joint, kl_normal(mean, std**2, mean_p, std_p**2)[:, 0]


joint, as_kl = (np.asarray(v) for v in middle_term(jax.random.key(2)))
print(f"mean of the log ratio, z's drawn together:  {joint.mean():+.3f} ± {joint.std() / 447:.3f}")
print(f"mean of KL(q(z_i|z_i-1) ‖ p(z_i|z_i+1)):    {as_kl.mean():+.3f} ± {as_kl.std() / 447:.3f}")
assert not agrees(joint - as_kl, 0.0, k=50)
# The sampled mean is that of the ten-step chain's own term.
own = chains[10][0][5]
assert abs(joint.mean() - own.mean()) < 5 * math.hypot(
    joint.std() / 200_000**0.5, own.std() / num_paths**0.5
)

# %% [markdown]
# A KL cannot be negative, and the true term here is not what the KL says. The second form has no
# such trap. From here on it is the only one we need.

# %% [markdown]
# ## DDPM, term by term
#
# DDPM states its process by a thousand variances,
# $x_n = \sqrt{1-\beta_n}\,x_{n-1} + \sqrt{\beta_n}\,\varepsilon$, with β rising linearly from 10⁻⁴
# to 0.02 (Ho et al. 2020, section 4). The mean and variance of $q(x_{n-1}|x_n, x_0)$ (eq. 6 and 7)
# are what Bayes' rule makes of a product of two Gaussians, $q(x_{n-1}|x_0)\,q(x_n|x_{n-1})$. That
# is easy to check: multiply the two densities on a grid, and take moments.

# %%
chain = ddpm.from_betas(np.linspace(1e-4, 0.02, 1000))
n, x_0, x_n = 300, levels[6], 0.4
alpha_bars, betas = chain.alpha_bars, np.asarray(chain.betas)

points = np.linspace(-3, 3, 20_001)
product = np.exp(
    log_normal(points, alpha_bars[n - 2] ** 0.5 * x_0, 1 - alpha_bars[n - 2])  # q(x_{n−1}|x_0)
    + log_normal(x_n, (1 - betas[n - 1]) ** 0.5 * points, betas[n - 1])  # q(x_n|x_{n−1})
)
product /= product.sum()
by_grid = product @ points, product @ points**2 - (product @ points) ** 2

mean, variance = chain.posterior(jnp.full((1, 1), x_n), jnp.full((1, 1), x_0), n)
print(f"n = {n}:  on the grid {by_grid[0]:.8f}, {by_grid[1]:.8f}")
print(f"          eq. 6 and 7 {mean.item():.8f}, {variance.item():.8f}")
assert np.allclose([mean.item(), variance.item()], by_grid, rtol=1e-8)

# %% [markdown]
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
#
# DDPM's own first term differs from ours. It asks the network for a mean at $x_1$ and integrates a
# Gaussian over the pixel's bin (eq. 13); ours weighs the levels by $q(z_0|x)$ and needs no
# network. All other terms coincide, so only that one is exchanged. For eight levels, far apart
# beside the first noise, neither costs anything:

# %%
own_decoder = ddpm.discretised_gaussian(8, edge=1 - 1 / 8)
assert np.allclose(own_decoder.encode(jnp.arange(8)), levels)
own = ddpm.reconstruction(x_nodes, eps_nodes, chain, exact_eps, decoder=own_decoder)
l_0 = float(node_weights @ own) / LN2
print(f"−log p(x|first latent): DDPM's {l_0:.0e} bits, ours {decoder:.0e} bits")
assert 0 <= l_0 < 1e-12 and 0 <= decoder < 1e-12

# %% [markdown]
# ## ε, x, v, score: four ways to say one thing
#
# At a given z and λ, the noise, the data, $v = \alpha\varepsilon - \sigma x$ (Salimans & Ho 2022)
# and the score $-\varepsilon/\sigma$ determine each other. So it is no question of *what* is
# learned; the errors differ only by factors of λ:
#
# $$\|x-\hat x\|^2 = e^{-\lambda}\|\varepsilon-\hat\varepsilon\|^2,\qquad
#   \|v-\hat v\|^2 = (1+e^{-\lambda})\|\varepsilon-\hat\varepsilon\|^2 .$$
#
# (The SNR goes to the left: an x-loss becomes an ε-loss by *division* by the SNR.)

# %%
key_x, key_eps, key_bad = jax.random.split(jax.random.key(3), 3)
x = jnp.asarray(levels)[jax.random.choice(key_x, 8, (6, 1), p=probs)]
eps = jax.random.normal(key_eps, x.shape)
log_snr = jnp.array([-4.0, -1.0, 0.0, 1.0, 3.0, 6.0])
z = diffusion.q_sample(x, eps, log_snr)
guess = exact_eps(z, log_snr) + 0.3 * jax.random.normal(key_bad, x.shape)  # somebody's network

error = {}
print("   λ     ‖ε−ε̂‖²    ‖x−x̂‖²    ‖v−v̂‖²    ‖score−ŝ‖²")
for target in diffusion.PREDICTIONS:
    said, true = (
        diffusion.convert(e, z, log_snr, source="eps", target=target) for e in (guess, eps)
    )
    error[target] = losses.sum_dims((true - said) ** 2)
    # Whoever speaks of x or v can be asked for ε again: the loss cannot tell them apart.
    back = diffusion.convert(said, z, log_snr, source=target, target="eps")
    assert np.allclose(back, guess, rtol=1e-10)
for row in zip(log_snr, *(error[target] for target in diffusion.PREDICTIONS), strict=True):
    print("{:5.1f}  {:9.4f} {:9.4f} {:9.4f} {:11.4f}".format(*map(float, row)))
assert np.allclose(error["x"], np.exp(-log_snr) * error["eps"], rtol=1e-8)
assert np.allclose(error["v"], (1 + np.exp(-log_snr)) * error["eps"], rtol=1e-8)
assert np.allclose(error["score"], (1 + np.exp(log_snr)) * error["eps"], rtol=1e-8)

# %% [markdown]
# ## L_simple is a weighting
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

cosine = schedules.cosine(30.0, -30.0)  # as good as uncut
t = jnp.linspace(0.01, 0.99, 401)
log_snr, rate = schedules.log_snr_and_rate(lambda t: cosine.log_snr(cosine.init(None), t), t)
assert np.allclose(-1 / rate, weightings.simple(log_snr) / (2 * math.pi), rtol=1e-5)

curve = jnp.linspace(chain.log_snrs[-1], chain.log_snrs[0], 1001)
error_curve = mean_error(curve)
weight_simple = jnp.interp(curve, between[::-1], density_linear[::-1])


def above(weight, level=3.0):
    """The share of ∫ w m dλ that lies above a noise level."""
    shares = weight * error_curve
    return float(shares[curve > level].sum() / shares.sum())


shares = {
    "bound": above(jnp.ones_like(curve)),
    "DDPM": above(weight_simple),
    "cosine": above(weightings.simple(curve)),
}
print("share of the loss at λ > 3:", {name: f"{share:.1%}" for name, share in shares.items()})
assert shares["bound"] > 2 * shares["cosine"] and shares["bound"] > 2 * shares["DDPM"]
assert 0.38 < shares["bound"] < 0.45

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
left.plot(curve, jnp.ones_like(curve), label="bound")
left.plot(curve, weight_simple / jnp.max(weight_simple), label="L_simple, DDPM's β")
left.plot(curve, weightings.simple(curve), label="L_simple, cosine")
left.set(xlabel="λ = log SNR", ylabel="w(λ), peak 1", title="What a squared error counts")
for name, weight in (
    ("bound", jnp.ones_like(curve)),
    ("L_simple, DDPM's β", weight_simple),
    ("L_simple, cosine", weightings.simple(curve)),
):
    shares = weight * error_curve
    right.plot(curve, shares / (shares.sum() * (curve[1] - curve[0])), label=name)
right.set(xlabel="λ = log SNR", ylabel="w(λ) m(λ), area 1", title="Where the loss then comes from")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# Both forms of $L_{\text{simple}}$ draw attention to λ around 1, where the coarse shape of things
# is decided, and take it from the fine differences at λ > 3, which hold two fifths of the bits
# here. Ho et al. (2020) report just that: better pictures than from training on the bound, and
# slightly worse likelihoods.

# %% [markdown]
# ## T to infinity
#
# Let the steps become finer. For a step of length h in λ, $\mathrm{expm1}(h) = h + h^2/2 + \dots$,
# and the sum becomes an integral (Kingma et al. 2021, "Variational diffusion models", eq. 14 and
# 17):
#
# $$\sum_i \tfrac12\,\mathrm{expm1}(\lambda_{i-1}-\lambda_i)\;m(\lambda_i)
#   \;\longrightarrow\; \tfrac12\int_{\lambda_{\min}}^{\lambda_{\max}} m(\lambda)\,d\lambda .$$
#
# With the exact denoiser more steps always help, and how much is left to gain is known. Both what
# comes of expm1 and what comes of looking at the noisier end of each step are of order 1/T;
# `gaps.steps_law` is their sum, for λ linear in t.

# %%
high, low = chain.log_snrs[0], chain.log_snrs[-1]


def panels(count, order=20):
    """Gauss–Legendre nodes and weights on [low, high], in many panels."""
    x, w = np.polynomial.legendre.leggauss(order)
    width = (high - low) / count
    starts = low + width * np.arange(count)[:, None]
    return (starts + width * (x + 1) / 2).ravel(), np.tile(width * w / 2, count)


nodes, weights = panels(20)
l_inf = float(0.5 * weights @ mean_error(jnp.asarray(nodes)))
coarse_nodes, coarse_weights = panels(10)
assert abs(0.5 * coarse_weights @ mean_error(jnp.asarray(coarse_nodes)) - l_inf) < 1e-9
error_low, error_high = (float(m) for m in mean_error(jnp.array([low, high])))


def diffusion_term(num_steps, schedule):
    """Σ_i ½ expm1(λ_{i−1} − λ_i) m(λ_i), in nats."""
    at = schedule.log_snr(schedule.init(None), jnp.arange(num_steps + 1) / num_steps)
    return float(0.5 * jnp.expm1(-jnp.diff(at)) @ mean_error(at[1:]))


linear = schedules.linear(high, low)
steps = [8, 16, 32, 64, 128, 256, 512, 1024, 2048]
measured = {T: diffusion_term(T, linear) for T in steps}
print("    T    L_T − L_∞ (bits)   by the law     T (L_T − L_∞)")
for T in steps:
    by_law = gaps.steps_law(high, low, l_inf, error_low, error_high, T)
    cost = measured[T] - l_inf
    print(f"{T:5d}    {cost / LN2:12.6f}     {by_law / LN2:12.6f}   {T * cost / LN2:10.4f}")
assert all(measured[a] > measured[b] for a, b in itertools.pairwise(steps))
# The law is the leading order: what it leaves is of order 1/T², a quarter for every doubling.
left_over = [
    measured[T] - l_inf - gaps.steps_law(high, low, l_inf, error_low, error_high, T) for T in steps
]
assert 0.2 < left_over[-1] / left_over[-2] < 0.3

# The library's loss, sampled as in training, has the same mean.
key_x, key_t, key_eps = jax.random.split(jax.random.key(4), 3)
x = jnp.asarray(levels)[jax.random.choice(key_x, 8, (100_000, 1), p=probs)]
eps = jax.random.normal(key_eps, x.shape)
sampled = losses.diffusion_loss_steps(
    x,
    jax.random.randint(key_t, (100_000,), 1, 65),
    eps,
    lambda t: linear.log_snr(linear.init(None), t),
    exact_eps,
    num_steps=64,
)
assert agrees(sampled, measured[64])

# %% [markdown]
# In the limit the sum of three terms says it all: $H(x) \le$ prior + diffusion + decoder. With the
# exact denoiser the diffusion term is, between the ends, the information that the latents hold
# about x, and there is next to nothing lost:

# %%
bound_inf = float(prior + decoder) + l_inf / LN2
print(f"bound at T = ∞ {bound_inf:.6f} bits, entropy {entropy / LN2:.6f}")
print(f"lost: {bound_inf - entropy / LN2:.1e} bits")
assert 0 <= bound_inf - entropy / LN2 < 1e-5

# %% [markdown]
# ## λ is all that matters
#
# The integral knows nothing of t. Whatever λ(t) does between its ends, the substitution
# $d\lambda = \lambda'(t)\,dt$ takes it out again. So a linear β, a cosine or a straight line in λ
# give the same bound at T = ∞ between the same ends, and differ only at finite T (and in how much
# an
# *estimate* of the bound varies, which is the subject of the next notebook).

# %%
same_ends = {
    "linear in λ": linear,
    "cosine": schedules.cosine(high, low),
    "β linear (continuous)": schedules.beta_linear(high, low),
    "DDPM's chain": chain.schedule,
}
pieces = np.arange(999)[:, None]  # the chain is straight in each; the others are smooth throughout
x, w = np.polynomial.legendre.leggauss(5)
t, t_weights = ((pieces + (x + 1) / 2) / 999).ravel(), np.tile(w / 2 / 999, 999)
print(f"{'schedule':24}{'T = 16':>9}{'T = 64':>9}{'T = 256':>9}{'T = ∞':>12}   (bits)")
for name, schedule in same_ends.items():
    log_snr, rate = schedules.log_snr_and_rate(
        lambda t, s=schedule: s.log_snr(s.init(None), t), jnp.asarray(t)
    )
    at_infinity = float(t_weights @ (-0.5 * rate * mean_error(log_snr)))
    finite = [diffusion_term(T, schedule) / LN2 for T in (16, 64, 256)]
    print(f"{name:24}" + "".join(f"{v:9.4f}" for v in finite) + f"{at_infinity / LN2:12.6f}")
    assert abs(at_infinity - l_inf) < 1e-6 * l_inf

# %%
figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
t = jnp.linspace(0, 1, 1001)
for name, schedule in same_ends.items():
    style = "--" if name == "DDPM's chain" else "-"
    axes.plot(t, schedule.log_snr(schedule.init(None), t), style, label=name)
axes.set(xlabel="t", ylabel="λ = log SNR", title="Different clocks between the same ends")
axes.legend(frameon=False)
plt.show()

for name in ("cosine", "DDPM's chain"):
    assert same_ends[name].inverse({}, jnp.array(2.0)) < 0.25
assert above(jnp.ones_like(curve), level=2.0) > 0.5

# %% [markdown]
# DDPM's chain, dashed, lies on the continuous β-linear schedule. It and the cosine rush through λ
# > 2 in the first quarter of the time, and that is where most of the bits are: with few steps it
# costs them dearly. A line in λ spreads its steps evenly.

# %% [markdown]
# ## The whole way in one picture

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
left.fill_between(curve, 0.5 * error_curve / LN2, color="0.85", label="½ m(λ), T = ∞")
for num_steps, colour in ((16, "C3"), (32, "C1"), (128, "C0")):
    at = linear.log_snr({}, jnp.arange(num_steps + 1) / num_steps)
    heights = 0.5 * jnp.expm1(-jnp.diff(at)) * mean_error(at[1:]) / -jnp.diff(at)
    left.stairs(heights[::-1] / LN2, at[::-1], label=f"T = {num_steps}", color=colour)
    assert abs(heights.sum() * (high - low) / num_steps - measured[num_steps]) < 1e-10
left.set(xlabel="λ = log SNR", ylabel="bits per unit of λ", title="Each step's term over its own λ")
left.set(xlim=(-6, high))
left.legend(frameon=False)

for name, schedule in list(same_ends.items())[:3]:
    above_entropy = [prior + decoder + (diffusion_term(T, schedule) - entropy) / LN2 for T in steps]
    right.loglog(steps, above_entropy, "o-", markersize=4, label=name)
law = [gaps.steps_law(high, low, l_inf, error_low, error_high, T) / LN2 for T in steps]
right.loglog(steps, law, "k--", linewidth=1, label="law in 1/T, linear")
right.loglog([1000], [prior + kl_posterior.sum() - entropy / LN2], "k*", label="DDPM, N = 1000")
right.set(xlabel="number of steps T", ylabel="bound − entropy (bits)", title="What T steps cost")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# Left: every step of the chain is a bar over its interval of λ, whose area is its KL in bits; with
# more steps the bars settle on the curve $\tfrac12 m(\lambda)$, and their area on the integral.
# Right: the distance of the whole bound from the entropy. It falls like 1/T for every schedule; for
# the line in λ along the law that was computed from the curve alone. How far out the straight line
# begins depends on the schedule. At T = ∞ schedules no longer differ: only the curve m(λ) is left,
# and that is the denoiser's.
