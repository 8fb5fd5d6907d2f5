# %% [markdown]
# # Your own data
#
# You have arrays. How do you train a diffusion model on them, learn how many bits per dimension it
# takes, and tell whether that is good? How is a model told a class or a parameter, what changes
# with several devices, and what does the library say when something is wrong?
#
# Everything here is done as it would be on your machine: an `.npz` file, a config file, the real
# commands. The data is synthetic for one reason: then its true density is known, and the model
# can be held against it.

# %%
import contextlib
import io
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from vdm import VDM, bits_per_dim, likelihoods, networks, noise_levels, schedules
from vdm.run import cli, data, train, trained

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

# %% [markdown]
# That is the whole format: `x` with the examples along the first axis, of any shape, and `labels`
# 0, 1, ... if there are classes. Without a split of your own a tenth is held out, always the same.
#
# ## The config file
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

# %% [markdown]
# ## Train, evaluate, sample
#
# The commands are those of a shell, run from here: `cli.main` is what the shell's `vdm` calls.


# %%
# A kernel asks for colours, which would come with the bars of progress.
for name in [name for name in os.environ if "COLOR" in name]:
    del os.environ[name]
os.environ["COLUMNS"] = "100"


def show(words, said):
    """Print a command and the beginning of what it says."""
    print("$ vdm", *words)
    progress = ("train ", "evaluate ", "sample ", "nearest ")
    lines = [line for line in said.splitlines() if not line.startswith(progress)]
    print("\n".join(lines[:7]), "\n")


def vdm(*words):
    """Run a command in this process, which need not import everything anew."""
    said = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        code = cli.main(words)
    assert code == 0, said.getvalue()
    show(words, said.getvalue())


vdm("train", "--config=fields.py", "--workdir=run")
vdm("evaluate", "--workdir=run")
vdm("sample", "--workdir=run", "--num=200", "--out=new.npy")
vdm("report", "--workdir=run")

# %% [markdown]
# Everything lies in the workdir: the config, checkpoints, `metrics.jsonl` and the evaluation. The
# report is all of that on one page for a browser, with fresh samples and what lies nearest to them
# in the training set.
#
# ## How good is it?
#
# For real numbers bits per dimension are those of a *density*. They depend on the unit (in kelvin
# the same, in millikelvin $\log_2 1000 \approx 10$ more) and may be negative. A figure alone says
# little, so put two others beside it:
#
# - what a **model that sees no structure** takes: one Gaussian for each pixel, fitted to the
#   training set;
# - what the **truth** takes, where it is known, on the very same examples.

# %%
record = json.loads((folder / "run" / "evaluation.json").read_text())
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

assert np.isclose(of_model.mean(), record["bpd"]["mean"], rtol=1e-5)
assert gap > -4 * gap_error  # a bound: no model is better than the truth, k = 4
won, won_error = mean_and_error(of_pixels - of_model)
assert won > 4 * won_error and gap < 0.25 * (of_pixels - of_truth).mean()

# %% [markdown]
# The difference example by example is far surer than the two means apart, since both have the same
# easy and hard fields. What is left is the model's: train longer, or with a larger network, and it
# falls.
#
# ## From Python: call the model on your own arrays
#
# `trained.load` gives the model and its parameters. `model.vlb` is a plain function to be jitted.
# With it we ask which class a field belongs to: the bound given class 0 against the bound given
# class 1, with the same noise. No classifier was trained.

# %%
vlb = jax.jit(run.model.vlb)


def bound_given(label, x, key, repeats=16):
    """The negative bound in nats, the mean over `repeats` noise levels."""
    # The levels of a batch are even from its first row to its last. Copies of the whole set, one
    # after the other, give every field levels all along the range.
    tiled = np.tile(x, (repeats, 1, 1, 1))
    terms = vlb(run.params, key, tiled, np.full(len(tiled), label, np.int32))
    return np.asarray(terms.total).reshape(repeats, len(x)).mean(0)


some, some_labels = test_x[:60], test_labels[:60]
given = np.stack([bound_given(label, some, jax.random.key(1)) for label in (0, 1)])
right = np.mean(given.argmin(0) == some_labels)
at_best = np.mean(by_class[:, :60].argmin(0) == some_labels)
print(f"class by the bound: {right:.1%} right; by the true densities: {at_best:.1%}")
assert right > 0.9

# %% [markdown]
# ## The same training from Python, and on two devices
#
# `vdm.run.train` is what the command calls. Here are twelve steps of it in this process, on one
# device, and the same twelve by the command on two. A CPU can pose as several devices: a quick way
# to try what will run on a machine with many. The batch is cut over the devices, noise is drawn
# for the batch as a whole, and so the numbers agree but for rounding.
#
# The network is a smaller one, by a config file that builds on the first.

# %%
(folder / "small.py").write_text("""
from ml_collections import ConfigDict

from vdm.run.config import neighbour


def get_config():
    config = neighbour(__file__, "fields.py")
    config.model.network = ConfigDict({"name": "mlp", "num_classes": 2, "residual": False})
    config.train.update(num_steps=12, log_every=1)
    config.optimizer.learning_rate = 1e-3
    return config
""")
config = cli.read_config([f"--config={folder}/small.py"])
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    train.train(config, folder / "one")
words = ["train", "--config=small.py", "--workdir=two"]
done = subprocess.run(  # the number of devices is fixed for a process
    [sys.executable, "-m", "vdm", *words],
    cwd=folder,
    env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
)
assert done.returncode == 0, done.stdout
show(words, done.stdout)


def losses(workdir):
    lines = (folder / workdir / "metrics.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


one, two = losses("one"), losses("two")
for step in (0, 5, 11):
    print(f"step {step + 1:2d}: {one[step]:.6f} on one device, {two[step]:.6f} on two")
assert len(one) == 12 and np.allclose(one, two, rtol=1e-4, atol=1e-4)

# %% [markdown]
# On real accelerators the command is the same and takes all there are; `devices.fsdp` cuts the
# parameters as well.
#
# ## A parameter as condition
#
# Commands know classes. A vector as condition, a physical parameter for instance, is for the
# library: a network with `cond_dim`, and `cond` of shape `[b, cond_dim]` wherever a model is
# called. Here the data are periodic lines of 8 points with a correlation length $\ell$ of their
# own, and the model is told $\log \ell$. Bring such numbers to about unit scale, as with any
# network.

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
LINE_STEPS, LINE_BATCH = 1000, 128
params = model.init(jax.random.key(0), lines[:1], cond[:1])
optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, LINE_STEPS))


@jax.jit
def fit(params, key, lines, cond):
    def step(carry, key):
        params, state = carry
        key_batch, key_noise, key_level = jax.random.split(key, 3)
        index = jax.random.randint(key_batch, (LINE_BATCH,), 0, len(lines))
        positions = noise_levels.low_discrepancy(key_level, LINE_BATCH)
        levels = noise_levels.sigmoid_law(positions, 6.0, -6.0)

        def loss(params):
            terms = model.vlb(params, key_noise, lines[index], cond[index], noise_levels=levels)
            return bits_per_dim(terms.total, POINTS).mean()

        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(key, LINE_STEPS)
    return jax.lax.scan(step, (params, optimiser.init(params)), keys)[0][0]


params = fit(params, jax.random.key(1), lines, cond)

# %% [markdown]
# Is the model listening? Samples of each $\ell$ should have the correlation that $\ell$ stands
# for, which is a formula; and held-out lines should cost more when the model is told the $\ell$ of
# another line.

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

held_length = np.exp(rng.uniform(np.log(0.3), np.log(3.0), 4000))
held = draw_lines(held_length)
told = np.log(held_length)[:, None].astype(np.float32)
line_vlb = jax.jit(model.vlb)
right_terms, wrong_terms = (
    line_vlb(params, jax.random.key(3), held, c).total for c in (told, np.roll(told, 1, axis=0))
)
lost, lost_error = mean_and_error(np.asarray(bits_per_dim(wrong_terms - right_terms, POINTS)))
print(f"told another line's ℓ: {lost:+.3f} ± {lost_error:.3f} bits per dimension")
assert lost > 4 * lost_error

# %% [markdown]
# ## Whole numbers, and what goes wrong most often
#
# Counts, grey levels and anything else in whole numbers take the discretised likelihood, with as
# many `levels` as there are values, from 0. Nothing else changes, but the bits are now those of a
# lossless code. Here are the fields in 32 steps of half a degree, and four slips. Each is refused
# in one line before anything runs.

# %%
counts = np.clip(np.round((x - MEAN) / 0.5) + 16, 0, 31).astype(np.uint8)
np.savez(folder / "counts.npz", x=counts, labels=labels)
(folder / "counts.py").write_text("""
from ml_collections import ConfigDict

from vdm.run.config import neighbour


def get_config():
    config = neighbour(__file__, "small.py")
    config.data.path = config.data.path.replace("fields", "counts")
    config.model.likelihood = ConfigDict({"name": "discretised", "levels": 32})
    return config
""")


def complaint(*words):
    """What the command says, and the exit code that it leaves."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = cli.main([*words, f"--workdir={folder}/never"])
    print("$ vdm", *(str(word).replace(str(folder) + "/", "") for word in words))
    print(said.getvalue().replace(str(folder) + "/", ""))
    assert code != 0 and "Traceback" not in said.getvalue()
    return said.getvalue()


fields_py, counts_py = f"--config={folder}/fields.py", f"--config={folder}/counts.py"
assert "num_steps" in complaint("train", fields_py, "--config.train.num_step=100")
assert "31" in complaint("train", counts_py, "--config.model.likelihood.levels=16")
assert "real" in complaint("train", fields_py, f"--config.data.path={folder}/counts.npz")
assert "2 classes" in complaint("train", fields_py, "--config.model.network.num_classes=3")

# %% [markdown]
# And the whole-number run itself, looked at before it is started: `--dry_run` compiles a step and
# prints what it would take.

# %%
assert cli.main(["train", counts_py, f"--workdir={folder}/counts", "--dry_run"]) == 0

# %% [markdown]
# ## The picture

# %%
new = np.load(folder / "new.npy")[:200]
new_labels = np.arange(len(new)) % 2  # classes are sampled in turn
radius = np.round(wavenumber / angular[1]).astype(int)
rings = np.arange(radius.max() + 1)


def by_ring(spectra):
    """The mean power at each distance from the origin, of every field."""
    return np.stack([spectra[..., radius == r].mean(-1) for r in rings], axis=-1)


figure = plt.figure(figsize=(10, 6.4), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.25))
axes = top.subplots(2, 8)
for row, (title, fields, kinds) in zip(
    axes, (("data", x, labels), ("samples", new, new_labels)), strict=True
):
    for i, one_axes in enumerate(row):
        field = fields[kinds == (i >= 4)][i % 4]
        image = one_axes.imshow(field[..., 0], vmin=MEAN - 3 * STD, vmax=MEAN + 3 * STD)
        one_axes.set(xticks=[], yticks=[])
    row[0].set_ylabel(title)
axes[0, 0].set_title("class 0", fontsize=9)
axes[0, 4].set_title("class 1", fontsize=9)
top.colorbar(image, ax=axes, label="°C")
left, right = bottom.subplots(1, 2)
for label, length in enumerate(LENGTHS):
    rows = by_ring(power(new[new_labels == label]))
    exact = by_ring(spectrum(length))
    error = rows.std(0, ddof=1) / math.sqrt(len(rows))
    left.errorbar(rings, rows.mean(0), 2 * error, fmt="o", ms=4, color=f"C{label}")
    left.plot(rings, exact, color=f"C{label}", label=f"class {label}")
    ratio = rows.mean(0) / exact
    print(f"class {label}: power of samples over the true one, by ring:", np.round(ratio, 2))
    assert np.all((ratio[1:] > 0.4) & (ratio[1:] < 2.5))
left.set(yscale="log", xlabel="waves across the grid", ylabel="power in °C²", title="Spectra")
left.legend()
values = [mean_and_error(v) for v in bars.values()]
right.barh(list(bars), [v[0] for v in values], xerr=[2 * v[1] for v in values], color="C2")
right.set(xlabel="bits per dimension of held-out fields", title="How good is it")
right.invert_yaxis()

scratch.cleanup()

# %% [markdown]
# *Top: fields of the training set and samples of the model, four of each class. Left: the power of
# the samples (points, ± two standard errors) on the spectra that the data were drawn with (lines).
# Right: bits per dimension on held-out fields, ± two standard errors of each mean; the model
# has most of what separates a code without structure from the truth. The two say different things.
# At the left end of the spectra lies the mean of a whole field, one coefficient of 144: however far
# the samples are off there, bits per dimension hardly notice. Look at both.*
