"""Weights from a seed, the same in Python and in Rust (crates/model/src/parity/recipe.rs), so that they need not be stored.

Element i of a tensor is `centre + scale * k`: k is the sum of the four 16-bit fields of a 64-bit word less 131070,
nearly normal with a standard deviation of 37837. The word is SplitMix64's output for the state
`seed ^ FNV-1a(name) + (i + 1) * 0x9E3779B97F4A7C15`. Both operations are done in float32, and the result is rounded to
bfloat16, to nearest, ties to even: a checkpoint is the same in bfloat16 and in float32.
"""

import numpy as np

STEP = np.uint64(0x9E3779B97F4A7C15)
SPREAD_OF_K = (4 * (2**32 - 1) / 12) ** 0.5


def fnv1a(name):
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return value


def bits(seed, name, count, centre, scale):
    """`count` values as the upper halves of their float32 bits: uint16."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed ^ fnv1a(name)) + np.arange(1, count + 1, dtype=np.uint64) * STEP
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    fields = sum((z >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4))
    k = (fields.astype(np.int64) - 131070).astype(np.float32)
    wide = (np.float32(centre) + np.float32(scale) * k).view(np.uint32)
    return ((wide + np.uint32(0x7FFF) + ((wide >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def scale_of(spread):
    """The factor of k that gives a standard deviation of `spread`, as an exact float32."""
    return float(np.float32(spread / SPREAD_OF_K))


def widen(half_words):
    """bfloat16 bits as float32."""
    return (half_words.astype(np.uint32) << np.uint32(16)).view(np.float32)


def checksum(tensors):
    """Over pairs of name and bits: guards the stored outputs against other weights."""
    total = 0
    for name, half_words in tensors:
        with np.errstate(over="ignore"):
            odd = np.arange(half_words.size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
            total += fnv1a(name) + int((half_words.astype(np.uint64).ravel() * odd).sum(dtype=np.uint64))
    return total % 2**64
