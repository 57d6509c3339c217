"""`submit` and `resume` on a cluster: describe a study's job, and start or join it.

A job's id is `NAME-HASH`, made of the study's name and a hash of its config, so submitting the same study
twice joins the first. Ray never accepts an id again, so a study that is resumed after a stop runs as
`NAME-HASH-2`, then `NAME-HASH-3`. All of these continue one study, whose state is in its results folder and
not in its job.
"""

import hashlib
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from search import provenance
from search.cluster.jobs import ENVIRONMENT, Job, find, jobs
from search.cluster.upload import CONFIG, Upload
from search.config import config_file, yaml_text
from search.config.problems import ConfigErrors, Place, Problem
from search.errors import ClusterError


@dataclass(frozen=True, kw_only=True)
class Submission:
    """All that is needed to submit a study as a job."""

    study: str
    words: tuple[str, ...]
    """Command and arguments after `python -m search`."""
    folder: str
    """Expected results folder; the study itself chooses another one if the name is taken."""
    identity: str
    """Text that identifies the study: its config, or the folder of a study to resume."""
    config: str | None = None
    """Text of the config; None to resume a study, which has its config in its folder."""
    anew: bool = False
    """True to begin a new study even if one with this identity runs or ran."""

    @property
    def base(self) -> str:
        """Id of the study's first job."""
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", self.study)
        return f"{name}-{hashlib.sha256(self.identity.encode()).hexdigest()[:8]}"


def from_config(path: str, overrides: Iterable[str], *, anew: bool = False) -> Submission:
    """Return the submission of a config file's study.

    Args:
        path: Path of the file on this machine.
        overrides: `dotted.key=value`, as for `run`.
        anew: Begin a new study even if one with this config runs or ran.

    Raises:
        ConfigErrors: the config has mistakes, or paths that exist on this machine only.
    """
    overrides = list(overrides)
    config = config_file.load(path, overrides)
    if local := config_file.paths_of_this_machine(path, overrides):
        raise ConfigErrors(_not_shared(path, key, value) for key, value in local.items())
    text = yaml_text.dump(config.model_dump(mode="json", exclude_none=True))
    return Submission(
        study=config.study.name,
        words=("run", CONFIG, *(() if anew else ("--continue",))),
        folder=str(config.folder),
        identity=text,
        config=text,
        anew=anew,
    )


def from_folder(folder: str) -> Submission:
    """Return the submission that resumes the study in a folder of the cluster.

    Raises:
        ClusterError: the path is relative.
    """
    path = PurePosixPath(folder)
    if not path.is_absolute():
        raise ClusterError(
            f"{folder}: a study on a cluster must be named by its folder from the root, got a relative path. "
            "`python -m search status` lists the folders."
        )
    return Submission(study=path.name, words=("resume", str(path)), folder=str(path), identity=str(path))


def submit(client: Any, submission: Submission, upload: Upload) -> tuple[Job, bool]:
    """Start a study's job, or join the job that runs it already.

    Returns:
        The job, and True if it ran before.

    Raises:
        ClusterError: the study runs with other code, or the cluster refuses the job.
    """
    code = provenance.code_hash()
    while True:
        same = [job for job in jobs(client) if _is_same(job, submission)]
        running = [job for job in same if not job.ended]
        if running and not submission.anew:
            return _joined(running[-1], code), True
        count = sum(re.fullmatch(rf"{re.escape(submission.base)}(-\d+)?", job.id) is not None for job in same)
        job_id = submission.base if not count else f"{submission.base}-{count + 1}"
        try:
            _start(client, submission, upload, job_id, code)
        except RuntimeError as error:
            if "already exists" in str(error):
                continue  # somebody else has just submitted it: look again, and join
            raise ClusterError(f"{job_id}: the cluster must take the job, got '{error}'.") from None
        return find(client, job_id), False


def _start(client: Any, submission: Submission, upload: Upload, job_id: str, code: str) -> None:
    facts = {"study": submission.study, "folder": submission.folder, "code": code}
    own = {provenance.JOB_VARIABLE: job_id, provenance.COMMIT_VARIABLE: provenance.commit() or ""}
    client.submit_job(
        entrypoint=shlex.join(["python", "-m", "search", *submission.words]),
        submission_id=job_id,
        runtime_env={"working_dir": str(upload.folder), "env_vars": {**ENVIRONMENT, **own}},
        metadata={f"search.{key}": value for key, value in facts.items()},
    )


def _not_shared(path: str, key: str, value: str) -> Problem:
    own = key == "features.dir"  # this folder is on each node's own disk, not shared
    example = f"/{'tmp' if own else 'shared'}/{PurePosixPath(value).name or 'flowers'}"
    option = f"--results {example}" if key == "results" else f"--set {key}={example}"
    which = "that every node of the cluster has" if own else "that every node of the cluster sees"
    rule = f"{key}: must be a path from the root {which}, got {value!r}"
    return Problem(Place(path), f"{rule}. Add for example `{option}`.")


def _is_same(job: Job, submission: Submission) -> bool:
    return job.id.startswith(submission.base) or (
        submission.config is None and job.folder == submission.folder
    )


def _joined(job: Job, code: str) -> Job:
    if job.code == code:
        return job
    raise ClusterError(
        f"{job.id}: a study must be joined with the code it runs with ({job.code}), got {code}. Stop it and "
        "submit again to go on with the new code, or add --new for a second study."
    )
