"""Names of the metrics of a split, and which of two values is the better one.

The config, the record and the worker share them, so this file does not import torch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune.errors import DataError, did_you_mean

ALWAYS = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "ece")
"""Metrics that are computed for every split."""
TOP = 5
TOP5 = "top5"
"""Top-5 accuracy, computed if there are more than TOP classes."""
RECALL = "recall/"
"""Prefix of a class name: the recall of that class, computed for classes that occur in the split."""
VALIDATION = "val/"
"""Prefix of all metrics of the validation split."""
VAL_RECALL = f"{VALIDATION}{RECALL}"
LESS_IS_BETTER = ("val/loss", "val/ece")

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Objective:
    """The metric that a search optimises, and whether more or less of it is better.

    Everything that compares trials or epochs asks it, so a rule for several metrics belongs here.
    """

    metric: str
    """Its name, such as `val/loss`."""

    @property
    def mode(self) -> Mode:
        """`min` if less of the metric is better, else `max`."""
        return "min" if self.metric in LESS_IS_BETTER else "max"

    def worth(self, value: float) -> float:
        """Return a number that is larger for better values: the value, or its negative if less is better."""
        return -value if self.mode == "min" else value

    def gain(self, value: float, over: float) -> float:
        """Return how much better `value` is than another one; negative if it is worse."""
        return self.worth(value) - self.worth(over)

    def key(self, value: float | None) -> float:
        """Return a sort key: better values have smaller ones, and NaN or None comes last."""
        return math.inf if value is None or math.isnan(value) else -self.worth(value)

    def is_better(self, value: float, than: float | None) -> bool:
        """Return True if `value` is better than another one; any value is better than none."""
        return than is None or self.key(value) < self.key(than)

    def best(self, epochs: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Return the metrics of the best epoch, the earlier one of equals; None if there are none."""
        return min(epochs, key=lambda epoch: self.key(epoch[self.metric]), default=None)


def names(classes: Sequence[str], labels: Iterable[int]) -> list[str]:
    """Return the names of the metrics of a split whose images have these `labels`."""
    top = [TOP5] if len(classes) > TOP else []
    return [*ALWAYS, *top, *(f"{RECALL}{classes[label]}" for label in sorted(set(labels)))]


def check(metric: str, classes: Sequence[str], labels: Iterable[int]) -> None:
    """Check that `metric`, such as `val/top5`, is computed for a validation split with these `labels`.

    Raises:
        DataError: it is not.
    """
    known = [f"{VALIDATION}{name}" for name in names(classes, labels)]
    if metric not in known:
        raise DataError(
            f"study.metric: must be one that these validation images tell, got {metric!r}. "
            + did_you_mean(metric, known)
        )
