"""Show a study's progress on stderr, so that stdout holds the results alone.

A terminal gets a display that is redrawn four times a second, any other output a plain line per ended trial.
The search loop only updates a few fields; a thread draws at its own pace.
"""

import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from finetune.metrics import Objective
from finetune.steps import Step
from search.config.sections.study import MANY_TRIALS
from search.record.records import TrialRecord
from search.suggest import cost
from search.verdict.words import Scale
from search.views.phases import step_text
from search.views.terminal import clean, console, print_line, seconds_text

_ENDED = ("COMPLETE", "PRUNED", "FAIL")
_DRAWS_PER_SECOND = 4
_SHOWN = 8
"""Running trials listed at once, so that the display fits a small terminal."""


@dataclass
class _Running:
    params: Mapping[str, Any]
    since: float
    baseline: str | None = None
    epoch: int = 0
    value: float | None = None


class Progress:
    """Progress display of a study, updated by calls from the search loop."""

    def __init__(
        self,
        *,
        study: str,
        planned: int,
        epochs: int,
        objective: Objective,
        slots: int,
        up: Callable[[], int] | None = None,
        steps: Callable[[], Mapping[str, Step]] = dict,
        workers: int = 1,
        money: Callable[[], float | None] = lambda: None,
        budget_left: Callable[[], float | None] = lambda: None,
        earlier: Iterable[TrialRecord] = (),
        out: Console | None = None,
    ) -> None:
        """Prepare to show a study.

        Args:
            study: Name of the study.
            planned: Number of trials that the study is to run; the attribute may be changed.
            epochs: Epochs of a full trial.
            objective: Metric that is shown and compared.
            slots: Number of trials that run at once; the attribute may be changed as a cluster grows.
            up: Returns the number of slots that are up; None: all of them.
            steps: Returns the long steps that trials are in, by id of the trial.
            workers: Workers of a slot, for the cost.
            money: Returns what the study's GPUs have cost so far, in usd; None: nobody knows their price.
            budget_left: Returns the seconds until the budget is spent; None: no budget.
            earlier: Trials of earlier runs of the study; those that ended count as done.
            out: Console to write to; stderr by default.

        """
        self.slots = slots
        self._up, self._steps, self._workers, self._money = up, steps, workers, money
        self._budget_left = budget_left
        self._of_strategy: dict[str, _Strategy] = {}
        self._baselines: dict[str, float] = {}
        """Best value of each baseline that has completed."""
        self._study, self.planned, self._epochs = study, planned, epochs
        self._metric, self._objective = objective.metric, objective
        self._running: dict[str, _Running] = {}
        self._states: Counter[str] = Counter()
        self._ended: list[tuple[str, float]] = []
        """Strategy and seconds of each ended trial."""
        self._best: tuple[float, str, str, float] | None = None
        """Sort key, id, strategy and value of the best trial."""
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._out = out or console(stderr=True)
        self._live: Live | None = None
        for trial in earlier:
            if trial.state in _ENDED:
                past = _Running(trial.params, 0.0, trial.baseline)
                self._count(trial.id, trial.state, past, trial.metrics["best"], trial.seconds)

    def start(self) -> None:
        """Start the display; on a terminal other output then appears above it."""
        self._started = time.monotonic()
        if self._out.is_terminal:
            self._live = Live(
                console=self._out,
                get_renderable=self._draw,
                refresh_per_second=_DRAWS_PER_SECOND,
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start(refresh=True)

    def stop(self) -> None:
        """Stop the display and leave its last state on the screen.

        Call it after an error, too, to restore the terminal; it may be called twice.
        """
        if self._live is not None:
            self._live.stop()
            self._live = None

    def trial_started(
        self,
        trial_id: str,
        params: Mapping[str, Any],
        since: float | None = None,
        baseline: str | None = None,
    ) -> None:
        """Show a trial as running since a time by `time.monotonic`, or since now."""
        with self._lock:
            begun = time.monotonic() if since is None else since
            self._running[trial_id] = _Running(params, begun, baseline)

    def trial_epoch(self, trial_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Update a running trial's epoch (counted from 1) and metric; takes microseconds."""
        with self._lock:
            trial = self._running[trial_id]
            trial.epoch, trial.value = epoch, metrics.get(self._metric)

    def trial_ended(
        self, trial_id: str, state: str, best: Mapping[str, float], *, counts: bool = True
    ) -> None:
        """Count an ended trial and print its line; a terminal shows lines of failed trials only.

        Args:
            trial_id: Id of the trial, which may have failed before it started.
            state: COMPLETE, PRUNED or FAIL.
            best: Metrics of its best epoch; empty if it reported no epoch.
            counts: False if it breaks a constraint, so that it cannot be the best.

        """
        with self._lock:
            trial = self._running.pop(trial_id, None) or _Running({}, time.monotonic())
            seconds = time.monotonic() - trial.since
            self._count(trial_id, state, trial, best if counts else {}, seconds)
            line = self._line(trial_id, state, trial, best, seconds)
        if self._live is None or state == "FAIL":
            print_line(self._out, line)

    def trial_left(self, trial_id: str) -> None:
        """Stop showing an interrupted trial; it does not count as ended, since `resume` continues it."""
        with self._lock:
            self._running.pop(trial_id, None)

    def note(self, text: str) -> None:
        """Print a line; on a terminal it appears above the display."""
        print_line(self._out, clean(text))

    def _count(
        self, trial_id: str, state: str, trial: _Running, best: Mapping[str, float], seconds: float
    ) -> None:
        self._states[state] += 1
        value = best.get(self._metric, math.nan)
        name = clean(trial.params.get("strategy", ""))
        self._ended.append((name, seconds))
        strategy = self._of_strategy.setdefault(name, _Strategy())
        strategy.ended += 1
        if state == "COMPLETE" and not math.isnan(value):
            this = (self._objective.key(value), trial_id, name, value)
            self._best = this if self._best is None else min(self._best, this)
            if self._objective.is_better(value, strategy.best):
                strategy.best = value
            if trial.baseline is not None:
                self._baselines[trial.baseline] = value

    def _seconds_left(self) -> float | None:
        """Estimate the seconds left, or return None until a trial has ended."""
        now = time.monotonic()
        running = [
            (clean(trial.params.get("strategy", "")), now - trial.since) for trial in self._running.values()
        ]
        waiting = max(0, self.planned - len(self._ended) - len(running))
        left = cost.remaining(self._ended, running, waiting, self.slots)
        if left is None:
            return None
        budget = self._budget_left()
        return left if budget is None else max(0.0, min(left, budget))

    @property
    def _of_planned(self) -> str:
        """Return `/24`; nothing where the budget decides how many trials there are."""
        return "" if self.planned >= MANY_TRIALS else f"/{self.planned}"

    def _left_text(self) -> str:
        left = self._seconds_left()
        return "left ?" if left is None else f"left ~{seconds_text(left)}"

    def _line(
        self, trial_id: str, state: str, trial: _Running, best: Mapping[str, float], seconds: float
    ) -> str:
        done, width = self._states.total(), max(2, len(self._of_planned)) - 1
        parts = [f"[{done:>{width}}{self._of_planned}] {trial_id} {state}", *_choice(trial)]
        if self._metric in best:
            parts.append(f"{self._metric} {best[self._metric]:.4f}")
        if self._best is not None:
            parts.append(f"(best {self._best[-1]:.4f} {self._best[1]})")
        return " ".join(parts) + f"  {seconds_text(seconds)}  {self._left_text()}"

    def _draw(self) -> Group:
        with self._lock:
            return Group(*self._head(), *self._rows())

    def _head(self) -> Iterable[Text]:
        done = self._states.total()
        counts = "  ".join(f"{self._states[s]} {s}" for s in _ENDED if self._states[s])
        elapsed = seconds_text(time.monotonic() - self._started)
        up = self.slots if self._up is None else self._up()
        slots = f"  slots {up} of {max(up, self.slots)}"
        yield Text.assemble(
            (self._study, "bold"),
            f"  {done}{self._of_planned} done  {len(self._running)} running  {counts}{slots}",
        )
        yield Text(f"elapsed {elapsed}  {self._left_text()}  cost {self._cost_text()}")
        if len(self._of_strategy) > 1:
            told = (f"{name} {strategy.text()}" for name, strategy in self._of_strategy.items())
            yield Text("ended: " + "  ".join(sorted(told)))
        if self._best is not None:
            _, trial_id, strategy, value = self._best
            text = f"best {self._metric} {value:.4f}  {trial_id} {strategy}"
            yield Text(text + self._distances(value), style="green")

    def _distances(self, value: float) -> str:
        """Return how far a value is from the baselines, such as `  +17.23 points to recipe`."""
        gain, scale = self._objective.gain, Scale(self._metric)
        told = (f"{scale.gain(gain(value, base))} to {name}" for name, base in self._baselines.items())
        return "".join(f"  {text}" for text in told)

    def _cost_text(self) -> str:
        """Return the cost so far, of ended trials and of running ones until now: `3 min 12 s of a worker`."""
        now = time.monotonic()
        running = sum(max(0.0, now - trial.since) for trial in self._running.values())
        seconds = sum(seconds for _, seconds in self._ended) + running
        money = self._money()
        of_gpus = "" if money is None else f", {money:.2f} usd"
        return f"{seconds_text(seconds * self._workers)} of a worker{of_gpus}"

    def _rows(self) -> Iterable[Text]:
        steps = self._steps()
        for trial_id, trial in list(self._running.items())[:_SHOWN]:
            choice = " ".join(_choice(trial))
            value = "" if trial.value is None else f"  {self._metric} {trial.value:.4f}"
            step = steps.get(trial_id)
            # Before the first epoch a trial may wait for what all trials share, which is then shown instead.
            far = f"epoch {trial.epoch}/{self._epochs}" if step is None else step_text(step)
            row = f"  {trial_id}  {choice}  {far}{value}"
            yield Text(row, no_wrap=True, overflow="ellipsis")
        if len(self._running) > _SHOWN:
            yield Text(f"  and {len(self._running) - _SHOWN} more")


@dataclass
class _Strategy:
    """The ended trials of one strategy."""

    ended: int = 0
    best: float | None = None
    """Best value of its complete trials."""

    def text(self) -> str:
        return str(self.ended) + ("" if self.best is None else f" (best {self.best:.4f})")


def _choice(trial: _Running) -> list[str]:
    """Return what people tell trials apart by: baseline or strategy, and learning rate."""
    params = trial.params
    parts = [clean(params["strategy"])] if "strategy" in params else []
    parts = [trial.baseline] if trial.baseline else parts
    if "learning_rate" in params:
        parts.append(f"lr={params['learning_rate']:.3g}")
    return parts
