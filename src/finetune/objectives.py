"""Several objectives: what is measured of a model besides its score, constraints on it, and the Pareto front.

The config, the record and early stopping share these rules, so this file does not import torch.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.errors import did_you_mean
from finetune.metrics import Objective

MEASURED = ("latency_ms", "latency_batch_ms", "parameters", "size_mb", "train_seconds")
"""Quantities that can be measured of each trial; less of each is better."""
LIMIT = 0.05
"""Measured values that differ by at most this share count as equal: clocks are not more exact than that."""
_CONSTRAINT = re.compile(r"\s*(\w+)\s*<=\s*([0-9.eE+-]+)\s*")
Point = tuple[float, ...]
"""Worth of a trial: the key of its score (smaller is better), then its measured objectives."""


@dataclass(frozen=True)
class Constraint:
    """A limit for a measured quantity."""

    name: str
    most: float

    def __str__(self) -> str:
        return f"{self.name} <= {self.most:g}"

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Return the constraint of a text such as `latency_ms <= 5`.

        Raises:
            ValueError: it is no such text; the message is the rule that it breaks.
        """
        found = _CONSTRAINT.fullmatch(text)
        if found is None:
            raise ValueError("must read NAME <= NUMBER, such as latency_ms <= 5")
        if found[1] not in MEASURED:
            raise ValueError(f"must limit a measured quantity. {did_you_mean(found[1], MEASURED)}")
        try:
            most = float(found[2])
        except ValueError:
            raise ValueError("must read NAME <= NUMBER, such as latency_ms <= 5") from None
        if not (math.isfinite(most) and most > 0):
            raise ValueError("must limit a quantity by a number above 0")
        return cls(found[1], most)

    def excess(self, measured: Mapping[str, float]) -> float:
        """Return the share of the limit by which a trial is above it: 0 if not, infinite if not measured."""
        value = measured.get(self.name)
        return math.inf if value is None else max(0.0, value / self.most - 1)


@dataclass(frozen=True)
class Goal:
    """Everything by which the trials of a study are compared.

    Without objectives and constraints it is the metric alone, and nothing is measured.
    """

    metric: str
    objectives: tuple[str, ...] = ()
    constraints: tuple[Constraint, ...] = ()

    @property
    def objective(self) -> Objective:
        """The rule by which scores are compared."""
        return Objective(self.metric)

    @property
    def measured(self) -> tuple[str, ...]:
        """The quantities that are measured and shown."""
        return tuple(dict.fromkeys((*self.objectives, *(c.name for c in self.constraints))))

    def excess(self, measured: Mapping[str, float]) -> float:
        """Return by how much a trial breaks the constraints: 0 if it satisfies all of them."""
        return sum(constraint.excess(measured) for constraint in self.constraints)

    def broken(self, measured: Mapping[str, float]) -> list[Constraint]:
        """Return the constraints that a trial breaks."""
        return [constraint for constraint in self.constraints if constraint.excess(measured) > 0]

    def point(self, score: float | None, measured: Mapping[str, float]) -> Point | None:
        """Return the point of a trial; None if its score is no number or an objective was not measured."""
        key = self.objective.key(score)
        if not math.isfinite(key) or not all(name in measured for name in self.objectives):
            return None
        return key, *(measured[name] for name in self.objectives)


def fronts(points: Sequence[Point]) -> list[list[int]]:
    """Return the places of the points, front by front: the first front holds those that no other dominates.

    A point dominates another if it is not worse in any value and better in one. All values but the first
    count as equal within LIMIT.
    """
    level = _levelled(points)
    left, found = list(range(len(points))), []
    while left:
        front = [i for i in left if not any(_dominates(level[j], level[i]) for j in left)]
        found.append(front)
        taken = set(front)
        left = [i for i in left if i not in taken]
    return found


def ordered(points: Sequence[Point]) -> list[int]:
    """Return the places of the points, the best first: by front, and in a front so that they lie far apart.

    This is the order of MO-ASHA with an epsilon net (Schmucker et al., arXiv 2106.12639): a front begins with
    its best score, and goes on with the point that is farthest from those before it.
    """
    return [place for front in fronts(points) for place in _spread(front, points)]


def _levelled(points: Sequence[Point]) -> list[Point]:
    """Return the points with each measured value replaced by the number of its level."""
    columns = list(zip(*points, strict=True))
    levelled = [columns[0] if columns else (), *(_levels(column) for column in columns[1:])]
    return list(zip(*levelled, strict=True))


def _levels(values: Sequence[float]) -> tuple[float, ...]:
    """Return the level of each value: a level begins with a value more than LIMIT above the last one's."""
    of: dict[float, int] = {}
    first, level = -math.inf, -1
    for value in sorted(set(values)):
        if value > first * (1 + LIMIT) or level < 0:
            first, level = value, level + 1
        of[value] = level
    return tuple(float(of[value]) for value in values)


def _dominates(one: Point, other: Point) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _spread(front: Sequence[int], points: Sequence[Point]) -> list[int]:
    """Return the places of a front in the order of an epsilon net."""
    scaled = _scaled([points[i] for i in front])
    first = min(range(len(front)), key=lambda i: (points[front[i]], front[i]))
    order, far = [first], [math.dist(scaled[first], one) for one in scaled]
    while len(order) < len(front):
        chosen = max((i for i in range(len(front)) if i not in order), key=lambda i: (far[i], -front[i]))
        order.append(chosen)
        far = [min(d, math.dist(scaled[chosen], one)) for d, one in zip(far, scaled, strict=True)]
    return [front[i] for i in order]


def _scaled(points: Sequence[Point]) -> list[Point]:
    """Return the points with each value as a share of the range of its column."""
    low = [min(column) for column in zip(*points, strict=True)]
    wide = [max(column) - least or 1.0 for column, least in zip(zip(*points, strict=True), low, strict=True)]
    return [tuple((v - a) / b for v, a, b in zip(point, low, wide, strict=True)) for point in points]
