"""When a study ends: by its budget in time, GPU-hours or money, by its patience, and how it is extended."""

import random
import time
from pathlib import Path
from typing import Any

import pytest

from search.config.budget import Budget, parse
from search.config.problems import ConfigErrors
from search.config.study import StudyConfig
from search.driver.ending import ENDED, PATIENCE, Clock, Patience, extended, is_over
from search.driver.seeds import SHARE_OF_BUDGET
from search.record import reader
from search.record.ledger import Ledger
from search.record.records import TrialRecord
from search.record.study_folder import StudyFolder
from search.suggest import patience
from search.suggest.sampler import make
from tests.by_hand import run_of


def study_of(**options: Any) -> StudyConfig:
    return StudyConfig.from_folder("/images", **options)


def ended(count: int) -> list[TrialRecord]:
    return [TrialRecord(number=n, id=f"trial-{n}", state="COMPLETE", params={}) for n in range(count)]


@pytest.mark.parametrize(
    ("text", "price", "budget"),
    [
        ("90s", None, Budget(90.0)),
        ("1.5h", None, Budget(5400.0)),
        ("3gpuh", None, Budget(10800.0, of_gpus=True)),
        ("5usd", 2.0, Budget(9000.0, of_gpus=True)),
    ],
)
def test_a_budget_is_time_gpu_hours_or_money(text: str, price: float | None, budget: Budget) -> None:
    assert parse(text, price) == budget


def test_money_needs_a_price_and_gpu_hours_need_gpus() -> None:
    with pytest.raises(ConfigErrors, match=r"study\.budget: a budget in money needs the price of a GPU-hour"):
        study_of(budget="5usd")
    with pytest.raises(ConfigErrors, match="Write 90s, 10m, 2h, 3gpuh or 5usd"):
        study_of(budget="5 minutes")


def test_a_budget_leaves_the_number_of_trials_open_and_named_trials_are_all_run() -> None:
    plain, timed, named = study_of(), study_of(budget="10m"), study_of(trials=30)
    assert [c.study.is_open for c in (plain, timed, named)] == [False, True, False]
    assert [c.study.patience for c in (plain, timed, named)] == ["auto", "auto", "none"]
    assert study_of(trials=30, patience=5).study.patience == 5


def test_gpu_hours_count_every_gpu_that_the_slots_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    book = Ledger(tmp_path / "optuna.db", metric="val/accuracy", sampler=make("random", seed=0))
    try:
        clock = Clock(book, Budget(1000.0, of_gpus=True), gpus=2)
        now[0] += 100
        assert (clock.searched, clock.gpu_searched, clock.seconds_left) == (100, 200, 400)
        clock.hold(8)
        now[0] += 50
        assert (clock.searched, clock.gpu_searched, clock.seconds_left) == (150, 600, 50)
        clock.note(now=True)
        again = Clock(book, Budget(1000.0, of_gpus=True), gpus=4)
        assert again.seconds_left == 100
        now[0] += 100
        assert again.is_over
    finally:
        book.close()


def scores(count: int, spread: float, seed: int = 0) -> list[tuple[str, float]]:
    draw = random.Random(seed)
    return [("fuse", 0.8 + spread * draw.random()) for _ in range(count)]


def test_alike_trials_end_a_study_and_different_ones_do_not() -> None:
    assert patience.is_enough(scores(10, 0.01), images=300, left=14)
    assert not patience.is_enough(scores(10, 0.2), images=300, left=14)
    assert not patience.is_enough(scores(10, 0.01), images=100_000, left=14), "many images tell them apart"
    assert not patience.is_enough(scores(patience.LEAST - 1, 0.01), images=300, left=14)


def test_a_strategy_far_below_the_best_promises_nothing_however_it_varies() -> None:
    low = [("load", value - 0.5) for _, value in scores(10, 0.2)]
    assert patience.is_enough([*low, *scores(10, 0.01)], images=300, left=14)


def test_the_fewer_trials_are_left_the_less_they_promise() -> None:
    some = scores(12, 0.1)
    best = max(value for _, value in some)
    gains = [patience.expected_gain([value for _, value in some], best, left) for left in (1, 10, 100)]
    assert 0 < gains[0] < gains[1] < gains[2]


def test_patience_in_numbers_counts_trials_without_a_new_best() -> None:
    section = study_of(patience=3).study
    told = Patience(section, 300, [])
    for value in (0.5, 0.7, 0.6, 0.7):
        told.add("fuse", value)
        assert not told.is_enough(9)
    told.add("fuse", 0.1)
    assert told.is_enough(9)
    assert told.reason == f"{PATIENCE}no new best val/accuracy in the last 3 trials"
    assert not Patience(study_of(trials=9).study, 300, ended(9)).is_enough(9), "none"


def test_what_has_no_known_error_is_not_ended_by_auto() -> None:
    told = Patience(study_of(metric="val/loss").study, 300, [])
    for _, value in scores(20, 0.001):
        told.add("fuse", value)
    assert not told.is_enough(4)


def test_a_study_that_patience_ended_is_over_and_says_why(tmp_path: Path) -> None:
    run = run_of(StudyFolder(tmp_path / "small"), trials=12, patience="auto")
    run.searcher._chooser._planned.clear()
    for _, value in scores(10, 0.001):
        run.patience.add("fuse", value)
    assert run.searcher.suggest("a") == "FINISHED"
    assert run.patience.reason is not None
    run.ledger.set_fact("state", "finished")
    run.ledger.set_fact(ENDED, run.patience.reason)
    run.close(1.0)
    record = reader.read_study(run.folder)
    assert record.ended is not None
    assert "promise less than" in record.ended
    facts = {"state": "finished", ENDED: record.ended}
    assert is_over(record.trials, facts, run.config.study)
    assert not is_over(record.trials, facts, extended(run.config, "5", record.trials, facts).study)


def test_a_finished_study_is_extended_by_trials_or_by_time() -> None:
    config, facts = study_of(trials=6), {"state": "finished", "seconds": 40.0, "searched": 30.0}
    more = extended(config, "4", ended(6), facts)
    assert (more.study.trials, more.study.budget, more.study.patience) == (10, None, "none")
    early = extended(study_of(), "4", ended(14), facts | {ENDED: f"{PATIENCE}x"})
    assert early.study.trials == 18, "4 more than have run, not than were planned"
    begun = extended(config, "4", ended(3), facts | {"state": "interrupted"})
    assert begun.study.trials == 10
    longer = extended(config, "10m", ended(6), facts)
    assert longer.study.is_open
    assert longer.study.spending is not None
    assert longer.study.spending.seconds * (1 - SHARE_OF_BUDGET) == pytest.approx(640.0, abs=0.01)
    with pytest.raises(ConfigErrors, match="--extend: must be a number of trials or a budget, got 'x'"):
        extended(config, "x", ended(6), facts)
