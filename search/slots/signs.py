"""Signs of progress: how long a job may show none before the workers of its slot are ended.

A worker gives a sign with each message, with each report about a long step, and every few seconds between two
batches. So silence means that a process is stopped, a loader waits for a lock, or storage does not answer.
"""

import time
from collections.abc import Collection

BEFORE_ANY_SECONDS = 1800.0
"""Limit of the silence of a job while no job of the study has told an epoch yet."""
LEAST_SECONDS = 600.0
"""Lower bound of the limit that follows from the silences of this study."""
TIMES = 10.0
"""That limit, as a multiple of the longest silence that ended."""


class Signs:
    """The last sign of each running job, and the limit of the silence after it.

    Args:
        limit: seconds, infinite for no limit; None: it follows from the silences of the study's jobs.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._limit = limit
        self._at: dict[str, float] = {}
        self._longest: float | None = None
        """Longest silence that ended, in seconds; None before the first epoch of the study."""

    def begin(self, job_id: str) -> None:
        """Count a job's silence from now on: it was given to a slot."""
        self._at[job_id] = time.monotonic()

    def see(self, job_id: str, *, epoch: bool = False) -> None:
        """Enter a sign of a running job.

        Args:
            job_id: the job.
            epoch: whether it has told an epoch.
        """
        if job_id not in self._at:
            return
        now = time.monotonic()
        if epoch or self._longest is not None:
            self._longest = max(self._longest or 0.0, now - self._at[job_id])
        self._at[job_id] = now

    def silent(self, running: Collection[str]) -> dict[str, float]:
        """Return the jobs whose silence is over the limit, with its seconds; forget all that do not run."""
        now, limit = time.monotonic(), self.limit
        self._at = {job: at for job, at in self._at.items() if job in running}
        return {job: now - at for job, at in self._at.items() if now - at > limit}

    @property
    def limit(self) -> float:
        """Seconds that a job may be silent."""
        if self._limit is not None:
            return self._limit
        return BEFORE_ANY_SECONDS if self._longest is None else max(LEAST_SECONDS, TIMES * self._longest)
