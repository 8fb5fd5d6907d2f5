"""Images to words and back: many images on one stack, batch after batch."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Integer, UInt32

from vdm.codec import chain
from vdm.codec.lattice import Lattice, Normal, Values, lattice
from vdm.codec.stack import DamagedError, Stack, empty, seed_words
from vdm.condition import Condition, num_rows
from vdm.likelihoods import Discretised

# ε̂ = eps_fn(z, log_snr, cond): z is [batch_size, *shape], log_snr a scalar, cond as given.
EpsCondFn = Callable[[Any, Any, Any], Any]
# v = variance_fn(z, eps_hat, log_snr), of z's shape.
VarianceFn = Callable[[Any, Any, Any], Any]
Images = Integer[np.ndarray, " n *d"]
Advance = Callable[[int], None]
Words = UInt32[np.ndarray, " words"]


class Encoded(NamedTuple):
    """Words that `Codec.decode` turns back into images, and what they cost in bits.

    The words hold `net_bits` of images and `seed_bits` that only had to be there. `ideal_bits`
    and `bound_bits`, both [n], are those of the paths that the code took: −log p of what was
    pushed less that of what was popped, and the T-step bound that has the same mean.
    """

    words: Words
    net_bits: float
    seed_bits: float
    ideal_bits: Float[np.ndarray, " n"]
    bound_bits: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """A lossless code for images of integers by a diffusion model; see `chain` for how.

    `eps_fn(z, log_snr, cond)` is the denoiser, as a plain function or, to compile a network
    without its parameters, `jax.tree_util.Partial(function, params)`. `log_snrs` are the
    increasing levels λ from noise to data that samplers take; T is one less, and the code's
    length is the bound with these T steps. `likelihood` is a discretised one and `shape` that of
    one image. The denoiser is compiled once, for batches of `batch_size` that are filled
    up with zeros where there are fewer images. `variance_fn(z, eps_hat, log_snr)`, of the same kind
    as `eps_fn` and compiled with it, is the variance v ≥ 0 that x̂ leaves in every dimension: the
    reverse steps have the variance c σ_s² (1 + κ v), as those of `vdm.few_steps` (None for v = 0).
    A batch needs about two levels of its
    latents as start bits, so it has at most 1/`ramp` of the images before it (and at least one
    image); with ramp=0 all batches are full, which is faster and costs more seed bits. `spacing` is
    the lattice's, in standard deviations of a step, and `seed` keys the seed bits.

    Words can be decoded by an equal codec alone: the same model, numbers and software on the
    same kind of machine, which `fingerprint` shows beforehand. Every level copies the words that
    are there already: millions of images are better coded in blocks, each on a stack of its own.
    Raises TypeError for a likelihood that is not a discretised one, ValueError for numbers out of
    range and for levels as `lattice` refuses them.
    """

    eps_fn: EpsCondFn
    log_snrs: Float[Array | np.ndarray, " levels"]
    likelihood: Any
    shape: tuple[int, ...]
    batch_size: int = 16
    ramp: int = 8
    spacing: float = 0.25
    seed: int = 0
    variance_fn: VarianceFn | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.likelihood, Discretised):
            raise TypeError(
                "a codec needs integer data, a likelihood discretised(levels): got "
                f"{self.likelihood!r}"
            )
        for name, least in (("batch_size", 1), ("ramp", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}: got {value}")
        self.lattice()

    def lattice(self) -> Lattice:
        """Return the lattice that latents are rounded to."""
        return lattice(np.asarray(self.log_snrs), self.spacing)

    def encode(
        self, images: Images, cond: Condition | None = None, *, advance: Advance | None = None
    ) -> Encoded:
        """Return the words of images [n, *shape] of any integer type, values below `levels`.

        `cond` has one row per image, for a conditional model. `advance` is called after every batch
        with the number of images done. Raises TypeError or ValueError for images that the model is
        not made for, conditions that do not fit, a denoiser that returns numbers that are not
        finite, and variances that are negative or not finite.
        """
        self._check(images, cond)
        grid, stack, done = self.lattice(), empty(self.seed), 0
        costs = []
        for size in batch_sizes(len(images), self.batch_size, self.ramp):
            rows = slice(done, done + size)
            x = images[rows].astype(np.int64)
            costs.append(
                chain.encode(
                    stack, x, self.likelihood.levels, grid, self._predict(grid, cond, rows)
                )
            )
            done += size
            if advance is not None:
                advance(done)
        seed_bits = empty(self.seed, stack.num_seed_words).num_bits
        return Encoded(
            stack.words,
            stack.num_bits - seed_bits,
            seed_bits,
            *(_bits([getattr(cost, name) for cost in costs]) for name in chain.Cost._fields),
        )

    def decode(
        self,
        words: Words,
        num: int,
        cond: Condition | None = None,
        *,
        advance: Advance | None = None,
    ) -> Int[np.ndarray, " n *d"]:
        """Return the `num` images that the words were made of, of type int64.

        `advance` is called after every batch with the number of images done.
        Raises DamagedError for words that `encode` did not make of as many images with an equal
        codec and the same conditions: then the seed is not what is left in the end (but for a
        chance of about 2⁻⁶⁴).
        """
        self._check(np.zeros((num, *self.shape), np.int64), cond)
        grid, sizes = self.lattice(), batch_sizes(num, self.batch_size, self.ramp)
        num_draws = len(sizes) * (grid.num_steps + 1)
        stack = Stack(words, self.seed, num_draws)
        images = np.zeros((num, *self.shape), np.int64)
        end = num
        for size in reversed(sizes):
            rows = slice(end - size, end)
            try:
                images[rows] = chain.decode(
                    stack,
                    (size, *self.shape),
                    self.likelihood.levels,
                    grid,
                    self._predict(grid, cond, rows),
                )
            except NotFiniteError as error:
                raise DamagedError(
                    f"the decoded values are not an image of this model: {error}"
                ) from None
            end -= size
            if advance is not None:
                advance(num - end)
        if not stack.is_seed():
            raise DamagedError(
                "the words were damaged, or written by another model, software or machine: "
                "the words left after decoding are not the seed that they began with"
            )
        return images

    def fingerprint(self, cond: Condition | None = None) -> int:
        """Return 32 bits that are equal for two codecs that compute exactly the same.

        They sum up the lattice, the decoder's probabilities, the coder's output for fixed words,
        and the denoiser of the same noise at eight levels; with variances also all numbers that
        they are made of, and the widths of the steps from these levels. `cond` is of as many images
        as there are, at most a batch of them is used. Another fingerprint means that nothing can be
        decoded; an equal one makes it very likely.
        """
        grid = self.lattice()
        num = self.batch_size if cond is None else min(self.batch_size, num_rows(cond))
        predict = self._predict(grid, cond, slice(0, num))
        words = np.random.Philox(key=self.seed).random_raw(num * math.prod(self.shape))
        noise = (words / 2.0**64 - 0.5).reshape(num, *self.shape)
        parts = [grid.log_snr, grid.alpha, grid.sigma, grid.c, grid.spacing]
        # Latents all over the range of data, and what a few words are drawn to.
        index = np.rint(np.linspace(-1.1, 1.1, 64) / grid.spacing[0]).astype(np.int64)
        parts.append(chain.decoder(grid, index, self.likelihood.levels))
        known = Stack(seed_words(self.seed, 256), self.seed, 0)
        mean = np.linspace(-3.0, 3.0, 64)[None]
        parts.append(known.draw_near(Normal(mean, 1.0, self.spacing)))
        parts += [np.asarray(leaf) for leaf in jax.tree.leaves(_as_partial(self.variance_fn))]
        found = zlib.crc32(b"".join(part.tobytes() for part in parts))
        for level in np.linspace(1, grid.num_steps, 8).round().astype(int):
            eps_hat, v = predict(noise, int(level))
            found = zlib.crc32(eps_hat.tobytes(), found)
            if v is not None:
                p = grid.backward(int(level) - 1, noise, eps_hat, v)
                found = zlib.crc32(np.asarray(p.std).tobytes(), found)
        return found

    def _predict(self, grid: Lattice, cond: Condition | None, rows: slice) -> chain.Predict:
        """Return ε̂ and v of a batch's latents, always computed at the full batch size."""
        fns = _as_partial(self.eps_fn), _as_partial(self.variance_fn)
        compiled = _compiled(jax.default_backend())
        padded_cond = jax.tree.map(lambda part: _pad(part[rows], self.batch_size), cond)

        def predict(z: Values, level: int) -> chain.Prediction:
            padded = _pad(z.astype(np.float32), self.batch_size)
            log_snr = np.float32(grid.log_snr[level])
            answer, variances = compiled(*fns, padded, log_snr, padded_cond)
            eps_hat = np.asarray(answer)[: len(z)].astype(np.float64)
            if not np.all(np.isfinite(eps_hat)):
                raise NotFiniteError(f"the denoiser's answer is not finite at λ = {log_snr}")
            if variances is None:
                return chain.Prediction(eps_hat)
            v = np.asarray(variances)[: len(z)].astype(np.float64)
            if not np.all(np.isfinite(v) & (v >= 0.0)):
                raise NotFiniteError(f"a variance is negative or not finite at λ = {log_snr}")
            return chain.Prediction(eps_hat, v)

        return predict

    def _check(self, images: Images, cond: Condition | None) -> None:
        if not np.issubdtype(images.dtype, np.integer):
            raise TypeError(f"a codec takes integers: got {images.dtype} images")
        if images.shape[1:] != tuple(self.shape):
            raise ValueError(
                f"images must have the shape [n, {', '.join(map(str, self.shape))}]: got "
                f"{list(images.shape)}"
            )
        if not len(images):
            raise ValueError("expected at least one image to encode: got none")
        low, high = int(images.min()), int(images.max())
        if low < 0 or high >= self.likelihood.levels:
            raise ValueError(
                f"images must hold 0..{self.likelihood.levels - 1}: got values from {low} to {high}"
            )
        if cond is not None and num_rows(cond) != len(images):
            raise ValueError(
                f"there must be one condition per image: got {num_rows(cond)} for "
                f"{len(images)} images"
            )


class NotFiniteError(ValueError):
    """A denoiser's answer that is infinite or not a number, or a variance that cannot be one."""


def batch_sizes(num: int, largest: int, ramp: int) -> list[int]:
    """Return how many images each batch has, known to both directions from `num` alone."""
    sizes: list[int] = []
    done = 0
    while done < num:
        size = largest if ramp == 0 else max(1, done // ramp)
        sizes.append(min(size, largest, num - done))
        done += sizes[-1]
    return sizes


def _as_partial(function: Callable[..., Any] | None) -> Any:
    """Return a function as a pytree, which a compiled function takes as an argument."""
    if function is None or isinstance(function, jax.tree_util.Partial):
        return function
    return jax.tree_util.Partial(function)


def _pad(rows: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])


def _bits(nats: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(nats) / math.log(2.0)


@functools.cache
def _compiled(backend: str) -> Callable[..., tuple[Array, Array | None]]:
    """Return the compiled call of denoiser and variances: one program for both directions."""
    # On GPUs the fastest kernels add in any order, and timing chooses between them.
    options = {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": 0}

    def call(
        eps_fn: EpsCondFn, variance_fn: VarianceFn | None, z: Any, log_snr: Any, cond: Any
    ) -> Any:
        with jax.default_matmul_precision("highest"):
            eps_hat = eps_fn(z, log_snr, cond)
            return eps_hat, None if variance_fn is None else variance_fn(z, eps_hat, log_snr)

    return jax.jit(call, compiler_options=options if backend == "gpu" else None)
