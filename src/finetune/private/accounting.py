"""The cost of a private study: Renyi curves of its trials, by opacus, and the noise that meets an epsilon.

All mechanisms have sensitivity 1 for a unit of privacy, an image or a group of images, whose part is left out
(zeroed), while the number of units is public. A noise multiplier is the standard deviation of the Gaussian
noise over that sensitivity.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from finetune.private.law import TrialLaw, searched

ORDERS: tuple[float, ...] = (
    *(1.1, 1.25, 1.5, 1.625, 1.75, 1.875, 2.125, 2.25, 2.5, 2.75, 3.25, 3.5, 4.5, 5.5),
    *range(2, 33),
    *range(34, 64, 2),
    *(64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512),
)
"""Renyi orders at which curves are known. A bound holds at any of them, so more orders only tighten it."""
MOST_NOISE = 1e6


def gaussian(noise: float) -> np.ndarray:
    """Return the curve of one Gaussian mechanism: order / (2 noise^2)."""
    return np.asarray(ORDERS) / (2 * noise**2)


@lru_cache(maxsize=512)
def _subsampled(rate: float, noise: float, steps: int) -> tuple[float, ...]:
    from opacus.accountants.analysis import rdp

    found = np.atleast_1d(rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(ORDERS)))
    return tuple(np.where(np.isfinite(found), found, np.inf) * steps)  # the sums of high orders overflow


def subsampled(rate: float, noise: float, steps: int) -> np.ndarray:
    """Return the curve of `steps` Gaussian mechanisms, each on a Poisson sample of the units."""
    return np.asarray(_subsampled(rate, noise, steps))


def epsilon(curve: Sequence[float] | np.ndarray, delta: float) -> float:
    """Return the epsilon of a curve over ORDERS at a delta, never below 0."""
    from opacus.accountants.analysis import rdp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the range of orders: any of them is a valid bound
        found, _ = rdp.get_privacy_spent(orders=list(ORDERS), rdp=list(curve), delta=delta)
    return max(0.0, float(found))


def study_epsilon(curve: Sequence[float] | np.ndarray, law: TrialLaw, delta: float) -> float:
    """Return the epsilon of a whole study whose trials have a curve."""
    return epsilon(searched(ORDERS, list(curve), law), delta)


def released_one_by_one(curve: Sequence[float] | np.ndarray, trials: int, delta: float) -> float:
    """Return the epsilon of a study that gives away all of its trials: their composition."""
    return epsilon(trials * np.asarray(curve), delta)


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


def centre_curve(one_shot: float) -> np.ndarray:
    """Return the curve of the mean of all features."""
    return gaussian(one_shot / math.sqrt(CENTRE_SHARE))


def worst(one_shot: float, steps: dict[Steps, float]) -> np.ndarray:
    """Return the curve of a trial whose mechanism is drawn: at each order that of its worst mechanism."""
    curves = [gaussian(one_shot)]
    curves += [subsampled(s.rate, noise, s.count) + centre_curve(one_shot) for s, noise in steps.items()]
    whole: np.ndarray = np.max(curves, axis=0)
    return whole


def solve(budget: float, delta: float, law: TrialLaw, steps: Sequence[Steps]) -> Noise:
    """Return the least noise with which a study over these mechanisms meets its budget.

    The images of the three splits are different ones. One that trains is seen by the mechanism of each trial,
    one that validates by each trial's score, one that tests by a single count. So each needs to meet the
    budget, and their sum does not matter (parallel composition).

    Raises:
        ValueError: no noise meets the budget.
    """

    def at(target: float) -> tuple[float, dict[Steps, float]]:
        once = noise_for(lambda noise: study_epsilon(gaussian(noise), law, delta), target)
        beside = centre_curve(once)
        return once, {
            one: noise_for(
                lambda noise, one=one: study_epsilon(  # type: ignore[misc]
                    subsampled(one.rate, noise, one.count) + beside, law, delta
                ),
                target,
            )
            for one in steps
        }

    # Each mechanism alone meets a target; the worst of them at each order costs a little more.
    target = budget
    for _ in range(8):
        once, found = at(target)
        cost = study_epsilon(worst(once, found), law, delta)
        if cost <= budget:
            break
        target *= 0.999 * budget / cost
    else:
        raise ValueError(f"privacy.epsilon: must be within reach of some noise, got {budget}. Raise it.")
    test = noise_for(lambda noise: epsilon(gaussian(noise), delta), cost)
    return Noise(once, found, test, epsilon(worst(once, found), delta), cost)
