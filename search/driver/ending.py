"""End of a study: its trials or its budget are used up, or the trials that are left promise too little."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from search.config.budget import Budget, parse
from search.config.problems import ConfigErrors, Place, Problem
from search.config.sections import Study
from search.config.sections.study import MANY_TRIALS
from search.config.study import StudyConfig
from search.driver.seeds import SHARE_OF_BUDGET
from search.record.ledger import Ledger
from search.record.records import TrialRecord
from search.suggest import patience

NOTE_SECONDS = 30.0
"""Seconds between two notes of the time used. If the driver is killed, at most this much is not counted."""
ENDED = "ended"
"""Name of the fact in the record that says why a study ended before its trials were used up."""
PATIENCE = "study.patience: "
"""Beginning of that reason where the study's patience ended it."""


class Clock:
    """Count the seconds that all runs of a study have searched, and those of the GPUs that it held.

    Args:
        ledger: record of the study.
        budget: budget of all runs together; None: no limit.
        gpus: GPUs that the slots hold now; `hold` changes it.
        reserve: share of the budget that the trials leave for the verdict.
    """

    def __init__(
        self, ledger: Ledger, budget: Budget | None = None, gpus: float = 0.0, reserve: float = 0.0
    ) -> None:
        self._ledger, self._budget, self._gpus, self._reserve = ledger, budget, gpus, reserve
        facts = ledger.facts
        # Older records have `seconds` only.
        self._before: float = facts.get("searched", facts.get("seconds", 0.0))
        self._gpu_before: float = facts.get("gpu_seconds", 0.0)
        self._began = self._noted = self._held = time.monotonic()

    @property
    def searched(self) -> float:
        """Seconds searched so far, over all runs of the study."""
        return self._before + time.monotonic() - self._began

    @property
    def gpu_searched(self) -> float:
        """Seconds that GPUs were held so far, summed over all GPUs and runs of the study."""
        return self._gpu_before + (time.monotonic() - self._held) * self._gpus

    def money(self, price: float | None) -> float | None:
        """Return the price of the GPU time so far at a price per hour; None without a price."""
        return None if price is None else price * self.gpu_searched / 3600

    def hold(self, gpus: float) -> None:
        """Enter how many GPUs the slots hold from now on."""
        self._gpu_before, self._held = self.gpu_searched, time.monotonic()
        self._gpus = gpus

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the trials' share of the budget is spent, negative after that; None: no budget."""
        return self._until(1 - self._reserve)

    @property
    def deadline(self) -> float | None:
        """Time by `time.monotonic` at which the whole budget is spent; None: no budget."""
        left = self._until(1.0)
        return None if left is None else time.monotonic() + left

    def _until(self, share: float) -> float | None:
        """Return the seconds until a share of the budget is spent with the GPUs that are held now."""
        if self._budget is None:
            return None
        if not self._budget.of_gpus:
            return share * self._budget.seconds - self.searched
        left = share * self._budget.seconds - self.gpu_searched
        return left / self._gpus if self._gpus and left > 0 else left

    @property
    def is_over(self) -> bool:
        """True once the budget is spent."""
        left = self.seconds_left
        return left is not None and left <= 0

    def note(self, *, now: bool = False) -> None:
        """Write the seconds to the record, at most every NOTE_SECONDS unless `now`.

        A driver that is killed has then noted nearly all of its time.
        """
        if now or time.monotonic() - self._noted >= NOTE_SECONDS:
            self._noted = time.monotonic()
            self._ledger.set_fact("searched", round(self.searched, 3))
            if self._gpus or self._gpu_before:
                self._ledger.set_fact("gpu_seconds", round(self.gpu_searched, 3))


class Patience:
    """The scores of a study's ended trials, baselines excluded, and what the next ones promise.

    Args:
        study: the study's section of the config.
        images: number of validation images.
        earlier: trials of earlier runs.
    """

    def __init__(self, study: Study, images: int, earlier: Iterable[TrialRecord]) -> None:
        self._patience, self._images = study.patience, images
        self._metric, self._objective = study.metric, study.objective
        goal = study.goal
        self._scores: list[tuple[str, float]] = []
        self._judged = 0
        self.reason: str | None = None
        """Reason why the study ends; None until it does."""
        for trial in earlier:
            value = trial.metrics["best"].get(study.metric)
            ended = trial.state in ("COMPLETE", "PRUNED") and trial.baseline is None
            if ended and value is not None and not goal.excess(trial.measured):
                self.add(str(trial.params.get("strategy")), value)

    def add(self, strategy: str, value: float) -> None:
        """Enter the score of an ended trial that is no baseline."""
        self._scores.append((strategy, self._objective.worth(value)))

    def is_enough(self, left: int) -> bool:
        """Return True if the study is to end, with `left` trials still to come; `reason` then says why."""
        if self.reason is None and self._judged < len(self._scores):
            self._judged = len(self._scores)
            self.reason = self._judge(left)
        return self.reason is not None

    def _judge(self, left: int) -> str | None:
        if self._patience == "none" or not left:
            return None
        done = len(self._scores)
        if self._patience != "auto":
            since = done - 1 - max(range(done), key=lambda i: (self._scores[i][1], -i))
            if since < self._patience:
                return None
            return f"{PATIENCE}no new best {self._metric} in the last {since} trials"
        if not self._is_share or not patience.is_enough(self._scores, self._images, left):
            return None
        error = patience.standard_error(max(score for _, score in self._scores), self._images)
        return (
            f"{PATIENCE}after {done} trials, those that are left promise less than "
            f"{patience.SHARE * 100 * error:.1f} points, half a standard error of {self._metric} on "
            f"{self._images} validation images"
        )

    @property
    def _is_share(self) -> bool:
        """True if scores are shares of the validation images, which have a known standard error."""
        return self._objective.mode == "max" and all(0 <= score <= 1 for _, score in self._scores)


def is_over(trials: Iterable[TrialRecord], facts: Mapping[str, Any], study: Study) -> bool:
    """True if the study is finished and neither its trials nor its budget have been raised since."""
    if facts.get("state") != "finished":
        return False
    budget = study.spending
    if budget is not None:
        spent = facts.get("gpu_seconds" if budget.of_gpus else "seconds", 0.0)
        # The verdict may have left some of its share.
        if spent >= (1 - SHARE_OF_BUDGET) * budget.seconds:
            return True
    return left(trials, study) <= 0 or (PATIENCE in (facts.get(ENDED) or "") and study.patience != "none")


def left(trials: Iterable[TrialRecord], study: Study) -> int:
    """Return how many trials are still to run; interrupted ones do not count as done."""
    return study.trials - sum(trial.counts for trial in trials)


def extended(
    config: StudyConfig, extend: str, trials: Iterable[TrialRecord], facts: Mapping[str, Any]
) -> StudyConfig:
    """Return the config of a study that gets more trials or a larger budget; its patience no longer ends it.

    Args:
        config: the study's config.
        extend: a number of trials, in addition to those that were planned, or to those that have run if the
            study is finished; or a budget in addition to what is used up.
        trials: trials of the record.
        facts: facts of the record.

    Raises:
        ConfigErrors: `extend` is neither.
    """
    study = config.study
    changed: dict[str, Any]
    if extend.isdecimal() and int(extend):
        done = study.trials - left(trials, study)
        begun = done if facts.get("state") == "finished" or study.is_open else study.trials
        changed = {"trials": begun + int(extend), "budget": None}
    else:
        try:
            more = parse(extend, study.price_per_gpu_hour)
        except ValueError:
            text = (
                f"--extend: must be a number of trials or a budget, got {extend!r}. Write 10, 10m or 3gpuh."
            )
            raise ConfigErrors([Problem(Place(), text)]) from None
        # The time of the slots' start counts for `seconds` only, which is what ends a finished study.
        name = "gpu_seconds" if more.of_gpus else "seconds"
        share = 1 - SHARE_OF_BUDGET if config.verdict.seeds else 1.0
        total = (facts.get(name, 0.0) + more.seconds) / share  # the trials get what is left of it
        changed = {"budget": f"{total / 3600:.6f}gpuh" if more.of_gpus else f"{total:.3f}s"}
        changed["trials"] = MANY_TRIALS
    values = config.model_dump(mode="json", exclude_none=True)
    values["study"] = {**values["study"], **changed, "patience": "none"}
    return StudyConfig.from_dict(values)
