"""Renyi curves of private trials, by opacus, and what a search of such trials costs.

The cost of a search is Theorem 2 of Papernot and Steinke (ICLR 2022); curves are arrays over ORDERS.
"""

import warnings
from collections.abc import Sequence
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
