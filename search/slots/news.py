"""News for the driver besides the messages of trials: notes for the user, and long steps."""

from collections.abc import Collection
from typing import Any

from finetune.steps import Step

SAID_SECONDS = 2.0
"""Seconds from which the end of a step is told to the user."""
FEATURES = "features of "
"""Beginning of the names of the steps that compute features."""
NO_FEATURES = {"arrays": 0, "images": 0, "seconds": 0.0}
"""Counts of a study that has computed no features."""


class News:
    """The notes so far, and the steps that run."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.shown = 0
        """Number of reports about steps."""
        self._computed: dict[str, float] = dict(NO_FEATURES)
        self._steps: dict[str, Step] = {}
        """Steps of running jobs, by the id of the job."""

    def show(self, name: str, job_id: str, step: Step) -> None:
        """Keep how far slot `name` is with a step of its job; the end of a long one becomes a note."""
        if step.over and step.name.startswith(FEATURES):
            more = {"arrays": 1, "images": step.done, "seconds": step.seconds}
            self._computed = {key: value + more[key] for key, value in self._computed.items()}
        if step.over:
            self._steps.pop(job_id, None)
            if step.seconds >= SAID_SECONDS and not step.name.startswith("epoch"):
                self.notes.append(f"{step.summary} ({job_id} in {name})")
        else:
            self._steps[job_id] = step
        self.shown += 1

    def told(self, running: Collection[str]) -> dict[str, Any]:
        """Return all of it, with the steps of running jobs only.

        Args:
            running: ids of the running jobs.

        Returns:
            `notes`, the list of all lines so far; `steps` (job id -> Step), the steps that run; `shown`;
            `computed`, the feature `arrays` computed, and their `images` and `seconds`; what two slots
            compute together counts for both.
        """
        self._steps = {job: step for job, step in self._steps.items() if job in running}
        return {"notes": self.notes, "steps": self._steps, "shown": self.shown, "computed": self._computed}
