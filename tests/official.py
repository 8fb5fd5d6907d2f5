"""The official VDM computation in plain NumPy and float64, written from its description.

γ = −log SNR as there. Nothing of the library is used: convolutions are sums over shifts,
normalisation, attention, embedding, schedules, losses and the sampler step are spelt out.
`parameters` makes trees of its layout with every leaf off its initial value.
"""

import os
import pathlib

import numpy as np

BESIDE = pathlib.Path(__file__).parents[2] / "shared/fixtures/official"
GAMMA_MIN, GAMMA_MAX = -13.3, 5.0


def fixtures(environ):
    """The folder of the official arrays, and whether tests skip: not where it was named."""
    named = environ.get("VDM_OFFICIAL_FIXTURES")
    folder = pathlib.Path(named) if named else BESIDE
    return folder, not named and not folder.is_dir()


FIXTURES, ABSENT = fixtures(os.environ)


def sigmoid(x):
    return np.exp(-np.logaddexp(0.0, -x))


def swish(x):
    return x * sigmoid(x)


# -- schedules ---------------------------------------------------------------------------------


def gamma(tree, t):
    """γ and dγ/dt at times of shape [b]."""
    t = np.asarray(t, np.float64)
    if "gamma" not in tree:
        return GAMMA_MIN + (GAMMA_MAX - GAMMA_MIN) * t, np.full_like(t, GAMMA_MAX - GAMMA_MIN)
    of = tree["gamma"]
    if "w" in of:
        return of["b"][0] + abs(of["w"][0]) * t, np.full_like(t, abs(of["w"][0]))
    k1, k2, k3 = (np.abs(of[layer]["kernel"]) for layer in ("l1", "l2", "l3"))
    hidden = sigmoid((2.0 * (t - 0.5))[:, None] * k2[0] + of["l2"]["bias"])
    n = k2.shape[1]
    value = k1[0, 0] * t + of["l1"]["bias"][0] + 2.0 * (hidden - 0.5) @ k3[:, 0] / n
    rate = k1[0, 0] + 2.0 * (hidden * (1.0 - hidden) * 2.0 * k2[0]) @ k3[:, 0] / n
    return value, rate


# -- network -----------------------------------------------------------------------------------


def conv(p, x):
    """3×3, stride 1, zeros outside: the sum over nine shifts of the image."""
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = p["bias"]
    for i in range(3):
        for j in range(3):
            total = total + padded[:, i : i + height, j : j + width] @ p["kernel"][i, j]
    return total


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def group_norm(p, x, groups):
    b, height, width, channels = x.shape
    parts = x.reshape(b, height, width, groups, channels // groups)
    mean = parts.mean((1, 2, 4), keepdims=True)
    variance = ((parts - mean) ** 2).mean((1, 2, 4), keepdims=True)
    return ((parts - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape) * p["scale"] + p["bias"]


def res_block(p, x, cond, groups):
    h = conv(p["conv1"], swish(group_norm(p["GroupNorm_0"], x, groups)))
    h = h + dense(p["cond_proj"], cond)[:, None, None]
    h = conv(p["conv2"], swish(group_norm(p["GroupNorm_1"], h, groups)))
    return (dense(p["nin_shortcut"], x) if "nin_shortcut" in p else x) + h


def attention(p, x, groups):
    h = group_norm(p["GroupNorm_0"], x, groups)
    pixels = h.reshape(len(x), -1, x.shape[-1])
    q, k, v = (dense(p[name], pixels) for name in "qkv")
    logits = np.einsum("bqc,bkc->bqk", q, k) / np.sqrt(x.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return x + dense(p["proj_out"], np.einsum("bqk,bkc->bqc", weights, v)).reshape(x.shape)


def embedding(t, features):
    half = features // 2
    frequencies = np.exp(-np.arange(half) * np.log(1e4) / (half - 1))
    angles = 1000.0 * t[:, None] * frequencies
    parts = [np.sin(angles), np.cos(angles)]
    return np.concatenate(parts + [np.zeros((len(t), 1))] * (features % 2), axis=1)


def fourier(z):
    angles = np.stack([2.0**n * 2.0 * np.pi * z for n in (6, 7)], axis=-1)
    angles = angles.reshape(*z.shape[:-1], -1)  # c0 c0 c1 c1 ... against 6 7 6 7 ...
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def eps_hat(tree, z, gamma_t, conditioning, groups=32):
    """ε̂ of the score model at z [b, h, w, c], γ_t [b] and conditioning [b]."""
    p = tree["score_model"]
    width = p["conv_in"]["bias"].shape[0]
    t = (gamma_t - GAMMA_MIN) / (GAMMA_MAX - GAMMA_MIN)
    cond = np.concatenate([embedding(t, width), conditioning[:, None]], axis=1)
    cond = swish(dense(p["dense1"], swish(dense(p["dense0"], cond))))

    def step(kind, i, h):
        h = res_block(p[f"{kind}.block_{i}"], h, cond, groups)
        name = f"{kind}.attn_{i}"
        return attention(p[name], h, groups) if name in p else h

    plain = p["conv_in"]["kernel"].shape[2] == z.shape[-1]
    kept = [conv(p["conv_in"], z if plain else np.concatenate([z, fourier(z)], axis=-1))]
    n = sum(name.startswith("down.block") for name in p)
    for i in range(n):
        kept.append(step("down", i, kept[-1]))
    h = step("mid", 2, step("mid", 1, kept[-1]))
    for i in range(n + 1):
        h = step("up", i, np.concatenate([h, kept.pop()], axis=-1))
    return z + conv(p["conv_out"], swish(group_norm(p["GroupNorm_0"], h, groups)))


# -- losses ------------------------------------------------------------------------------------


def encode(x, levels=256):
    return 2.0 * (np.asarray(x, np.float64) + 0.5) / levels - 1.0


def prior(tree, x):
    """KL(q(z_1|x) ‖ N(0, I)) in nats per example."""
    variance = sigmoid(gamma(tree, [1.0])[0][0])
    terms = (1.0 - variance) * encode(x) ** 2 + variance - np.log(variance) - 1.0
    return 0.5 * terms.sum((1, 2, 3))


def reconstruction(tree, x, eps_0, levels=256):
    """−log p(x|z_0) in nats per example."""
    scale = np.exp(0.5 * gamma(tree, [0.0])[0][0])
    z = encode(x) + scale * eps_0
    logits = -0.5 * ((z[..., None] - encode(np.arange(levels))) / scale) ** 2
    top = logits.max(-1)
    normaliser = top + np.log(np.exp(logits - top[..., None]).sum(-1))
    chosen = np.take_along_axis(logits, np.asarray(x, int)[..., None], -1)[..., 0]
    return (normaliser - chosen).sum((1, 2, 3))


def noised(tree, x, t, eps):
    """z_t and γ_t at times of shape [b]."""
    gamma_t, _ = gamma(tree, t)
    variance = sigmoid(gamma_t)[:, None, None, None]
    return np.sqrt(1.0 - variance) * encode(x) + np.sqrt(variance) * eps, gamma_t


def diffusion(tree, x, t, eps, conditioning, num_steps=0, groups=32):
    """The diffusion loss in nats per example, T = ∞ where num_steps is 0."""
    t = np.asarray(t, np.float64)
    if num_steps:
        t = np.ceil(t * num_steps) / num_steps
    z, gamma_t = noised(tree, x, t, eps)
    error = ((eps - eps_hat(tree, z, gamma_t, conditioning, groups)) ** 2).sum((1, 2, 3))
    if not num_steps:
        return 0.5 * gamma(tree, t)[1] * error
    gamma_s, _ = gamma(tree, t - 1.0 / num_steps)
    return 0.5 * num_steps * np.expm1(gamma_t - gamma_s) * error


def bpd(tree, x, t, eps_0, eps, conditioning, num_steps=0, groups=32):
    """The mean of the three terms in bits per dimension."""
    nats = prior(tree, x) + reconstruction(tree, x, eps_0)
    nats = nats + diffusion(tree, x, t, eps, conditioning, num_steps, groups)
    return nats.mean() / (np.prod(np.shape(x)[1:]) * np.log(2.0))


def sampler_step(tree, z_t, i, num_steps, eps, conditioning, groups=32):
    """z_s of the ancestral step i of T."""
    t, s = (num_steps - i) / num_steps, (num_steps - i - 1) / num_steps
    gamma_s, gamma_t = gamma(tree, [s, t])[0]
    c = -np.expm1(gamma_s - gamma_t)
    predicted = eps_hat(tree, z_t, np.full(len(z_t), gamma_t), conditioning, groups)
    kept = np.sqrt(sigmoid(-gamma_s) / sigmoid(-gamma_t))
    mean = kept * (z_t - np.sqrt(sigmoid(gamma_t)) * c * predicted)
    return mean + np.sqrt((1.0 - sigmoid(-gamma_s)) * c) * eps


# -- trees -------------------------------------------------------------------------------------


def parameters(
    seed=0,
    channels=32,
    blocks=2,
    data_channels=3,
    everywhere=False,
    with_fourier=True,
    schedule="scalar",
    schedule_width=11,
    scale=0.3,
):
    """A parameter tree of the official layout; every leaf is random, about its usual size."""
    rng = np.random.default_rng(seed)

    def layer(*shape, bias=True):
        fan_in = np.prod(shape[:-1])
        made = {"kernel": rng.normal(size=shape) / np.sqrt(fan_in)}
        return made | ({"bias": scale * rng.normal(size=shape[-1])} if bias else {})

    def norm(n):
        return {"scale": 1 + scale * rng.normal(size=n), "bias": scale * rng.normal(size=n)}

    def block(inputs):
        made = {
            "GroupNorm_0": norm(inputs),
            "conv1": layer(3, 3, inputs, channels),
            "cond_proj": layer(4 * channels, channels, bias=False),
            "GroupNorm_1": norm(channels),
            "conv2": layer(3, 3, channels, channels),
        }
        return made | ({"nin_shortcut": layer(inputs, channels)} if inputs != channels else {})

    def attend():
        names = ("q", "k", "v", "proj_out")
        return {"GroupNorm_0": norm(channels)} | {k: layer(channels, channels) for k in names}

    net = {
        "dense0": layer(channels + 1, 4 * channels),
        "dense1": layer(4 * channels, 4 * channels),
        "conv_in": layer(3, 3, data_channels * (5 if with_fourier else 1), channels),
        "mid.block_1": block(channels),
        "mid.attn_1": attend(),
        "mid.block_2": block(channels),
        "GroupNorm_0": norm(channels),
        "conv_out": layer(3, 3, channels, data_channels),
    }
    for kind, inputs, count in (("down", channels, blocks), ("up", 2 * channels, blocks + 1)):
        for i in range(count):
            net[f"{kind}.block_{i}"] = block(inputs)
            if everywhere:
                net[f"{kind}.attn_{i}"] = attend()
    tree = {"score_model": net}
    if schedule == "scalar":
        tree["gamma"] = {"b": rng.normal(-13.0, 0.3, 1), "w": -rng.normal(18.0, 0.5, 1)}
    if schedule == "network":
        n = schedule_width
        tree["gamma"] = {
            "l1": {"kernel": rng.normal(-17.0, 0.5, (1, 1)), "bias": rng.normal(-13.0, 0.3, 1)},
            "l2": {"kernel": 3 * rng.normal(size=(1, n)), "bias": rng.normal(size=n)},
            "l3": {"kernel": 3 * rng.normal(size=(n, 1))},
        }
    return tree


def leaves(tree, prefix=""):
    """{path: leaf} of a tree, paths joined by slashes."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {
        k: v for name, part in tree.items() for k, v in leaves(part, f"{prefix}{name}/").items()
    }


def mapped(fn, *trees):
    """The tree of fn(leaf, ...)."""
    if not isinstance(trees[0], dict):
        return fn(*trees)
    return {name: mapped(fn, *(tree[name] for tree in trees)) for name in trees[0]}
