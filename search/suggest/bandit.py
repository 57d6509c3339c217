"""Decide which strategy the next trial gets: MaxUCB, with the cost of trials in the place of their number.

MaxUCB (Balef et al., NeurIPS 2025) is for searches, which want the best trial and not the best average: an
arm's index is its best scaled reward plus (ALPHA log t / n)^2. Here t and n count cost, in trials of the
cheapest arm. Costs follow from a trial's settings and epochs, not from a clock, so that the same trials lead
to the same choice.

Arms whose trials are not counted, heads on frozen features, get TRIES trials each. One that leads may get
more, but at most SHARE of all cost and as many trials as are counted, so that a study always comes to the
trials that it was asked for, and its table is not full of heads.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from finetune.metrics import Objective

ALPHA = 0.5
TRIES = 3
SHARE = 0.1


@dataclass
class _Arm:
    counted: bool
    tried: int = 0
    cost: float = 0.0
    best: float = -math.inf


@dataclass
class Bandit:
    """The arms of a study, and what their trials cost and gave.

    Args:
        arms: name of each strategy -> whether its trials count.
        objective: tells which of two values is better.
    """

    arms: Mapping[str, bool]
    objective: Objective
    _arms: dict[str, _Arm] = field(default_factory=dict)
    _open: dict[int, tuple[str, float]] = field(default_factory=dict)
    """Arm and expected cost of each running trial, by its number."""
    _values: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._arms = {name: _Arm(counted) for name, counted in self.arms.items()}

    @property
    def running(self) -> Iterable[int]:
        """Numbers of the trials that have begun and not ended."""
        return tuple(self._open)

    def begin(self, number: int, arm: str, cost: float) -> None:
        """Enter a trial that begins, with what it costs if it is not stopped; other arms are ignored."""
        if arm in self._arms:
            self._open[number] = arm, cost
            self._arms[arm].tried += 1
            self._arms[arm].cost += cost

    def end(self, number: int, value: float | None, cost: float) -> None:
        """Enter a trial's end: its best value, None if it failed, and what it has cost."""
        arm, expected = self._open.pop(number, (None, 0.0))
        if arm is None:
            return
        self._arms[arm].cost += cost - expected
        if value is not None and math.isfinite(value):
            reward = self.objective.worth(value)
            self._values.append(reward)
            self._arms[arm].best = max(self._arms[arm].best, reward)

    def choose(self) -> str | None:
        """Return the strategy of the next trial; None if there are no arms."""
        allowed = [name for name, arm in self._arms.items() if arm.counted or self._may_try(arm)]
        fresh = [name for name in allowed if not self._arms[name].tried]
        if fresh:
            return fresh[0]
        return max(allowed, key=self._index, default=None)

    def _may_try(self, arm: _Arm) -> bool:
        if arm.tried < TRIES:
            return True
        arms = self._arms.values()
        free = sum(other.cost for other in arms if not other.counted)
        heads = sum(other.tried for other in arms if not other.counted)
        leads = arm.best >= max(other.best for other in arms)
        few = heads < sum(other.tried for other in arms if other.counted)
        return leads and few and free < SHARE * sum(other.cost for other in arms)

    def _index(self, name: str) -> float:
        arm = self._arms[name]
        unit = min(a.cost / a.tried for a in self._arms.values() if a.tried) or 1.0
        total = sum(a.cost for a in self._arms.values()) / unit
        return self._scaled(arm.best) + (ALPHA * math.log(max(total, 1.0)) / (arm.cost / unit)) ** 2

    def _scaled(self, reward: float) -> float:
        """Return a reward as a share of the way from the lower quartile of all rewards to the best."""
        if not self._values or reward == -math.inf:
            return 0.0
        ordered = sorted(self._values)
        low, best = ordered[len(ordered) // 4], ordered[-1]
        return 1.0 if best <= low else max(0.0, (reward - low) / (best - low))
