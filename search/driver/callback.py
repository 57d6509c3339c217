"""Follows every trial through Tune and enters what happens: ledger, TensorBoard, progress, files."""

import contextlib
import json
import math
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError
from ray.tune import Callback
from ray.tune.experiment import Trial

from search.errors import SearchError, SettingsIgnored, SlotsLost
from search.record.kept import Kept
from search.record.ledger import Ledger
from search.record.study_folder import StudyFolder, write_text
from search.suggest.sampler import Suggested
from search.views.progress import Progress
from search.views.tensorboard import Board

LOOK_SECONDS = 0.5
"""Between two looks whether the slots are lost; the search loop takes a step for each result."""
MEASURED = ("epoch", "learning_rate", "seconds", "images_per_second")
"""Metrics of an epoch beside `train/...` and `val/...`."""


@dataclass
class _Followed:
    """One trial between its start and its end."""

    number: int
    id: str
    params: dict[str, Any]
    epochs: int
    """Of a trial that is not stopped early."""
    began: float
    """By `time.monotonic`."""
    history: list[dict[str, float]] = field(default_factory=list)
    slot: str | None = None
    retries: int = 0
    effective: dict[str, Any] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    recalls: dict[str, str] = field(default_factory=dict)
    """`best` and `last`: the recalls of many classes, as `search.driver.trial.compact` wrote them."""
    note: str | None = None
    failed: str | None = None
    """Why it did, by its worker."""
    trace: str = ""


class Watch(Callback):
    """A Tune callback; its methods run in the search loop, so each must be quick."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        board: Board,
        progress: Progress,
        folder: StudyFolder,
        exchange: Any,
        suggested: MutableMapping[str, Suggested],
        metric: str,
        mode: str,
        keep_checkpoints: int,
        left: int,
        slots: int,
        lost: Callable[[], str | None],
    ) -> None:
        self._ledger, self._board, self._progress = ledger, board, progress
        self._folder, self._exchange, self._suggested = folder, exchange, suggested
        self._metric, self._sign = metric, (1.0 if mode == "max" else -1.0)
        self._kept = Kept(folder, metric=metric, mode=mode, count=keep_checkpoints, earlier=ledger.records())
        self._left, self._slots = left, slots
        self._lost, self._looked = lost, time.monotonic()
        """Tells why no trial can go on any more, if so; when that was last asked."""
        self._followed: dict[str, _Followed] = {}
        self.fatal: SearchError | None = None
        """What ended the study; Tune wraps what a callback raises."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; nothing is restored from that, `resume` reads the ledger."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """End the study if its slots are lost, or a worker has ignored its settings.

        Raises:
            SearchError: it ends here.
        """
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._give_up(self._lost())
        if self.fatal is not None:
            raise self.fatal

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Open the trial's TensorBoard run, once."""
        if trial.trial_id in self._followed:
            return
        self._followed[trial.trial_id] = followed = _follow(self._suggested[trial.trial_id])
        self._board.start(followed.id, followed.params)
        self._progress.trial_started(followed.id, followed.params, followed.began)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Enter one epoch, or that the trial failed."""
        followed = self._followed[trial.trial_id]
        if "failed" in result:
            # Tune keeps what is left in it.
            followed.failed, followed.trace = result.pop("failed"), result.pop("trace")
            followed.retries = result.get("retries", followed.retries)
            if result.get("ignored"):
                self.fatal = SettingsIgnored(followed.failed)
            return
        if "slot" in result:
            followed.slot, followed.effective = result["slot"], json.loads(result["effective"])
            followed.retries = result["retries"]
        if "note" in result:
            followed.note = result["note"]
            self._progress.note(f"{followed.id}: {followed.note}")
        if result["epoch"] <= len(followed.history):
            return  # told again to a new process of the trial in Tune
        metrics = {
            name: value
            for name, value in result.items()
            if name.startswith(("train/", "val/")) or name in MEASURED
        }
        followed.history.append(metrics)
        better = not followed.best or self._sign * (metrics[self._metric] - followed.best[self._metric]) > 0
        if better:
            followed.best = metrics
        if "recalls" in result:
            followed.recalls |= {"last": result["recalls"]} | ({"best": result["recalls"]} if better else {})
        epoch = int(metrics["epoch"])
        self._ledger.report(followed.number, epoch, metrics[self._metric])
        best = {name: value for name, value in followed.best.items() if name.startswith("val/")}
        self._board.epoch(followed.id, epoch, metrics, best)
        self._progress.trial_epoch(followed.id, epoch, metrics)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Close a trial that ended by itself, failed or was stopped early, and free its slot."""
        followed = self._followed.pop(trial.trial_id)
        self._forget(trial)
        full = len(followed.history) == followed.epochs
        # Its slot is free from here on, and what it said need not be kept for another process in Tune.
        self._exchange.cancel.remote(followed.id)
        if followed.failed is not None:
            self._fail(followed, followed.failed, followed.trace)
        elif not followed.history:
            self._close(followed, "FAIL", error="the trial ended without a single epoch")
        else:
            self._close(followed, "COMPLETE" if full else "PRUNED")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Close a trial whose processes in Tune failed, one after another; nobody has a result of it."""
        error = _error(trial)
        if isinstance(error, RayTaskError) and isinstance(error.cause, RayError):
            self._give_up(f"the exchange does not answer: {_last(error.cause)}")
        self._give_up(self._lost())
        if self.fatal is not None:
            return  # it is not the trial that failed: it is interrupted, like all others
        suggested = self._suggested[trial.trial_id]
        self._forget(trial)
        followed = self._followed.pop(trial.trial_id, None) or _follow(suggested)
        self._exchange.cancel.remote(followed.id)  # its slot is free from here on
        self._fail(followed, f"the trial's process failed: {_last(error)}", str(error))

    def interrupt(self) -> None:
        """Close what was suggested and had not ended when the study was; `resume` goes on with it."""
        for trial_id, suggested in self._suggested.items():
            followed = self._followed.get(trial_id) or _follow(suggested)
            self._close(followed, "FAIL", error="interrupted", interrupted=True)
        self._suggested.clear()
        self._followed.clear()

    def sweep(self) -> None:
        """Remove the weights of ended trials that are not kept; slots may write late, so call it last."""
        self._kept.sweep(self._ledger.records())

    def _give_up(self, reason: str | None) -> None:
        if reason is not None and self.fatal is None:
            root = self._folder.root
            self.fatal = SlotsLost(
                f"{root}: exchange and keeper must run while a study does, but {reason}. "
                f"The record is whole: `python -m search resume {root}` goes on."
            )

    def _fail(self, followed: _Followed, reason: str, trace: str) -> None:
        log = self._folder.error(followed.id)
        write_text(log, f"{followed.id}: {reason}\n\n{trace}\n")
        self._close(followed, "FAIL", error=reason, log=str(log))

    def _close(
        self,
        followed: _Followed,
        state: str,
        *,
        error: str | None = None,
        log: str | None = None,
        interrupted: bool = False,
    ) -> None:
        value = followed.best.get(self._metric)
        if value is not None and not math.isfinite(value):
            state, error = "FAIL", f"{self._metric} must be finite to be compared, got {value}"
        recalls = followed.recalls or None
        facts = {
            "metrics": {"best": followed.best, "last": followed.history[-1] if followed.history else {}},
            "epochs": len(followed.history),
            "seconds": round(time.monotonic() - followed.began, 3),
            "slot": followed.slot,
            "retries": followed.retries,
            "effective": followed.effective,
            "history": followed.history,
        }
        optional = {"error": error, "log": log, "interrupted": interrupted or None, "recalls": recalls}
        optional |= {"note": followed.note}
        facts |= {name: fact for name, fact in optional.items() if fact is not None}
        then = partial(self._entered, followed.id, state, followed.best, interrupted=interrupted)
        self._ledger.end(followed.number, state, value, facts, then=then)
        self._board.end(followed.id, "RUNNING" if interrupted else state)
        self._left -= 1
        if self._left < self._slots:
            self._exchange.want.remote(self._left)  # slots without a trial to come give their nodes back
        if value is not None and state != "FAIL":
            self._kept.add(followed.number, followed.id, complete=state == "COMPLETE", value=value)

    def _entered(self, name: str, state: str, best: dict[str, float], *, interrupted: bool) -> None:
        """Announce an ended trial, which the record on disk has now."""
        if interrupted:
            self._progress.trial_left(name)
            return
        if state == "COMPLETE":  # until here a resumed study would need it, to know of the epochs
            with contextlib.suppress(OSError):  # the sweep tries again
                self._folder.last_weights(name).unlink()
        self._progress.trial_ended(name, state, best)

    def _forget(self, trial: Trial) -> None:
        """Drop what only a running trial needs: a study may have many thousand, and Tune keeps them all."""
        self._suggested.pop(trial.trial_id)
        trial.metric_analysis.clear()  # Tune's statistics of each metric; the ledger has every epoch
        trial.metric_n_steps.clear()


def _follow(suggested: Suggested) -> _Followed:
    """Follow a trial from its suggestion: a slot may have begun it by the time that Tune starts it."""
    job = suggested.job
    return _Followed(
        suggested.number, job["id"], job["params"], job["settings"]["epochs"], began=suggested.at
    )


def _error(trial: Trial) -> BaseException:
    """Return what a trial failed with; Tune writes it beside the driver first, to storage only later."""
    path = Path(trial.pickled_error_file or "")
    if path.is_file():
        error: BaseException = cloudpickle.loads(path.read_bytes())  # our own process wrote it
        return error
    return SearchError("Tune left no reason; see Ray's logs")


def _last(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
