"""After the search: train the settings that matter again, with other seeds, and measure what they answer.

The trainings run in the study's slots while these are still warm. They are no trials: the sampler does not
learn from them and they have no rank. The record holds them as its fact `repeats`.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable
from typing import Any

import ray

from finetune import steps
from finetune.messages import End, Epoch, Keep, Message, TrainJob
from finetune.metrics import Objective
from search.config import resolve
from search.config.study import StudyConfig
from search.driver import process
from search.errors import SlotsLost
from search.record import reader, reads
from search.record.ledger import Ledger
from search.record.records import StudyRecord, TrialRecord
from search.record.study_folder import StudyFolder
from search.slots.slots import Slots
from search.suggest.space import Space
from search.verdict import contest
from search.verdict.contest import FACT, FIRST_SEED

SHARE_OF_BUDGET = 0.15
"""Share of study.budget that the search leaves for these trainings."""
LOOK_SECONDS = 0.5
"""Seconds between two looks at the budget while no training has news."""


@dataclasses.dataclass(frozen=True)
class Again:
    """One training of a trial's setting with another seed."""

    trial: TrialRecord
    seed: int
    """From 0; the seed of trial FIRST_SEED + seed."""

    @property
    def id(self) -> str:
        """Name of its folder beside those of the trials."""
        return f"{self.trial.id}-seed-{self.seed + 1}"


class Repeats:
    """The trainings with other seeds of one study.

    Args:
        config: the study's config.
        folder: its results folder.
        ledger: its record, open for writing.
        warm: its slots.
        fingerprint: of its images.
        deadline: time by `time.monotonic` at which the budget is spent; None: no limit.
        say: prints a line for the user.
    """

    def __init__(
        self,
        config: StudyConfig,
        folder: StudyFolder,
        ledger: Ledger,
        warm: Slots,
        *,
        fingerprint: str,
        deadline: float | None,
        say: Callable[[str], None],
    ) -> None:
        self._config, self._folder, self._ledger, self._warm = config, folder, ledger, warm
        self._fingerprint, self._deadline, self._say = fingerprint, deadline, say
        self._space = Space(config)

    def run(self) -> None:
        """Train what is still to train, within the budget, and enter the verdict into the record."""
        self._ledger.flush()
        record = reader.read_study(self._folder)
        waiting = self._to_do(record)
        if waiting:
            self._ledger.set_fact("state", "running")  # a study that is killed here goes on with `resume`
            count = len({again.trial.number for again in waiting})
            self._say(
                f"verdict: {len(waiting)} trainings with other seeds, of {count} settings; "
                "`verdict.seeds: 0` leaves them out"
            )
            self._train(waiting, record)
            record = reader.read_study(self._folder)
        wanted = self._config.verdict
        found = contest.measured(record, top=wanted.top, seeds=wanted.seeds)
        self._ledger.set_fact("verdict", found.to_json())
        self._ledger.set_fact("state", "finished")

    def _to_do(self, record: StudyRecord) -> list[Again]:
        """Return the trainings that the record lacks: the first seed of all settings, then the second, ..."""
        chosen = contest.contestants(record, self._config.verdict.top)
        done = {repeat["id"] for repeat in record.repeats}
        seeds = self._config.verdict.seeds
        every = [
            Again(trial, seed)
            for seed in range(seeds)
            for trial in chosen
            if seed < contest.seeds_of(trial, seeds)
        ]
        return [again for again in every if again.id not in done] if len(chosen) > 1 else []

    def _train(self, waiting: list[Again], record: StudyRecord) -> None:
        """Give all trainings to the slots, and follow them until they have ended or are stopped.

        Raises:
            KeyboardInterrupt: Ctrl-C; what has ended by then is in the record.
        """
        running: dict[Any, _Running] = {}
        # Wherever an interrupt came, it could lose a training between the exchange and the record.
        with (
            process.deferred() as interrupted,
            steps.step("trainings with other seeds", len(waiting), "trainings") as told,
        ):
            try:
                left = list(waiting)
                while left and not (interrupted() or self._is_late):
                    one = _Running(left[0], self._begin(left.pop(0), record))
                    running[self._warm.exchange.receive.remote(one.again.id, 0)] = one
                while running and not (interrupted() or self._is_late):
                    self._hear(running, told)
                self._hear_the_last(running, told)
                if self._is_late and (count := len(running) + len(left)):
                    self._say(f"verdict: the budget is spent, {count} trainings are left out")
            finally:
                for one in running.values():
                    self._warm.exchange.cancel.remote(one.again.id)
                    reads.withdraw(self._folder, one.entered)

    def _hear(self, running: dict[Any, "_Running"], told: steps.Counting) -> None:
        """Take the news of the trainings, which are waited for LOOK_SECONDS at most."""
        found, _ = ray.wait(list(running), timeout=LOOK_SECONDS)
        for answer in found:
            one = running.pop(answer)
            self._take(one, self._warm.get(answer), told)
            if one.end is None:
                running[self._warm.exchange.receive.remote(one.again.id, one.heard)] = one
        if not found and (reason := self._warm.lost()) is not None:
            raise SlotsLost(f"slots: exchange and supervisor must run on, but {reason}. See Ray's logs.")

    def _hear_the_last(self, running: dict[Any, "_Running"], told: steps.Counting) -> None:
        """Enter what has ended in the slots and is not heard yet, so that a resume does not repeat it."""
        for answer, one in list(running.items()):
            self._take(one, self._warm.get(self._warm.exchange.so_far.remote(one.again.id, one.heard)), told)
            if one.end is not None:
                del running[answer]

    def _take(self, one: "_Running", messages: list[Message], told: steps.Counting) -> None:
        """Take messages of a training; enter it into the record if it has ended."""
        one.hear(messages, self._config.study.objective)
        if one.end is not None:
            self._enter(one)
            told.add()

    @property
    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _begin(self, again: Again, record: StudyRecord) -> dict[str, Any]:
        """Submit a training to the slots, and return what `reads.enter` gave for it."""
        folder, study = self._folder, self._config.study
        settings = self._space.settings(
            again.trial.params, number=FIRST_SEED + again.seed, cache_dir=str(resolve.cache_dir())
        )
        job = TrainJob(
            id=again.id,
            settings=settings,
            features=dataclasses.replace(resolve.feature_settings(self._config), test=True),
            keep=Keep(
                metric=study.metric,
                best=folder.best_weights(again.id),
                last=folder.last_weights(again.id),
            ),
            params=again.trial.params,
            data_fingerprint=self._fingerprint,
            may_be_stopped=False,
            answers=folder.trial(again.id),
        )
        entered = reads.enter(folder, record, again.id, why="verdict")
        self._warm.get(self._warm.offer(job))
        return entered

    def _enter(self, one: "_Running") -> None:
        """Write an ended training into the record, and remove its weights."""
        again, folder = one.again, self._folder
        self._warm.exchange.cancel.remote(again.id)
        for weights in (folder.best_weights, folder.last_weights):
            with contextlib.suppress(OSError):
                weights(again.id).unlink(missing_ok=True)
        if one.failed is not None:
            reads.withdraw(folder, one.entered)
            shutil.rmtree(folder.trial(again.id), ignore_errors=True)
        told = {
            "id": again.id,
            "trial": again.trial.id,
            "state": "FAIL" if one.failed is not None else "COMPLETE",
            "metrics": one.best,
            "epochs": one.epochs,
            "seconds": round(one.seconds, 3),
            "error": one.failed,
        }
        self._ledger.set_fact(FACT, [*self._ledger.facts.get(FACT, []), told])
        score = one.best.get(self._config.study.metric)
        what = one.failed if one.failed is not None or score is None else f"{score:.4f}"
        self._say(f"verdict: {again.id} {what}")


class _Running:
    """A training that a slot has, or will have."""

    def __init__(self, again: Again, entered: dict[str, Any]) -> None:
        self.again, self.entered = again, entered
        self.seconds = 0.0
        """Seconds in its slot, once it has ended."""
        self.heard = self.epochs = 0
        self.best: dict[str, float] = {}
        self.end: str | None = None
        """Its end: `complete`, `stopped` or `failed`."""
        self.failed: str | None = None

    def hear(self, messages: list[Message], objective: Objective) -> None:
        """Take the next messages of its worker."""
        self.heard += len(messages)
        for message in messages:
            match message:
                case Epoch(metrics):
                    self.epochs += 1
                    if objective.is_better(metrics[objective.metric], self.best.get(objective.metric)):
                        kept = ("val/", "epoch")
                        self.best = {name: value for name, value in metrics.items() if name.startswith(kept)}
                case End("complete"):
                    self.end, self.seconds = "complete", message.seconds
                case End():
                    self.end = message.state
                    self.failed = message.error or f"it was {message.state}"
