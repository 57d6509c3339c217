"""Names of the metrics of a split.

The config, the record and the worker share them, so this file does not import torch.
"""

from collections.abc import Iterable, Sequence

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
