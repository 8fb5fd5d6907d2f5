# %% [markdown]
# # Your own data
#
# You have arrays. How do you train a diffusion model on them, learn how many bits per dimension it
# takes, and tell whether that is good? How is a model given a class or a parameter as condition?
#
# Everything is done as on your machine: an `.npz` file, a config file, the real commands. The data
# is synthetic for one reason: its true density is known, so the model can be compared with it.

# %%
import contextlib
import io
import math
import os
import pathlib
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import vdm as library
from vdm import VDM, bits_per_dim, likelihoods, networks, noise_levels, schedules
from vdm.run import cli, data, trained

scratch = tempfile.TemporaryDirectory()
folder = pathlib.Path(scratch.name)
rng = np.random.default_rng(0)

# %% [markdown]
# ## The data: random fields of two kinds
#
# Temperatures on a 12×12 periodic grid: a Gaussian random field around 15 °C with a standard
# deviation of 2.5 °C. Class 0 is smooth, class 1 rough. A Gaussian field that looks the same
# everywhere has independent Fourier coefficients, whose variances are the power spectrum $P_k$. So
# its density is known exactly: $-\log p(x) = \tfrac12 \sum_k \left[\log(2\pi P_k) + |\hat
# x_k|^2/P_k\right]$, where $\hat x$ is the orthonormal Fourier transform of the field less its
# mean.

# %%
SIZE, MEAN, STD, LENGTHS = 12, 15.0, 2.5, (3.0, 1.0)
NUM_DIMS = SIZE * SIZE
angular = 2 * np.pi * np.fft.fftfreq(SIZE)
wavenumber = np.sqrt(angular[:, None] ** 2 + angular**2)


def spectrum(length):
    """The variance of each Fourier coefficient: smooth below 1/length, a tenth white noise."""
    smooth = 1.0 / (1.0 + (wavenumber * length) ** 2) ** 2
    return STD**2 * (0.9 * smooth / smooth.mean() + 0.1)


def draw_fields(length, n):
    noise = np.fft.fft2(rng.normal(size=(n, SIZE, SIZE)), norm="ortho")
    return MEAN + np.fft.ifft2(noise * np.sqrt(spectrum(length)), norm="ortho").real[..., None]


def power(x):
    return np.abs(np.fft.fft2(x[..., 0] - MEAN, norm="ortho")) ** 2


def true_nats(x, length):
    """−log p(x) of every field, exactly."""
    variance = spectrum(length)
    return 0.5 * np.sum(np.log(2 * np.pi * variance) + power(x) / variance, axis=(1, 2))


labels = rng.integers(0, 2, 3000)
x = np.where(
    (labels == 0)[:, None, None, None],
    draw_fields(LENGTHS[0], len(labels)),
    draw_fields(LENGTHS[1], len(labels)),
).astype(np.float32)
np.savez(folder / "fields.npz", x=x, labels=labels)
print(f"fields.npz: x {x.dtype} {x.shape}, labels {labels.dtype} {labels.shape}")


def show_fields(axes, fields, kinds):
    """Four fields of each class in a row."""
    for i, panel in enumerate(axes):
        image = panel.imshow(
            fields[kinds == i // 4][i % 4][..., 0], vmin=MEAN - 3 * STD, vmax=MEAN + 3 * STD
        )
        panel.set(xticks=[], yticks=[])
    return image


figure, axes = plt.subplots(1, 8, figsize=(10, 1.7), layout="constrained")
figure.colorbar(show_fields(axes, x, labels), ax=axes, label="°C")
axes[0].set_title("class 0")
axes[4].set_title("class 1")
plt.show()

# %% [markdown]
# That is the whole format: `x` with the examples along the first axis, of any shape, and `labels`
# 0, 1, ... if there are classes. Without a split of your own a tenth is held out, always the same.
#
# ## Train, evaluate, sample
#
# A config file is Python with one function. `default_values()` holds everything that has a default;
# what a file adds are the data, the parts of the model and the number of steps. Some choices
# belong to the data:
#
# - **Real numbers** take the Gaussian likelihood. `mean` and `std` bring the data to unit scale;
#   the density stays that of your own unit.
# - **`log_snr_max`** says how fine the model looks. At 7 the noise that is left is
#   $e^{-7/2} = 0.03$ standard deviations, well below the 0.3 of the finest detail here. `scale` is
#   that same number: the decoder has to cover the noise left, and no more.
# - **`num_classes`** makes the network conditional on the labels.
# - **Whole numbers** (counts, grey levels) would take the discretised likelihood, with as many
#   `levels` as there are values. Their bits are those of a lossless code.

# %%
(folder / "fields.py").write_text(f'''
from ml_collections import ConfigDict

from vdm.run.config import default_values


def get_config():
    config = default_values()
    config.data.update(name="arrays", path="{folder}/fields.npz")
    config.model.update({{
        "schedule": {{"name": "linear", "log_snr_max": 7.0, "log_snr_min": -7.0}},
        "network": {{
            "name": "unet", "channels": 16, "num_blocks": 1, "num_groups": 4,
            "attention": "none", "fourier_exponents": (), "dropout": 0.0,
            "residual": False, "num_classes": 2,
        }},
        "likelihood": {{"name": "gaussian", "scale": 0.03, "mean": {MEAN}, "std": {STD}}},
        "prediction": "v",
    }})
    config.objective.law = ConfigDict({{"name": "sigmoid"}})
    config.train.update(num_steps=400, batch_size=16, log_every=100)
    config.optimizer.update(learning_rate=1e-2, decay="cosine", ema_decay=0.99)
    config.evaluate.levels_per_example = 4
    config.sample.update(sampler="dpmpp_2m", num_steps=20)
    return config
''')

# `cli.main` is what the shell's `vdm` calls. A kernel asks for colours: here they are not wanted.
for name in [name for name in os.environ if "COLOR" in name]:
    del os.environ[name]
os.environ["COLUMNS"] = "100"


def vdm(*words):
    """Run a command in this process, and print the beginning of what it says."""
    said = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        assert cli.main(words) == 0, said.getvalue()
    progress = ("train ", "evaluate ", "sample ", "nearest ")
    lines = [line for line in said.getvalue().splitlines() if not line.startswith(progress)]
    print("$ vdm", *words)
    print("\n".join(lines[:7]), "\n")


vdm("train", "--config=fields.py", "--workdir=run")
vdm("evaluate", "--workdir=run")
vdm("sample", "--workdir=run", "--num=200", "--out=new.npy")
vdm("report", "--workdir=run")

# %% [markdown]
# Everything lies in the workdir: the config, checkpoints, `metrics.jsonl` and the evaluation. The
# report is all of that on one page for a browser, with fresh samples and what lies nearest to them
# in the training set. Several devices need no other command: it takes all there are.
#
# And the samples? For these data their law can be checked: the power of the samples should be the
# spectrum that the data were drawn with.

# %%
new = np.load(folder / "new.npy")[:200]
new_labels = np.arange(len(new)) % 2  # classes are sampled in turn
radius = np.round(wavenumber / angular[1]).astype(int)
rings = np.arange(radius.max() + 1)


def by_ring(spectra):
    """The mean power at each distance from the origin, of every field."""
    return np.stack([spectra[..., radius == r].mean(-1) for r in rings], axis=-1)


figure = plt.figure(figsize=(10, 4.6), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=(1, 2.2))
axes = top.subplots(1, 8)
top.colorbar(show_fields(axes, new, new_labels), ax=axes, label="°C")
axes[0].set_title("samples, class 0")
axes[4].set_title("class 1")
panel = bottom.subplots()
for label, length in enumerate(LENGTHS):
    rows = by_ring(power(new[new_labels == label]))
    error = rows.std(0, ddof=1) / math.sqrt(len(rows))
    panel.errorbar(rings, rows.mean(0), 2 * error, fmt="o", ms=4, color=f"C{label}")
    panel.plot(rings, by_ring(spectrum(length)), color=f"C{label}", label=f"class {label}")
    ratio = rows.mean(0) / by_ring(spectrum(length))
    print(f"class {label}: power of samples over the true one, by ring:", np.round(ratio, 2))
    assert np.all((ratio[1:] > 0.4) & (ratio[1:] < 2.5))
panel.set(yscale="log", xlabel="waves across the grid", ylabel="power in °C²", title="Spectra")
panel.legend()
plt.show()

# %% [markdown]
# Points: the samples, ± two standard errors. Lines: the truth. The leftmost point of class 0 is far
# off; the next section says why the bits do not show it.
#
# ## How good is it?
#
# For real numbers bits per dimension are those of a *density*. They depend on the unit (in kelvin
# the same, in millikelvin $\log_2 1000 \approx 10$ more) and may be negative. A number alone says
# little, so put two others beside it:
#
# - what a **model that sees no structure** takes: one Gaussian for each pixel, fitted to the
#   training set;
# - what the **truth** takes, where it is known, on the very same examples.

# %%
run = trained.load(folder / "run")
train_set, test_set = (data.load(run.config.data, split) for split in ("train", "test"))
test_x, test_labels = test_set.x, test_set.labels

kept = np.load(folder / "run" / "evaluation_test.npz")
of_model = sum(kept[f"{term}_inf"] for term in ("prior", "reconstruction", "diffusion"))
by_class = np.stack([true_nats(test_x.astype(np.float64), length) for length in LENGTHS])
of_truth = bits_per_dim(by_class[test_labels, np.arange(len(test_x))], NUM_DIMS)
mean, variance = train_set.x.mean(0), train_set.x.var(0)
of_pixels = bits_per_dim(
    0.5 * np.sum(np.log(2 * np.pi * variance) + (test_x - mean) ** 2 / variance, axis=(1, 2, 3)),
    NUM_DIMS,
)


def mean_and_error(values):
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


bars = {"a Gaussian for each pixel": of_pixels, "the model": of_model, "the truth": of_truth}
for name, values in bars.items():
    print("{:>26}: {:.3f} ± {:.3f} bits per dimension".format(name, *mean_and_error(values)))
gap, gap_error = mean_and_error(of_model - of_truth)
print(f"{'model − truth':>26}: {gap:.3f} ± {gap_error:.3f}, example by example")

assert gap > -4 * gap_error  # a bound: no model is better than the truth, k = 4
won, won_error = mean_and_error(of_pixels - of_model)
assert won > 4 * won_error and gap < 0.25 * (of_pixels - of_truth).mean()

figure, panel = plt.subplots(figsize=(7, 2.2), layout="constrained")
heights = [mean_and_error(v) for v in bars.values()]
panel.barh(list(bars), [v[0] for v in heights], xerr=[2 * v[1] for v in heights], color="C2")
panel.set(xlabel="bits per dimension of held-out fields, ± two standard errors")
panel.invert_yaxis()
plt.show()

# %% [markdown]
# The difference example by example is surer than two means, and falls with longer training. Spectra
# and bits say different things. At the left end of the spectra lies the mean of a whole field, one
# coefficient of 144: however far samples are off there, bits hardly notice. Look at both.
#
# ## From Python: score your own arrays
#
# `trained.load` gives the model and its parameters, and `run.score` the bound of any field. With it
# we ask which class a field belongs to: the bound given class 0 against the bound given class 1,
# with the same noise. No classifier was trained.

# %%
some, some_labels = test_x[:60], test_labels[:60]
given = np.stack(
    [run.score(some, np.full(60, k), key=1, levels_per_example=16).bpd for k in (0, 1)]
)
given *= NUM_DIMS * math.log(2)
right = np.mean(given.argmin(0) == some_labels)
print(f"class by the bound: {right:.1%} right")
assert right > 0.9

figure, panel = plt.subplots(figsize=(5, 3.6), layout="constrained")
for label in (0, 1):
    own = some_labels == label
    true_ratio = (by_class[1] - by_class[0])[: len(some)][own]
    panel.plot(true_ratio, (given[1] - given[0])[own], "o", ms=4, label=f"class {label}")
panel.set(xlabel="log p(x | 0) − log p(x | 1), true, in nats", ylabel="by the bounds, in nats")
panel.legend()
plt.show()

# %% [markdown]
# ## Fill in what is missing
#
# Two thirds of the cells of some fields of class 0 are hidden, and the model draws them anew given
# the rest: `vdm sample --known=x.npy --mask=mask.npy --label=0`, or `run.inpaint`. For a Gaussian
# field the truth is known: what is hidden, $u$, has given what is known, $k$, the mean
# $m_u + C_{uk} C_{kk}^{-1} (x_k - m_k)$, where the covariance $C$ is the transform of $P_k$.

# %%
by_distance = np.fft.ifft2(spectrum(LENGTHS[0])).real
row, column = (part.ravel() for part in np.indices((SIZE, SIZE)))
covariance = by_distance[row[:, None] - row, column[:, None] - column]
mask = np.random.default_rng(1).random((SIZE, SIZE)) < 1 / 3
known, hidden = mask.ravel(), ~mask.ravel()
whole = test_x[test_labels == 0][:8]
drawn = run.inpaint(whole, mask, np.zeros(128, int), key=0, num=128)  # 16 times each
assert np.all(drawn[:, mask] == np.tile(whole, (16, 1, 1, 1))[:, mask])
by_model = drawn.reshape(16, 8, SIZE, SIZE).mean(0)
gain = covariance[np.ix_(hidden, known)] @ np.linalg.inv(covariance[np.ix_(known, known)])
exact_mean = whole[..., 0].astype(float)
exact_mean[:, ~mask] = MEAN + (whole[:, mask, 0] - MEAN) @ gain.T
agreement = np.corrcoef(*(part[:, ~mask].ravel() for part in (by_model, exact_mean)))[0, 1]
print(f"correlation of the mean of 16 drawn fields with the exact mean: {agreement:.3f}")
assert agreement > 0.6

figure, axes = plt.subplots(1, 6, figsize=(10, 2), layout="constrained")
seen = np.where(mask, whole[0, ..., 0], np.nan)
panels = {"the field": whole[0], "known": seen, "drawn": drawn[0], "drawn again": drawn[8]}
panels |= {"mean of 16": by_model[0], "exact mean": exact_mean[0]}
for panel, (title, field) in zip(axes, panels.items(), strict=True):
    panel.imshow(field.reshape(SIZE, SIZE), vmin=MEAN - 3 * STD, vmax=MEAN + 3 * STD)
    panel.set(title=title, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## A parameter as condition
#
# Numbers as condition are an array `cond` beside `x`, fields an array `cond_field`, for a network
# with `cond_dim` or `cond_channels`; `vdm sample --cond=0.3` asks for one. Here is how the library
# itself is given them. The data are periodic lines of 8 points with a correlation length $\ell$ of
# their own, and the condition is $\log \ell$, which without a run you bring to unit scale yourself.

# %%
POINTS = 8
line_angular = 2 * np.pi * np.fft.fftfreq(POINTS)


def line_spectrum(length):
    smooth = 1.0 / (1.0 + (line_angular * np.asarray(length)[..., None]) ** 2) ** 2
    return 0.9 * smooth / smooth.mean(-1, keepdims=True) + 0.1


def draw_lines(length):
    noise = np.fft.fft(rng.normal(size=(len(length), POINTS)), norm="ortho")
    lines = np.fft.ifft(noise * np.sqrt(line_spectrum(length)), norm="ortho").real
    return lines.astype(np.float32)


def neighbours(lines):
    """The correlation of neighbouring points."""
    return np.mean(lines * np.roll(lines, 1, axis=1)) / np.mean(lines**2)


length = np.exp(rng.uniform(np.log(0.3), np.log(3.0), 20_000))
lines, cond = draw_lines(length), np.log(length)[:, None].astype(np.float32)
model = VDM(
    schedules.linear(6.0, -6.0),
    networks.MLP(
        width=128, num_blocks=2, cond_dim=1, residual=False, log_snr_max=6.0, log_snr_min=-6.0
    ),
    likelihoods.gaussian(math.exp(-3.0)),
    prediction="v",
)
params, _ = library.fit(
    model,
    model.init(jax.random.key(0), lines[:1], cond[:1]),
    lines,
    cond=cond,
    key=jax.random.key(1),
    optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, 1000)),
    num_steps=1000,
    batch_size=128,
    noise_levels=lambda key, n: noise_levels.sigmoid_law(
        noise_levels.low_discrepancy(key, n), 6.0, -6.0
    ),
)

# %% [markdown]
# Samples of each $\ell$ should have the correlation that $\ell$ stands for, which is a formula.

# %%
sample = jax.jit(
    lambda key, cond: model.sample(
        params, key, (2000, POINTS), num_steps=30, sampler="dpmpp_2m", cond=cond
    )
)
asked = np.array([0.3, 0.6, 1.0, 2.0, 3.0])
found, exact = [], []
for ell in asked:
    found.append(neighbours(np.asarray(sample(jax.random.key(2), np.full((2000, 1), np.log(ell))))))
    variance = line_spectrum(ell)
    exact.append(np.sum(variance * np.cos(line_angular)) / np.sum(variance))
    print(f"ℓ = {ell:.1f}: correlation {found[-1]:.3f}, exact {exact[-1]:.3f}")
assert np.all(np.abs(np.array(found) - exact) < 0.1) and np.all(np.diff(found) > 0)

figure, panel = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
panel.plot(asked, exact, "k-", lw=0.8, label="exact")
panel.plot(asked, found, "o", label="2000 samples each")
panel.set(xlabel="ℓ", ylabel="correlation of neighbouring points")
panel.legend()
plt.show()

scratch.cleanup()
