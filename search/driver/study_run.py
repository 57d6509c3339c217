"""One run of a study: the parts that search together, and the trials that are still to run."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from finetune.datasets.catalog import Catalog
from finetune.messages import Keep, TrainJob
from search import provenance
from search.config import resolve
from search.config.study import StudyConfig
from search.driver import tuner
from search.driver.callback import StudyCallback
from search.driver.checks import estimate, findings
from search.driver.ending import ENDED, Clock, Patience, left
from search.driver.seeds import SHARE_OF_BUDGET, Repeats
from search.driver.to_do import to_do
from search.record import changes, reader
from search.record.ledger import Ledger
from search.record.records import EXACT, TrialRecord, lineage, standing
from search.record.study_folder import StudyFolder, trial_id
from search.slots.news import NO_FEATURES
from search.slots.slots import Slots
from search.suggest import portfolio
from search.suggest.chooser import Chooser, Planned
from search.suggest.models import samplers
from search.suggest.recorded import Situation, read_study
from search.suggest.sampler import StudySearcher
from search.suggest.space import Space
from search.suggest.stopping import EarlyStopping
from search.views.phases import Phases
from search.views.progress import Progress
from search.views.tensorboard import Board


class StudyRun:
    """One run of a study: its ledger, sampler, callback and views, made for the trials still to run.

    Args:
        config: the study's config.
        folder: the study's results folder.
        images: the study's images.
        warm: the slots, of which at least one is up.
        facts: facts of each slot that is up, by name, for the record.
    """

    def __init__(
        self, config: StudyConfig, folder: StudyFolder, images: Catalog, warm: Slots, facts: dict[str, Any]
    ) -> None:
        self.config, self.folder, self.warm = config, folder, warm
        self.images = images
        study = config.study
        self._anew = self._forgotten = 0
        self.space = Space(config)
        # `past` is the record before this run touches it. Opening the ledger marks the trials that a dead
        # driver left RUNNING as failed and interrupted.
        past = reader.read(folder.database)[0] if folder.database.exists() else []
        # With the same seed, the sampler would repeat an earlier run's first suggestions.
        self.ledger = Ledger(
            folder.database,
            metric=study.metric,
            sampler=samplers.make(study.sampler, seed=study.seed + len(past), goal=study.goal),
            name=study.name,
            learned=self._learned,
        )
        earlier = self.ledger.records()
        self.planned, sampled = to_do(earlier, study, self.space, self._starts())
        # The budget counts from here on: the start of the slots is not part of it.
        self._gpus = warm.plan.workers * warm.plan.gpu_per_worker if warm.plan.gpu else 0.0
        reserve = SHARE_OF_BUDGET if config.verdict.seeds else 0.0
        self.clock = Clock(self.ledger, study.spending, self._gpus * len(facts), reserve)
        self.patience = Patience(study, len(images.splits["val"]), earlier)
        self._planned = self._asked_for(earlier)
        self.progress = self._make_progress(earlier, len(facts))
        self._tell_of_changes(len(past))
        self.board = Board(folder.tensorboard, config)
        self.board.take_up(past)
        self.board.study.open(
            past,
            searched=lambda: self.clock.searched,
            slots=self.progress.slots,
            computed=lambda: int(warm.computed["arrays"]),
        )
        self.searcher = self._make_searcher(sampled)
        self.watch = self._make_watch()
        self._past = [trial for trial in past if trial.state != "RUNNING"]
        """Earlier trials with every epoch, which the ledger does not keep in memory; dropped by `search`."""
        self._remember(facts)
        self._plan(len(facts))

    def _asked_for(self, earlier: Sequence[TrialRecord]) -> int:
        """Return how many trials the study is to have, those included that do not count."""
        named = [*(plan.baseline for plan in self.planned), *(trial.baseline for trial in earlier)]
        heads = sum(not trial.counted for trial in standing(earlier))
        return self.config.study.trials + named.count(EXACT) + heads

    def _make_progress(self, earlier: Sequence[TrialRecord], up: int) -> Progress:
        study, warm = self.config.study, self.warm
        return Progress(
            study=study.name,
            planned=self._planned,
            epochs=study.epochs,
            objective=study.objective,
            # Where nodes may join, `_room` updates this number as slots come and go.
            slots=up if warm.plan.ask else warm.plan.slots,
            up=lambda: warm.up,
            steps=lambda: warm.steps,
            workers=warm.plan.workers,
            money=lambda: self.clock.money(study.price_per_gpu_hour),
            budget_left=lambda: self.clock.seconds_left,
            earlier=[self._as_shown(trial) for trial in earlier if not trial.interrupted],
        )

    def _as_shown(self, trial: TrialRecord) -> TrialRecord:
        """Return a trial, without its score if it breaks a constraint, so that it is not called the best."""
        if not self.config.study.goal.excess(trial.measured):
            return trial
        return dataclasses.replace(trial, metrics={"best": {}, "last": {}})

    def _tell_of_changes(self, past: int) -> None:
        """Say what a resumed study finds otherwise than it was left: trials that are gone, another space."""
        folder = self.folder
        if unknown := folder.remove_unknown(past):
            many = len(unknown) > 2 * self.warm.plan.slots  # a driver that dies loses those just begun
            self.progress.note(
                f"{folder.database}: the record must know every trial with files beside it, got nothing of "
                f"{', '.join(unknown)}. {'Was optuna.db-wal removed?' if many else 'They had just begun.'} "
                "The files are removed, and others run"
            )
        if self._anew or self._forgotten:
            self.progress.note(
                f"{folder.config}: the space was changed: the sampler learns from {self._anew} earlier "
                f"trials as if suggested now, and {self._forgotten} that it could not suggest only stay in "
                "the record"
            )

    def _make_searcher(self, sampled: int) -> StudySearcher:
        study = self.config.study
        chooser = Chooser(
            self.ledger,
            self.space,
            planned=self.planned,
            sampled=sampled,
            epochs=study.epochs,
            arms=self.space.arms if samplers.by_bandit(study.sampler) else None,
            goal=study.goal,
        )
        return StudySearcher(
            self.ledger,
            chooser,
            objective=study.objective,
            make_job=self._job,
            offer=self.warm.offer,
            is_over=self._is_enough,
        )

    def _make_watch(self) -> StudyCallback:
        study, warm = self.config.study, self.warm
        return StudyCallback(
            ledger=self.ledger,
            board=self.board,
            progress=self.progress,
            folder=self.folder,
            exchange=warm.exchange,
            suggested=self.searcher.suggested,
            goal=study.goal,
            keep_checkpoints=study.keep_checkpoints,
            # Trainings with other seeds follow the trials, so no slot ends for lack of trials.
            left=lambda: self.searcher.left + (warm.plan.slots if self.config.verdict.seeds else 0),
            slots=warm.plan.slots,
            lost=warm.lost,
            searched=lambda: self.clock.searched,
            scored=self.patience.add,
        )

    def search(self, phases: Phases | None = None) -> str:
        """Run the remaining trials; return `finished` or `interrupted`."""
        phases = phases or Phases()
        study, early = self.config.study, self.config.early_stopping
        stopping = EarlyStopping(
            objective=study.objective,
            goal=study.goal,
            epochs=study.epochs,
            grace=self.config.grace,
            factor=early.factor,
            rule=early.rule if early.enabled else "none",
            is_over=lambda: self.clock.is_over,
            strategy_of=self.searcher.strategy_of,
            number_of=self.searcher.number_of,
        )
        # Trials are then also compared with those of earlier runs.
        stopping.replay(self._past)
        self._past = []
        self.ledger.set_fact("state", "running")
        self.ledger.set_fact(ENDED, None)
        if self.searcher.left and not self.clock.is_over:
            self.progress.start()
            try:
                with phases.timed("trials"):
                    tuner.tune(
                        self.warm.exchange,
                        metric=study.metric,
                        searcher=self.searcher,
                        scheduler=stopping,
                        watch=self.watch,
                        most=self.warm.plan.slots,
                        room=self._room,
                        retries=study.retries,
                        storage=self.folder.tune,
                        name=datetime.now().strftime("%Y-%m-%d_%H-%M-%S"),
                    )
            finally:
                self.ledger.flush()
                self.progress.stop()
        # A study whose budget is spent is finished, however many trials it has run.
        ended = None
        if is_short := left(self.ledger.records(), study) > 0:
            spent = f"study.budget: {study.budget} are used up" if self.clock.is_over else None
            ended = self.patience.reason or spent
        state = "interrupted" if is_short and ended is None else "finished"
        if ended is not None:
            self.progress.note(f"the study ends: {ended}")
            self.ledger.set_fact(ENDED, ended)
        self.ledger.set_fact("state", state)
        if state == "finished" and self.config.verdict.seeds:
            with phases.phase("verdict", "whether the winner is real"):
                try:
                    self._train_again()
                except KeyboardInterrupt:  # Ctrl-C ends it like the search: what has ended is kept
                    state = "interrupted"
                    self.ledger.set_fact("state", state)
        return state

    def _train_again(self) -> None:
        """Train the settings that matter with other seeds, and enter the verdict."""
        Repeats(
            self.config,
            self.folder,
            self.ledger,
            self.warm,
            fingerprint=self.images.fingerprint,
            deadline=self.clock.deadline,
            say=self.progress.note,
        ).run()

    def close(self, seconds: float) -> None:
        """Write the record to disk, and close its file even if that fails.

        A process that exits with an open connection to a SQLite file on a full disk dies of SIGBUS.

        Args:
            seconds: duration of this run, added to the record.
        """
        # The callbacks run in reverse order, each even if those before it raise.
        with contextlib.ExitStack() as last:
            last.callback(self.board.close)  # after the ledger, whose writer still announces trials
            last.callback(self.ledger.close)
            last.callback(self._note_end, seconds)
            self.watch.interrupt()

    def _note_end(self, seconds: float) -> None:
        """Add this run's duration and features to the record; a state `running` becomes `interrupted`."""
        self.clock.note(now=True)
        before = self.ledger.facts.get("features") or NO_FEATURES
        computed = {name: round(before[name] + count, 3) for name, count in self.warm.computed.items()}
        self.ledger.set_fact("features", computed)
        self.ledger.set_fact("seconds", round(self.ledger.facts.get("seconds", 0.0) + seconds, 3))
        if self.ledger.facts.get("state") == "running":
            self.ledger.set_fact("state", "interrupted")

    def _is_enough(self) -> bool:
        """Return True once no trial is to be suggested any more; patience ends no study with planned ones."""
        if self.clock.is_over:
            return True
        return self.searcher.samples and self.patience.is_enough(self._left)

    @property
    def _left(self) -> int:
        """Trials that are still to be suggested: by their number, or by the time that is left."""
        count = self.searcher.waiting
        seconds = self.clock.seconds_left
        if seconds is None or not self.watch.ended:
            return count
        return min(count, int(seconds * self.watch.ended / max(self.clock.searched, 1e-9)))

    def _learned(self, trial: FrozenTrial) -> FrozenTrial:
        """Return an earlier trial in terms of the present space, and count the trials that this changes."""
        now = self.space.learned(trial)
        if now is not trial and trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            self._anew += bool(now.params)
            self._forgotten += not now.params
        return now

    def _starts(self) -> list[dict[str, Any]]:
        """Return the settings to try first, for data like these."""
        study, found = self.config.study, portfolio.EMPTY
        if study.warm_start == "none":
            return []
        found = portfolio.Portfolio.read()
        if isinstance(study.warm_start, tuple):
            own = [read_study(Path(folder)) for folder in study.warm_start]
            found = found.grown(one for one in own if one is not None)
        situation = Situation(images=len(self.images.splits["train"]), classes=len(self.images.classes))
        return portfolio.starts(self.space, found, situation, trials=study.trials)

    def _room(self) -> int:
        """Return how many trials may run now; also note the time used and print the cluster's news.

        Tune calls this before each suggestion.
        """
        plan = self.warm.plan
        self.clock.note()
        # Heads that are not counted come on top of the trials that were asked for.
        self.progress.planned = self._planned + self.searcher.uncounted
        up, news = self.warm.news()
        for line in news:
            print(line, file=sys.stderr)
        self.clock.hold(self._gpus * up)
        if not plan.ask:
            return plan.slots
        self.progress.slots = up
        return max(1, up)

    def _job(self, number: int, params: dict[str, Any], plan: Planned | None) -> TrainJob:
        """Return the job of trial `number`: all that a slot needs to train it.

        A trial that continues an interrupted one takes over its files and the seed of the first of them.
        """
        first = number
        if plan is not None and plan.continues is not None:
            first = plan.continues if plan.seed_of is None else plan.seed_of
            # A driver that dies now must leave no checkpoint with a trial that the record does not know.
            self.ledger.flush()
            before = lineage(plan.continues, self.ledger.records())
            self.folder.hand_over([trial_id(each) for each in before], trial_id(number))
        settings = self.space.settings(params, number=first, cache_dir=str(resolve.cache_dir()))
        name = trial_id(number)
        # Early stopping spares the baselines, so that they always have a final score to compare with.
        spared = plan is not None and plan.baseline is not None
        return TrainJob(
            id=name,
            settings=settings,
            features=resolve.feature_settings(self.config),
            keep=Keep(
                metric=self.config.study.metric,
                best=self.folder.best_weights(name),
                last=self.folder.last_weights(name),
            ),
            params=params,
            data_fingerprint=self.images.fingerprint,
            latencies=self.folder.latencies if self.config.study.goal.measured else None,
            may_be_stopped=self.config.early_stopping.stops and not spared,
        )

    def _plan(self, up: int) -> None:
        """Enter the expected cost at the first run, if `check --time` has timed the backbones."""
        costs = estimate.kept(self.config)
        if costs is None or "plan" in self.ledger.facts:
            return
        slots = self.warm.plan
        up = up if slots.ask else slots.slots
        repeats = self.config.verdict.top * self.config.verdict.seeds
        found = estimate.expected(self.config, self.images, costs, slots, up, repeats)
        self.ledger.set_fact("plan", found.to_json())

    def _remember(self, facts: dict[str, Any]) -> None:
        """Enter the fixed settings, at the first run only, and this run's provenance into the record."""
        if changes.FACT not in self.ledger.facts:
            self.ledger.set_fact(changes.FACT, changes.fixed(self.config))
        if (found := findings.kept(self.images.fingerprint)) is not None:
            self.ledger.set_fact("findings", found)
        self.ledger.set_fact("provenance", provenance.of_study(self.config.study.seed, self.images, facts))
