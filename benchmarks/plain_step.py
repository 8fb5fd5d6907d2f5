"""The floor: a training step of the VDM paper's CIFAR-10 model with nothing done for speed.

Written apart from the library, from the paper's description: the dense decoder, every level's
logit and a one-hot choice among them; Flax's own layers; one AdamW for all parameters; an
average of them. `train_step.py` times it beside the library's step on a network of equal size.
λ is the paper's −γ, learned and linear in t; everything is float32.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

LEVELS = 256
GAMMA_MIN, GAMMA_MAX, GAMMA_SCALE_MAX = -13.3, 5.0, 18.3


class State(NamedTuple):
    """What a step takes and gives back."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


class Block(nn.Module):
    """A residual block of two convolutions, given the noise level's embedding."""

    channels: int
    num_groups: int
    dropout: float

    @nn.compact
    def __call__(self, x, level):
        h = nn.swish(nn.GroupNorm(self.num_groups)(x))
        h = nn.Conv(self.channels, (3, 3))(h)
        shift = nn.Dense(self.channels, use_bias=False, kernel_init=nn.initializers.zeros)(level)
        h = nn.swish(nn.GroupNorm(self.num_groups)(h + shift[:, None, None, :]))
        h = nn.Dropout(self.dropout, deterministic=False)(h)
        h = nn.Conv(self.channels, (3, 3), kernel_init=nn.initializers.zeros)(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels)(x)
        return x + h


class Attention(nn.Module):
    """One head over all pixels."""

    num_groups: int

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        pixels = nn.GroupNorm(self.num_groups)(x).reshape(b, h * w, c)
        q, k, v = (nn.Dense(c)(pixels) for _ in range(3))
        weights = nn.softmax(jnp.einsum("bqc,bkc->bqk", q, k) / math.sqrt(c), axis=-1)
        mixed = jnp.einsum("bqk,bkc->bqc", weights, v).reshape(x.shape)
        return x + nn.Dense(c, kernel_init=nn.initializers.zeros)(mixed)


class Network(nn.Module):
    """The U-Net without down-sampling: ε̂ = z + what it computes."""

    channels: int
    num_blocks: int
    num_groups: int
    dropout: float
    attention: bool

    @nn.compact
    def __call__(self, z, gamma):
        t = (gamma - GAMMA_MIN) / (GAMMA_MAX - GAMMA_MIN)
        half = self.channels // 2
        frequencies = jnp.exp(-math.log(1e4) / (half - 1) * jnp.arange(half))
        angles = 1000.0 * t[:, None] * frequencies
        level = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        for _ in range(2):
            level = nn.swish(nn.Dense(4 * self.channels)(level))
        turns = z[..., None] * (2.0 * math.pi * jnp.asarray([64.0, 128.0]))
        turns = turns.reshape(*z.shape[:-1], -1)
        h = jnp.concatenate([z, jnp.sin(turns), jnp.cos(turns)], axis=-1)

        def block(h):
            return Block(self.channels, self.num_groups, self.dropout)(h, level)

        h = nn.Conv(self.channels, (3, 3))(h)
        kept = [h]
        for _ in range(self.num_blocks):
            h = block(h)
            kept.append(h)
        h = block(h)
        h = Attention(self.num_groups)(h) if self.attention else h
        h = block(h)
        while kept:
            h = block(jnp.concatenate([h, kept.pop()], axis=-1))
        h = nn.swish(nn.GroupNorm(self.num_groups)(h))
        return z + nn.Conv(z.shape[-1], (3, 3), kernel_init=nn.initializers.zeros)(h)


def bound(network, params, key, images):
    """Return the mean negative bound in bits per dimension."""
    key_t, key_0, key_eps, key_dropout = jax.random.split(key, 4)
    size = len(images)
    gamma_0 = params["gamma"]["b"]
    rate = jnp.abs(params["gamma"]["w"])
    f = (2.0 * images + 1.0) / LEVELS - 1.0

    eps_0 = jax.random.normal(key_0, f.shape)
    z_0 = f + jnp.exp(0.5 * gamma_0) * eps_0
    values = (2.0 * jnp.arange(LEVELS) + 1.0) / LEVELS - 1.0
    logits = -0.5 * jnp.square((z_0[..., None] - values) * jnp.exp(-0.5 * gamma_0))
    chosen = jax.nn.one_hot(images, LEVELS) * jax.nn.log_softmax(logits)
    reconstruction = -jnp.sum(chosen, axis=(1, 2, 3, 4))

    log_var = jax.nn.log_sigmoid(gamma_0 + rate)
    var = jnp.exp(log_var)
    prior = 0.5 * jnp.sum((1.0 - var) * jnp.square(f) + var - log_var - 1.0, axis=(1, 2, 3))

    t = jnp.mod(jax.random.uniform(key_t) + jnp.arange(size) / size, 1.0)
    gamma = gamma_0 + rate * t
    eps = jax.random.normal(key_eps, f.shape)
    var = nn.sigmoid(gamma)[:, None, None, None]
    z = jnp.sqrt(1.0 - var) * f + jnp.sqrt(var) * eps
    eps_hat = network.apply({"params": params["network"]}, z, gamma, rngs={"dropout": key_dropout})
    diffusion = 0.5 * rate * jnp.sum(jnp.square(eps - eps_hat), axis=(1, 2, 3))
    nats = jnp.mean(prior + reconstruction + diffusion)
    return nats / (math.prod(images.shape[1:]) * math.log(2.0))


def build(network, key, images):
    """Return a fresh state and the compiled step (state, images) → (state, loss)."""
    optimizer = optax.adamw(optax.linear_schedule(0.0, 2e-4, 100), 0.9, 0.99, weight_decay=0.01)

    @jax.jit
    def init():
        z, gamma = jnp.zeros(images.shape), jnp.zeros(len(images))
        variables = network.init({"params": key, "dropout": key}, z, gamma)
        gamma = {"w": jnp.asarray(GAMMA_SCALE_MAX), "b": jnp.asarray(GAMMA_MIN)}
        params = {"gamma": gamma, "network": variables["params"]}
        ema = jax.tree.map(jnp.copy, params)
        return State(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, images):
        def loss_fn(params):
            return bound(network, params, jax.random.fold_in(key, state.step), images)

        loss, gradient = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = jax.tree.map(lambda old, new: old + 1e-4 * (new - old), state.ema, params)
        return State(state.step + 1, params, ema, opt_state), loss

    state = init()
    return state, step.lower(state, images).compile()
