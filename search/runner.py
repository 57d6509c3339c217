"""Run a study from its config to its record: slots, search, export of the best model."""

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock, Timeout

from finetune import catalog
from finetune.catalog import Catalog
from finetune.filesystems import is_url
from finetune.settings import DataSettings, FeatureSettings
from search import config_file, ledger, nodes, preflight, provenance, results, sampler, slots, tuner
from search.board import Board
from search.errors import SlotsLost, StudyError
from search.layout import StudyFolder, trial_id, write_text
from search.ledger import Ledger
from search.nodes import Resources
from search.progress import Progress
from search.record import StudyRecord, TrialRecord
from search.sampler import Planned, StudySearcher
from search.sections import Study, is_weights_file
from search.slots import SlotPlan, Slots
from search.space import Space
from search.stopping import EarlyStopping
from search.study import StudyConfig
from search.watch import Watch

LOCK_SECONDS = 2.0
"""`status` holds the lock for a moment, to see whether a study runs."""


def run(config: StudyConfig) -> StudyRecord:
    """Run a new study and return its record; what is found on the way is in its results folder.

    Raises:
        DataError: the images are not as the config says.
        SearchError: the slots do not fit or did not start, or a worker ignored its settings.
    """
    provenance.check_code()
    images = catalog.scan(data_settings(config))
    folder = StudyFolder.create(Path(config.results), config.study.name)
    named = config.study.model_copy(update={"name": folder.root.name})
    write_text(folder.config, config.model_copy(update={"study": named}).to_yaml())
    return _search(config, folder, images)


def resume(root: Path) -> StudyRecord:
    """Go on with an interrupted study; one that has all its trials is only exported and shown.

    Raises:
        StudyError: there is no study at `root`, another process runs it, or its images changed.
    """
    provenance.check_code()
    folder = StudyFolder.open(root)
    config = config_file.load(folder.config)
    images = catalog.scan(data_settings(config))
    before = images.fingerprint
    if folder.database.exists():  # else its first run died before the first trial
        before = ledger.read_study(folder).provenance.get("data_fingerprint", before)
    if before != images.fingerprint:
        raise StudyError(
            f"{folder.root}: a study must go on with the images it began with (fingerprint {before[:12]}), "
            f"got others ({images.fingerprint[:12]}). Restore them, or run a new study."
        )
    return _search(config, folder, images)


def capacity(config: StudyConfig, up: Sequence[Resources]) -> SlotPlan:
    """Return the slots of a study on a machine or cluster whose nodes have these resources."""
    wanted = config.resources
    return slots.plan(
        up,
        slots=wanted.slots,
        workers=wanted.workers_per_trial,
        cpus=wanted.cpus_per_worker,
        gpu=wanted.gpu,
        gpu_per_worker=wanted.gpu_per_worker,
        trials=config.study.trials,
        may_come=nodes.may_come() if is_cluster() else (),
        grows=is_cluster() or len(up) > 1,
        once=config.study.isolation == "process",
    )


def is_cluster() -> bool:
    """True if the study joins a Ray that was started for more than it: nodes may come and go."""
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


def data_settings(config: StudyConfig) -> DataSettings:
    """Return what decides which images the study has and how they are split."""
    data = config.data
    return DataSettings(
        **data.images,
        validation_share=data.validation_share,
        test_share=data.test_share,
        seed=config.study.seed,
    )


def cache_dir() -> Path:
    """Return where a node keeps downloaded and source-pretrained weights."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune"


def feature_settings(config: StudyConfig) -> FeatureSettings:
    """Return where the nodes keep features of frozen blocks."""
    said = config.features
    return FeatureSettings(
        folder=said.dir or str(cache_dir() / "features"),
        budget_bytes=int(said.budget_gib * 2**30),
        mode=said.mode,
        trials=config.study.trials,
    )


def _search(config: StudyConfig, folder: StudyFolder, images: Catalog) -> StudyRecord:
    with _alone(folder), connected():
        began = time.monotonic()
        up = nodes.up()
        plan = capacity(config, [node.resources for node in up])
        expected = preflight.expect(folder.marker, images, _weight_files(config), gpu=plan.gpu)
        expected = preflight.check(expected, up)
        warm = Slots(plan, folder.slots, config.backbones, config.image_sizes, expected=expected)
        try:
            fits = plan.fit(node.resources for node in up) > 0
            if not fits:
                print("no node has room for a slot yet: waiting for one to join", file=sys.stderr)
            facts = warm.wait(seconds=slots.START_SECONDS if fits else slots.BOOT_SECONDS)
            study = _Study(config, folder, images, warm, facts)
            try:
                state = study.search()
            finally:
                study.close(time.monotonic() - began)
            if state == "finished":
                _export_best(folder, warm)
        finally:
            warm.close()
        study.watch.sweep()
    record = ledger.read_study(folder)
    results.to_csv(record, folder.table)
    return record


class _Study:
    """One run of a study: what it has, and what is still to do."""

    def __init__(
        self, config: StudyConfig, folder: StudyFolder, images: Catalog, warm: Slots, facts: dict[str, Any]
    ) -> None:
        self.config, self.folder, self.warm = config, folder, warm
        self.images = images
        study = config.study
        self.space = Space(config, next(iter(facts.values()))["blocks"])
        earlier = ledger.read(folder.database)[0] if folder.database.exists() else []
        # The same seed would repeat an earlier run's first suggestions.
        self.ledger = Ledger(
            folder.database,
            mode=study.mode,
            sampler=sampler.make(study.sampler, seed=study.seed + len(earlier)),
        )
        earlier = self.ledger.records()
        self.planned, self.sampled = to_do(earlier, study, self.space)
        self.deadline = None
        if study.budget_seconds is not None:
            self.deadline = time.monotonic() + study.budget_seconds
        self.progress = Progress(
            study=study.name,
            planned=study.trials,
            epochs=study.epochs,
            metric=study.metric,
            mode=study.mode,
            slots=len(facts) if warm.plan.ask else warm.plan.slots,
            earlier=[trial for trial in earlier if not trial.interrupted],
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
        )
        self._earlier = earlier
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
        stopping.replay(self._earlier)
        self.ledger.set_fact("state", "running")
        count = len(self.planned) + self.sampled
        if count:
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
                    storage=self.folder.tune,
                    name=datetime.now().strftime("%Y-%m-%d_%H-%M-%S"),
                )
            finally:
                self.ledger.flush()
                self.progress.stop()
        in_time = self.deadline is None or time.monotonic() < self.deadline
        done = sum(not trial.interrupted for trial in self.ledger.records() if trial.state != "RUNNING")
        state = "interrupted" if in_time and done < study.trials else "finished"
        self.ledger.set_fact("state", state)
        return state

    def close(self, seconds: float) -> None:
        """Bring the record to disk, whatever happened."""
        self.watch.interrupt()
        self.board.close()
        self.ledger.set_fact("seconds", round(self.ledger.facts.get("seconds", 0.0) + seconds, 3))
        if self.ledger.facts.get("state") == "running":
            self.ledger.set_fact("state", "interrupted")
        self.ledger.close()

    def _room(self) -> int:
        """Return how many trials may run now, and tell what is new about the cluster."""
        plan = self.warm.plan
        if not plan.ask:
            return plan.slots
        up, news = self.warm.news()
        self.progress.slots = up
        for line in news:
            print(line, file=sys.stderr)
        return max(1, up)

    def _job(self, number: int, params: dict[str, Any], plan: Planned | None) -> dict[str, Any]:
        """Return what a slot needs to train trial `number`."""
        first = number
        if plan is not None and plan.continues is not None:
            first = plan.continues if plan.seed_of is None else plan.seed_of
            _hand_over(self.folder, trial_id(plan.continues), trial_id(number))
        settings = self.space.settings(params, number=first, cache_dir=str(cache_dir()))
        name = trial_id(number)
        return {
            "id": name,
            "kind": "train",
            "settings": settings.to_dict(),
            "features": dataclasses.asdict(feature_settings(self.config)),
            "params": params,
            "data_fingerprint": self.images.fingerprint,
            "spared": plan is not None and plan.baseline is not None,
            "keep": {
                "metric": self.config.study.metric,
                "mode": self.config.study.mode,
                "best": str(self.folder.best_weights(name)),
                "last": str(self.folder.last_weights(name)),
            },
        }

    def _remember(self, facts: dict[str, Any]) -> None:
        study = self.config.study
        known = provenance.collect(seed=study.seed, data_fingerprint=self.images.fingerprint)
        counts = {split: len(self.images.splits[split]) for split in self.images.splits}
        skipped = [{"path": image.path, "reason": image.reason} for image in self.images.skipped]
        self.ledger.set_fact("provenance", known | {"images": counts, "skipped": skipped, "slots": facts})


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
        if trial.interrupted and trial.number not in continued
    ]
    settled = {trial.baseline for trial in earlier if not trial.interrupted}
    settled |= {plan.baseline for plan in again}
    fresh = [
        Planned(params=space.baseline(name), baseline=name) for name in study.baselines if name not in settled
    ]
    tried = [trial.params for trial in earlier]
    starts = [params for params in space.starts() if study.warm_start and params not in tried]
    left = study.trials - sum(not trial.interrupted for trial in earlier)
    planned = (again + fresh + [Planned(params=params) for params in starts])[: max(0, left)]
    return planned, max(0, left - len(planned))


def _hand_over(folder: StudyFolder, old: str, new: str) -> None:
    """Give an interrupted trial's checkpoints to the one that goes on with it."""
    folder.trial(new).mkdir(parents=True, exist_ok=True)
    for weights in (folder.best_weights, folder.last_weights):
        if weights(old).exists():
            os.replace(weights(old), weights(new))


def _weight_files(config: StudyConfig) -> list[str]:
    """Return the weight files of a study that lie on a disk."""
    given = [config.model.weights_of(backbone) for backbone in config.backbones]
    return [str(weights) for weights in given if is_weights_file(weights) and not is_url(str(weights))]


def _export_best(folder: StudyFolder, warm: Slots) -> None:
    """Have a slot write the model folder of the best trial; it reads the test split."""
    record = ledger.read_study(folder)
    if record.best is None:
        return
    job = {
        "id": "export",
        "kind": "export",
        "checkpoint": str(folder.best_weights(record.best.id)),
        "to": str(folder.best),
        "provenance": record.provenance | {"study": record.name, "trial": record.best.id},
    }
    ray.get(warm.exchange.submit.remote(job))
    while True:
        for message in ray.get(warm.exchange.receive.remote("export")):
            if message["kind"] == "end" and message["state"] == "failed":
                raise SlotsLost(
                    f"{folder.best}: the best model must be exported, got {message['error']}. "
                    f"The record is whole: try `python -m search export {folder.root} --to MODEL_DIR`."
                )
            if message["kind"] == "end":
                return


@contextlib.contextmanager
def _alone(folder: StudyFolder) -> Iterator[None]:
    """Hold the study for this process.

    Raises:
        StudyError: another process holds it.
    """
    lock = FileLock(folder.lock, timeout=LOCK_SECONDS)
    try:
        with lock:
            yield
    except Timeout:
        raise StudyError(
            f"{folder.root}: a study must be run by one process at a time, got a second. Wait for the first."
        ) from None


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, the Ray that is running in this process, or start one here."""
    tuner.quieten()
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    local = {"include_dashboard": False} if address == "local" else {}
    preflight.join(address, log_to_driver=False, logging_level="ERROR", **local)
    # `ray job stop` and Kubernetes send SIGTERM; Tune stops gracefully only on SIGINT.
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        ray.shutdown()
