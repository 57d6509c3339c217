"""One run of a study: what it has, and what is still to do."""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from finetune.images.catalog import Catalog
from search import provenance
from search.config import resolve
from search.config.sections import Study
from search.config.study import StudyConfig
from search.driver import tuner
from search.driver.callback import Watch
from search.record import changes, ledger
from search.record.ledger import Ledger
from search.record.records import TrialRecord
from search.record.study_folder import StudyFolder, trial_id
from search.slots.slots import Slots
from search.suggest import sampler
from search.suggest.sampler import Planned, StudySearcher
from search.suggest.space import Space
from search.suggest.stopping import EarlyStopping
from search.views.progress import Progress
from search.views.tensorboard import Board

NOTE_SECONDS = 30.0
"""Between two notes of the time that is used: what a killed driver may cost the budget, at most."""


class StudyRun:
    """One run of a study: what it has, and what is still to do."""

    def __init__(
        self, config: StudyConfig, folder: StudyFolder, images: Catalog, warm: Slots, facts: dict[str, Any]
    ) -> None:
        self.config, self.folder, self.warm = config, folder, warm
        self.images = images
        study = config.study
        self._anew = self._forgotten = 0
        self.space = Space(config)
        past = ledger.read(folder.database)[0] if folder.database.exists() else []
        # The same seed would repeat an earlier run's first suggestions.
        self.ledger = Ledger(
            folder.database,
            mode=study.mode,
            sampler=sampler.make(study.sampler, seed=study.seed + len(past)),
            learned=self._learned,
        )
        earlier = self.ledger.records()
        self.planned, self.sampled = to_do(earlier, study, self.space)
        self.clock = Clock(self.ledger)
        self.deadline = self.clock.deadline(study.budget_seconds)
        self.progress = Progress(
            study=study.name,
            planned=study.trials,
            epochs=study.epochs,
            metric=study.metric,
            mode=study.mode,
            slots=len(facts) if warm.plan.ask else warm.plan.slots,
            earlier=[trial for trial in earlier if not trial.interrupted],
        )
        if self._anew or self._forgotten:
            self.progress.note(
                f"{folder.config}: the space was changed: the sampler learns from {self._anew} earlier "
                f"trials as if suggested now, and {self._forgotten} that it could not suggest only stay in "
                "the record"
            )
        self.board = Board(folder.tensorboard)
        self.searcher = StudySearcher(
            self.ledger,
            self.space,
            metric=study.metric,
            mode=study.mode,
            planned=self.planned,
            sampled=self.sampled,
            make_job=self._job,
            offer=warm.exchange.offer.remote,
            deadline=self.deadline,
        )
        self.watch = Watch(
            ledger=self.ledger,
            board=self.board,
            progress=self.progress,
            folder=folder,
            exchange=warm.exchange,
            suggested=self.searcher.suggested,
            metric=study.metric,
            mode=study.mode,
            keep_checkpoints=study.keep_checkpoints,
            left=len(self.planned) + self.sampled,
            slots=warm.plan.slots,
            lost=warm.lost,
        )
        self._past = [trial for trial in past if trial.state != "RUNNING"]
        """Earlier trials with every epoch, which the ledger does not keep; until the search begins."""
        self._remember(facts)

    def search(self) -> str:
        """Run what is to do; return `finished` or `interrupted`."""
        study, early = self.config.study, self.config.early_stopping
        stopping = EarlyStopping(
            metric=study.metric,
            mode=study.mode,
            epochs=study.epochs,
            grace=self.config.grace,
            factor=early.factor,
            enabled=early.enabled,
            deadline=self.deadline,
            strategy_of=self.searcher.strategy_of,
        )
        stopping.replay(self._past)
        self._past = []
        self.ledger.set_fact("state", "running")
        count = len(self.planned) + self.sampled
        if count and self._in_time:
            self.progress.start()
            try:
                tuner.tune(
                    self.warm.exchange,
                    searcher=self.searcher,
                    scheduler=stopping,
                    watch=self.watch,
                    trials=count,
                    most=self.warm.plan.slots,
                    room=self._room,
                    retries=study.retries,
                    storage=self.folder.tune,
                    name=datetime.now().strftime("%Y-%m-%d_%H-%M-%S"),
                )
            finally:
                self.ledger.flush()
                self.progress.stop()
        done = sum(not trial.interrupted for trial in self.ledger.records() if trial.state != "RUNNING")
        state = "interrupted" if self._in_time and done < study.trials else "finished"
        self.ledger.set_fact("state", state)
        return state

    def close(self, seconds: float) -> None:
        """Bring the record to disk, whatever happened; the file is let go of even where that fails.

        SQLite ends a process with SIGBUS that exits with a connection to a file whose disk is full.
        """
        with contextlib.ExitStack() as last:  # each is done, even if those before it raise
            last.callback(self.ledger.close)
            last.callback(self._note_end, seconds)
            last.callback(self.board.close)
            self.watch.interrupt()

    def _note_end(self, seconds: float) -> None:
        self.clock.note(now=True)
        self.ledger.set_fact("seconds", round(self.ledger.facts.get("seconds", 0.0) + seconds, 3))
        if self.ledger.facts.get("state") == "running":
            self.ledger.set_fact("state", "interrupted")

    @property
    def _in_time(self) -> bool:
        return self.deadline is None or time.monotonic() < self.deadline

    def _learned(self, trial: FrozenTrial) -> FrozenTrial:
        """Return an earlier trial as the space is now, and count those that this changes."""
        now = self.space.learned(trial)
        if now is not trial and trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            self._anew += bool(now.params)
            self._forgotten += not now.params
        return now

    def _room(self) -> int:
        """Return how many trials may run now, and tell what is new about the cluster."""
        plan = self.warm.plan
        self.clock.note()
        up, news = self.warm.news()
        for line in news:
            print(line, file=sys.stderr)
        if not plan.ask:
            return plan.slots
        self.progress.slots = up
        return max(1, up)

    def _job(self, number: int, params: dict[str, Any], plan: Planned | None) -> dict[str, Any]:
        """Return what a slot needs to train trial `number`."""
        first = number
        if plan is not None and plan.continues is not None:
            first = plan.continues if plan.seed_of is None else plan.seed_of
            _hand_over(self.folder, trial_id(plan.continues), trial_id(number))
        settings = self.space.settings(params, number=first, cache_dir=str(resolve.cache_dir()))
        name = trial_id(number)
        spared = plan is not None and plan.baseline is not None
        return {
            "id": name,
            "kind": "train",
            "settings": settings.to_dict(),
            "features": dataclasses.asdict(resolve.feature_settings(self.config)),
            "params": params,
            "data_fingerprint": self.images.fingerprint,
            "spared": spared,
            "may_be_stopped": self.config.early_stopping.enabled and not spared,
            "keep": {
                "metric": self.config.study.metric,
                "mode": self.config.study.mode,
                "best": str(self.folder.best_weights(name)),
                "last": str(self.folder.last_weights(name)),
            },
        }

    def _remember(self, facts: dict[str, Any]) -> None:
        study = self.config.study
        if changes.FACT not in self.ledger.facts:
            self.ledger.set_fact(changes.FACT, changes.fixed(self.config))
        known = provenance.collect(seed=study.seed, data_fingerprint=self.images.fingerprint)
        counts = {split: len(self.images.splits[split]) for split in self.images.splits}
        skipped = [{"path": image.path, "reason": image.reason} for image in self.images.skipped]
        self.ledger.set_fact("provenance", known | {"images": counts, "skipped": skipped, "slots": facts})


class Clock:
    """Counts the seconds that the runs of a study searched, of which its budget is spent."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        facts = ledger.facts
        self._before: float = facts.get("searched", facts.get("seconds", 0.0))  # older records have one only
        self._began = self._noted = time.monotonic()

    def deadline(self, budget: float | None) -> float | None:
        """Return when a budget is spent, by `time.monotonic`; None: never."""
        return None if budget is None else self._began + budget - self._before

    def note(self, *, now: bool = False) -> None:
        """Bring the seconds to the record, unless that was a moment ago: a driver may be killed any time."""
        if now or time.monotonic() - self._noted >= NOTE_SECONDS:
            self._noted = time.monotonic()
            self._ledger.set_fact("searched", round(self._before + self._noted - self._began, 3))


def is_over(trials: Iterable[TrialRecord], facts: Mapping[str, Any], study: Study) -> bool:
    """True if the study finished and neither its trials nor its budget were raised since."""
    if facts.get("state") != "finished":
        return False
    budget = study.budget_seconds
    return _left(trials, study) <= 0 or (budget is not None and facts.get("seconds", 0.0) >= budget)


def _left(trials: Iterable[TrialRecord], study: Study) -> int:
    """Return how many trials are to run."""
    return study.trials - sum(not trial.interrupted and trial.state != "RUNNING" for trial in trials)


def to_do(earlier: Sequence[TrialRecord], study: Study, space: Space) -> tuple[list[Planned], int]:
    """Return what is set: interrupted trials, then baselines, then starts; and how many to sample."""
    continued = {trial.continues for trial in earlier}
    again = [
        Planned(
            params=trial.params,
            baseline=trial.baseline,
            continues=trial.number,
            seed_of=trial.number if trial.seed_of is None else trial.seed_of,
        )
        for trial in earlier
        if trial.interrupted
        and trial.number not in continued
        and space.settings_now(trial, cache_dir="") is not None
    ]
    settled = {trial.baseline for trial in earlier if not trial.interrupted}
    settled |= {plan.baseline for plan in again}
    fresh = [
        Planned(params=space.baseline(name), baseline=name) for name in study.baselines if name not in settled
    ]
    tried = [space.sampled(trial.params) for trial in earlier]
    starts = [params for params in space.starts() if study.warm_start and space.sampled(params) not in tried]
    left = _left(earlier, study)
    planned = (again + fresh + [Planned(params=params) for params in starts])[: max(0, left)]
    return planned, max(0, left - len(planned))


def _hand_over(folder: StudyFolder, old: str, new: str) -> None:
    """Give an interrupted trial's checkpoints to the one that goes on with it."""
    folder.trial(new).mkdir(parents=True, exist_ok=True)
    for weights in (folder.best_weights, folder.last_weights):
        if weights(old).exists():
            os.replace(weights(old), weights(new))
