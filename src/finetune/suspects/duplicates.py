"""Find near-duplicates: images that differ by compression, size, brightness, a mirror, a caption or a crop.

Two signs make a pair: hashes that are near each other, which no network is needed for, or features that are
near each other, which a crop leaves so where it changes the hash. Either is only a suspicion, which the small
grey images have to confirm; features that are much nearer than is usual among these images need no more, as
of two photographs of one flower.

Shapes: N images, D features, W windows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune.suspects.looks import GREY, SIDE, Bytes, Look

Features = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float32]

BITS = 8
"""Largest distance of two hashes of near-duplicates, in bits of 64."""
CORRELATION = 0.85
"""Smallest correlation of the small grey images of near-duplicates. On trashnet_lt, whose objects lie on
white paper, the hash alone finds 28 pairs. Looked at by eye: of the 11 that correlate less, 10 show different
things and 1 is a copy; of the other 17, 16 are copies and 1 is not."""
COSINE = 0.75
"""Smallest cosine of features at which a crop is looked for."""
NEAREST = 2
"""Images with the nearest features among which the original of a crop is looked for."""
CROPPED = 0.976
"""Smallest correlation of a grey image with a window of another one: higher than CORRELATION, as the best of
many windows is taken. Crops of flowers5's photographs have .978 to .998; the most alike other ones, two round
seed heads on green, have .973."""
SAME = 0.35
"""Largest distance of features (1 less their cosine) that needs no window to be a pair, as a share of the
median distance of an image to its nearest one. On flowers5 (128 pixels) two pairs are below it with
mobilenet_v2 (.09, .20) and seven with squeezenet1_0 (.11 to .33), each of one flower or one scene. One
sunflower that was photographed three times has .44 with mobilenet_v2, as have images of different flowers."""
LENGTHS = (24, 26, 28, 30, 32)
"""Sides of the windows that may have been cropped, of SIDE."""
STEP = 2
"""Distance of windows."""
LIKELY = 0.85
"""Correlation with such a window from which it is adjusted."""
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
    correlation: float
    """Correlation of their small grey images, where they lie best on each other."""

    @property
    def order(self) -> tuple[float, int, int]:
        """Sort key: the most alike pairs first."""
        return (-self.correlation, self.first, self.second)


def near(looks: Sequence[Look], features: Features | None = None) -> list[Pair]:
    """Return the pairs of near-duplicates, the most alike first.

    Two images are near-duplicates if their hashes differ in at most BITS bits and their small grey images
    correlate by CORRELATION or more, one of them mirrored or not. With features they are also if one of them
    is among the NEAREST ones of the other, with a cosine above COSINE, and its small grey image correlates by
    CROPPED or more with a window of the other one, or their features are as near as SAME says. Images without
    contrast are left out.

    Args:
        looks: N descriptions.
        features: (N, D) pooled features of a backbone that has not been trained on the images, in the same
            order; a row of zeros stands for an image that has none.
    """
    found = {(pair.first, pair.second): pair for pair in _by_hash(looks, features)}
    if features is not None:
        found |= {(pair.first, pair.second): pair for pair in _by_features(looks, features, set(found))}
    return sorted(found.values(), key=lambda pair: pair.order)


def _by_hash(looks: Sequence[Look], features: Features | None) -> Iterator[Pair]:
    plain, mirrored, flat = _hashes(looks)
    for begin in range(0, len(looks), BLOCK):
        rows = slice(begin, begin + BLOCK)
        bits = np.minimum(
            np.bitwise_count(plain[rows, None] ^ plain[None, begin:]),
            np.bitwise_count(plain[rows, None] ^ mirrored[None, begin:]),
        )
        alike = (bits <= BITS) & ~flat[rows, None] & ~flat[None, begin:]
        for row, column in np.argwhere(np.triu(alike, k=1)):
            first, second = begin + int(row), begin + int(column)
            correlation = _correlation(looks[first], looks[second])
            if correlation >= CORRELATION:
                cosine = None if features is None else float(np.dot(*_unit(features[[first, second]])))
                yield Pair(first, second, int(bits[row, column]), cosine, correlation)


def _by_features(looks: Sequence[Look], features: Features, known: set[tuple[int, int]]) -> Iterator[Pair]:
    """Yield the pairs, other than `known`, of a crop and its original, or of the same thing taken twice."""
    plain, mirrored, flat = _hashes(looks)
    candidates, usual = _candidates(features)
    for (first, second), cosine in sorted(candidates.items()):
        if (first, second) in known or flat[first] or flat[second]:
            continue
        correlation = max(_window(looks[first], looks[second]), _window(looks[second], looks[first]))
        if correlation >= CROPPED or max(0.0, 1 - cosine) < SAME * usual:
            bits = min(int(np.bitwise_count(plain[first] ^ hashes[second])) for hashes in (plain, mirrored))
            yield Pair(first, second, bits, cosine, correlation)


def _candidates(features: Features) -> tuple[dict[tuple[int, int], float], float]:
    """Return the cosines of pairs of which one image is among the nearest ones of the other.

    Returns:
        The cosines, and the median distance of an image to its nearest one.
    """
    unit, found = _unit(features), {}
    count = min(NEAREST, len(unit) - 1)
    nearest = np.ones(len(unit))
    for begin in range(0, len(unit) if count > 0 else 0, BLOCK):
        cosines = unit[begin : begin + BLOCK] @ unit.T
        own = np.arange(len(cosines))
        cosines[own, begin + own] = -1.0
        nearest[begin + own] = cosines.max(axis=1)
        for row, columns in enumerate(np.argpartition(-cosines, count - 1, axis=1)[:, :count]):
            for column in columns[cosines[row, columns] > COSINE]:
                one, other = sorted((begin + row, int(column)))
                found[one, other] = float(cosines[row, column])
    given = features.any(axis=1)
    return found, float(np.median(1 - nearest[given])) if given.any() else 0.0


def _hashes(
    looks: Sequence[Look],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """Return the hashes (N,), those of the mirrored images, and whether an image has no contrast."""
    plain = np.array([look.phash for look in looks], dtype=np.uint64)
    mirrored = np.array([look.mirrored for look in looks], dtype=np.uint64)
    return plain, mirrored, np.array([look.is_flat for look in looks], dtype=np.bool_)


def _correlation(one: Look, other: Look) -> float:
    """Return the correlation of two small grey images, one of them mirrored if that is higher."""
    a, b = _centred(one.grey), _centred(other.grey)
    return float(max((a * b).sum(), (a * b[:, ::-1]).sum()))


def _window(whole: Look, part: Look) -> float:
    """Return the highest correlation of a small grey image, mirrored or not, with a window of another one.

    The best of windows that lie coarsely is moved and resized in small steps, one direction after the other.
    """
    grey = _centred(part.grey).astype(np.float32)
    both = np.stack([grey.ravel(), grey[:, ::-1].ravel()], axis=1)
    matrices = _shrinking(_PLACES)
    found = _correlations(whole.detail, matrices, matrices, both)
    best, (row, column) = _best(found)
    if best < LIKELY:
        return best
    rows, columns = _PLACES[row], _PLACES[column]
    for _ in range(2):
        near = rows + _AROUND
        best, (row, _) = _best(_correlations(whole.detail, _shrinking(near), _shrinking(columns[None]), both))
        rows, near = near[row], columns + _AROUND
        best, (_, column) = _best(_correlations(whole.detail, _shrinking(rows[None]), _shrinking(near), both))
        columns = near[column]
    return best


def _correlations(detail: Bytes, rows: Floats, columns: Floats, both: Floats) -> Floats:
    """Return the correlations of windows with two images (GREY * GREY, 2), the higher one: (W, V).

    Args:
        detail: the image that has the windows, (SIDE, SIDE).
        rows: matrices that make GREY rows of it, (W, GREY, SIDE).
        columns: the same for columns, (V, GREY, SIDE).
        both: images without mean and of length 1.
    """
    half = rows @ detail.astype(np.float32)  # (W, GREY, SIDE)
    windows = np.einsum("wyx,vkx->wvyk", half, columns, optimize=True)
    windows = windows.reshape(len(rows), len(columns), GREY * GREY)
    windows -= windows.mean(axis=2, keepdims=True)
    lengths = np.linalg.norm(windows, axis=2)
    return np.asarray((windows @ both).max(axis=2) / np.maximum(lengths, 1e-6))


def _best(found: Floats) -> tuple[float, tuple[int, int]]:
    row, column = np.unravel_index(found.argmax(), found.shape)
    return float(found[row, column]), (int(row), int(column))


def _shrinking(places: npt.NDArray[np.float64]) -> Floats:
    """Return the matrices that make GREY cells of windows of a line of SIDE pixels, (W, GREY, SIDE).

    Args:
        places: begin and length of each window, (W, 2); what lies outside the line is cut off.
    """
    begin = places[:, 0].clip(0, SIDE - 1)
    length = places[:, 1].clip(1, SIDE - begin)
    edges = begin[:, None] + np.arange(GREY + 1) * (length / GREY)[:, None]
    pixels = np.arange(SIDE)
    shared = np.minimum(edges[:, 1:, None], pixels + 1) - np.maximum(edges[:, :-1, None], pixels)
    return np.asarray(shared.clip(min=0) * (GREY / length)[:, None, None], dtype=np.float32)


_PLACES = np.array(
    [(begin, length) for length in LENGTHS for begin in range(0, SIDE - length + 1, STEP)], dtype=np.float64
)
"""Begin and length of the windows of a line that are tried first."""
_AROUND = np.array(
    [(begin, length) for length in (-1, -0.5, 0, 0.5, 1) for begin in (-1, -0.67, -0.33, 0, 0.33, 0.67, 1)]
)
"""Changes of begin and length that are tried then."""


def _centred(grey: Bytes) -> npt.NDArray[np.float64]:
    centred = grey - grey.mean(dtype=np.float64)
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-12))


def _unit(features: Features) -> Features:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, 1e-12), dtype=np.float32)
