"""A stack of bits: pushing codes a symbol, popping draws one, each the inverse of the other.

The coder is constriction's asymmetric numeral system with 24-bit integer probabilities (Duda
2009; Bamler 2022). Below the data lie seed words from a keyed generator, as many as the first
draws need, added when they need them: once everything is decoded they are back, bit for bit.

A draw takes words that were pushed just before, and these are not random: wherever the coder
wrote a word, its lowest bits lie in the interval of the symbol that was pushed last, so a symbol
in the tail would be drawn again as noise in the tail. Words are therefore whitened before a
draw, all that it takes and no other, by adding (modulo 2) words of the generator's; decoding
adds them once more.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt32

from vdm.codec.lattice import Indices, Normal

# How far beyond its reach an index is takes 1 to 12 digits of 4 bits, so means lie within:
NUM_DIGITS = 12
FARTHEST = 2.0**46
PRECISION = 24


class DamagedError(ValueError):
    """Words that are not what the same codec wrote, or that another model wrote."""


def random_words(seed: int, stream: int, num: int) -> UInt32[np.ndarray, " num"]:
    """Return the first words of one of the generator's streams."""
    generator = np.random.Philox(key=seed, counter=[0, stream, 0, 0])
    return generator.random_raw(num).astype(np.uint32)


def seed_words(seed: int, num: int) -> UInt32[np.ndarray, " num"]:
    """Return the topmost seed words, downwards; more words begin with the same ones."""
    words = random_words(seed, 0, num)
    words[:1] |= np.uint32(2**31)  # the coder's topmost word must not be zero
    return words


class Stack:
    """Words, of which the uppermost 33 to 64 bits are the coder's state, on seed words.

    `num_draws` draws went into what is on it. Drawing adds seed words where there are too few, and
    `num_seed_words` counts them.
    """

    def __init__(self, words: UInt32[np.ndarray, " words"], seed: int, num_draws: int):
        self._coder = _coder(words)
        self._seed = seed
        self._num_draws = num_draws
        self.num_seed_words = len(words)

    @property
    def words(self) -> UInt32[np.ndarray, " words"]:
        """Everything that is on the stack, the bottom first."""
        return self._coder.get_compressed()

    @property
    def num_bits(self) -> float:
        """How much information that is, to a fraction of a bit."""
        position, state = self._coder.pos()
        return 32.0 * position + math.log2(max(state, 1))

    def is_seed(self) -> bool:
        """Whether the seed words are left and nothing else: all is decoded as it was encoded."""
        left = self.words[::-1]
        return len(left) >= 2 and np.array_equal(left, seed_words(self._seed, len(left)))

    def draw_near(self, normal: Normal) -> Indices:
        """Turn bits into a draw from a normal distribution, within its reach."""
        base, rest = _centre(normal)
        most = (PRECISION * base.size) // 32 + 2  # words that so many symbols may take
        while True:
            words = self.words
            top = len(words) - 1
            bottom = max(0, top - most)
            changes = self._changes(top - bottom)
            words[bottom:top] ^= changes
            coder = _coder(words)
            drawn = coder.decode(_gaussian(normal), *rest)
            # A coder that ran dry has fewer than two words and took zeros instead.
            if coder.num_words() >= 2:
                break
            self._add_seed(max(1, base.size // 32))
        words, taken = coder.get_compressed(), coder.num_words() - 2
        if bottom < taken:
            words[bottom:taken] ^= changes[: taken - bottom]
        self._coder = _coder(words)
        self._num_draws += 1
        return base + drawn.astype(np.int64).reshape(base.shape)

    def push_near(self, index: Indices, normal: Normal) -> None:
        """Turn a draw back into bits; raises DamagedError for one that cannot be drawn."""
        base, rest = _centre(normal)
        away = (index - base).ravel()
        if np.max(np.abs(away), initial=0) > normal.reach:
            raise DamagedError("a latent was decoded that cannot have been encoded")
        taken = max(0, self._coder.num_words() - 2)
        self._push(away, _gaussian(normal), *rest)
        self._num_draws -= 1
        words = self.words
        if taken < len(words) - 1:
            words[taken:-1] ^= self._changes(len(words) - 1 - taken)
            self._coder = _coder(words)

    def push_any(self, index: Indices, normal: Normal) -> None:
        """Push indices of any size: beyond the reach an index takes 8 bits more, or up to 52."""
        base, rest = _centre(normal)
        away, reach = (index - base).ravel(), normal.reach
        beyond = np.abs(away) - reach
        digits = beyond[beyond >= 0, None] >> (4 * np.arange(NUM_DIGITS)) & 15
        counts = np.max((digits > 0) * np.arange(1, NUM_DIGITS + 1), axis=1, initial=1)
        self._push(digits[np.arange(NUM_DIGITS) < counts[:, None]], _uniform(16))
        self._push(counts - 1, _uniform(NUM_DIGITS))
        self._push(np.clip(away, -reach, reach), _gaussian(normal), *rest)

    def pop_any(self, normal: Normal) -> Indices:
        """Undo `push_any`."""
        base, rest = _centre(normal)
        away = self._pop(_gaussian(normal), *rest)
        at_end = np.abs(away) == normal.reach
        counts = 1 + self._pop(_uniform(NUM_DIGITS), int(np.sum(at_end)))
        digits = np.zeros((len(counts), NUM_DIGITS), np.int64)
        there = np.arange(NUM_DIGITS) < counts[:, None]
        digits[there] = self._pop(_uniform(16), int(np.sum(counts)))
        beyond = np.sum(digits << (4 * np.arange(NUM_DIGITS)), axis=1)
        away[at_end] += np.sign(away[at_end]) * beyond
        return base + away.reshape(base.shape)

    def push_levels(self, x: Int[np.ndarray, " n"], log_probs: Float[np.ndarray, " n k"]) -> None:
        """Push symbols 0..k−1, each with its own probabilities."""
        self._push(x, _categorical(), np.exp(log_probs))

    def pop_levels(self, log_probs: Float[np.ndarray, " n k"]) -> Int[np.ndarray, " n"]:
        """Undo `push_levels`."""
        return self._pop(_categorical(), np.exp(log_probs))

    def _push(self, symbols: Int[np.ndarray, " n"], model: Any, *params: Any) -> None:
        if symbols.size:
            self._coder.encode_reverse(symbols.astype(np.int32), model, *params)

    def _pop(self, model: Any, *params: Any) -> Int[np.ndarray, " n"]:
        return self._coder.decode(model, *params).astype(np.int64)

    def _changes(self, num: int) -> UInt32[np.ndarray, " num"]:
        """Return what the words below the topmost are whitened by in this draw, bottom first."""
        return random_words(self._seed, self._num_draws + 1, num)[::-1]

    def _add_seed(self, num: int) -> None:
        words = self.words
        self.num_seed_words += num
        below = seed_words(self._seed, self.num_seed_words)[-num:]
        self._coder = _coder(np.concatenate([below[::-1], words]))


def empty(seed: int, num_seed_words: int = 2) -> Stack:
    """Return a stack of seed words."""
    return Stack(seed_words(seed, num_seed_words)[::-1].copy(), seed, 0)


def _centre(normal: Normal) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return the index nearest the mean, the symbols' zero, and what is left of the mean.

    Both directions know the mean when they code an index, so only the way from it is coded:
    a support of a few standard deviations is enough on a lattice of any size.
    """
    mean = np.clip(normal.mean / normal.spacing, -FARTHEST, FARTHEST)
    base = np.rint(mean)
    rest = (mean - base).ravel()
    scale = np.broadcast_to(normal.std / normal.spacing, mean.shape).ravel()
    return base.astype(np.int64), (rest, scale)


def _coder(words: np.ndarray) -> Any:
    if not len(words) or not words[-1]:
        raise DamagedError("expected at least one word, the last one not zero")
    return _stream().stack.AnsCoder(np.ascontiguousarray(words))


# Imported where it is used: everything else of the library works without it.
def _stream() -> Any:
    from constriction import stream

    return stream


def _gaussian(normal: Normal) -> Any:
    return _stream().model.QuantizedGaussian(-normal.reach, normal.reach)


def _uniform(size: int) -> Any:
    return _stream().model.Uniform(size)


def _categorical() -> Any:
    return _stream().model.Categorical(perfect=False)
