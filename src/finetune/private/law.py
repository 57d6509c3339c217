"""The law by which the number of a private study's trials is drawn, and what the search then costs.

A study that runs K trials and releases the best one gives away more than one trial does. With a K that is
drawn from a truncated negative binomial distribution and kept secret, it gives away little more (Papernot and
Steinke, ICLR 2022, "Hyperparameter tuning with Renyi differential privacy", Definition 1 and Theorem 2). That
needs trials that are independent draws, and a score that is part of what a trial gives away.

This module imports neither torch nor opacus.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq

LEAST_GAMMA = 1e-12
"""Smallest gamma: means up to about 10^10."""


@dataclass(frozen=True)
class TrialLaw:
    """A truncated negative binomial distribution of the number of trials, which is at least 1."""

    mean: float
    """Mean number of trials, at least 1."""
    shape: float = 0.0
    """Eta, above -1: 0 is the logarithmic distribution, 1 the geometric one. The smaller, the cheaper the
    search, and the more often it is short."""

    @property
    def gamma(self) -> float:
        """The parameter gamma in (0, 1] that gives the mean; 1 for a mean of 1, always one trial."""
        return _gamma(self.mean, self.shape)

    def probability(self, trials: int) -> float:
        """Return the probability of a number of trials."""
        gamma, shape = self.gamma, self.shape
        if trials < 1 or gamma == 1:
            return float(trials == 1)
        if shape == 0:
            odds: float = math.pow(1 - gamma, trials) / (trials * math.log(1 / gamma))
            return odds
        # (gamma^-shape - 1)^-1 (1 - gamma)^k prod_{l<k} (l + shape) / (l + 1)
        logs = math.lgamma(trials + shape) - math.lgamma(shape) - math.lgamma(trials + 1)
        return math.exp(trials * math.log1p(-gamma) + logs) / abs(math.pow(gamma, -shape) - 1)

    def draw(self, uniform: float) -> int:
        """Return the number of trials for a uniform draw from [0, 1), by inverting the distribution."""
        trials, reached = 1, self.probability(1)
        while uniform >= reached:
            trials += 1
            step = self.probability(trials)
            if step < 1e-17:  # rounding: what is left has no weight
                return trials
            reached += step
        return trials


@lru_cache(maxsize=64)
def _gamma(mean: float, shape: float) -> float:
    if mean < 1 or shape <= -1:
        raise ValueError(f"a mean of at least 1 and a shape above -1 are needed, got {mean} and {shape}")
    if mean == 1:
        return 1.0
    # The mean falls as gamma rises, so the root is unique; it is sought on a logarithmic scale.
    found: float = brentq(lambda x: _mean(math.exp(x), shape) - mean, math.log(LEAST_GAMMA), -1e-9)
    return math.exp(found)


def _mean(gamma: float, shape: float) -> float:
    if shape == 0:
        return float((1 / gamma - 1) / math.log(1 / gamma))
    return float(shape * (1 - gamma) / (gamma * (1 - gamma**shape)))


def searched(orders: Sequence[float], rdp: Sequence[float], law: TrialLaw) -> np.ndarray:
    """Return the Renyi divergence of a search at each order, given that of one trial.

    Args:
        orders: orders lambda, above 1.
        rdp: divergence of one trial, its score included, at each order.
        law: distribution of the number of trials.
    """
    at, one = np.asarray(orders, float), np.asarray(rdp, float)
    if law.gamma == 1:  # always one trial: nothing is chosen
        return one
    # Theorem 2 holds for any second order; the best one is taken.
    second = (1 + law.shape) * np.min((1 - 1 / at) * one + math.log(1 / law.gamma) / at)
    whole: np.ndarray = one + second + math.log(law.mean) / (at - 1)
    return whole
