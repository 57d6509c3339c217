"""Progress on a terminal and in a pipe, and its estimate of the time left."""

import io
import os
import re
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from rich.console import Console

from finetune.metrics import Objective
from finetune.steps import Step
from search.record.records import TrialRecord
from search.views.progress import Progress

METRIC = "val/accuracy"


def progress(*, terminal: bool = False, **more: Any) -> tuple[Progress, io.StringIO]:
    file = io.StringIO()
    out = Console(file=file, width=120, force_terminal=terminal, color_system=None, highlight=False)
    facts: dict[str, Any] = {"study": "pets", "planned": 26, "epochs": 5, "objective": Objective(METRIC)}
    return Progress(**{**facts, "slots": 2, **more}, out=out), file


def earlier(
    number: int,
    state: str,
    score: float,
    seconds: float = 10.0,
    *,
    strategy: str = "load",
    baseline: str | None = None,
) -> TrialRecord:
    metrics: dict[str, dict[str, float]] = {"best": {METRIC: score}, "last": {}}
    return TrialRecord(
        number=number,
        id=f"trial-{number:04}",
        state=state,
        params={"strategy": strategy},
        baseline=baseline,
        metrics=metrics,
        seconds=seconds,
    )


def ended(bar: Progress, trial: str, state: str, score: float | None) -> None:
    bar.trial_started(trial, {"strategy": "fuse", "learning_rate": 0.01234})
    bar.trial_ended(trial, state, {} if score is None else {METRIC: score})


def test_a_pipe_gets_one_line_per_ended_trial_and_nothing_per_epoch() -> None:
    bar, file = progress()
    bar.start()
    bar.trial_started("trial-0000", {"strategy": "fuse", "learning_rate": 0.01234})
    for epoch in range(1, 6):
        bar.trial_epoch("trial-0000", epoch, {METRIC: 0.9})
    assert file.getvalue() == ""
    bar.trial_ended("trial-0000", "COMPLETE", {METRIC: 0.9412})
    ended(bar, "trial-0001", "PRUNED", 0.95)
    bar.trial_ended("trial-0002", "FAIL", {})
    bar.note("resumed\x1b[2J")
    bar.stop()
    lines = re.sub(r"\d+\.\d s", "N s", file.getvalue()).splitlines()
    assert lines == [
        "[ 1/26] trial-0000 COMPLETE fuse lr=0.0123 val/accuracy 0.9412 (best 0.9412 trial-0000)"
        "  N s  left ~N s",
        "[ 2/26] trial-0001 PRUNED fuse lr=0.0123 val/accuracy 0.9500 (best 0.9412 trial-0000)"
        "  N s  left ~N s",
        "[ 3/26] trial-0002 FAIL (best 0.9412 trial-0000)  N s  left ~N s",
        "resumed",
    ]


def test_the_best_is_the_earlier_of_equals_and_never_nan() -> None:
    bar, file = progress()
    for trial, score in (("trial-0001", float("nan")), ("trial-0003", 0.9), ("trial-0002", 0.9)):
        ended(bar, trial, "COMPLETE", score)
    lines = file.getvalue().splitlines()
    assert "(best" not in lines[0]
    assert "(best 0.9000 trial-0003)" in lines[1]
    assert "(best 0.9000 trial-0002)" in lines[2]
    bar, file = progress(objective=Objective("val/loss"))
    bar.trial_ended("trial-0000", "COMPLETE", {"val/loss": 0.3})
    bar.trial_ended("trial-0001", "COMPLETE", {"val/loss": 0.2})
    assert "(best 0.2000 trial-0001)" in file.getvalue()


def left(bar: Progress, file: io.StringIO) -> str:
    bar.trial_ended("last", "FAIL", {})
    return file.getvalue().splitlines()[-1].rpartition("left ")[2]


def test_time_left_is_the_mean_of_ended_trials_shared_by_the_slots() -> None:
    done = [earlier(n, "COMPLETE", 0.5, seconds=15.0) for n in range(3)]
    # Four trials of a little over 11.25 s on average (the last failed at once), six to go.
    assert left(*progress(planned=10, earlier=done)) == "~33.8 s"
    assert left(*progress(planned=10, earlier=done, slots=3)) == "~22.5 s"
    assert left(*progress(planned=10, earlier=done, slots=100)) == "~11.3 s"


def test_time_left_is_never_negative() -> None:
    bar, file = progress(planned=1, earlier=[earlier(0, "COMPLETE", 0.5, seconds=0.001)])
    bar.trial_started("trial-0001", {}, since=time.monotonic() - 1)
    assert left(bar, file) == "~0.0 s"


def test_a_resumed_study_counts_what_was_done() -> None:
    bar, file = progress(
        earlier=[earlier(0, "COMPLETE", 0.97), earlier(1, "RUNNING", 0.99), earlier(2, "FAIL", 0.1)]
    )
    ended(bar, "trial-0001", "COMPLETE", 0.5)
    assert file.getvalue().startswith("[ 3/26] trial-0001 COMPLETE")
    assert "(best 0.9700 trial-0000)" in file.getvalue()


def test_a_terminal_shows_the_study_the_best_and_what_runs() -> None:
    bar, file = progress(terminal=True)
    bar.start()
    ended(bar, "trial-0000", "COMPLETE", 0.9)
    ended(bar, "trial-0001", "FAIL", None)
    for number in range(2, 12):
        bar.trial_started(f"trial-{number:04}", {"strategy": "load", "learning_rate": 0.5})
    bar.trial_epoch("trial-0002", 3, {METRIC: 0.7})
    bar.stop()
    bar.stop()
    last = file.getvalue().rpartition("pets  ")[2]
    assert "2/26 done  10 running  1 COMPLETE  1 FAIL" in last
    assert "best val/accuracy 0.9000  trial-0000 fuse" in last
    assert "trial-0002  load lr=0.5  epoch 3/5  val/accuracy 0.7000" in last
    assert "trial-0009  load lr=0.5  epoch 0/5" in last
    assert "and 2 more" in last
    assert re.search(r"elapsed \d+\.\d s  left ~\d+\.\d s", last)
    assert "[ 2/26] trial-0001 FAIL" in file.getvalue()
    assert "] trial-0000" not in file.getvalue()


def test_a_terminal_shows_what_a_trial_waits_for_and_how_many_slots_are_up() -> None:
    step = Step(name="features of train", done=400, total=1300, unit="images", seconds=4.0)
    bar, file = progress(terminal=True, up=lambda: 1, steps=lambda: {"trial-0000": step})
    bar.start()
    bar.trial_started("trial-0000", {"strategy": "load", "learning_rate": 0.5})
    bar.stop()
    last = file.getvalue().rpartition("pets  ")[2]
    assert "slots 1 of 2" in last
    assert "trial-0000  load lr=0.5  features of train 400 of 1,300 images, 100/s, ~9.0 s left" in last


def test_a_terminal_shows_each_strategy_the_distance_to_the_baselines_and_the_cost() -> None:
    done = [earlier(0, "COMPLETE", 0.6, baseline="recipe", strategy="replace")]
    done += [earlier(1, "COMPLETE", 0.7, strategy="replace"), earlier(2, "COMPLETE", 0.8, strategy="fuse")]
    done.append(earlier(3, "PRUNED", 0.9))
    bar, file = progress(terminal=True, earlier=done, workers=2, money=lambda: 0.125)
    bar.start()
    bar.stop()
    last = file.getvalue().rpartition("pets  ")[2]
    assert "ended: fuse 1 (best 0.8000)  load 1  replace 2 (best 0.7000)" in last
    assert "best val/accuracy 0.8000  trial-0002 fuse  +20.00 points to recipe" in last
    assert "cost 1 min 20 s of a worker, 0.12 usd" in last


def test_time_left_counts_each_strategy_by_its_own_trials() -> None:
    done = [earlier(0, "COMPLETE", 0.5, seconds=2.0), earlier(1, "COMPLETE", 0.5, 90.0, strategy="fuse")]
    bar, file = progress(planned=3, slots=1, earlier=done)
    bar.trial_started("trial-0002", {"strategy": "load"})
    bar.start()
    bar.note(bar._left_text())
    assert file.getvalue() == "left ~2.0 s\n"


def test_an_epoch_is_cheap_even_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reports it draws nothing: another thread does that, a few times a second."""
    drawn_by = []
    draw = Progress._draw

    def noted(self: Progress) -> Any:
        drawn_by.append(threading.get_ident())
        return draw(self)

    monkeypatch.setattr(Progress, "_draw", noted)
    bar, _ = progress(terminal=True)
    bar.start()
    assert drawn_by
    drawn_by.clear()
    bar.trial_started("trial-0000", {})
    for epoch in range(1000):
        bar.trial_epoch("trial-0000", epoch, {METRIC: 0.5})
    assert threading.get_ident() not in drawn_by
    bar.stop()


def test_progress_leaves_stdout_to_results_and_a_pipe_without_control_characters() -> None:
    code = (
        "from finetune.metrics import Objective;from search.views.progress import Progress;"
        "bar = Progress(study='s', planned=2, epochs=1, objective=Objective('m'), slots=1);"
        "bar.start(); bar.trial_started('a', {}); bar.trial_epoch('a', 1, {'m': 1.0});"
        "bar.trial_ended('a', 'COMPLETE', {'m': 1.0}); bar.stop()"
    )
    env = {**os.environ, "FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == ""
    assert done.stderr.startswith("[1/2] a COMPLETE m 1.0000 (best 1.0000 a)")
    assert not [c for c in done.stderr if ord(c) < 32 and c != "\n"]


def test_a_budget_bounds_the_time_left_and_hides_a_number_of_trials_that_means_nothing() -> None:
    bar, file = progress(planned=10_000, budget_left=lambda: 42.0)
    bar.trial_started("trial-0000", {"strategy": "fuse"}, since=time.monotonic() - 10)
    bar.trial_ended("trial-0000", "COMPLETE", {"val/accuracy": 0.5})
    assert file.getvalue().startswith("[1] trial-0000 COMPLETE fuse")
    assert "left ~42" in file.getvalue()
