"""The difference of two settings over several seeds on the same images, with its interval.

Two things are chance: which images were drawn, and which seeds. All models saw the same images, so the
images' part is that of the paired differences: for each image, the mean over the seeds of one setting minus
that of the other. The seeds' part is that of each setting's own scores, as the seeds are independent. Their
sum slightly overstates the variance, since a seed's scores vary by images too; it errs towards "cannot be
told apart". The degrees of freedom are Satterthwaite's: with three seeds the normal distribution would be far
too sure of itself.

McNemar's exact test is not used: it knows the images only, so it compares two trained models and not two
settings.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.metrics import Objective

Floats = NDArray[np.float64]
LEAST_SEEDS = 2
"""Seeds below which nothing is known about the chance of a seed."""


@dataclass(frozen=True)
class Runs:
    """One setting, trained with S seeds and measured on N images."""

    scores: Floats
    """Metric of each seed, (S,)."""
    credits: Floats
    """Share of each image in it, (S, N); see `answers.credits_of`."""
    solved: bool = False
    """True if the head is solved for: nothing is drawn by the seed, so one training tells all, and S is 1."""

    @property
    def are_enough(self) -> bool:
        """True if it is known how far the scores vary with the seed."""
        return self.solved or len(self.scores) >= LEAST_SEEDS


@dataclass(frozen=True)
class Interval:
    """A difference and the bounds within which it lies with the asked confidence."""

    difference: float
    low: float
    high: float


def difference(one: Runs, other: Runs, *, level: float, objective: Objective) -> Interval:
    """Return how much better `one` is than `other`, with an interval of confidence `level`.

    Args:
        one: at least two seeds, or solved.
        other: the same, on the same images.
        level: confidence, in 0..1.
        objective: tells which scores are better; a positive difference means that `one` is.

    Raises:
        ValueError: fewer than two seeds, or other images.
    """
    enough = one.are_enough and other.are_enough
    if not enough or one.credits.shape[1] != other.credits.shape[1]:
        raise ValueError("two settings are compared over two seeds each and the same images")
    found = objective.gain(float(one.scores.mean()), float(other.scores.mean()))
    images = one.credits.shape[1]
    paired = one.credits.mean(axis=0) - other.credits.mean(axis=0)
    parts = [(float(paired.var(ddof=1)) / images, images - 1)] if images > 1 else [(math.inf, 1)]
    for runs in (runs for runs in (one, other) if not runs.solved):
        seeds = len(runs.scores)
        parts.append((float(runs.scores.var(ddof=1)) / seeds, seeds - 1))
    half = _half_width(parts, level)
    return Interval(found, found - half, found + half)


def _half_width(parts: list[tuple[float, int]], level: float) -> float:
    """Return half the width of an interval from variances of a mean, each with its degrees of freedom."""
    from scipy.stats import t

    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    if not math.isfinite(variance):
        return math.inf
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return float(t.ppf(0.5 + level / 2, freedom)) * math.sqrt(variance)
