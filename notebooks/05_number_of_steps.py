# %% [markdown]
# # The number of steps
#
# A chain of T steps has a bound that is worse than the one in continuous time. By how much, and
# does the noise schedule matter? The answer is a law in 1/T, computed from one curve: the
# denoiser's mean squared error m(λ). Then: what few steps can do better with the same denoiser. The
# data is again one pixel with eight grey levels, so that every term is a sum, and nothing here is
# trained or drawn at random.

# %%
import math

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from vdm import ddpm, diffusion, few_steps, gaps, likelihoods, losses, schedules

LN2 = math.log(2.0)

# %% [markdown]
# ## One curve
#
# A noised pixel is $z = \alpha x + \sigma\varepsilon$ with $\lambda = \log \alpha^2/\sigma^2$. Its
# best denoiser $E[\varepsilon|z]$ weighs the eight levels by how well each explains $z$, and errs
# by $m(\lambda) = E\|\varepsilon - E[\varepsilon|z]\|^2$ in the mean. Expectations are sums: eight
# values of x, and a fine grid of ε.

# %%
probs = np.array([0.30, 0.05, 0.02, 0.10, 0.25, 0.03, 0.05, 0.20])
likelihood = likelihoods.discretised(8)
levels = likelihood.encode(jnp.arange(8))  # the eight values of x
entropy = -np.sum(probs * np.log(probs))
print(f"entropy H(x) = {entropy / LN2:.4f} bits")


def exact_eps(z, log_snr):
    """E[ε|z], z of shape [b, 1]."""
    log_snr = diffusion.expand(log_snr, z)
    gap = (z - diffusion.alpha(log_snr) * levels[None]) / diffusion.sigma(log_snr)  # ε, if x were k
    share = jax.nn.softmax(jnp.log(probs)[None] - 0.5 * gap**2, axis=1)
    return jnp.sum(share * gap, axis=1, keepdims=True)


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


chain = ddpm.from_betas(np.linspace(1e-4, 0.02, 1000))
high, low = chain.log_snrs[0], chain.log_snrs[-1]
curve = jnp.linspace(low, high, 1001)
error_curve = mean_error(curve)
figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
axes.fill_between(curve, 0.5 * error_curve / LN2, color="0.85")
axes.set(xlabel="λ = log SNR", ylabel="½ m(λ), bits per unit of λ", title="The bits of one pixel")
plt.show()

# %% [markdown]
# The ends are those of DDPM's thousand steps (notebook 04). The area is the diffusion term in
# continuous time, as the next section says.
#
# ## T to infinity
#
# Let the steps become finer. For a step of length h in λ, $\mathrm{expm1}(h) = h + h^2/2 + \dots$,
# and the sum becomes an integral (Kingma et al. 2021, "Variational diffusion models", eq. 14 and
# 17):
#
# $$\sum_i \tfrac12\,\mathrm{expm1}(\lambda_{i-1}-\lambda_i)\;m(\lambda_i)
#   \;\longrightarrow\; \tfrac12\int_{\lambda_{\min}}^{\lambda_{\max}} m(\lambda)\,d\lambda .$$
#
# With the exact denoiser more steps always help, and how much is left to gain is known. Two things
# cost something, both of order 1/T: that expm1 is more than its argument, and that the step looks
# at its noisier end. `gaps.steps_law` is their sum, for λ linear in t:
#
# $$L_T - L_\infty \approx \frac{\Delta\lambda}{4T}\,\big(2 L_\infty + m(\lambda_{\min})
#   - m(\lambda_{\max})\big).$$


# %%
def panels(count, order=20):
    """Gauss–Legendre nodes and weights on [low, high], in many panels."""
    x, w = np.polynomial.legendre.leggauss(order)
    width = (high - low) / count
    starts = low + width * np.arange(count)[:, None]
    return (starts + width * (x + 1) / 2).ravel(), np.tile(width * w / 2, count)


nodes, weights = panels(20)
l_inf = float(0.5 * weights @ mean_error(jnp.asarray(nodes)))
error_low, error_high = (float(m) for m in mean_error(jnp.array([low, high])))


def diffusion_term(num_steps, schedule):
    """Σ_i ½ expm1(λ_{i−1} − λ_i) m(λ_i), in nats."""
    at = schedule.log_snr(schedule.init(None), jnp.arange(num_steps + 1) / num_steps)
    return float(0.5 * jnp.expm1(-jnp.diff(at)) @ mean_error(at[1:]))


linear = schedules.linear(high, low)
steps = [8, 16, 32, 64, 128, 256, 512, 1024, 2048]
measured = {T: diffusion_term(T, linear) for T in steps}
law = {T: gaps.steps_law(high, low, l_inf, error_low, error_high, T) for T in steps}
print("    T    L_T − L_∞ (bits)   by the law     T (L_T − L_∞)")
for T in steps:
    cost = measured[T] - l_inf
    print(f"{T:5d}    {cost / LN2:12.6f}     {law[T] / LN2:12.6f}   {T * cost / LN2:10.4f}")
# The law is the leading order: what it leaves is of order 1/T², a quarter for every doubling.
left_over = [measured[T] - l_inf - law[T] for T in steps]
assert 0.2 < left_over[-1] / left_over[-2] < 0.3

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.fill_between(curve, 0.5 * error_curve / LN2, color="0.85", label="½ m(λ), T = ∞")
for num_steps, colour in ((16, "C3"), (32, "C1"), (128, "C0")):
    at = linear.log_snr({}, jnp.arange(num_steps + 1) / num_steps)
    heights = 0.5 * jnp.expm1(-jnp.diff(at)) * mean_error(at[1:]) / -jnp.diff(at)
    left.stairs(heights[::-1] / LN2, at[::-1], label=f"T = {num_steps}", color=colour)
left.set(xlabel="λ = log SNR", ylabel="bits per unit of λ", title="Each step's term over its own λ")
left.set(xlim=(-6, high))
left.legend(frameon=False)
right.loglog(steps, [(measured[T] - l_inf) / LN2 for T in steps], "o", label="exact")
right.loglog(steps, [law[T] / LN2 for T in steps], "k--", linewidth=1, label="the law")
right.set(xlabel="number of steps T", ylabel="L_T − L_∞ (bits)", title="What T steps cost")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# Left: every step of the chain is a bar over its interval of λ, whose area is its KL in bits. With
# more steps the bars settle on the curve $\tfrac12 m(\lambda)$, and their area on the integral.
# Right: what is left falls like 1/T, along the law.

# %% [markdown]
# In the limit the sum of three terms says it all: $H(x) \le$ prior + diffusion + decoder. With the
# exact denoiser the diffusion term is, between the ends, the information that the latents hold
# about x, and there is next to nothing lost:

# %%
prior = expect(lambda x, eps: losses.prior_kl(x, jnp.asarray(low))) / LN2
decoder = (
    expect(lambda x, eps: losses.reconstruction(x_nodes, eps, jnp.asarray(high), likelihood)) / LN2
)
bound_inf = float(prior + decoder) + l_inf / LN2
print(f"bound at T = ∞ {bound_inf:.6f} bits, entropy {entropy / LN2:.6f}")
print(f"lost: {bound_inf - entropy / LN2:.1e} bits")
assert 0 <= bound_inf - entropy / LN2 < 1e-5

# %% [markdown]
# ## λ is all that matters
#
# The integral knows nothing of t. Whatever λ(t) does between its ends, the substitution
# $d\lambda = \lambda'(t)\,dt$ takes it out again. So a linear β, a cosine or a straight line in λ
# give the same bound at T = ∞ between the same ends. They differ only at finite T, and in how much
# an *estimate* of the bound varies, which is the subject of the next notebook.

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
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
t = jnp.linspace(0, 1, 1001)
for name, schedule in same_ends.items():
    style = "--" if name == "DDPM's chain" else "-"
    left.plot(t, schedule.log_snr(schedule.init(None), t), style, label=name)
left.set(xlabel="t", ylabel="λ = log SNR", title="Schedules between the same ends")
left.legend(frameon=False)
for name, schedule in list(same_ends.items())[:3]:
    above_entropy = [prior + decoder + (diffusion_term(T, schedule) - entropy) / LN2 for T in steps]
    right.loglog(steps, above_entropy, "o-", markersize=4, label=name)
right.loglog(steps, [law[T] / LN2 for T in steps], "k--", linewidth=1, label="law in 1/T, linear")
of_chain = 0.5 * np.expm1(-np.diff(chain.log_snrs)) @ mean_error(jnp.asarray(chain.log_snrs[1:]))
right.loglog([1000], [prior + (of_chain - entropy) / LN2], "k*", label="DDPM, N = 1000")
right.set(xlabel="number of steps T", ylabel="bound − entropy (bits)", title="What T steps cost")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# Left: DDPM's chain, dashed, lies on the continuous β-linear schedule. It and the cosine rush
# through λ > 2 in the first quarter of the time, and that is where most of the bits are. A line in
# λ spreads its steps evenly. Right: with few steps that costs them dearly. Every schedule's
# distance from the entropy falls like 1/T in the end, but how far out the straight line begins
# depends on the schedule. At T = ∞ they no longer differ: only the curve m(λ) is left, and that is
# the denoiser's.

# %% [markdown]
# ## What a step takes x̂ for
#
# A reverse step of DDPM draws from a normal law whose mean is that of $q(z_s|z_t, x)$ at
# $x = \hat x$. Its variance is a choice. Ho et al. (2020, section 3.2) name two: $\tilde\beta$, the
# best one if x is known, and $\beta$, the best one if $x \sim N(0, I)$. In λ, with
# $\kappa = e^{\lambda_s} - e^{\lambda_t}$, both are
#
# $$\tilde\beta\,(1 + \kappa v),\qquad v = 0 \ \text{ or } \ v = \sigma_t^2,$$
#
# and $\sigma_t^2 = 1/(1 + e^{\lambda_t})$ is the variance of $x \sim N(0, 1)$ once $z_t$ is known.
# So v is what the step takes x's variance around x̂ to be. Any v makes a valid bound, and a step
# then costs
#
# $$\tfrac12\,E\Big[\log(1+\kappa v) + \frac{1 + \kappa\,(x - \hat x)^2}{1 + \kappa v} - 1\Big],$$
#
# least at $v = E(x - \hat x)^2$ (Bao et al. 2022, "Analytic-DPM", theorem 1): what it costs is
# then $\tfrac12 \log(1 + \kappa v)$, where it was $\tfrac12 \kappa v$ with $\tilde\beta$. The best
# v is again the one curve, $e^{-\lambda} m(\lambda)$.

# %%
betas, ends = np.asarray(chain.betas), np.asarray(chain.log_snrs)
to_clean, to_noisy = ends[:-1], ends[1:]
posterior = -np.expm1(to_noisy - to_clean) / (1 + np.exp(to_clean))  # c σ_s², DDPM's β̃
kappa = np.exp(to_clean) - np.exp(to_noisy)
np.testing.assert_allclose(betas[1:], posterior * (1 + kappa / (1 + np.exp(to_noisy))), rtol=1e-6)

places = np.linspace(low, high, 257)  # the even levels of T = 64, 32, ... steps are among them
left_open = np.asarray(mean_error(places))[:-1] * np.exp(-places[:-1])
choices = {
    "β̃: v = 0": np.zeros(256),
    "β: v of N(0, 1)": 1 / (1 + np.exp(places[:-1])),
    "best: v = E(x − x̂)²": left_open,
}
costs = {
    name: few_steps.cost_matrix(places, left_open[:, None], v[:, None])
    for name, v in choices.items()
}


def along(cost, chosen):
    """The bound in bits, where the steps lie between the chosen levels."""
    return float(prior + decoder) + cost[chosen[:-1], chosen[1:]].sum() / LN2


def even(cost, num_steps):
    return along(cost, np.linspace(0, 256, num_steps + 1).astype(int))


few = [1, 2, 4, 8, 16, 32, 64]
print("    T" + "".join(f"{name:>22}" for name in costs) + "   (bits)")
for num_steps in few:
    print(f"{num_steps:5d}" + "".join(f"{even(c, num_steps):22.4f}" for c in costs.values()))
plain, normal, best = costs.values()
assert abs(even(plain, 64) - bound_inf - (measured[64] - l_inf) / LN2) < 1e-6
assert all(even(best, T) < min(even(plain, T), even(normal, T)) for T in few)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for name, v in list(choices.items())[1:]:
    left.semilogy(places[:-1], v, label=name, color="C2" if v is left_open else "C1")
left.set(xlabel="λ = log SNR", ylabel="v", title="What is left of x's variance", ylim=(1e-9, 2))
left.legend(frameon=False)
for (name, cost), colour in zip(costs.items(), ("C3", "C1", "C2"), strict=True):
    bits = [even(cost, T) - entropy / LN2 for T in few]
    right.loglog(few, bits, "o-", markersize=4, label=name, color=colour)
right.set(xlabel="number of steps T", ylabel="bound − entropy (bits)", title="Even steps in λ")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# Left: to the noisy end v is the variance of x itself, 1 of a normal number and under one half of
# the pixel. Near the data a grey level is soon known for certain, which a normal number never is.
# Right: β̃ pays dearly for its certainty where steps are long, and β for its doubt where they are
# short; the best v costs least at every T. As T grows, $\kappa v \to 0$ and
# $\log(1 + \kappa v) \to \kappa v$: at T = ∞ there is nothing left to choose.

# %% [markdown]
# ## Where the steps are
#
# What a step costs depends on its two ends alone. So the best T + 1 of 257 levels are a shortest
# path from the first to the last, found exactly by dynamic programming (Watson et al. 2021,
# "Learning to efficiently sample from diffusion probabilistic models"). `few_steps.best_steps` is
# that. One more choice of v is left: it may look at z. Here $\mathrm{Var}[x|z]$ is known; for
# images `few_steps.fit_head` fits a small network of z, x̂ and λ.


# %%
@jax.jit
def costs_from(level):
    """What a step with v = Var[x|z] costs, from this level to every other."""
    log_snr, x = jnp.asarray(places)[level], likelihood.encode(x_nodes)
    a, s = diffusion.alpha(log_snr), diffusion.sigma(log_snr)
    gap = (a * x + s * eps_nodes - a * levels[None]) / s
    share = jax.nn.softmax(jnp.log(probs)[None] - 0.5 * gap**2, axis=1)
    x_hat = share @ levels
    v = jnp.sum(share * (levels[None] - x_hat[:, None]) ** 2, axis=1)
    error = (x[:, 0] - x_hat) ** 2

    def one(to):
        wide = 1 + (jnp.exp(to) - jnp.exp(log_snr)) * v
        return 0.5 * node_weights @ (jnp.log(wide) + (wide - 1) * (error / v - 1) / wide)

    return jax.lax.map(one, jnp.asarray(places))


seeing = np.stack([costs_from(level) for level in range(256)] + [np.full(257, np.inf)])
seeing[np.tril_indices(257)] = np.inf


def placed(cost, num_steps):
    return few_steps.best_steps(cost, num_steps)[0]


kinds = {
    "even, β̃": [even(plain, T) for T in few],
    "placed, β̃": [along(plain, placed(plain, T)) for T in few],
    "placed, best v a level": [along(best, placed(best, T)) for T in few],
    "placed, v = Var[x|z]": [along(seeing, placed(seeing, T)) for T in few],
}
print("    T" + "".join(f"{name:>24}" for name in kinds) + "   (bits)")
for at, num_steps in enumerate(few):
    print(f"{num_steps:5d}" + "".join(f"{bits[at]:24.4f}" for bits in kinds.values()))
assert np.all(np.diff(list(kinds.values()), axis=0) < 1e-9)  # each is at least as good as the last
assert min(kinds["placed, v = Var[x|z]"]) > entropy / LN2  # and still a bound

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for (name, bits), colour in zip(kinds.items(), ("C3", "C0", "C2", "C4"), strict=True):
    left.loglog(few, np.asarray(bits) - entropy / LN2, "o-", markersize=4, label=name, color=colour)
left.set(xlabel="number of steps T", ylabel="bound − entropy (bits)", title="What T steps cost")
left.legend(frameon=False)
right.fill_between(curve, 0.5 * error_curve / LN2, color="0.85", label="½ m(λ)")
for height, (name, cost) in enumerate({"β̃": plain, "best v": best, "Var[x|z]": seeing}.items()):
    at = places[placed(cost, 8)]
    colour = ("C0", "C2", "C4")[height]
    right.plot(at, np.full(9, 0.03 + 0.05 * height), "|-", markersize=12, color=colour, label=name)
right.set(xlabel="λ = log SNR", ylabel="bits per unit of λ", title="The levels of T = 8")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# Left: what is gained by the places, by one number a level, and by looking at z. Right: none of
# them spends steps where there are no bits. With a v of its own the first step may go further,
# through all the noise that says little of x. The gain is that of few steps: the denoiser is the
# same, and at T = ∞ so is the bound. `vdm fit-chain` does this for a trained run, on training
# examples alone.
