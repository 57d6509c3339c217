"""The mechanisms of a private trial: each makes a linear head from rows whose unit has sensitivity 1.

Rows are pooled features divided by their norm, so every number that is asked of them has a known sensitivity;
nothing is scaled by a statistic of the private images. A row counts with the weight 1 over the rows of its
unit, so a unit (an image, or a group of images) has a total weight of at most 1.

Shapes: N rows, D features, P directions, C classes.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from finetune.private.accounting import CENTRE_SHARE, Noise, Steps
from finetune.private.noise import Draws

Mechanism = Literal["means", "least_squares", "sgd"]
MECHANISMS: tuple[Mechanism, ...] = ("means", "least_squares", "sgd")
TINY = 1e-12
SQUARES_SHARE = 0.5
"""Share of the noise budget of `least_squares` that pays for the second moments of the features."""


@dataclass(frozen=True)
class Private:
    """Private rows."""

    features: np.ndarray
    """Features of norm at most 1, float64 (N, D)."""
    labels: np.ndarray
    """int64 (N,)."""
    units: np.ndarray
    """Number of each row's unit of privacy, int64 (N,), from 0 without gaps."""
    classes: int

    @property
    def weights(self) -> np.ndarray:
        """1 over the number of rows of each row's unit, float64 (N,)."""
        whole: np.ndarray = 1 / np.bincount(self.units)[self.units]
        return whole

    @property
    def count(self) -> int:
        """Number of units, which is public."""
        return int(self.units.max()) + 1 if len(self.units) else 0


@dataclass(frozen=True)
class Choices:
    """The settings of a private trial."""

    mechanism: Mechanism
    centre: bool
    """Take the mean of all features away first. The mean is asked for with a share of the noise budget."""
    directions: int = 0
    """Random directions, drawn without looking at the images, to which features are reduced; 0: none."""
    ridge: float = 1.0
    """`least_squares`: penalty, in multiples of the norm of the noise in the second moments."""
    steps: Steps | None = None
    """`sgd`: sampling rate and number of steps."""
    rate: float = 1.0
    """`sgd`: learning rate."""
    clip: float = 1.0
    """`sgd`: norm to which the gradient of a unit is clipped."""


@dataclass(frozen=True)
class Linear:
    """A linear head: logits are features @ weight.T + bias."""

    weight: np.ndarray
    """(C, D)."""
    bias: np.ndarray
    """(C,)."""

    def answers(self, features: np.ndarray) -> np.ndarray:
        """Return the class of each row, int64 (N,)."""
        found: np.ndarray = (features @ self.weight.T + self.bias).argmax(axis=1)
        return found


def one_thread() -> AbstractContextManager[object]:
    """Return a context in which numpy uses one thread: products with so few columns gain nothing by more."""
    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def fit(rows: Private, choices: Choices, noise: Noise, draws: Draws) -> Linear:
    """Return a head that meets the noise's epsilon for every unit of the rows.

    Args:
        rows: the private rows.
        choices: settings, which were chosen without looking at the rows.
        noise: the noise of the study.
        draws: random numbers that nothing else uses.
    """
    once = noise.one_shot
    centre = np.zeros(rows.features.shape[1])
    if choices.centre:
        total = rows.weights @ rows.features  # a unit moves it by at most 1
        share = once / np.sqrt(CENTRE_SHARE)
        centre = (total + share * draws.normal(len(total))) / max(rows.count, 1)
        # What is left of the budget: sgd's steps have been solved for beside the centre.
        once /= np.sqrt(1 - CENTRE_SHARE)
    moved = rows.features - centre
    directions = None
    if 0 < choices.directions < moved.shape[1]:
        directions = draws.normal(moved.shape[1], choices.directions) / np.sqrt(choices.directions)
        moved = moved @ directions
    moved = moved / np.linalg.norm(moved, axis=1, keepdims=True).clip(min=TINY)
    inner = Private(moved, rows.labels, rows.units, rows.classes)
    if choices.mechanism == "means":
        weight = _means(inner, once, draws)
    elif choices.mechanism == "least_squares":
        weight = _least_squares(inner, choices.ridge, once, draws)
    else:
        assert choices.steps is not None
        weight = _sgd(inner, choices, choices.steps, noise.steps[choices.steps], draws)
    if directions is not None:
        weight = weight @ directions.T
    return Linear(weight, -weight @ centre)


def _targets(rows: Private) -> np.ndarray:
    """Return the labels as rows of norm at most 1, float64 (N, C): 1 for the class, less 1 / C for all."""
    wanted: np.ndarray = np.eye(rows.classes)[rows.labels] - 1 / rows.classes
    return wanted


def _means(rows: Private, noise: float, draws: Draws) -> np.ndarray:
    """Return the sums of each class's rows, each of norm 1 in the end; one noisy question (Gaussian)."""
    members = np.eye(rows.classes)[rows.labels] * rows.weights[:, None]
    sums: np.ndarray = members.T @ rows.features  # a unit moves it by at most 1
    sums += noise * draws.normal(*sums.shape)
    sums *= SHARPNESS / np.linalg.norm(sums, axis=1, keepdims=True).clip(min=TINY)
    return sums


SHARPNESS = 10.0
"""Scale of logits that are cosines, chosen without looking at any image."""


def _least_squares(rows: Private, ridge: float, noise: float, draws: Draws) -> np.ndarray:
    """Return the ridge solution from noisy sufficient statistics; two noisy questions (Gaussian)."""
    size = rows.features.shape[1]
    weighted = rows.features * rows.weights[:, None]
    # |x x^T| = |x|^2 <= 1 and |x y^T| = |x| |y| <= 1, so a unit moves either by at most 1.
    for_squares, for_products = noise / np.sqrt(SQUARES_SHARE), noise / np.sqrt(1 - SQUARES_SHARE)
    squares = rows.features.T @ weighted + for_squares * draws.normal(size, size)
    products = weighted.T @ _targets(rows) + for_products * draws.normal(size, rows.classes)
    values, vectors = np.linalg.eigh((squares + squares.T) / 2)
    # The noise of a symmetric matrix has eigenvalues up to sqrt(2 size) times its deviation.
    penalty = ridge * for_squares * np.sqrt(2 * size)
    solved: np.ndarray = vectors @ ((vectors.T @ products) / (values.clip(min=0) + penalty)[:, None])
    solved *= SHARPNESS
    return solved.T


def _sgd(rows: Private, choices: Choices, steps: Steps, noise: float, draws: Draws) -> np.ndarray:
    """Return the weights of DP-SGD on softmax regression: clipped gradients of units, Poisson samples."""
    weight = np.zeros((rows.classes, rows.features.shape[1]))
    average = np.zeros_like(weight)
    members, weights, count = np.eye(rows.classes)[rows.labels], rows.weights, rows.count
    alone = count == len(rows.units)
    for step in range(steps.count):
        taken = draws.uniform(count) < steps.rate
        chosen = taken[rows.units].nonzero()[0]
        x, unit = rows.features[chosen], rows.units[chosen]
        off = (softmax(x @ weight.T, axis=1) - members[chosen]) * weights[chosen][:, None]
        total = _clipped(off, x, unit, count, choices.clip, alone)
        total += noise * choices.clip * draws.normal(*weight.shape)
        # The size of a batch is not asked: the expected one is public.
        weight -= choices.rate * total / (choices.clip * steps.rate * count)
        if step >= steps.count // 2:
            average += weight
    return average / (steps.count - steps.count // 2)


def _clipped(
    off: np.ndarray, x: np.ndarray, unit: np.ndarray, units: int, clip: float, alone: bool
) -> np.ndarray:
    """Return the sum of the units' gradients (C, D), each clipped; a row's gradient is off^T x."""
    if alone:
        norms = np.linalg.norm(off, axis=1) * np.linalg.norm(x, axis=1)
        off = off * np.minimum(1, clip / norms.clip(min=TINY))[:, None]
        total: np.ndarray = off.T @ x
        return total
    # |sum_i off_i x_i^T|^2 over the rows of a unit, from their inner products; units are small.
    factors = np.ones(units)
    for one in np.unique(unit):
        own = unit == one
        square = ((off[own] @ off[own].T) * (x[own] @ x[own].T)).sum()
        factors[one] = min(1.0, clip / max(np.sqrt(max(square, 0.0)), TINY))
    summed: np.ndarray = (off * factors[unit][:, None]).T @ x
    return summed
