# %% [markdown]
# # The number of steps
#
# A chain of T steps has a bound that is worse than the one in continuous time. By how much, and
# does the noise schedule matter? The answer is a law in 1/T, computed from one curve: the
# denoiser's mean squared error m(λ). The data is again one pixel with eight grey levels, so that
# every term is a sum, and nothing here is trained or drawn at random.

# %%
import math

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from vdm import ddpm, diffusion, gaps, likelihoods, losses, schedules

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
