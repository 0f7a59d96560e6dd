"""Stateless random numbers: a function of a key (seed, epoch, view) and an item id."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["keyed_bits", "keyed_order", "keyed_uniforms"]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53


def keyed_bits(key: tuple[int, ...], ids: NDArray[np.int64], slots: int) -> NDArray[np.uint64]:
    """64 random bits for each id and slot; they depend on key, id and slot alone.

    Args:
        key: For example (seed, epoch, view); any integers, modulo 2^64.
        ids: [n].
        slots: Draws of each id, >= 0. More slots do not change earlier ones.

    Returns:
        uint64 [n, slots].

    Source:
        Steele et al. 2014, Fast splittable pseudorandom number generators (SplitMix64): each integer of
        the key is added to the state, which is then mixed.
    """
    state = np.zeros(1, np.uint64)
    for word in key:
        state = _mixed(state + np.uint64(word % 2**64))
    state = _mixed(state + ids.astype(np.uint64))
    return _mixed(state[:, None] + np.arange(slots, dtype=np.uint64) * _STEP)


def keyed_uniforms(key: tuple[int, ...], ids: NDArray[np.int64], slots: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), float64 [n, slots], from `keyed_bits`.

    Example:
        >>> both = keyed_uniforms((7, 0, 1), np.array([3, 5]), 2)
        >>> bool((both[1] == keyed_uniforms((7, 0, 1), np.array([5]), 4)[0, :2]).all())
        True
    """
    return (keyed_bits(key, ids, slots) >> np.uint64(11)).astype(np.float64) * _TO_UNIT


def keyed_order(key: tuple[int, ...], length: int) -> tuple[int, ...]:
    """A permutation of 0 to length - 1."""
    drawn = keyed_bits(key, np.zeros(1, np.int64), length)[0]
    return tuple(int(place) for place in np.argsort(drawn, kind="stable"))


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + _STEP
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
