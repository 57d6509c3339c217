"""Names of the metrics of a split. Imports no torch: the config, the record and the worker share them."""

from collections.abc import Iterable, Sequence

from finetune.errors import DataError, did_you_mean

ALWAYS = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "ece")
"""Every split tells them."""
TOP = 5
TOP5 = "top5"
"""Told where there are more classes than TOP."""
RECALL = "recall/"
"""Before the name of a class: its recall, told for classes that occur in the split."""
VALIDATION = "val/"
"""Before all of them, where they are those of the validation split."""
VAL_RECALL = f"{VALIDATION}{RECALL}"
LESS_IS_BETTER = ("val/loss", "val/ece")


def names(classes: Sequence[str], labels: Iterable[int]) -> list[str]:
    """Return the names of the metrics of a split whose images have these `labels`."""
    top = [TOP5] if len(classes) > TOP else []
    return [*ALWAYS, *top, *(f"{RECALL}{classes[label]}" for label in sorted(set(labels)))]


def check(metric: str, classes: Sequence[str], labels: Iterable[int]) -> None:
    """Raise a DataError unless a validation split with `labels` tells `metric`, such as `val/top5`."""
    known = [f"{VALIDATION}{name}" for name in names(classes, labels)]
    if metric not in known:
        raise DataError(
            f"study.metric: must be one that these validation images tell, got {metric!r}. "
            + did_you_mean(metric, known)
        )
