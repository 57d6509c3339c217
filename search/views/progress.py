"""Show a study's progress on stderr, so that stdout holds the results alone.

A terminal gets a display that is redrawn four times a second, any other output a plain line per ended trial.
The search loop only updates a few fields; a thread draws at its own pace.
"""

import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from search.record.records import TrialRecord
from search.views.terminal import clean, console, print_line, seconds_text

_ENDED = ("COMPLETE", "PRUNED", "FAIL")
_DRAWS_PER_SECOND = 4
_SHOWN = 8
"""Running trials listed at once, so that the display fits a small terminal."""


@dataclass
class _Running:
    params: Mapping[str, Any]
    since: float
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
        metric: str,
        mode: str,
        slots: int,
        earlier: Iterable[TrialRecord] = (),
        out: Console | None = None,
    ) -> None:
        """Prepare to show a study.

        Args:
            study: Name of the study.
            planned: Number of trials that the study is to run.
            epochs: Epochs of a full trial.
            metric: Name of the metric that is shown and compared.
            mode: `max` or `min`.
            slots: Number of trials that run at once; the attribute may be changed as a cluster grows.
            earlier: Trials of earlier runs of the study; those that ended count as done.
            out: Console to write to; stderr by default.

        """
        self.slots = slots
        self._study, self._planned, self._epochs = study, planned, epochs
        self._metric, self._sign = metric, -1.0 if mode == "max" else 1.0
        self._running: dict[str, _Running] = {}
        self._states: Counter[str] = Counter()
        self._trial_seconds = 0.0
        self._best: tuple[float, str, str] | None = None
        """Cost (the metric, negated for `max`), id and strategy of the best trial (the one of least cost)."""
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._out = out or console(stderr=True)
        self._live: Live | None = None
        for trial in earlier:
            if trial.state in _ENDED:
                self._count(trial.id, trial.state, trial.params, trial.metrics["best"], trial.seconds)

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

    def trial_started(self, trial_id: str, params: Mapping[str, Any], since: float | None = None) -> None:
        """Show a trial as running since a time by `time.monotonic`, or since now."""
        with self._lock:
            self._running[trial_id] = _Running(params, time.monotonic() if since is None else since)

    def trial_epoch(self, trial_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Update a running trial's epoch (counted from 1) and metric; takes microseconds."""
        with self._lock:
            trial = self._running[trial_id]
            trial.epoch, trial.value = epoch, metrics.get(self._metric)

    def trial_ended(self, trial_id: str, state: str, best: Mapping[str, float]) -> None:
        """Count an ended trial and print its line; a terminal shows lines of failed trials only.

        Args:
            trial_id: Id of the trial, which may have failed before it started.
            state: COMPLETE, PRUNED or FAIL.
            best: Metrics of its best epoch; empty if it reported no epoch.

        """
        with self._lock:
            trial = self._running.pop(trial_id, None) or _Running({}, time.monotonic())
            seconds = time.monotonic() - trial.since
            self._count(trial_id, state, trial.params, best, seconds)
            line = self._line(trial_id, state, trial.params, best, seconds)
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
        self, trial_id: str, state: str, params: Mapping[str, Any], best: Mapping[str, float], seconds: float
    ) -> None:
        self._states[state] += 1
        self._trial_seconds += seconds
        value = best.get(self._metric, math.nan)
        if state == "COMPLETE" and not math.isnan(value):
            this = (self._sign * value, trial_id, clean(params.get("strategy", "")))
            self._best = this if self._best is None else min(self._best, this)

    def _seconds_left(self) -> float | None:
        """Estimate the seconds left, or return None until a trial has ended.

        Each open trial counts with the mean time of the ended ones, less the time that it has run already (at
        most the mean); the sum is divided by the number of slots.
        """
        ended = self._states.total()
        if not ended:
            return None
        mean = self._trial_seconds / ended
        open_trials = max(self._planned - ended, len(self._running))
        now = time.monotonic()
        used = sum(min(now - trial.since, mean) for trial in self._running.values())
        return (open_trials * mean - used) / max(1, min(self.slots, open_trials))

    def _left_text(self) -> str:
        left = self._seconds_left()
        return "left ?" if left is None else f"left ~{seconds_text(left)}"

    def _line(
        self, trial_id: str, state: str, params: Mapping[str, Any], best: Mapping[str, float], seconds: float
    ) -> str:
        done, width = self._states.total(), len(str(self._planned))
        parts = [f"[{done:>{width}}/{self._planned}] {trial_id} {state}", *_choice(params)]
        if self._metric in best:
            parts.append(f"{self._metric} {best[self._metric]:.4f}")
        if self._best is not None:
            parts.append(f"(best {self._sign * self._best[0]:.4f} {self._best[1]})")
        return " ".join(parts) + f"  {seconds_text(seconds)}  {self._left_text()}"

    def _draw(self) -> Group:
        with self._lock:
            return Group(*self._head(), *self._rows())

    def _head(self) -> Iterable[Text]:
        done = self._states.total()
        counts = "  ".join(f"{self._states[s]} {s}" for s in _ENDED if self._states[s])
        elapsed = seconds_text(time.monotonic() - self._started)
        yield Text.assemble(
            (self._study, "bold"), f"  {done}/{self._planned} done  {len(self._running)} running  {counts}"
        )
        yield Text(f"elapsed {elapsed}  {self._left_text()}")
        if self._best is not None:
            cost, trial_id, strategy = self._best
            yield Text(f"best {self._metric} {self._sign * cost:.4f}  {trial_id} {strategy}", style="green")

    def _rows(self) -> Iterable[Text]:
        for trial_id, trial in list(self._running.items())[:_SHOWN]:
            value = "-" if trial.value is None else f"{trial.value:.4f}"
            choice = " ".join(_choice(trial.params))
            row = f"  {trial_id}  epoch {trial.epoch}/{self._epochs}  {self._metric} {value}  {choice}"
            yield Text(row, no_wrap=True, overflow="ellipsis")
        if len(self._running) > _SHOWN:
            yield Text(f"  and {len(self._running) - _SHOWN} more")


def _choice(params: Mapping[str, Any]) -> list[str]:
    """Return the parameters by which people tell trials apart: strategy and learning rate."""
    parts = [clean(params["strategy"])] if "strategy" in params else []
    if "learning_rate" in params:
        parts.append(f"lr={params['learning_rate']:.3g}")
    return parts
