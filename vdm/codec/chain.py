"""Bits-back coding of one batch along the chain of latents, in Bit-Swap order.

The bound's joint factors along the forward chain, q(z_0|x) Π q(z_t|z_s), whose steps need no
x. Encoding pops z_0 from q(z_0|x), pushes x under p(x|z_0), then for every step pops z_t from
q(z_t|z_s) and pushes z_s under p(z_s|z_t), and in the end pushes z_1 under N(0, I); decoding
undoes these one by one. What is popped comes back when it is decoded, so an image costs

    −log p(x|z_0) − log p(z_1) + log q(z_0|x) + Σ [log q(z_t|z_s) − log p(z_s|z_t)],

whose mean is the bound with T steps, and no more than two levels of latents are in use at once
(Townsend, Bird & Barber 2019; Kingma, Abbeel & Ho 2019; VDM, section 4.4 and appendix N).
p(z_s|z_t) has the variance c σ_s² (1 + κ v) where x̂ is taken to be uncertain by v, else c σ_s².
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vdm.codec.lattice import Indices, Lattice, Values
from vdm.codec.stack import Stack

# Probabilities formed at once: all levels of all pixels of a batch could fill the memory.
CHUNK = 2**20


class Prediction(NamedTuple):
    """ε̂ at latents [b, *d], and the variance v ≥ 0 that x̂ leaves, None for 0."""

    eps_hat: Values
    v: Values | None = None


# The prediction at latents of a level, of which 0 is the data's.
Predict = Callable[[Values, int], Prediction]


class Cost(NamedTuple):
    """What the images of a batch cost in nats, [b]; the coder's own losses are not in it.

    `ideal` is the log ratio above, of the path that was taken; `bound` has the same mean over
    paths, with every step's ratio replaced by its Kullback–Leibler divergence at that z_t.
    """

    ideal: Float[np.ndarray, " b"]
    bound: Float[np.ndarray, " b"]


def encode(
    stack: Stack, x: Int[np.ndarray, " b *d"], levels: int, lattice: Lattice, predict: Predict
) -> Cost:
    """Push a batch of images of integers 0..levels−1; z_0's level is `lattice`'s first."""
    encoded = _encode_levels(x, levels)
    q = lattice.encoding(encoded)
    index = stack.draw_near(q)
    of_x = push_data(stack, x, index, levels, lattice)
    ideal = q.log_density(index) - of_x
    bound = _prior_kl(lattice, encoded) - of_x
    for step in range(lattice.num_steps):
        q = lattice.forward(step, lattice.values(step, index))
        after = stack.draw_near(q)
        z_t = lattice.values(step + 1, after)
        found = predict(z_t, step + 1)
        p = lattice.backward(step, z_t, *found)
        stack.push_any(index, p)
        ideal += q.log_density(after) - p.log_density(index)
        bound += _step_kl(lattice, step, encoded, z_t, found)
        index = after
    prior = lattice.prior(x.shape)
    stack.push_any(index, prior)
    return Cost(ideal - prior.log_density(index), bound)


def decode(
    stack: Stack, shape: tuple[int, ...], levels: int, lattice: Lattice, predict: Predict
) -> Int[np.ndarray, " b *d"]:
    """Pop a batch of images of the given shape, batch axis first."""
    index = stack.pop_any(lattice.prior(shape))
    for step in reversed(range(lattice.num_steps)):
        z_t = lattice.values(step + 1, index)
        before = stack.pop_any(lattice.backward(step, z_t, *predict(z_t, step + 1)))
        stack.push_near(index, lattice.forward(step, lattice.values(step, before)))
        index = before
    x = pop_data(stack, index, levels, lattice)
    stack.push_near(index, lattice.encoding(_encode_levels(x, levels)))
    return x


def push_data(
    stack: Stack, x: Int[np.ndarray, " b *d"], index: Indices, levels: int, lattice: Lattice
) -> Float[np.ndarray, " b"]:
    """Push x under p(x|z_0), z_0 being given by its indices, and return log p(x|z_0) in nats."""
    flat, latents = x.ravel(), index.ravel()
    log_probs = np.zeros(x.size)
    for rows in _pieces(x.size, levels):
        every = decoder(lattice, latents[rows], levels)
        stack.push_levels(flat[rows], every)
        log_probs[rows] = np.take_along_axis(every, flat[rows, None], axis=1)[:, 0]
    return log_probs.reshape(len(x), -1).sum(1)


def pop_data(
    stack: Stack, index: Indices, levels: int, lattice: Lattice
) -> Int[np.ndarray, " b *d"]:
    """Undo `push_data`."""
    flat, latents = np.zeros(index.size, np.int64), index.ravel()
    for rows in reversed(_pieces(index.size, levels)):
        flat[rows] = stack.pop_levels(decoder(lattice, latents[rows], levels))
    return flat.reshape(index.shape)


def _pieces(num: int, levels: int) -> list[slice]:
    size = max(1, CHUNK // levels)
    return [slice(start, start + size) for start in range(0, num, size)]


def decoder(
    lattice: Lattice, index: Int[np.ndarray, " n"], levels: int
) -> Float[np.ndarray, " n k"]:
    """Return log p(x|z_0) of every pixel and level, p ∝ q(z_0|x) (VDM, section 3.3)."""
    z_0 = lattice.values(0, index)[:, None]
    means = lattice.alpha[0] * _encode_levels(np.arange(levels), levels)[None]
    logits = -0.5 * np.square((z_0 - means) / lattice.sigma[0])
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def _encode_levels(x: Int[np.ndarray, "*d"], levels: int) -> Float[np.ndarray, "*d"]:
    return (2.0 * x.astype(np.float64) + 1.0) / levels - 1.0


def _prior_kl(lattice: Lattice, x: Values) -> Float[np.ndarray, " b"]:
    """Return KL(q(z_1|x) ‖ N(0, I)) = ½ Σ [α_1²(x² − 1) − log σ_1²]."""
    each = lattice.alpha[-1] ** 2 * (np.square(x) - 1.0) - 2.0 * np.log(lattice.sigma[-1])
    return 0.5 * each.reshape(len(x), -1).sum(1)


def _step_kl(
    lattice: Lattice, step: int, x: Values, z_t: Values, found: Prediction
) -> Float[np.ndarray, " b"]:
    """Return KL(q(z_s|z_t, x) ‖ p(z_s|z_t)) = ½ (SNR_s/SNR_t − 1) ‖ε − ε̂‖² (VDM, eq. 14).

    With a v it is ½ Σ [log(1 + κ v) + (1 + κ (x − x̂)²)/(1 + κ v) − 1], where κ (x − x̂)² is
    (SNR_s/SNR_t − 1)(ε − ε̂)².
    """
    eps = (z_t - lattice.alpha[step + 1] * x) / lattice.sigma[step + 1]
    gain = np.expm1(lattice.log_snr[step] - lattice.log_snr[step + 1])
    square = np.square(eps - found.eps_hat)
    if found.v is None:
        return 0.5 * gain * square.reshape(len(x), -1).sum(1)
    wide = lattice.spread(step, found.v)
    each = np.log(wide) + (1.0 + gain * square) / wide - 1.0
    return 0.5 * each.reshape(len(x), -1).sum(1)
