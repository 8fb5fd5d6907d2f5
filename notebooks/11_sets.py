# %% [markdown]
# # Sets of points
#
# A catalogue has examples of different size: clusters of galaxies, molecules, events in a detector.
# What is the density of such an example, what does the number of its points cost, and how near does
# a trained model come to the law that the data were drawn from?
#
# The sets here are simulated, so that the last question has an answer: $n$ points around a centre
# of their own. Throughout, $\lambda = \log \alpha^2/\sigma^2$ and $z = \alpha x + \sigma
# \varepsilon$.

# %%
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import vdm
from vdm import VDM, likelihoods, networks, noise_levels, schedules, sets
from vdm.condition import Conditions

key = jax.random.key(0)
rng = np.random.default_rng(0)

# %% [markdown]
# ## The law
#
# The number $n - 1$ is Poisson with mean 4, cut at $n = 10$. The centre is $m \sim N(0, I)$ in the
# plane, and each point is $x_i \sim N(m, 0.3^2 I)$. Without $m$ the points depend on each other: in
# each coordinate they are normal with the covariance $C = 0.09 I + 1 1^\top$, and
#
# $$-\log p(x, n) = -\log p(n) + \sum_{\text{coordinates}} \tfrac12 (x^\top C^{-1} x
# + \log |2\pi C|).$$
#
# This is the density of the points in the order in which they stand. As a set they have none, and
# all $n!$ orders are the same set: its density is $n!$ times as large, $-\log n!$ less in nats.

# %%
SPREAD, MEAN, MOST = 0.3, 4.0, 10
poisson = np.asarray([MEAN**k / math.factorial(k) for k in range(MOST)])
law = sets.NumberLaw(tuple((poisson / poisson.sum()).tolist()))


def draw(num):
    numbers = law.quantile(rng.random(num))
    mask = sets.of_lengths(numbers, MOST)
    x = rng.normal(size=(num, 1, 2)) + SPREAD * rng.normal(size=(num, MOST, 2))
    return np.where(mask[..., None], x, 0.0).astype(np.float32), mask


def exact_nats(points):
    n = len(points)
    covariance = SPREAD**2 * np.eye(n) + 1.0
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    square = np.sum(points * np.linalg.solve(covariance, points))
    return 0.5 * square + log_det - math.log(law.probs[n - 1]) - math.lgamma(n + 1)


x_train, mask_train = draw(20_000)
x_test, mask_test = draw(1000)
numbers = mask_test.sum(axis=1)
exact = np.asarray([exact_nats(x[m]) for x, m in zip(x_test, mask_test, strict=True)])
dims = np.asarray(sets.num_dims(mask_test, 2))

figure, panels = plt.subplots(
    2, 6, figsize=(10, 3.5), sharex=True, sharey=True, layout="constrained"
)
for axes, x, m in zip(panels.ravel(), x_test, mask_test, strict=False):
    axes.scatter(*x[m].T, s=8)
    axes.set(aspect="equal", xlim=(-3, 3), ylim=(-3, 3), title=f"n = {m.sum()}")
plt.show()

# %% [markdown]
# ## A model of sets
#
# A batch is an array filled up with padding, and a mask that says which points there are. The mask
# is a part of the condition: what the network models are the points *given* their number, and the
# law of the number makes it a model of the whole. `SetTransformer` lets the points attend to each
# other, knows no places, and never sees the padding.

# %%
network = networks.SetTransformer(channels=32, num_blocks=2, num_heads=4, residual=False)
model = VDM(
    schedules.linear(10.0, -9.0),
    network,
    likelihoods.gaussian(math.exp(-5.0)),
    prediction="v",
    number_law=sets.number_law(mask_train.sum(axis=1), MOST),
)
params = model.init(key, x_train[:1], Conditions(mask=mask_train[:1]))
num_steps = 3000
params, losses = vdm.fit(
    model,
    params,
    x_train,
    cond=Conditions(mask=mask_train),
    key=jax.random.key(1),
    optimizer=optax.adam(optax.cosine_decay_schedule(4e-3, num_steps)),
    num_steps=num_steps,
    batch_size=64,
)

smooth = np.convolve(losses, np.ones(100) / 100, mode="valid")
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.plot(smooth)
axes.set(xlabel="step", ylabel="loss, bits per dimension", title="mean of 100 steps")
plt.show()

# %% [markdown]
# ## Bits of each set, by its own dimension
#
# The bound is a number of nats for every set, of its points and of their number. In bits per
# dimension each is divided by its own $2n$; the mean over sets is what an evaluation reports. The
# mean over all points would be another number: large sets would count more.

# %%
repeats = 128
levels = noise_levels.low_discrepancy(jax.random.key(2), repeats)


@jax.jit
def nats_at(key, time):
    times = jnp.full(len(x_test), time)
    terms = model.vlb(params, key, x_test, Conditions(mask=mask_test), noise_levels=times)
    return terms.total


draws = [nats_at(jax.random.key(i), time) for i, time in enumerate(levels)]
nats = np.mean(np.asarray(draws, np.float64), axis=0)
bits, exact_bits = nats / dims / math.log(2), exact / dims / math.log(2)


def with_error(values):
    return f"{values.mean():.4f} ± {values.std(ddof=1) / math.sqrt(len(values)):.4f}"


print("bits per dimension, mean over sets:   ", with_error(bits))
print("of the law that they come from:       ", with_error(exact_bits))
print("what the model loses:                 ", with_error(bits - exact_bits))
assert abs((bits - exact_bits).mean()) < 0.1
print("mean over points in place of sets:    ", f"{nats.sum() / dims.sum() / math.log(2):.4f}")

sizes = np.arange(1, MOST + 1)
mean, of_law = (
    [values[numbers == n].mean() if np.any(numbers == n) else np.nan for n in sizes]
    for values in (bits, exact_bits)
)
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.plot(sizes, mean, marker="o", label="bound of the model")
axes.plot(sizes, of_law, marker=".", color="black", lw=1, label="the law itself")
axes.set(xlabel="number of points n", ylabel="bits per dimension")
axes.legend()
plt.show()

# %% [markdown]
# A point by itself costs the most, since nothing is known of its centre; with every further one the
# centre is known better. Part of the fall is $\log n!$: a set need not say in which order its
# points come. `order="ordered"` leaves that out.

# %% [markdown]
# What is in the padding does not matter: the same sets with noise in their padding give the same
# numbers, to the last bit.

# %%
garbage = np.where(mask_test[..., None], x_test, rng.normal(size=x_test.shape) * 1e6)
vlb = jax.jit(model.vlb)
one, other = (
    vlb(params, jax.random.key(3), np.asarray(x, np.float32), Conditions(mask=mask_test)).total
    for x in (x_test, garbage)
)
assert np.array_equal(one, other)

# %% [markdown]
# ## Samples
#
# A sample needs its number of points first, from their law; then the points are drawn together. Do
# they lie around a common centre, as far from it as those of the law? The mean square distance to
# the set's own mean is $0.09 \cdot 2 (n - 1)/n$.

# %%
num = 500
drawn_numbers = law.quantile(rng.random(num))
drawn_mask = sets.of_lengths(drawn_numbers, MOST)
drawn = np.asarray(
    jax.jit(
        lambda key, mask: model.sample(
            params, key, (num, MOST, 2), num_steps=100, cond=Conditions(mask=mask)
        )
    )(jax.random.key(4), drawn_mask)
)

distance = np.asarray(
    [
        np.sum((x[m] - x[m].mean(axis=0)) ** 2) / (2 * SPREAD**2 * (m.sum() - 1))
        for x, m in zip(drawn, drawn_mask, strict=True)
        if m.sum() > 1
    ]
)
print("mean square distance, in that of the law:", with_error(distance))
assert 0.8 < distance.mean() < 1.2

figure, panels = plt.subplots(
    2, 6, figsize=(10, 3.5), sharex=True, sharey=True, layout="constrained"
)
for axes, x, m in zip(panels.ravel(), drawn, drawn_mask, strict=False):
    axes.scatter(*x[m].T, s=8, color="C1")
    axes.set(aspect="equal", xlim=(-3, 3), ylim=(-3, 3), title=f"n = {m.sum()}")
plt.show()

# %% [markdown]
# From a file the same is `data.name = "sets"` with an `.npz` of points and their mask, or lengths;
# the config `experiments/sets.py` has more points and a larger network.
