"""The cost of a private study: what its trials give away, and the noise that meets an epsilon.

All mechanisms have sensitivity 1 for a unit of privacy, an image or a group of images, whose part is left out
(zeroed), while the number of units is public. A noise multiplier is the standard deviation of the Gaussian
noise over that sensitivity.

Two bounds on the cost are known: by Renyi curves (Papernot and Steinke, ICLR 2022) and by privacy profiles
(Koskela, Redberg and Wang, ICML 2024). Both hold, so the smaller one counts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.private import profiles, renyi
from finetune.private.law import TrialLaw

MOST_NOISE = 1e6
TIGHT_BELOW = 8.0
"""Largest Renyi epsilon of a trial whose steps are composed: beyond it a tighter bound promises little."""
ERROR = 2e-3
"""Error of a composed profile, as a share of the Renyi epsilon."""
CLOSE = 0.997
"""Share of its budget that a mechanism should spend."""
MOST_CALLS = 12


def automatic_delta(units: int) -> float:
    """Return the default delta for a number of units of privacy: below one in the number of units."""
    return float(float(units) ** -1.1)


@dataclass(frozen=True)
class Steps:
    """The noisy steps of DP-SGD: `count` of them, each on a Poisson sample of the units."""

    rate: float
    count: int


CENTRE_SHARE = 0.1
"""Share of a trial's noise budget (in units of 1 / noise^2) that pays for the mean of all features."""


@dataclass(frozen=True)
class Noise:
    """The noise of a study's mechanisms, all of which meet the same epsilon."""

    one_shot: float
    """Noise multiplier of a mechanism that asks once, and of a trial's score on the validation images."""
    steps: dict[Steps, float]
    """Noise multiplier of each step of DP-SGD, beside a centre at `one_shot / sqrt(CENTRE_SHARE)`."""
    test: float
    """Noise multiplier of the one count on the test images, which only the released model makes."""
    trial_epsilon: float
    """Epsilon of one trial."""
    study_epsilon: float
    """Epsilon of the study: of any image, whether it trains, validates or tests."""
    naive_epsilon: float = math.nan
    """Epsilon of a study of as many trials as the mean that gives all of them away."""


@dataclass(frozen=True)
class Cost:
    """Privacy cost of a trial, its score included."""

    curve: np.ndarray
    """Renyi curve."""
    profile: np.ndarray
    """Privacy profile."""

    def epsilon(self, delta: float) -> float:
        """Return the epsilon of the one trial."""
        return min(renyi.epsilon(self.curve, delta), profiles.epsilon(self.profile, delta))

    def of_study(self, law: TrialLaw, delta: float) -> float:
        """Return the epsilon of a search of such trials, of which the best is released."""
        whole = renyi.study_epsilon(self.curve, law, delta)
        return min(whole, profiles.searched(self.profile, law, delta))


def once(noise: float) -> Cost:
    """Return the cost of one noisy question (Gaussian)."""
    return Cost(renyi.gaussian(noise), profiles.gaussian(noise))


def stepwise(steps: Steps, noise: float, one_shot: float, *, tight: float) -> Cost:
    """Return the cost of DP-SGD, and of the mean of all features that was asked for before.

    Args:
        steps: its steps.
        noise: their noise multiplier.
        one_shot: noise multiplier of a mechanism that asks once; the mean is paid for with a share of it.
        tight: bound on the error of the profile's epsilon, which is added to it; 0: Renyi curves alone.
    """
    beside = one_shot / math.sqrt(CENTRE_SHARE)
    curve = renyi.subsampled(steps.rate, noise, steps.count) + renyi.gaussian(beside)
    if not tight:
        return Cost(curve, np.ones(len(profiles.EPSILONS)))
    return Cost(curve, profiles.subsampled(steps.rate, noise, steps.count, beside, error=tight))


def worst(costs: Sequence[Cost]) -> Cost:
    """Return the cost of a trial whose mechanism is drawn: everywhere that of its worst mechanism."""
    return Cost(np.max([c.curve for c in costs], axis=0), np.max([c.profile for c in costs], axis=0))


def noise_for(cost: Callable[[float], float], budget: float) -> float:
    """Return the least noise, to one part in a thousand, whose cost is at most the budget.

    Args:
        cost: epsilon by noise multiplier; more noise costs less.
        budget: epsilon.

    Raises:
        ValueError: no noise meets the budget.
    """
    low, high = 1e-2, 1.0
    while cost(high) > budget:
        low, high = high, 2 * high
        if high > MOST_NOISE:
            raise ValueError(f"privacy.epsilon: must be within reach of some noise, got {budget}. Raise it.")
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) > budget else (low, middle)
    return high


def _nearby(cost: Callable[[float], float], budget: float, start: float) -> float:
    """Return a noise that spends nearly the whole budget, in few calls; epsilon is about 1 / noise.

    Args:
        cost: epsilon by noise multiplier.
        budget: epsilon.
        start: noise that meets the budget.
    """
    noise = best = start
    for _ in range(MOST_CALLS):
        found = cost(noise)
        if found <= budget:
            best = min(best, noise)
            if found >= CLOSE * budget:
                break
        noise *= found / (math.sqrt(CLOSE) * budget)
    return best


def solve(budget: float, delta: float, law: TrialLaw, steps: Sequence[Steps]) -> Noise:
    """Return the least noise with which a study over these mechanisms meets its budget.

    The images of the three splits are different ones. One that trains is seen by the mechanism of each trial,
    one that validates by each trial's score, one that tests by a single count. So each needs to meet the
    budget, and their sum does not matter (parallel composition).

    Raises:
        ValueError: no noise meets the budget.
    """
    start = noise_for(lambda noise: renyi.study_epsilon(renyi.gaussian(noise), law, delta), budget)
    about = renyi.epsilon(renyi.gaussian(start), delta)
    tight = ERROR * about if about <= TIGHT_BELOW else 0.0
    # Each mechanism alone meets a target; the worst of them everywhere costs a little more.
    target = budget
    for _ in range(8):
        one_shot = noise_for(lambda noise: once(noise).of_study(law, delta), target)
        found = {one: _noise_of(one, one_shot, target, delta, law, tight) for one in steps}
        whole = worst([once(one_shot), *(stepwise(s, n, one_shot, tight=tight) for s, n in found.items())])
        cost = whole.of_study(law, delta)
        if cost <= budget:
            break
        target *= 0.999 * budget / cost
    else:
        raise ValueError(f"privacy.epsilon: must be within reach of some noise, got {budget}. Raise it.")
    test = noise_for(lambda noise: once(noise).epsilon(delta), cost)
    naive = renyi.released_one_by_one(whole.curve, max(1, round(law.mean)), delta)
    return Noise(one_shot, found, test, whole.epsilon(delta), cost, naive)


def _noise_of(
    steps: Steps, one_shot: float, target: float, delta: float, law: TrialLaw, tight: float
) -> float:
    """Return the noise of DP-SGD with which a study of it alone meets a target."""
    beside = renyi.gaussian(one_shot / math.sqrt(CENTRE_SHARE))

    def by_curve(noise: float) -> float:
        return renyi.study_epsilon(renyi.subsampled(steps.rate, noise, steps.count) + beside, law, delta)

    start = noise_for(by_curve, target)
    if not tight:
        return start
    return _nearby(
        lambda noise: stepwise(steps, noise, one_shot, tight=tight).of_study(law, delta), target, start
    )
