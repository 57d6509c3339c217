"""Tell when the trials that are left promise less than what the validation images can tell.

The scores of ended trials, per strategy, are a sample of what the search draws. Beyond its best few, their
tail is taken as exponential (the peaks over a threshold of extreme value theory), which gives the expected
gain of further trials over the best so far. Measured in benchmarks/patience.py.
"""

import math
from collections.abc import Iterable, Sequence

LEAST = 8
"""Trials that must have ended, besides the baselines, before a study may end by its own patience."""
OF_A_STRATEGY = 3
"""Trials of a strategy that must have ended before its scores say what the next one promises."""
SHARE = 0.5
"""Share of a standard error below which a gain cannot be told from noise."""


def standard_error(score: float, images: int) -> float:
    """Return the standard error of an accuracy (or another mean of values in 0..1) over `images` images.

    A score near 0 or 1 counts as if one image were wrong or right.
    """
    least = 1 / (images + 2)
    share = min(max(score, least), 1 - least)
    return math.sqrt(share * (1 - share) / images)


def expected_gain(scores: Sequence[float], best: float, draws: int) -> float:
    """Return what `draws` more draws like `scores`, where higher is better, are expected to gain over `best`.

    The best of `draws` values with an exponential tail of mean m, of which `over` are expected to exceed
    `best`, exceeds it by about m ln(1 + over).
    """
    ranked = sorted(scores, reverse=True)
    top = max(2, math.ceil(math.sqrt(len(ranked))))
    threshold = ranked[top] if len(ranked) > top else ranked[-1]
    mean = sum(score - threshold for score in ranked[:top]) / top
    if mean <= 0:
        return 0.0
    over = draws * top / (len(ranked) + 1) * math.exp(-max(0.0, best - threshold) / mean)
    return mean * math.log1p(over)


def is_enough(scores: Iterable[tuple[str, float]], images: int, left: int) -> bool:
    """Return True if the trials to come promise less than SHARE standard errors.

    Args:
        scores: strategy and score of each ended trial but the baselines; higher scores are better, in 0..1.
        images: number of validation images.
        left: trials that are left.
    """
    by_strategy: dict[str, list[float]] = {}
    for strategy, score in scores:
        by_strategy.setdefault(strategy, []).append(score)
    every = [score for some in by_strategy.values() for score in some]
    if len(every) < LEAST or not images:
        return False
    best = max(every)
    known = [some for some in by_strategy.values() if len(some) >= OF_A_STRATEGY] or [every]
    gain = max(expected_gain(some, best, left) for some in known)
    return gain < SHARE * standard_error(best, images)
