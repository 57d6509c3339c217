"""Live progress on stderr, so that stdout stays for results.

On a terminal a display that is redrawn four times a second, elsewhere one plain line per ended trial.
Trials report by updating a few fields; drawing is done by a thread at its own pace.
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
    """How far a study is; told by calls, shown to people."""

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
            study: Its name.
            planned: Trials it was asked for.
            epochs: Epochs of a full trial.
            metric: What is shown of each epoch, and compared.
            mode: `max` or `min`.
            slots: Trials that run at once; may be assigned later, as a cluster grows.
            earlier: The record's trials when a study goes on; the ended ones count as done.
            out: Where to write; stderr by default.

        """
        self.slots = slots
        self._study, self._planned, self._epochs = study, planned, epochs
        self._metric, self._sign = metric, -1.0 if mode == "max" else 1.0
        self._running: dict[str, _Running] = {}
        self._states: Counter[str] = Counter()
        self._trial_seconds = 0.0
        self._best: tuple[float, str, str] | None = None
        """Cost (the metric, negated for `max`), trial, strategy: the smallest is best."""
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._out = out or console(stderr=True)
        self._live: Live | None = None
        for trial in earlier:
            if trial.state in _ENDED:
                self._count(trial.id, trial.state, trial.params, trial.metrics["best"], trial.seconds)

    def start(self) -> None:
        """Begin to show; on a terminal other output then appears above the display."""
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
        """Leave the last state on the screen; safe to call twice, and needed even after an error."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def trial_started(self, trial_id: str, params: Mapping[str, Any], since: float | None = None) -> None:
        """Show a trial as running since then (by `time.monotonic`; None: now)."""
        with self._lock:
            self._running[trial_id] = _Running(params, time.monotonic() if since is None else since)

    def trial_epoch(self, trial_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Take a running trial's epoch (from 1); costs microseconds."""
        with self._lock:
            trial = self._running[trial_id]
            trial.epoch, trial.value = epoch, metrics.get(self._metric)

    def trial_ended(self, trial_id: str, state: str, best: Mapping[str, float]) -> None:
        """Count an ended trial; failures are printed on a terminal too.

        Args:
            trial_id: The trial; it may have failed before it started.
            state: COMPLETE, PRUNED or FAIL.
            best: Metrics of its best epoch; empty if it reported none.

        """
        with self._lock:
            trial = self._running.pop(trial_id, None) or _Running({}, time.monotonic())
            seconds = time.monotonic() - trial.since
            self._count(trial_id, state, trial.params, best, seconds)
            line = self._line(trial_id, state, trial.params, best, seconds)
        if self._live is None or state == "FAIL":
            print_line(self._out, line)

    def trial_left(self, trial_id: str) -> None:
        """Show a trial no longer that has not ended: it was interrupted, and `resume` goes on with it."""
        with self._lock:
            self._running.pop(trial_id, None)

    def note(self, text: str) -> None:
        """Print a line; on a terminal it stands above the display."""
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
        """Estimate the time left: the ended trials' mean seconds for each open one, shared by the slots.

        What running trials have used already is taken off, at most a mean each. None until a trial ended.
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
    """Return what tells one trial from another at a glance."""
    parts = [clean(params["strategy"])] if "strategy" in params else []
    if "learning_rate" in params:
        parts.append(f"lr={params['learning_rate']:.3g}")
    return parts
