"""Tune callback that records each trial's events in the ledger, TensorBoard, progress display and files."""

import contextlib
import functools
import json
import math
import time
import traceback
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError
from ray.tune import Callback
from ray.tune.experiment import Trial

from finetune.objectives import Goal
from search.driver.effective import check_effective
from search.errors import SearchError, SettingsIgnored, SlotsLost
from search.record.kept import Kept
from search.record.ledger import Ledger
from search.record.records import TrialRecord
from search.record.study_folder import DISK_ERRORS, StudyFolder, write_text
from search.suggest.sampler import Suggested
from search.views.progress import Progress
from search.views.tensorboard import Board

LOOK_SECONDS = 0.5
"""Seconds between two checks whether the slots are lost; Tune's loop takes a step for each result, far more
often."""
MEASURED = ("epoch", "learning_rate", "seconds", "images_per_second")
"""Names of an epoch's metrics other than `train/...` and `val/...`."""


@dataclass
class _Followed:
    """State of one trial between its start and its end."""

    number: int
    id: str
    params: dict[str, Any]
    epochs: int
    """Number of epochs if the trial is not stopped early."""
    began: float
    """Start time, by `time.monotonic`."""
    baseline: str | None = None
    continues: int | None = None
    """Number of the interrupted trial that it continues."""
    history: list[dict[str, float]] = field(default_factory=list)
    slot: str | None = None
    retries: int = 0
    effective: dict[str, Any] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    recalls: dict[str, str] = field(default_factory=dict)
    """Recalls of many classes at the epochs `best` and `last`, as text from `search.driver.trial.compact`."""
    note: str | None = None
    """Remark of its worker for the user."""
    costs: dict[str, float] = field(default_factory=dict)
    """Latency, parameters and size of its model, where the study measures them."""
    failed: str | None = None
    """Reason of its failure, as its worker reported it; None if it has not failed."""
    trace: str = ""
    """Traceback of its failure."""

    @property
    def measured(self) -> dict[str, float]:
        """Costs of the trial so far; empty if the study does not measure them."""
        seconds = sum(epoch.get("seconds", 0.0) for epoch in self.history)
        return {**self.costs, "train_seconds": round(seconds, 3)} if self.costs else {}


def _minding_the_disk(method: Callable[..., None]) -> Callable[..., None]:
    """Return a method that keeps an error of the disk as `fatal`, since Tune would wrap it."""

    @functools.wraps(method)
    def guarded(watch: "StudyCallback", *arguments: Any, **info: Any) -> None:
        try:
            method(watch, *arguments, **info)
        except OSError as error:
            if error.errno in DISK_ERRORS and watch.fatal is None:
                watch.fatal = watch.folder.lost(error)
            raise

    return guarded


class StudyCallback(Callback):
    """Tune callback that follows all trials of a run of a study.

    Its methods run in Tune's search loop, which handles nothing else meanwhile, so each must be quick.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        board: Board,
        progress: Progress,
        folder: StudyFolder,
        exchange: Any,
        suggested: MutableMapping[str, Suggested],
        goal: Goal,
        keep_checkpoints: int,
        left: Callable[[], int],
        slots: int,
        lost: Callable[[], str | None],
        searched: Callable[[], float],
        scored: Callable[[str, float], None] = lambda strategy, value: None,
    ) -> None:
        self._ledger, self._board, self._progress = ledger, board, progress
        self.folder, self._exchange, self._suggested = folder, exchange, suggested
        self._goal, self._metric, self._objective = goal, goal.metric, goal.objective
        self._kept = Kept(
            folder,
            objective=goal.objective,
            count=keep_checkpoints,
            earlier=ledger.records(),
            goal=goal,
        )
        self._left, self._slots = left, slots
        self._lost, self._looked = lost, time.monotonic()
        """Function that returns the reason why no trial can continue, if so; time of its last call."""
        self._followed: dict[str, _Followed] = {}
        """Trials that have started and not ended, by Tune's trial id."""
        self._searched = searched
        """Function that returns the seconds that the study has searched, over all of its runs."""
        self._scored = scored
        """Function that gets strategy and score of each ended trial that is no baseline."""
        self.ended = 0
        """Trials that have ended in this run."""
        self.fatal: SearchError | None = None
        """Error that ends the study; kept here because Tune wraps the exceptions of a callback."""

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Tune pickles its callbacks, but `resume` reads the ledger instead."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """End the study if its slots are lost or a worker has ignored its settings.

        Raises:
            SearchError: the reason; Tune's loop ends with it.
        """
        # Raised between two steps: an exception from another method would interrupt Tune within a step.
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._give_up(self._lost())
        if self.fatal is not None:
            raise self.fatal

    @_minding_the_disk
    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Begin to follow a trial and open its TensorBoard run."""
        # After the death of a trial's process Tune starts it again, while the slot trains on.
        if trial.trial_id in self._followed:
            return
        self._followed[trial.trial_id] = followed = _follow(self._suggested[trial.trial_id])
        self._board.start(followed.id, followed.params, followed.baseline, followed.continues)
        self._progress.trial_started(followed.id, followed.params, followed.began, followed.baseline)

    @_minding_the_disk
    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Record one epoch, or the failure of the trial."""
        followed = self._followed[trial.trial_id]
        if "failed" in result:
            # Remove the long texts, as Tune keeps the last result of every trial in memory.
            followed.failed, followed.trace = result.pop("failed"), result.pop("trace")
            followed.retries = result.get("retries", followed.retries)
            return
        # These facts come with the first epoch in each slot only.
        if "slot" in result:
            followed.slot, followed.effective = result["slot"], json.loads(result["effective"])
            followed.costs = followed.effective.pop("measured", {})
            followed.retries = result["retries"]
            try:
                check_effective(self._suggested[trial.trial_id].job, followed.effective)
            except SettingsIgnored as error:
                # If one worker ignores its settings, no result of the study can be trusted.
                self.fatal = error
                followed.failed, followed.trace = str(error), traceback.format_exc()
        if followed.failed is not None:
            return
        if "note" in result:
            followed.note = result["note"]
            self._progress.note(f"{followed.id}: {followed.note}")
        if result["epoch"] <= len(followed.history):
            return  # a new process in Tune, which replaces a dead one, reports all epochs again
        metrics = {
            name: value
            for name, value in result.items()
            if name.startswith(("train/", "val/")) or name in MEASURED
        }
        followed.history.append(metrics)
        # The first epoch counts as best even if its metric is NaN: if all are, `_close` fails the trial.
        better = self._objective.is_better(metrics[self._metric], followed.best.get(self._metric))
        if better:
            followed.best = metrics
        if "recalls" in result:
            followed.recalls |= {"last": result["recalls"]} | ({"best": result["recalls"]} if better else {})
        epoch = int(metrics["epoch"])
        self._ledger.report(followed.number, epoch, metrics[self._metric])
        self._board.epoch(followed.id, epoch, metrics, followed.best)
        self._progress.trial_epoch(followed.id, epoch, metrics)

    @_minding_the_disk
    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Close a trial that ran to its end, failed or was stopped early, and free its slot."""
        followed = self._followed.pop(trial.trial_id)
        self._forget(trial)
        full = len(followed.history) == followed.epochs
        # This frees the slot of a trial that was stopped early, and drops the messages that the exchange kept
        # for another process in Tune.
        self._exchange.cancel.remote(followed.id)
        if followed.failed is not None:
            self._fail(followed, followed.failed, followed.trace)
        elif not followed.history:
            self._close(followed, "FAIL", error="the trial ended without a single epoch")
        else:
            self._close(followed, "COMPLETE" if full else "PRUNED")

    @_minding_the_disk
    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Close a trial whose process in Tune failed after all retries, so that no result can arrive."""
        error = _error(trial)
        # If the process failed because the exchange is gone, the whole study ends, not this trial alone.
        if isinstance(error, RayTaskError) and isinstance(error.cause, RayError):
            self._give_up(f"the exchange does not answer: {_last(error.cause)}")
        self._give_up(self._lost())
        if self.fatal is not None:
            return  # the trial has not failed: it is interrupted, like all others (see `interrupt`)
        suggested = self._suggested[trial.trial_id]
        self._forget(trial)
        followed = self._followed.pop(trial.trial_id, None) or _follow(suggested)
        self._exchange.cancel.remote(followed.id)  # frees its slot
        self._fail(followed, f"the trial's process failed: {_last(error)}", str(error))

    def interrupt(self) -> None:
        """Record every trial that has not ended or failed as interrupted, so that `resume` continues it."""
        # `_suggested` holds each trial until it has ended, including those that Tune has not started yet.
        for trial_id, suggested in self._suggested.items():
            followed = self._followed.get(trial_id) or _follow(suggested)
            if followed.failed is not None:
                self._fail(followed, followed.failed, followed.trace)
            else:
                self._close(followed, "FAIL", error="interrupted", interrupted=True)
        self._suggested.clear()
        self._followed.clear()

    def sweep(self) -> None:
        """Remove the weights of ended trials that are not kept; call it last, as slots may write late."""
        self._kept.sweep(self._ledger.records())

    def _give_up(self, reason: str | None) -> None:
        """Set `fatal` if there is a reason to end the study; the first reason counts."""
        if reason is not None and self.fatal is None:
            root = self.folder.root
            self.fatal = SlotsLost(
                f"{root}: exchange and supervisor must run while a study does, but {reason}. "
                f"The record is whole: `python -m search resume {root}` goes on."
            )

    def _fail(self, followed: _Followed, reason: str, trace: str) -> None:
        """Close a trial as failed and write its traceback to the error file."""
        log = self.folder.error(followed.id)
        write_text(log, f"{followed.id}: {reason}\n\n{trace}\n")
        # Relative to the study's folder, which may be moved.
        self._close(followed, "FAIL", error=reason, log=log.relative_to(self.folder.root).as_posix())

    def _close(
        self,
        followed: _Followed,
        state: str,
        *,
        error: str | None = None,
        log: str | None = None,
        interrupted: bool = False,
    ) -> None:
        """Write a trial's end to the ledger and TensorBoard, and update what depends on the trials left."""
        value = followed.best.get(self._metric)
        # A failed trial never gets a score, and a metric that is NaN or infinite cannot be compared.
        if value is not None and not math.isfinite(value):
            state, error = "FAIL", f"{self._metric} must be finite to be compared, got {value}"
        recalls = followed.recalls or None
        facts = {
            "metrics": {"best": followed.best, "last": followed.history[-1] if followed.history else {}},
            "epochs": len(followed.history),
            "seconds": round(time.monotonic() - followed.began, 3),
            "searched": round(self._searched(), 3),
            "slot": followed.slot,
            "retries": followed.retries,
            "effective": followed.effective,
            "history": followed.history,
        }
        optional: dict[str, Any] = {
            "error": error,
            "log": log,
            "interrupted": interrupted or None,
            "recalls": recalls,
        }
        optional |= {"note": followed.note, "measured": followed.measured or None}
        facts |= {name: fact for name, fact in optional.items() if fact is not None}
        # The ledger writes in a thread. The trial is announced, and its checkpoint removed, only after the
        # record is on disk: a driver that dies in between would otherwise have lost the trial.
        then = partial(self._entered, followed, state, value, interrupted=interrupted)
        self._ledger.end(followed.number, state, value, facts, then=then)
        self._board.end(followed.id, "RUNNING" if interrupted else state, followed.measured)
        self.ended += 1
        breaks = bool(self._goal.excess(followed.measured))
        if value is not None and state != "FAIL" and followed.baseline is None and not breaks:
            self._scored(str(followed.params.get("strategy")), value)
        if (left := self._left()) < self._slots:
            self._exchange.want.remote(left)  # slots that get no more trials end and free their nodes

    def _entered(self, followed: _Followed, state: str, value: float | None, *, interrupted: bool) -> None:
        """Announce an ended trial and delete what it makes needless, once the record on disk has it."""
        if interrupted:
            self._progress.trial_left(followed.id)
            return
        if state == "COMPLETE":  # until the record had the trial, a resumed study would have needed this file
            with contextlib.suppress(OSError):  # `sweep` tries again
                self.folder.last_weights(followed.id).unlink()
        if value is not None and state != "FAIL":
            with contextlib.suppress(OSError):
                self._kept.add(
                    followed.number,
                    followed.id,
                    complete=state == "COMPLETE",
                    value=value,
                    measured=followed.measured,
                )
        with contextlib.suppress(OSError):  # the record is what counts, and the next trial tries again
            self._board.study.ended(_as_record(followed, state))
        self._progress.trial_ended(
            followed.id, state, followed.best, counts=not self._goal.excess(followed.measured)
        )

    def _forget(self, trial: Trial) -> None:
        """Drop what only a running trial needs: Tune keeps all trials, and a study may have many thousand."""
        self._suggested.pop(trial.trial_id)
        trial.metric_analysis.clear()  # Tune's statistics of each metric, of no use here
        trial.metric_n_steps.clear()


def _follow(suggested: Suggested) -> _Followed:
    """Return a trial's state, timed from its suggestion: a slot may train it before Tune has started it."""
    job = suggested.job
    plan = suggested.plan
    return _Followed(
        suggested.number,
        job.id,
        dict(job.params),
        job.settings.epochs,
        began=suggested.at,
        baseline=plan.baseline if plan else None,
        continues=plan.continues if plan else None,
    )


def _as_record(followed: _Followed, state: str) -> TrialRecord:
    """Return what the views read of a trial that has just ended."""
    return TrialRecord(
        number=followed.number,
        id=followed.id,
        state=state,
        params=followed.params,
        baseline=followed.baseline,
        metrics={"best": followed.best, "last": followed.history[-1] if followed.history else {}},
        effective=followed.effective,
        measured=followed.measured,
        history=followed.history,
    )


def _error(trial: Trial) -> BaseException:
    """Return the error of a trial's process; Tune writes it to the driver's disk first, to storage later."""
    path = Path(trial.pickled_error_file or "")
    if path.is_file():
        error: BaseException = cloudpickle.loads(path.read_bytes())  # our own process wrote it
        return error
    return SearchError("Tune left no reason; see Ray's logs")


def _last(error: BaseException) -> str:
    """Return the last line of an error's text, which in Ray's errors names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
