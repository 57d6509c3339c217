"""Report the state of studies, from their records, which outlive their cluster, and from a cluster's jobs."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from search.cluster.jobs import Job
from search.config.problems import ConfigErrors
from search.errors import SearchError
from search.record import reader, studies
from search.record.records import StudyRecord
from search.record.study_folder import StudyFolder
from search.views.terminal import clean, print_line, print_table, seconds_text

_HEADER = ("study", "state", "done", "running", "failed", "best", "left", "job", "folder")
_RIGHT = frozenset({"done", "running", "failed", "left"})


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """State of one study, shown as a line."""

    study: str
    """Name of its folder or, before it has one, the study's name in its job."""
    folder: str
    state: str
    """`starting`, `running`, `interrupted` (`resume` continues it), `finished`, `failed` or `unreadable`."""
    planned: int = 0
    done: int = 0
    """Number of trials that ended, including failed ones but not interrupted ones."""
    running: int = 0
    failed: int = 0
    metric: str = ""
    best: float | None = None
    best_trial: str | None = None
    seconds_left: float | None = None
    """Estimate while it runs: mean time of ended trials, times the trials left, divided by those running."""
    job: str | None = None
    """Id of the cluster's job that ran it last."""
    reason: str | None = None
    """Reason of the state `unreadable` or `failed`."""


def in_folder(results: Path) -> list[StudyStatus]:
    """Return the state of every study below a folder of results, by name."""
    return [_read(folder) for folder in studies.folders(results)]


def of_record(record: StudyRecord) -> StudyStatus:
    """Return the state of a study with this record."""
    ended = [t for t in record.trials if t.state not in ("RUNNING", "WAITING") and not t.interrupted]
    running = sum(trial.state == "RUNNING" for trial in record.trials)
    best = record.best
    left = None
    if record.state == "running" and ended and not record.is_open:
        mean = sum(trial.seconds for trial in ended) / len(ended)
        left = round(mean * max(0, record.planned - len(ended)) / max(1, running), 1)
    return StudyStatus(
        study=Path(record.folder).name,
        folder=record.folder,
        state=record.state,
        planned=0 if record.is_open else record.planned,
        done=len(ended),
        running=running if record.state == "running" else 0,
        failed=sum(trial.state == "FAIL" for trial in ended),
        metric=record.metric,
        best=None if best is None else best.metrics["best"][record.metric],
        best_trial=None if best is None else best.id,
        seconds_left=left,
        job=record.provenance.get("job"),
    )


def merged(records: Iterable[Mapping[str, Any]], jobs: Sequence[Job]) -> list[StudyStatus]:
    """Return the studies of a cluster: first those with a record, then those of jobs without a record yet.

    Args:
        records: Rows as `to_json` returns them.
        jobs: The cluster's jobs, the latest last.

    """
    rows = [StudyStatus(**record) for record in records]
    latest = {_first_id(job): job for job in jobs}
    for job in latest.values():
        if any(row.job == job.id for row in rows):
            continue
        # Until the driver has entered its job in the record, match the job to its study by folder.
        at = next((i for i, row in enumerate(rows) if row.folder == job.folder), None)
        if at is None:
            rows.append(_of_job(job))
        elif not job.ended:
            rows[at] = dataclasses.replace(rows[at], job=job.id, state="starting")
    return rows


def to_json(rows: Iterable[StudyStatus]) -> list[dict[str, Any]]:
    """Return the rows as plain JSON values."""
    return [dataclasses.asdict(row) for row in rows]


def show(rows: Sequence[StudyStatus], out: Console) -> None:
    """Print the rows as a table, and below it the reasons of failed and unreadable studies."""
    print_table(out, _HEADER, [_cells(row) for row in rows], _RIGHT)
    for row in rows:
        if row.reason:
            print_line(out, f"{row.study}: {clean(row.reason)}")


def _read(folder: StudyFolder) -> StudyStatus:
    try:
        return of_record(reader.read_study(folder))
    except (SearchError, ConfigErrors) as error:
        state = "unreadable" if folder.database.exists() else "starting"
        if state == "starting" and not folder.is_held():
            state = "interrupted"  # its driver died before the first trial
        reason = str(error) if state == "unreadable" else None
        return StudyStatus(study=folder.root.name, folder=str(folder.root), state=state, reason=reason)


def _first_id(job: Job) -> str:
    return re.sub(r"-\d+$", "", job.id) if re.search(r"-[0-9a-f]{8}-\d+$", job.id) else job.id


def _of_job(job: Job) -> StudyStatus:
    state = {"FAILED": "failed", "STOPPED": "interrupted", "SUCCEEDED": "finished"}.get(
        job.status, "starting"
    )
    reason = f"its job failed; see `python -m search logs {job.id}`" if state == "failed" else None
    return StudyStatus(study=job.study, folder=job.folder, state=state, job=job.id, reason=reason)


def _cells(row: StudyStatus) -> list[str]:
    best = "-" if row.best is None else f"{row.metric} {row.best:.4f} {row.best_trial}"
    return [
        row.study,
        row.state,
        f"{row.done}/{row.planned}" if row.planned else str(row.done or "-"),
        str(row.running),
        str(row.failed),
        best,
        "-" if row.seconds_left is None else f"~{seconds_text(row.seconds_left)}",
        row.job or "-",
        row.folder,
    ]
