"""Random numbers as pure functions of what they are for: no state, so access in any order.

Every draw is a hash of (seed, purpose, keys...), the finaliser of SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014) chained over the keys. Keys are integers or arrays that broadcast.
"""

from __future__ import annotations

from enum import IntEnum, auto

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


class Purpose(IntEnum):
    """What a draw is for; each has a stream of its own. Add at the end only: order is data."""

    SLOTS = auto()
    RANKS = auto()
    WORDS = auto()
    PUBLISHED = auto()
    DOMAIN = auto()
    UPLOADER = auto()
    HAS = auto()
    EVENT = auto()
    TITLE = auto()
    DESCRIPTION = auto()
    FOCUS = auto()
    TAGS = auto()
    FRAMES = auto()
    SOUND = auto()
    INTERESTS = auto()
    INTERACTIONS = auto()
    SEARCHES = auto()
    COMMENTS = auto()
    CHOICE = auto()
    STARS = auto()
    RELATIONS = auto()
    NOISE = auto()


def _finalise(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLY_1
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLY_2
    return x ^ (x >> np.uint64(31))


def bits(seed: int, purpose: Purpose, *keys: ArrayLike) -> NDArray[np.uint64]:
    """64 uniform bits for each element of the broadcast keys; at least one dimension."""
    # arrays, not scalars: unsigned overflow is meant, and numpy warns of it for scalars only
    state = np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    state = _finalise(state + _GOLDEN)
    for key in (int(purpose), *keys):
        part = np.atleast_1d(np.asarray(key)).astype(np.int64).view(np.uint64)
        state = _finalise((state + _GOLDEN) ^ (part * _MULTIPLY_2 + _GOLDEN))
    return state


def uniform(seed: int, purpose: Purpose, *keys: ArrayLike) -> NDArray[np.float64]:
    """Uniform in [0, 1), with 53 random bits."""
    return (bits(seed, purpose, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(limit: ArrayLike, seed: int, purpose: Purpose, *keys: ArrayLike) -> NDArray[np.int64]:
    """Uniform integers from 0 to limit - 1, where `limit` broadcasts with the keys."""
    return np.floor(uniform(seed, purpose, *keys) * np.asarray(limit)).astype(np.int64)


def normal(seed: int, purpose: Purpose, *keys: ArrayLike) -> NDArray[np.float64]:
    """Standard normal (Box and Muller 1958); uses two draws, with a last key of 0 and 1."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(seed, purpose, *keys, 0)))
    return radius * np.cos(2.0 * np.pi * uniform(seed, purpose, *keys, 1))
