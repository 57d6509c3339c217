"""Run a study from its config to its record: slots, search, export of the best model."""

import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import ray
from filelock import FileLock, Timeout

from finetune.catalog import Catalog
from search import config_file, inputs, ledger, needs, nodes, preflight, provenance, results, slots, tuner
from search.errors import SlotsLost, StudyError
from search.layout import StudyFolder, write_text
from search.record import StudyRecord
from search.slots import Slots
from search.study import StudyConfig
from search.study_run import StudyRun

LOCK_SECONDS = 2.0
"""`status` holds the lock for a moment, to see whether a study runs."""


def run(config: StudyConfig) -> StudyRecord:
    """Run a new study and return its record; what is found on the way is in its results folder.

    Raises:
        DataError, WeightsError: images or weights are not as the config says.
        SearchError: the slots do not fit or did not start, or a worker ignored its settings.
    """
    provenance.check_code()
    _check_room_here(config)
    images = inputs.scan(config)
    inputs.check_fit(config)
    with _new_folder(config) as folder:
        return _search(config, folder, images)


def resume(root: Path) -> StudyRecord:
    """Go on with an interrupted study; one that has all its trials is only exported and shown.

    Raises:
        StudyError: there is no study at `root`, another process runs it, or its images changed.
    """
    provenance.check_code()
    folder = StudyFolder.open(root)
    config = config_file.load(folder.config)
    _check_room_here(config)
    images = inputs.scan(config)
    before = images.fingerprint
    if folder.database.exists():  # else its first run died before the first trial
        before = ledger.read_study(folder).provenance.get("data_fingerprint", before)
    if before != images.fingerprint:
        raise StudyError(
            f"{folder.root}: a study must go on with the images it began with (fingerprint {before[:12]}), "
            f"got others ({images.fingerprint[:12]}). Restore them, or run a new study."
        )
    return _search(config, folder, images)


def _check_room_here(config: StudyConfig) -> None:
    """Raise a CapacityError if the slots do not fit, where this can be known before Ray is started."""
    if needs.is_here():
        needs.capacity(config, [nodes.here()])


@contextlib.contextmanager
def _new_folder(config: StudyConfig) -> Iterator[StudyFolder]:
    """Make a new study's folder; nothing is left of it where the start is refused."""
    results = Path(config.results)
    made = [folder for folder in (results, *results.parents) if not folder.exists()]
    folder = StudyFolder.create(results, config.study.name)
    try:
        named = config.study.model_copy(update={"name": folder.root.name})
        write_text(folder.config, config.model_copy(update={"study": named}).to_yaml())
        yield folder
    except BaseException:
        if not folder.database.exists():  # it is made once slots are up
            shutil.rmtree(folder.root, ignore_errors=True)
            with contextlib.suppress(OSError):  # another study may have come to lie there
                for empty in made:
                    empty.rmdir()
        raise


def _search(config: StudyConfig, folder: StudyFolder, images: Catalog) -> StudyRecord:
    if os.environ.get(provenance.JOB_VARIABLE):  # for whoever looks at the job from a laptop
        print(f"{provenance.FOLDER_LINE}{folder.root}", file=sys.stderr, flush=True)
    with _alone(folder), connected():
        began = time.monotonic()
        up = nodes.up()
        plan = needs.capacity(config, [node.resources for node in up])
        expected = preflight.expect(folder.marker, images, needs.weight_files(config), gpu=plan.gpu)
        expected = preflight.check(expected, up)
        warm = Slots(
            plan,
            folder.slots,
            copies_bytes=needs.copies_bytes(config),
            expected=expected,
        )
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
                _export_best(config, folder, warm)
        finally:
            warm.close()
        study.watch.sweep()
    record = ledger.read_study(folder)
    results.to_csv(record, folder.table)
    return record


def _export_best(config: StudyConfig, folder: StudyFolder, warm: Slots) -> None:
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
        "features": dataclasses.asdict(needs.feature_settings(config)),
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
