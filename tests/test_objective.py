"""Which of two values is the better one, for every view of a study and for the worker."""

import math

import pytest

from finetune.metrics import LESS_IS_BETTER, Objective


@pytest.mark.parametrize(
    ("metric", "better", "worse"), [("val/accuracy", 0.9, 0.8), ("val/loss", 0.1, 0.2), ("val/ece", 0.0, 0.1)]
)
def test_the_metric_tells_which_value_is_better(metric: str, better: float, worse: float) -> None:
    objective = Objective(metric)
    assert objective.mode == ("min" if metric in LESS_IS_BETTER else "max")
    assert objective.is_better(better, worse)
    assert not objective.is_better(worse, better)
    assert not objective.is_better(better, better)
    assert sorted([math.nan, worse, better], key=objective.key)[:2] == [better, worse]


@pytest.mark.parametrize("metric", ["val/accuracy", "val/loss"])
def test_a_value_that_is_no_number_is_better_than_nothing_and_worse_than_any_number(metric: str) -> None:
    objective = Objective(metric)
    assert objective.is_better(math.nan, None)
    assert objective.is_better(0.5, math.nan)
    assert not objective.is_better(math.nan, 0.5)
    assert not objective.is_better(math.nan, math.nan)


def test_of_equal_epochs_the_earlier_one_is_the_best() -> None:
    values = (math.nan, 0.3, 0.7, 0.7)
    epochs = [{"epoch": number, "val/accuracy": value} for number, value in enumerate(values, 1)]
    assert Objective("val/accuracy").best(epochs) is epochs[2]
    assert Objective("val/accuracy").best([]) is None
