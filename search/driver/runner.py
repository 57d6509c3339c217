"""Run or resume a study: check its inputs, start slots, search, and export the best model."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock, Timeout

from finetune.datasets.catalog import Catalog
from finetune.steps import Step
from search import provenance
from search.config import config_file, resolve
from search.config.study import StudyConfig
from search.driver import ending, exporting, process, tuner
from search.driver.checks import inputs
from search.driver.study_run import StudyRun
from search.errors import StudyError
from search.private import study as private
from search.record import changes, reader
from search.record.records import StudyRecord
from search.record.study_folder import DISK_ERRORS, StudyFolder, write_text
from search.slots import capacity, gcs, nodes, preflight, slots
from search.slots.slots import Slots
from search.views import table
from search.views.phases import Phases
from search.views.terminal import console, print_line

LOCK_SECONDS = 2.0
"""Seconds to wait for a study's lock, since `status` takes it for a moment to see whether the study runs."""


def run(config: StudyConfig, phases: Phases | None = None) -> StudyRecord:
    """Run a new study in a new results folder and return its record.

    Args:
        config: the study's config.
        phases: shows the phases of the command that this is part of; None: begins with this call.

    Raises:
        DataError, WeightsError: images or weights are not as the config says.
        SearchError: the slots do not fit or did not start, or a worker ignored its settings.
    """
    # The cheapest checks come first, so that a mistake is reported within a second and before Ray starts.
    provenance.check_code()
    if config.privacy.is_on:
        private.require()
    _check_room_here(config)
    phases = phases or Phases()
    check_fit = inputs.check_fit(config)  # runs in the background while the images are listed and Ray starts
    images = _scan(config, phases)
    warn_of(images)
    with _new_folder(config) as folder:
        return _search(config, folder, images, phases, check_fit)


def _scan(config: StudyConfig, phases: Phases) -> Catalog:
    """List and check the images, and show how far that is."""
    with phases.phase("images") as phase:
        images = inputs.scan(config)
        counts = (f"{len(found):,} {split}" for split, found in images.splits.items() if found)
        phase.tell(f"{len(images.classes)} classes, {', '.join(counts)}")
    return images


def warn_of(images: Catalog) -> None:
    """Print warnings about the images, for example about files that are not used."""
    for finding in images.findings:
        if finding.grade == "warning":
            print_line(console(stderr=True), f"warning: data: {finding.text}")


def resume(root: Path, phases: Phases | None = None, extend: str | None = None) -> StudyRecord:
    """Continue an interrupted study and return its record; if it is over, only write what its folder lacks.

    Args:
        root: the study's results folder.
        phases: as in `run`.
        extend: trials (`10`) or a budget (`10m`) that the study gets in addition, also if it is over.

    Raises:
        ConfigErrors: `extend` is neither.
        StudyError: there is no study at `root`, another process runs it, or its images or fixed settings have
            changed.
    """
    provenance.check_code()
    phases = phases or Phases()
    folder = StudyFolder.open(root)
    config = config_file.load(folder.config)
    trials, facts = reader.read(folder.database) if folder.database.exists() else ([], {})
    if extend is not None:
        config = ending.extended(config, extend, trials, facts)
    if config.privacy.is_on and (extend is not None or private.is_over(facts)):
        return _of_private(folder, extend)
    changes.check(config, facts, trials, folder.config)
    if ending.is_over(trials, facts, config.study):
        with _alone(folder):
            return exporting.complete(config, folder, phases)
    _check_room_here(config)
    images = _scan(config, phases)
    # The record has no fingerprint if the first run died before its first trial.
    before = facts.get("provenance", {}).get("data_fingerprint", images.fingerprint)
    if before != images.fingerprint:
        raise StudyError(
            f"{folder.root}: a study must go on with the images it began with (fingerprint {before[:12]}), "
            f"got others ({images.fingerprint[:12]}). Restore them, or run a new study."
        )
    if extend is not None:
        with _alone(folder):
            write_text(folder.config, config.to_yaml())
    return _search(config, folder, images, phases)


def _of_private(folder: StudyFolder, extend: str | None) -> StudyRecord:
    """Return the record of a private study that is over.

    Raises:
        StudyError: it is to get more trials, which its budget has not paid for.
    """
    if extend is not None:
        raise StudyError(
            f"{folder.root}: a private study cannot be extended, got {extend!r}: the number of its trials "
            "was drawn. A new study costs a new budget."
        )
    private.close(folder)
    return reader.read_study(folder)


def _check_room_here(config: StudyConfig) -> None:
    """Raise a CapacityError if the slots do not fit on this machine; a cluster is checked once connected."""
    if capacity.is_here():
        capacity.plan(config, [nodes.here()])


@contextlib.contextmanager
def _new_folder(config: StudyConfig) -> Iterator[StudyFolder]:
    """Make a new study's folder, and remove it again if the start is refused."""
    results = Path(config.results)
    made = [folder for folder in (results, *results.parents) if not folder.exists()]
    folder = StudyFolder.create(results, config.study.name)
    try:
        named = config.study.model_copy(update={"name": folder.root.name})
        write_text(folder.config, config.model_copy(update={"study": named}).to_yaml())
        yield folder
    except BaseException:
        # The database is made once slots are up; without it there is nothing to resume.
        if not folder.database.exists() and not (folder.root / "private").exists():
            shutil.rmtree(folder.root, ignore_errors=True)
            with contextlib.suppress(OSError):  # another study may have been put there meanwhile
                for empty in made:
                    empty.rmdir()
        raise


def _search(
    config: StudyConfig,
    folder: StudyFolder,
    images: Catalog,
    phases: Phases,
    check_fit: Callable[[], None] = lambda: None,
) -> StudyRecord:
    """Run a study in its folder, from the connection to Ray to the exported model; return its record."""
    # `status` and `stop` on a laptop read the folder from the job's log.
    if os.environ.get(provenance.JOB_VARIABLE):
        print(f"{provenance.FOLDER_LINE}{folder.root}", file=sys.stderr, flush=True)
    folder.check_room()
    if config.privacy.is_on:
        with _alone(folder), _whole_in_the_end(folder):
            check_fit()
            return private.run(config, folder, images, phases)
    with contextlib.ExitStack() as held:
        held.enter_context(_alone(folder))
        held.enter_context(_whole_in_the_end(folder))
        up = _join(folder, phases, held)
        began = time.monotonic()
        warm = _slots(config, folder, images, up, phases, check_fit)
        problem = None
        try:
            study = StudyRun(config, folder, images, warm, _first_slots(warm, up, phases))
            try:
                state = study.search(phases)
            finally:
                study.close(time.monotonic() - began)
            # A slot that is still warm exports the model, since it has torch, the images and a device.
            if state == "finished":
                problem = _export(study, phases)
        finally:
            with phases.phase("end", "running trials save their epoch, slots end"):
                warm.close()
        study.board.study.phases(phases.seconds)
        exporting.add_pictures(study)
        # Only now does no slot write weights any more.
        study.watch.sweep()
    record = reader.read_study(folder)
    study.board.study.answer(table.comparison(record))
    study.board.front(record)
    table.to_csv(record, folder.table)
    # The record and its table are written first, so that a failed export loses nothing.
    if problem is not None:
        raise exporting.failure(folder, problem)
    return record


def _join(folder: StudyFolder, phases: Phases, held: contextlib.ExitStack) -> list[nodes.Node]:
    """Connect to Ray until `held` is closed, and watch its GCS; return the nodes that are up."""
    here = capacity.is_here()
    with phases.phase("Ray", "starts its processes, or joins those of a cluster") as phase:
        held.enter_context(connected())
        patience = gcs.HERE_SECONDS if here else gcs.CLUSTER_SECONDS
        address = ray.get_runtime_context().gcs_address
        held.enter_context(gcs.watched(address, patience, partial(gcs.leave, folder.root)))
        up = nodes.up()
        cpus = sum(node.resources.get("CPU", 0) for node in up)
        phase.tell(f"{len(up)} node{'s' * (len(up) != 1)}, {cpus:g} CPUs")
    return up


def _slots(
    config: StudyConfig,
    folder: StudyFolder,
    images: Catalog,
    up: list[nodes.Node],
    phases: Phases,
    check_fit: Callable[[], None],
) -> Slots:
    """Return the slots of a study, whose processes begin to start.

    Raises:
        CapacityError: the slots do not fit.
        SearchError: a node differs from this machine, or weights do not fit their backbone.
    """
    plan = capacity.plan(config, [node.resources for node in up])
    # A study that does not fit, or a node that differs, is refused here, before any process starts.
    with phases.phase("checks", "whether weights fit their backbones, and all nodes see the same files"):
        expected = preflight.expect(folder.marker, images, resolve.weight_files(config), gpu=plan.gpu)
        expected = preflight.check(expected, up)
        check_fit()
    return Slots(
        plan,
        folder.slots,
        copies_bytes=resolve.copies_bytes(config),
        expected=expected,
        retries=config.study.retries,
        patience=config.study.timeout_seconds,
    )


def _first_slots(warm: Slots, up: list[nodes.Node], phases: Phases) -> dict[str, Any]:
    """Wait for the first slot and return the facts of those that are up; others join during the search."""
    fits = warm.plan.fit(node.resources for node in up) > 0
    tell = partial(print, file=sys.stderr)
    if not fits:
        tell("no node has room for a slot yet: waiting for one to join")
    why = "each starts a process that imports torch, once for all trials"
    with phases.phase("slots", why, partial(_slots_up, warm)) as phase:
        facts = warm.wait(seconds=slots.START_SECONDS if fits else slots.BOOT_SECONDS, tell=tell)
        phase.tell(f"{len(facts)} of {warm.plan.slots} up")
    return facts


def _export(study: StudyRun, phases: Phases) -> str | None:
    """Export the best model, and the final one if the config asks for it; return the reason of a failure."""
    warm = study.warm
    with phases.phase("export of the best model", source=lambda: warm.steps.get("export")):
        problem = exporting.best(study, study.folder.best)
    if problem is None and study.config.study.refit:
        why = "trains on training and validation images together"
        with phases.phase("final model", why, lambda: warm.steps.get("final")):
            problem = exporting.best(study, study.folder.final)
    return problem


def _slots_up(warm: Slots) -> Step:
    return Step(name="slots", done=warm.up, total=warm.plan.slots, unit="up")


@contextlib.contextmanager
def _whole_in_the_end(folder: StudyFolder) -> Iterator[None]:
    """Write the table of a study that failed, too, and tell a disk that takes no more in one line.

    Raises:
        RecordLost: the disk was full or broken.
    """
    try:
        yield
    except BaseException as error:
        if folder.database.exists():
            with contextlib.suppress(OSError, StudyError):
                table.to_csv(reader.read_study(folder), folder.table)
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise folder.lost(error) from error
        raise


@contextlib.contextmanager
def _alone(folder: StudyFolder) -> Iterator[None]:
    """Hold the study's lock, so that no other process runs it.

    Raises:
        StudyError: another process holds the lock.
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
    """Use the Ray of this process, or else join the cluster of RAY_ADDRESS, or else start Ray here.

    Changes to the process (environment, loggers, signal handlers) are undone at the end, as it may be a
    notebook. A Ray that ran before is left running.
    """
    quiet = process.environment(tuner.QUIET, override=False)
    # Ray prints errors of its raylet on stdout, even with `log_to_driver=False`. Results go there only.
    aside = contextlib.redirect_stdout(sys.stderr)
    with quiet, process.levels("ray", "ray.tune"), aside:
        tuner.quieten()
        if ray.is_initialized():
            with process.stoppable():
                yield
            return
        address = os.environ.get("RAY_ADDRESS") or "local"
        local = {"include_dashboard": False} if address == "local" else {}
        with process.not_for_children():
            preflight.join(address, log_to_driver=False, logging_level="ERROR", **local)
        try:
            with process.stoppable():  # after `join`, which installs Ray's own signal handlers
                yield
        finally:
            ray.shutdown()
