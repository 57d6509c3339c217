"""Find, follow and stop the jobs of studies on a Ray cluster, and run short commands there."""

import asyncio
import dataclasses
import json
import re
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from search import provenance
from search.cluster.upload import Upload
from search.errors import ClusterError

STOP_SECONDS = 120
"""Seconds that a stopped study has to save its record before Ray kills it; most need a few seconds."""
ENVIRONMENT = {
    "PYTHONPATH": "src",  # relative to the job's own folder, and searched before any installed copy
    "RAY_JOB_STOP_SIGNAL": "SIGINT",  # Tune stops gracefully on this signal only
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",  # the dashboard of the head, on which the study runs
}
"""Environment variables of every job."""
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
"""Ray's states of a job that has ended."""
ASK_SECONDS = 120.0
"""Seconds for a short command (`ask`) to answer."""
_PROGRAM = ("python", "-m", "search")
_BEGIN = "-- search begins --"
_RECONNECTS = 20
"""Lost connections in a row after which `follow` gives up."""
_PAUSE_SECONDS = 1.0
"""Seconds between two connections of `follow`."""


@dataclass(frozen=True)
class Job:
    """A job of the cluster that runs, or ran, a study."""

    id: str
    status: str
    """Ray's state of the job: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    study: str
    folder: str
    """Results folder: the one that the study has reported, or else the one expected at submission."""
    code: str
    """Hash of the code that it runs."""
    began: int
    """Time of its submission, in milliseconds since 1970."""
    exit_code: int | None = None

    @property
    def ended(self) -> bool:
        """True if the job has ended, so that its state can no longer change."""
        return self.status in ENDED


def jobs(client: Any) -> list[Job]:
    """Return the cluster's jobs that run or ran studies, the latest last; a replaced head knows none."""
    found = [_to_job(details) for details in client.list_jobs() if _of(details, "study")]
    placed = [job if job.ended else _placed(client, job) for job in found]
    return sorted(placed, key=lambda job: job.began)


def find(client: Any, name: str) -> Job:
    """Return the latest job with this id, study name or folder.

    Raises:
        ClusterError: there is no such job.
    """
    known = jobs(client)
    for job in reversed(known):
        if name in (job.id, job.study, job.folder):
            return _placed(client, job)
    there = ", ".join(dict.fromkeys(job.study for job in known)) or "none"
    raise ClusterError(
        f"{name}: must be a study or job of the cluster, got an unknown one. Known studies: {there}; "
        "one that began before the head was replaced is in its results folder (`status --results`)."
    )


def follow(client: Any, job_id: str, write: Callable[[str], None]) -> Job:
    """Pass a job's output to `write`, from its first line, until the job has ended; return the ended job.

    A lost connection is made again, until `_RECONNECTS` in a row have brought nothing.

    Raises:
        ClusterError: the cluster no longer answers.
    """
    seen = lost = 0

    async def tail() -> None:
        nonlocal seen, lost
        skip = seen  # Ray sends the log from its first line for every connection; skip what was written
        async for text in client.tail_job_logs(job_id):
            lost = 0
            new, skip = text[skip:], max(0, skip - len(text))
            seen += len(new)
            if new:
                write(new)

    while True:
        try:
            asyncio.run(tail())
            job, lost = _job(client, job_id), 0
            if job.ended:
                return job
        except (RuntimeError, OSError) as error:  # aiohttp's connection errors are OSErrors
            lost += 1
            if lost > _RECONNECTS:
                raise ClusterError(
                    f"{job_id}: the cluster must answer, got '{error}'. The study may go on: try `status`."
                ) from None
        time.sleep(_PAUSE_SECONDS)


def stop(client: Any, job: Job) -> Job:
    """Stop a job and wait until its study has saved its record.

    Raises:
        ClusterError: the job does not end.
    """
    client.stop_job(job.id)
    end = time.monotonic() + STOP_SECONDS + 30
    while time.monotonic() < end:
        if (now := _job(client, job.id)).ended:
            return _placed(client, now)
        time.sleep(0.5)
    raise ClusterError(f"{job.id}: a stopped job must end within {STOP_SECONDS} s, got one that still runs.")


def ask(client: Any, words: Iterable[str], upload: Upload) -> str:
    """Run a short command of this program on the cluster, where the results are, and return its stdout.

    The command runs as a job, which is deleted from Ray's list afterwards.

    Raises:
        ClusterError: the command failed (the message has the last line of its output), or did not answer in
            time.
    """
    # With these variables set, the command there would in turn ask a cluster instead of reading a folder.
    command = shlex.join(["env", "-u", "RAY_ADDRESS", "-u", "RAY_API_SERVER_ADDRESS", *_PROGRAM, *words])
    # A job's log mixes stdout and stderr, so stderr goes to a file, which is printed only after a failure.
    shell = f'm=$(mktemp); echo "{_BEGIN}"; {command} 2>"$m"; c=$?; [ $c = 0 ] || cat "$m"; rm "$m"; exit $c'
    job_id = client.submit_job(
        entrypoint=shell, runtime_env={"working_dir": str(upload.folder), "env_vars": ENVIRONMENT}
    )
    end = time.monotonic() + ASK_SECONDS
    while not (details := client.get_job_info(job_id)).status.is_terminal():
        if time.monotonic() > end:
            client.stop_job(job_id)
            raise ClusterError(f"{command}: the cluster must answer within {ASK_SECONDS:.0f} s, got nothing.")
        time.sleep(0.2)
    written = _written(client.get_job_logs(job_id))
    client.delete_job(job_id)
    if str(details.status) != "SUCCEEDED":
        lines = (written or details.message or "no word").strip().splitlines()
        raise ClusterError(f"{shlex.join([*_PROGRAM, *words])}: must work on the cluster, got '{lines[-1]}'.")
    return written


def ask_json(client: Any, words: Iterable[str], upload: Upload) -> Any:
    """Run a command with `--json` on the cluster and return the parsed answer."""
    return json.loads(ask(client, [*words, "--json"], upload))


def exit_code(job: Job) -> int:
    """Return the exit code of an ended job's study; 130 if the job was stopped."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return 130
    return job.exit_code or 1


def _written(log: str) -> str:
    """Return a command's own output, without Ray's lines before `_BEGIN` or among the output."""
    kept = [
        line for line in log.splitlines(keepends=True) if not line.startswith("Running entrypoint for job ")
    ]
    return "".join(kept).partition(f"{_BEGIN}\n")[2]


def _placed(client: Any, job: Job) -> Job:
    """Return the job with the results folder that its study has written to the log, if it has done so yet.

    Only the study itself knows its folder: a new one if the name is taken, or an earlier one to resume.
    """
    told = re.search(f"^{re.escape(provenance.FOLDER_LINE)}(/.+)$", client.get_job_logs(job.id), re.MULTILINE)
    return dataclasses.replace(job, folder=told[1]) if told else job


def _job(client: Any, job_id: str) -> Job:
    return _to_job(client.get_job_info(job_id))


def _to_job(details: Any) -> Job:
    return Job(
        id=details.submission_id or "",
        status=str(details.status),
        study=_of(details, "study"),
        folder=_of(details, "folder"),
        code=_of(details, "code"),
        began=details.start_time or 0,
        exit_code=details.driver_exit_code,
    )


def _of(details: Any, key: str) -> str:
    return str((details.metadata or {}).get(f"search.{key}", ""))
