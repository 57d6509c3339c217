"""Early stopping: who is compared with whom, by what, and who is spared."""

import random
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle

from finetune.metrics import Objective
from search.record.records import TrialRecord
from search.suggest import stopping
from search.suggest.stopping import EarlyStopping


def rule(**changes: Any) -> EarlyStopping:
    """Return a rule for trials of 5 epochs, judged after the 2nd; `fuse-3` is a trial of strategy `fuse`."""
    values: dict[str, Any] = {
        "objective": Objective("val/accuracy"),
        "epochs": 5,
        "grace": 2,
        "factor": 3,
        "rule": "asha",
        "strategy_of": lambda name: None if name.startswith("baseline") else name.split("-")[0],
    }
    return EarlyStopping(**values | changes)


def epochs_of(stopping: EarlyStopping, name: str, *values: float, first: dict[str, Any] | None = None) -> int:
    """Return how many of its epochs a trial trains that would reach these values.

    `first` is told with its first epoch.
    """
    trial: Any = SimpleNamespace(trial_id=name)
    for epoch, value in enumerate(values, 1):
        result = {"epoch": epoch, stopping.metric: value} | ((first or {}) if epoch == 1 else {})
        if stopping.on_trial_result(None, trial, result) == "STOP":
            break
    stopping.on_trial_complete(None, trial, {})
    return epoch


def trained(stopping: EarlyStopping, *curves: tuple[float, ...]) -> list[int]:
    """Return how many epochs trials of `load` train, one after another."""
    return [epochs_of(stopping, f"load-{number}", *values) for number, values in enumerate(curves)]


def test_the_first_epochs_stop_nobody_and_then_one_in_three_goes_on() -> None:
    """Trials come best first, so ASHA's late winners do not blur the third."""
    stopping = rule()
    values = [0.9 - number / 100 for number in range(9)]
    assert trained(stopping, *((0.1, v, v, v, v) for v in values)) == [5] + 8 * [2]
    assert epochs_of(stopping, "load-late", 0.0, 0.895, 0.9, 0.9, 0.9) == 5


def test_a_strategy_that_starts_slowly_is_not_compared_with_one_that_starts_fast() -> None:
    stopping = rule()
    for number in range(6):
        epochs_of(stopping, f"load-{number}", 0.8, 0.85, 0.85, 0.85, 0.85)
    assert epochs_of(stopping, "fuse-0", 0.3, 0.6, 0.7, 0.8, 0.9) == 5
    assert epochs_of(stopping, "load-6", 0.3, 0.6, 0.7, 0.8, 0.9) == 2


def test_a_trial_is_judged_by_its_best_epoch_so_far() -> None:
    late, early, never = (0.5, 0.6, 0.6, 0.6, 0.6), (0.7, 0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5, 0.5)
    assert trained(rule(), late, early, never) == [5, 5, 2]


def test_less_is_better_for_a_loss() -> None:
    good, bad, better = (1.0, 0.5, 0.5, 0.5, 0.5), (1.0, 0.9, 0.5, 0.5, 0.5), (1.0, 0.4, 0.5, 0.5, 0.5)
    assert trained(rule(objective=Objective("val/loss")), good, bad, better) == [5, 2, 5]


def test_baselines_run_to_their_end_and_nobody_is_compared_with_them() -> None:
    stopping = rule()
    assert epochs_of(stopping, "baseline-0", 0.9, 0.9, 0.9, 0.9, 0.9) == 5
    assert epochs_of(stopping, "replace-0", 0.1, 0.1, 0.1, 0.1, 0.1) == 5
    assert epochs_of(stopping, "baseline-1", 0.0, 0.0, 0.0, 0.0, 0.0) == 5


def test_switched_off_it_stops_nobody_before_the_deadline() -> None:
    stopping = rule(rule="none")
    falling = [0.9, 0.8, 0.7, 0.6]
    assert trained(stopping, *(5 * (v,) for v in falling)) == [5, 5, 5, 5]
    over = rule(rule="none", is_over=lambda: True)
    assert epochs_of(over, "load-0", 0.9, 0.9) == 1
    assert epochs_of(over, "baseline-0", 0.9, 0.9) == 1
    assert epochs_of(rule(epochs=1, is_over=lambda: True), "load-0", 0.9) == 1, "its last epoch is done"


def record(number: int, strategy: str, *values: float, **facts: Any) -> TrialRecord:
    history = [{"epoch": float(epoch), "val/accuracy": value} for epoch, value in enumerate(values, 1)]
    name, params = f"trial-{number:04d}", {"strategy": strategy}
    return TrialRecord(number=number, id=name, state="COMPLETE", params=params, history=history, **facts)


def test_a_resumed_study_judges_like_one_that_was_not_interrupted() -> None:
    """What was reached before counts, but for baselines and for trials that are tried again."""
    stopping = rule()
    stopping.replay(
        [
            record(0, "replace", 0.99, 0.99, 0.99, 0.99, 0.99, baseline="recipe"),
            record(1, "load", 0.7, 0.8, 0.8, 0.8, 0.8),
            record(2, "load", 0.5, 0.6),
            record(3, "fuse", 0.9, 0.95, interrupted=True),
        ]
    )
    assert epochs_of(stopping, "load-3", 0.1, 0.7, 0.9, 0.9, 0.9) == 2
    assert epochs_of(stopping, "load-4", 0.1, 0.8, 0.9, 0.9, 0.9) == 5
    assert epochs_of(stopping, "fuse-3", 0.9, 0.95, 0.95, 0.95, 0.95) == 5, "no rival but itself"
    assert epochs_of(stopping, "replace-0", 0.1, 0.1, 0.1, 0.1, 0.1) == 5


def test_a_strategys_state_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was made anew at each epoch, and thrown away."""
    made = []
    original = stopping.ASHAScheduler
    monkeypatch.setattr(stopping, "ASHAScheduler", lambda **given: made.append(1) or original(**given))
    trained(rule(), *(5 * (0.5 + number / 10,) for number in range(3)))
    assert len(made) == 1


def test_the_median_rule_ends_what_is_below_half_of_its_rivals() -> None:
    """It judges at every epoch from the grace on, and only once there are three rivals."""
    median = rule(rule="median")
    rivals = [(v, v, v, v, v) for v in (0.1, 0.2, 0.3)]
    assert trained(median, *rivals) == [5, 5, 5]
    assert epochs_of(median, "load-3", 0.1, 0.15, 0.9, 0.9, 0.9) == 2
    assert epochs_of(median, "load-4", 0.9, 0.9, 0.9, 0.9, 0.9) == 5
    assert epochs_of(median, "fuse-0", 0.0, 0.0, 0.0, 0.0, 0.0) == 5, "it has no rivals"
    less = rule(rule="median", objective=Objective("val/loss"))
    assert trained(less, *rivals, (0.4, 0.4, 0.4, 0.4, 0.4), (0.1, 0.1, 0.1, 0.1, 0.1)) == [5, 5, 5, 2, 5]


def test_hyperband_gives_every_second_trial_more_time() -> None:
    """Of 8 epochs with grace 2 and factor 3 there are two brackets: rungs at 2 and 6, and at 6 only."""
    hyperband = rule(rule="hyperband", epochs=8, number_of=lambda name: int(name.split("-")[1]))
    falling = [8 * (0.9 - number / 10,) for number in range(6)]
    assert trained(hyperband, *falling) == [8, 8, 2, 6, 2, 6]


@pytest.mark.parametrize("kind", ["asha", "median", "hyperband"])
def test_a_rules_state_is_rebuilt_from_the_record(kind: str) -> None:
    """A study that goes on judges every later trial as the one that was not interrupted does."""
    draw = random.Random(0)
    curves = [[draw.random() for _ in range(8)] for _ in range(30)]
    given: dict[str, Any] = {"rule": kind, "epochs": 8, "number_of": lambda name: int(name.split("-")[1])}
    whole = rule(**given)
    all_at_once = trained(whole, *map(tuple, curves))
    resumed = rule(**given)
    resumed.replay(
        record(i, "load", *c[:n]) for i, (c, n) in enumerate(zip(curves, all_at_once, strict=True)) if i < 15
    )
    later = [epochs_of(resumed, f"load-{i}", *curves[i]) for i in range(15, 30)]
    assert later == all_at_once[15:]
    assert len(set(later)) > 1


def test_tune_can_pickle_it_whatever_its_functions_hold() -> None:
    lock = threading.Lock()
    cloudpickle.dumps(rule(is_over=lambda: lock.locked()))
