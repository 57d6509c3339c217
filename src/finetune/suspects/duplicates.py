"""Find near-duplicates: images that differ by compression, size, brightness, a mirror or a caption."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune.suspects.looks import Bytes, Look

Features = npt.NDArray[np.float32]

BITS = 8
"""Largest distance of two hashes of near-duplicates, in bits of 64."""
CORRELATION = 0.85
"""Smallest correlation of the small grey images of near-duplicates. On trashnet_lt, whose objects lie on
white paper, the hash alone finds 28 pairs. Looked at by eye: of the 11 that correlate less, 10 show different
things and 1 is a copy; of the other 17, 16 are copies and 1 is not."""
COSINE = 0.93
"""Smallest cosine of the features of near-duplicates."""
BLOCK = 1024
"""Images that are compared with all others at a time."""


@dataclass(frozen=True)
class Pair:
    """Two images that show nearly the same, by their places in the lists that were searched."""

    first: int
    second: int
    bits: int
    """Distance of their hashes, in bits of 64, either way round."""
    cosine: float | None
    """Cosine of their features; None without features."""

    @property
    def order(self) -> tuple[float, int]:
        """Sort key: the most alike pairs first."""
        return (self.bits - 32 * max(0.0, (self.cosine or 0.0) - COSINE) / (1 - COSINE), self.first)


def near(looks: Sequence[Look], features: Features | None = None) -> list[Pair]:
    """Return the pairs of near-duplicates, the most alike first.

    Two images are near-duplicates if their hashes differ in at most BITS bits and their small grey images
    correlate by CORRELATION or more, one of them mirrored or not; or if the cosine of their features is above
    COSINE. Images without contrast are compared by features only.

    Args:
        looks: N descriptions.
        features: (N, D) pooled features of the frozen backbone, in the same order.
    """
    return sorted(_pairs(looks, features), key=lambda pair: pair.order)


def _pairs(looks: Sequence[Look], features: Features | None) -> Iterator[Pair]:
    plain = np.array([look.phash for look in looks], dtype=np.uint64)
    mirrored = np.array([look.mirrored for look in looks], dtype=np.uint64)
    flat = np.array([look.is_flat for look in looks], dtype=np.bool_)
    unit = None if features is None else _unit(features)
    for begin in range(0, len(looks), BLOCK):
        rows = slice(begin, begin + BLOCK)
        bits = np.minimum(
            np.bitwise_count(plain[rows, None] ^ plain[None, begin:]),
            np.bitwise_count(plain[rows, None] ^ mirrored[None, begin:]),
        )
        alike = (bits <= BITS) & ~flat[rows, None] & ~flat[None, begin:]
        cosines = None
        if unit is not None:
            cosines = unit[rows] @ unit[begin:].T
            alike |= cosines > COSINE
        for row, column in np.argwhere(np.triu(alike, k=1)):
            first, second = begin + int(row), begin + int(column)
            cosine = None if cosines is None else float(cosines[row, column])
            by_features = cosine is not None and cosine > COSINE
            if by_features or _correlation(looks[first], looks[second]) >= CORRELATION:
                yield Pair(first, second, int(bits[row, column]), cosine)


def _correlation(one: Look, other: Look) -> float:
    """Return the correlation of two small grey images, one of them mirrored if that is higher."""
    a, b = _centred(one.grey), _centred(other.grey)
    return float(max((a * b).sum(), (a * b[:, ::-1]).sum()))


def _centred(grey: Bytes) -> npt.NDArray[np.float64]:
    centred = grey - grey.mean(dtype=np.float64)
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-12))


def _unit(features: Features) -> Features:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, 1e-12), dtype=np.float32)
