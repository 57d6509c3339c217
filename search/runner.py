"""Run a study from its config to its record: slots, search, export of the best model."""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import ray
from filelock import FileLock, Timeout
from ray.exceptions import RayError

from finetune import catalog
from finetune.catalog import Catalog
from finetune.errors import FinetuneError
from search import (
    changes,
    config_file,
    export,
    ledger,
    needs,
    nodes,
    preflight,
    process,
    provenance,
    results,
    slots,
    training,
    tuner,
)
from search.errors import SearchError, StudyError
from search.kept import Kept
from search.layout import StudyFolder, write_text
from search.record import StudyRecord
from search.slots import Slots
from search.study import StudyConfig
from search.study_run import StudyRun, is_over

LOCK_SECONDS = 2.0
"""`status` holds the lock for a moment, to see whether a study runs."""


def run(config: StudyConfig) -> StudyRecord:
    """Run a new study and return its record; what is found on the way is in its results folder.

    Raises:
        DataError: the images are not as the config says.
        SearchError: the slots do not fit or did not start, or a worker ignored its settings.
    """
    provenance.check_code()
    images = catalog.scan(needs.data_settings(config))
    folder = StudyFolder.create(Path(config.results), config.study.name)
    named = config.study.model_copy(update={"name": folder.root.name})
    write_text(folder.config, config.model_copy(update={"study": named}).to_yaml())
    return _search(config, folder, images)


def resume(root: Path) -> StudyRecord:
    """Go on with an interrupted study; one that is over is only shown, and exported if that is missing.

    Raises:
        StudyError: there is no study at `root`, another process runs it, or its images changed.
    """
    provenance.check_code()
    folder = StudyFolder.open(root)
    config = config_file.load(folder.config)
    trials, facts = ledger.read(folder.database) if folder.database.exists() else ([], {})
    changes.check(config, facts, trials, folder.config)
    if is_over(trials, facts, config.study):
        with _alone(folder):
            return _complete(config, folder)
    images = catalog.scan(needs.data_settings(config))
    # There is none if its first run died before the first trial.
    before = facts.get("provenance", {}).get("data_fingerprint", images.fingerprint)
    if before != images.fingerprint:
        raise StudyError(
            f"{folder.root}: a study must go on with the images it began with (fingerprint {before[:12]}), "
            f"got others ({images.fingerprint[:12]}). Restore them, or run a new study."
        )
    return _search(config, folder, images)


def _search(config: StudyConfig, folder: StudyFolder, images: Catalog) -> StudyRecord:
    with _alone(folder), connected():
        began = time.monotonic()
        up = nodes.up()
        plan = needs.capacity(config, [node.resources for node in up])
        expected = preflight.expect(folder.marker, images, needs.weight_files(config), gpu=plan.gpu)
        expected = preflight.check(expected, up)
        warm = Slots(
            plan,
            folder.slots,
            config.backbones,
            config.image_sizes,
            copies_bytes=needs.copies_bytes(config),
            expected=expected,
        )
        problem = None
        try:
            fits = plan.fit(node.resources for node in up) > 0
            tell = partial(print, file=sys.stderr)
            if not fits:
                tell("no node has room for a slot yet: waiting for one to join")
            facts = warm.wait(seconds=slots.START_SECONDS if fits else slots.BOOT_SECONDS, tell=tell)
            study = StudyRun(config, folder, images, warm, facts)
            try:
                state = study.search()
            finally:
                study.close(time.monotonic() - began)
            if state == "finished":
                problem = _export_best(study)
        finally:
            warm.close()
        study.watch.sweep()
    record = ledger.read_study(folder)
    results.to_csv(record, folder.table)
    if problem is not None:
        raise _not_exported(folder, problem)
    return record


def _export_best(study: StudyRun) -> str | None:
    """Have a slot write the model folder of the best trial; it reads the test split.

    Returns why that failed, or None.
    """
    folder, exchange = study.folder, study.warm.exchange
    record = ledger.read_study(folder)
    if record.best is None:
        return None
    now = study.space.settings_now(record.best, cache_dir=str(needs.cache_dir()))
    job = {
        "id": "export",
        "kind": "export",
        "checkpoint": str(folder.best_weights(record.best.id)),
        "to": str(folder.best),
        "provenance": record.provenance | {"study": record.name, "trial": record.best.id},
        "settings": None if now is None else now.to_dict(),
        "features": dataclasses.asdict(needs.feature_settings(study.config)),
    }
    try:
        ray.get(exchange.submit.remote(job))
        while True:
            for message in ray.get(exchange.receive.remote("export")):
                if message["kind"] == "end":
                    return str(message["error"]) if message["state"] == "failed" else None
    except RayError as error:
        return f"no answer from its slot ({training.first_words(error)})"


def _complete(config: StudyConfig, folder: StudyFolder) -> StudyRecord:
    """Return the record of a study that is over; what its folder lacks is made, in this process."""
    record = ledger.read_study(folder)
    if record.best is not None and not export.is_whole(folder.best, record.best.id):
        study = config.study
        kept = Kept(
            folder, metric=study.metric, mode=study.mode, count=study.keep_checkpoints, earlier=record.trials
        )
        kept.sweep(record.trials)
        try:
            export.export_trial(folder, None, folder.best)
        except FinetuneError as error:
            raise _not_exported(folder, str(error)) from error
    if not folder.table.exists() or folder.table.stat().st_mtime < folder.database.stat().st_mtime:
        results.to_csv(record, folder.table)  # the same file, unless the driver died before it
    return record


def _not_exported(folder: StudyFolder, problem: str) -> SearchError:
    return SearchError(
        f"{folder.best}: the best model must be exported, got {problem.removesuffix('.')}. "
        f"The record is whole: see to that, then `python -m search resume {folder.root}` exports it."
    )


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
    """Join the cluster of RAY_ADDRESS, the Ray that is running in this process, or start one here.

    What that changes in this process is given back: it may be a notebook.
    """
    quiet = process.environment(tuner.QUIET, override=False)
    with quiet, process.levels("ray", "ray.tune"), process.stoppable():
        tuner.quieten()
        if ray.is_initialized():
            yield
            return
        address = os.environ.get("RAY_ADDRESS") or "local"
        local = {"include_dashboard": False} if address == "local" else {}
        with process.not_for_children():
            preflight.join(address, log_to_driver=False, logging_level="ERROR", **local)
        try:
            yield
        finally:
            ray.shutdown()
