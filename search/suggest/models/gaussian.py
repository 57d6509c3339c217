"""A Gaussian process over configurations and epochs, which suggests where the score is likely to improve.

The process sees each trial at a few of its epochs, so a trial that was stopped early tells as much as it has
shown, and its final score is extrapolated like that of a trial nobody has tried. Fields that a trial does not
use take the middle of their range. Kernel: Matern 5/2 with a length scale for each field and for the epoch;
their prior widens with the number of fields (Hvarfner et al., ICML 2024). The choice maximises the logarithm
of the expected improvement at the last epoch; running trials count with the score that is expected of them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs
from scipy.optimize import minimize
from scipy.special import log_ndtr

MODELLED = 300
"""Largest number of observations in the model; beyond it, those of the worst trials are left out."""
DRAWN = 1000
"""Random candidates of each suggestion."""
NEAR = 200
"""Candidates around the best ones, in each of two rounds."""
KEPT = 50
STEP = 0.15
"""Standard deviation of a step from a good candidate, in ranges of a field."""
STEPS, WARM_STEPS = 40, 10
"""Steps of a fit, and of one that begins with the parameters of the fit before it."""
_ROOT5 = math.sqrt(5.0)


class Encoding:
    """Configurations as shares of their fields' ranges, and as points of a cube for the process.

    A share is a number from 0 to 1, from which `from_unit` makes the field's value. In a point a categorical
    field takes a column for each choice.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = dict(space)
        self._counts = [_count(spread) for spread in space.values()]
        self._choices = [isinstance(spread, CategoricalDistribution) for spread in space.values()]
        widths = [n if choice else 1 for n, choice in zip(self._counts, self._choices, strict=True)]
        self.group = np.repeat(np.arange(len(widths)), widths)
        """Position of each column's field: the columns of a field have one length scale."""

    def shares(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return the shares of configurations, NaN where a field is not used: (rows, fields)."""
        columns = [
            to_units(spread, [config.get(name) for config in configs]) for name, spread in self.space.items()
        ]
        return np.array(columns, dtype=float).T.reshape(len(configs), len(self.space))

    def snapped(self, shares: np.ndarray) -> np.ndarray:
        """Return the shares moved to values that their fields can have."""
        shares = np.clip(shares, 0.0, 1.0)
        for i, (count, choice) in enumerate(zip(self._counts, self._choices, strict=True)):
            if choice:
                shares[:, i] = (np.minimum(np.floor(shares[:, i] * count), count - 1) + 0.5) / count
            elif count:
                shares[:, i] = np.round(shares[:, i] * (count - 1)) / (count - 1)
        return shares

    def points(self, shares: np.ndarray, epoch: float | np.ndarray = 1.0) -> np.ndarray:
        """Return the points of snapped shares, with the epoch as their last column."""
        columns = []
        for i, (count, choice) in enumerate(zip(self._counts, self._choices, strict=True)):
            column, unused = shares[:, i : i + 1], np.isnan(shares[:, i : i + 1])
            if choice:
                hot = (np.floor(np.where(unused, 0, column) * count) == np.arange(count)).astype(float)
                columns.append(np.where(unused, 1 / count, hot) / math.sqrt(2))
            else:
                columns.append(np.where(unused, 0.5, column))
        return np.hstack([*columns, np.broadcast_to(epoch, len(shares))[:, None]])

    def config(self, shares: np.ndarray) -> dict[str, Any]:
        """Return the configuration of one row of shares."""
        return {
            name: from_unit(spread, float(share))
            for (name, spread), share in zip(self.space.items(), shares, strict=True)
        }


def _count(spread: BaseDistribution) -> int:
    """Return the number of values of a field; 0 if its values do not lie evenly on the scale of its range."""
    if isinstance(spread, CategoricalDistribution):
        return len(spread.choices)
    assert isinstance(spread, FloatDistribution | IntDistribution)
    if spread.step is None or spread.log:
        return 0
    return round((spread.high - spread.low) / spread.step) + 1


def to_units(spread: BaseDistribution, values: Sequence[Any]) -> np.ndarray:
    """Return values as shares of their range, logarithmic where the range is; NaN for None."""
    if isinstance(spread, CategoricalDistribution):
        places = {choice: (i + 0.5) / len(spread.choices) for i, choice in enumerate(spread.choices)}
        return np.array([math.nan if value is None else places[value] for value in values])
    assert isinstance(spread, FloatDistribution | IntDistribution)
    numbers = np.array([math.nan if value is None else value for value in values], dtype=float)
    if spread.log:
        return np.asarray(np.log(numbers / spread.low) / math.log(spread.high / spread.low))
    return np.asarray((numbers - spread.low) / (spread.high - spread.low))


def from_unit(spread: BaseDistribution, share: float) -> Any:
    """Return the value nearest to a share of a range; of a list, the choice at that share."""
    share = min(max(share, 0.0), 1.0)
    if isinstance(spread, CategoricalDistribution):
        return spread.choices[min(int(share * len(spread.choices)), len(spread.choices) - 1)]
    assert isinstance(spread, FloatDistribution | IntDistribution)
    if spread.log:
        number = spread.low * (spread.high / spread.low) ** share
    else:
        number = spread.low + share * (spread.high - spread.low)
    if spread.step is not None and not spread.log:
        number = spread.low + round((number - spread.low) / spread.step) * spread.step
    number = min(max(number, spread.low), spread.high)
    return round(number) if isinstance(spread, IntDistribution) else float(number)


class Process:
    """A Gaussian process with a Matern 5/2 kernel, fitted by its most likely parameters under their priors.

    Args:
        points: (rows, columns).
        values: (rows); larger is better, any scale.
        group: position of each column's length scale.
        warm: parameters of an earlier fit, from which this one begins.
    """

    def __init__(
        self,
        points: np.ndarray,
        values: np.ndarray,
        group: np.ndarray,
        warm: np.ndarray | None = None,
    ) -> None:
        self._points, self._group = points, group
        self._mean, self._scale = float(values.mean()), float(values.std()) or 1.0
        self._values = (values - self._mean) / self._scale
        self._parts = int(group.max()) + 1
        self._squares = self._apart()
        self._centre = math.sqrt(2) + math.log(self._parts) / 2
        start = np.r_[np.full(self._parts, self._centre - 1), 0.0, -4.0]
        begun = warm is not None and len(warm) == len(start)
        self.parameters: np.ndarray = warm if warm is not None and begun else start
        self.parameters = self._fitted(WARM_STEPS if begun else STEPS)
        self._finish()

    def _fitted(self, steps: int) -> np.ndarray:
        """Return more likely parameters than the present ones."""
        low, high = [-3.0] * self._parts + [-3.0, -9.0], [6.0] * self._parts + [3.0, 1.0]
        bounds = list(zip(low, high, strict=True))
        fit = minimize(
            self._loss,
            self.parameters,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": steps},
        )
        return np.asarray(fit.x)

    def _apart(self) -> np.ndarray:
        """Return squared distances by field, for each pair of rows once: (parts, pairs).

        They are computed once: each step of the fit only weighs them.
        """
        self._pairs = np.tril_indices(len(self._points), -1)
        one, two = self._pairs
        columns = self._points.T
        fields = (columns[self._group == part] for part in range(self._parts))
        return np.stack([((field[:, one] - field[:, two]) ** 2).sum(axis=0) for field in fields])

    def _kernel(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel of each pair of rows, and a factor of its slope by the length scales."""
        far = _ROOT5 * np.sqrt(np.exp(-2 * parameters[: self._parts]) @ self._squares)
        decay = math.exp(parameters[-2]) * np.exp(-far)
        slope = (1 + far) * decay
        return slope + far**2 / 3 * decay, slope

    def _factor(self, kernel: np.ndarray, parameters: np.ndarray) -> np.ndarray | None:
        """Return the lower factor of the kernel with noise; its upper half is noise. None: there is none."""
        rows = len(self._values)
        whole = np.empty((rows, rows), order="F")
        whole[self._pairs] = kernel
        np.fill_diagonal(whole, math.exp(parameters[-2]) + math.exp(parameters[-1]) + 1e-6)
        # LAPACK itself: SciPy's checks take as long as the factor of 100 rows.
        lower, failed = dpotrf(whole, lower=1, clean=0, overwrite_a=1)
        return None if failed else lower

    def _loss(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, factor = self._kernel(parameters)
        lower = self._factor(kernel, parameters)
        if lower is None:
            return 1e10, np.zeros_like(parameters)
        amount, noise = math.exp(parameters[-2]), math.exp(parameters[-1])
        weights, _ = dpotrs(lower, self._values, lower=1)
        loss = 0.5 * self._values @ weights + np.log(lower.diagonal()).sum()
        inverse, _ = dpotri(lower, lower=1, overwrite_c=1)
        # Each pair stands for two entries of the matrix.
        one, two = self._pairs
        inner = inverse[self._pairs] - weights[one] * weights[two]
        trace = inverse.trace() - weights @ weights
        slope = np.empty_like(parameters)
        # d kernel / d log(length) = amount * 5/3 (1 + root5 r) exp(-root5 r) * distance^2 / length^2
        slope[: self._parts] = np.exp(-2 * parameters[: self._parts]) * (
            self._squares @ (5 / 3 * inner * factor)
        )
        slope[-2] = inner @ kernel + 0.5 * amount * trace
        slope[-1] = 0.5 * noise * trace
        # Priors: log-normal length scales, amount near 1, little noise.
        for place, centre, spread in (
            (slice(0, self._parts), self._centre, math.sqrt(3)), (-2, 0.0, 1.0), (-1, -4.0, 1.0)
        ):  # fmt: skip
            off = (parameters[place] - centre) / spread
            loss += 0.5 * float(np.sum(off**2))
            slope[place] += off / spread
        return float(loss), slope

    def _finish(self) -> None:
        lower = self._factor(self._kernel(self.parameters)[0], self.parameters)
        if lower is None:
            raise np.linalg.LinAlgError("the kernel of these trials has no factor")
        self._lower = lower
        self._weights, _ = dpotrs(lower, self._values, lower=1)

    def predict(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation at points, both (rows), without noise."""
        scale = np.exp(-self.parameters[: self._parts])[self._group]
        one, two = points * scale, self._points * scale
        squares = (one**2).sum(1)[:, None] + (two**2).sum(1)[None] - 2 * one @ two.T
        far = np.sqrt(np.maximum(squares, 0))
        amount = math.exp(self.parameters[-2])
        cross = amount * (1 + _ROOT5 * far + 5 / 3 * far**2) * np.exp(-_ROOT5 * far)
        mean = cross @ self._weights
        inner = solve_triangular(self._lower, cross.T, lower=True, check_finite=False)
        spread = np.sqrt(np.maximum(amount - (inner**2).sum(0), 1e-10))
        return self._mean + self._scale * mean, self._scale * spread

    def believe(self, points: np.ndarray) -> None:
        """Take the expected values at points as observed; this narrows the process around them."""
        mean, _ = self.predict(points)
        self._points = np.vstack([self._points, points])
        self._values = np.r_[self._values, (mean - self._mean) / self._scale]
        self._squares = self._apart()
        self._finish()


def log_improvement(mean: np.ndarray, spread: np.ndarray, best: float) -> np.ndarray:
    """Return the logarithm of the expected improvement over `best`, without underflow."""
    z = (mean - best) / spread
    found = np.empty_like(z)
    near = z > -4
    density = np.exp(-0.5 * z[near] ** 2) / math.sqrt(2 * math.pi)
    found[near] = np.log(np.maximum(density + z[near] * np.exp(log_ndtr(z[near])), 1e-300))
    # For z far below 0: phi(z) / z^2, to first order.
    far = z[~near]
    found[~near] = -0.5 * far**2 - 0.5 * math.log(2 * math.pi) - 2 * np.log(-far)
    return np.asarray(found + np.log(spread))


class GaussianModel:
    """Suggests configurations by a Gaussian process over the trials of one strategy."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._warm: np.ndarray | None = None

    def suggest(
        self, trials: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution], *, maximize: bool
    ) -> Iterable[dict[str, Any]]:
        """Return candidates, the most promising first.

        Args:
            trials: all trials of the strategy, running ones included.
            space: the fields to choose.
            maximize: whether larger scores are better.
        """
        encoding = Encoding(space)
        sign = 1.0 if maximize else -1.0
        last = max((max(t.intermediate_values, default=1) for t in trials), default=1)
        seen = [view for t in trials if t.state != TrialState.RUNNING for view in _views(t, sign, last)]
        if not seen:
            return []
        seen = sorted(seen, key=lambda view: -view[2])[:MODELLED]
        known = encoding.shares([trial.params for trial, _, _ in seen])
        values = _without_outliers(np.array([value for _, _, value in seen]))
        group = np.r_[encoding.group, encoding.group.max() + 1]
        points = encoding.points(known, np.array([epoch for _, epoch, _ in seen]))
        process = Process(points, values, group, self._warm)
        self._warm = process.parameters
        mean, _ = process.predict(encoding.points(known))
        best, leaders = float(mean.max()), known[np.argsort(-mean, kind="stable")[:5]]
        running = [t.params for t in trials if t.state == TrialState.RUNNING and t.params]
        if running:
            process.believe(encoding.points(encoding.shares(running)))
        drawn = encoding.snapped(self._rng.random((DRAWN, len(space))))
        candidates = np.vstack([drawn, self._near(leaders, encoding)])
        for _ in range(2):
            candidates = _ranked(candidates, process, encoding, best)
            candidates = np.vstack([candidates, self._near(candidates[:5], encoding)])
        return map(encoding.config, _ranked(candidates, process, encoding, best))

    def _near(self, leaders: np.ndarray, encoding: Encoding) -> np.ndarray:
        """Return configurations that differ from the leaders in a few fields."""
        shares = np.resize(leaders, (NEAR, leaders.shape[1])).copy()
        moves = self._rng.random(shares.shape) < max(0.3, 1 / shares.shape[1])
        stepped = shares + STEP * self._rng.standard_normal(shares.shape)
        anew = self._rng.random(shares.shape)
        chosen = np.array([isinstance(s, CategoricalDistribution) for s in encoding.space.values()])
        shares = np.where(moves, np.where(chosen, anew, stepped), shares)
        return encoding.snapped(np.where(np.isnan(shares), anew, shares))


def _ranked(candidates: np.ndarray, process: Process, encoding: Encoding, best: float) -> np.ndarray:
    mean, spread = process.predict(encoding.points(candidates))
    order = np.argsort(-log_improvement(mean, spread, best), kind="stable")
    return candidates[order[:KEPT]]


def _views(trial: FrozenTrial, sign: float, last: int) -> list[tuple[FrozenTrial, float, float]]:
    """Return a trial as seen at a few epochs: the trial, the epoch (0 to 1), its best value until then."""
    curve = sorted(trial.intermediate_values.items())
    if not curve:
        value = trial.value
        return [] if value is None or not math.isfinite(value) else [(trial, 1.0, sign * value)]
    ends = {curve[-1][0], *(step for step, _ in curve if step in _rungs(last))}
    found, best = [], -math.inf
    for step, value in curve:
        if math.isfinite(value):
            best = max(best, sign * value)
        if step in ends and math.isfinite(best):
            found.append((trial, math.log(step) / math.log(last) if last > 1 else 1.0, best))
    return found


def _rungs(last: int) -> set[int]:
    return {math.ceil(last / 8), math.ceil(3 * last / 8)}


def _without_outliers(values: np.ndarray) -> np.ndarray:
    """Return the values, those far below the middle lifted: how bad a failure is tells little of the best."""
    middle, best = float(np.median(values)), float(values.max())
    return np.asarray(np.maximum(values, middle - 2 * max(best - middle, 1e-9)))
