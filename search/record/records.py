"""Plain records of studies and trials, as every view of them reads it.

The ledger makes them from Optuna's storage (`optuna.db`), which is the source of truth; the table, the
JSON, the CSV and the exported model are views.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from finetune import metrics
from finetune.metrics import Objective
from finetune.objectives import Goal, fronts

EXACT = "exact"
"""The baseline, one trial per backbone, that does not count as a trial of the study."""
STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")
"""Optuna's names for the states of a trial. PRUNED: stopped early. FAIL: no score; `error` has the reason."""
RECALL = metrics.VAL_RECALL
"""Prefix of the metrics that are recalls of a class; the class name follows."""
RECALLS_OF_AN_EPOCH = 20
"""Largest number of classes for which every epoch keeps all recalls; with more classes, only the best and
the last epoch keep them."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial: its parameters, its state and its results."""

    number: int
    """Order of suggestion, from 0."""
    id: str
    """Name of the trial's folders, such as `trial-0007`."""
    state: str
    params: dict[str, Any]
    """The trial's parameters by field name, such as `learning_rate`, without Optuna's strategy suffix."""
    baseline: str | None = None
    """`exact`, `recipe` or `scratch` for a baseline; None for other trials."""
    metrics: dict[str, dict[str, float]] = field(default_factory=lambda: {"best": {}, "last": {}})
    """Metrics of two epochs: `best` has the best `study.metric` and includes its `epoch`, `last` is the
    last one."""
    epochs: int = 0
    """Number of epochs that the trial reported."""
    seconds: float = 0.0
    """Wall seconds from the trial's suggestion, when slots may begin it, to its end."""
    searched: float | None = None
    """Seconds that the study had searched, over all of its runs, when the trial ended; None: not known."""
    error: str | None = None
    """Reason for a failure, one line; None if the trial did not fail."""
    note: str | None = None
    """Remark on the way the trial was trained, one line."""
    log: str | None = None
    """Path of the file with the full trace of a failure."""
    interrupted: bool = False
    """True if the trial failed only because the study was interrupted; `resume` continues it as a new one."""
    continues: int | None = None
    """Number of the interrupted trial that this trial continues."""
    seed_of: int | None = None
    """Number of the trial whose seed this trial uses; None: its own number."""
    counted: bool = True
    """Whether the trial counts against `study.trials`; heads on frozen features may not."""
    slot: str | None = None
    retries: int = 0
    """Number of times that the trial was tried again, from its last checkpoint, after its worker died."""
    effective: dict[str, Any] = field(default_factory=dict)
    """The settings that the worker really used, read back from the model and the optimiser."""
    measured: dict[str, float] = field(default_factory=dict)
    """Latency, parameters, size and seconds of training, where the study has objectives or constraints."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of every epoch, in order, each with its `epoch` (from 1); without the recalls if there are
    more classes than RECALLS_OF_AN_EPOCH."""

    @property
    def counts(self) -> bool:
        """True if the trial has ended and is one of `study.trials`; `exact` is none of them."""
        ended = not self.interrupted and self.state != "RUNNING"
        return ended and self.counted and self.baseline != EXACT


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study with all of its trials, read from its results folder."""

    name: str
    metric: str
    planned: int
    """Number of trials that the study was asked for, baselines included except `exact`, and of heads that do
    not count."""
    epochs: int
    state: str
    """`finished`, `interrupted` (`resume` continues it) or `running`."""
    seconds: float
    """Wall seconds of the search, all runs of the study together."""
    provenance: dict[str, Any]
    trials: tuple[TrialRecord, ...]
    folder: str
    """Path of the results folder."""
    ended: str | None = None
    """Reason why the study ended before its trials were used up; None if it did not."""
    plan: dict[str, Any] | None = None
    """Expected cost of the study before it began: `trials`, `seconds`, `gpu_hours`, `money`."""
    features: dict[str, Any] | None = None
    """What it cost to compute features of frozen blocks: `arrays`, `images` and `seconds` of the slots; None:
    not known."""
    findings: list[dict[str, Any]] | None = None
    """What `check` has said about copies and shortcuts in the images; None: it was not run on this node."""
    is_open: bool = False
    """True if the budget decides how many trials there are, so that `planned` says nothing."""
    test_reads: tuple[dict[str, Any], ...] = ()
    """All reads of the test split so far: the `trial` whose model was measured on it, and the time `at`."""

    goal: Goal | None = None
    """The metric with further objectives and constraints; None: the metric alone."""
    refit: bool = False
    """True if the final model is trained on training and validation images together."""
    repeats: tuple[dict[str, Any], ...] = ()
    """Trainings of the settings that matter with other seeds: `id`, the `trial` whose setting it is, `state`,
    `metrics` of its best epoch, `epochs`, `seconds` and `error`. They are no trials and have no rank."""
    privacy: dict[str, Any] | None = None
    """The promise of a private study; None: it is not private."""
    verdict: dict[str, Any] | None = None
    """Verdict on the winner, as `search.verdict.words.Verdict` in JSON; None: not measured."""

    @property
    def best(self) -> TrialRecord | None:
        """The complete trial with the best `metric` at its best epoch that satisfies all constraints.

        Of equals it is the earlier one.
        """
        done = [t for t in self.trials if t.state == "COMPLETE" and self.metric in t.metrics["best"]]
        done = [t for t in done if not self.breaks(t)]
        return min(
            done, key=lambda t: (self.objective.key(t.metrics["best"][self.metric]), t.number), default=None
        )

    @property
    def objective(self) -> Objective:
        """The rule by which trials are compared."""
        return Objective(self.metric)

    def breaks(self, trial: TrialRecord) -> bool:
        """Return True if a trial breaks a constraint of the study, or was not measured."""
        return self.goal is not None and self.goal.excess(trial.measured) > 0

    @cached_property
    def front(self) -> frozenset[int]:
        """Numbers of the complete trials on the Pareto front of the metric and all objectives.

        Trials that break a constraint are left out. Empty if the study has no further objectives.
        """
        if self.goal is None or not self.goal.objectives:
            return frozenset()
        found = [
            (trial.number, point)
            for trial in self.trials
            if trial.state == "COMPLETE"
            and not self.breaks(trial)
            and (point := self.goal.point(trial.metrics["best"].get(self.metric), trial.measured))
        ]
        first = next(iter(fronts([point for _, point in found])), [])
        return frozenset(found[place][0] for place in first)

    def is_at_chance(self, trial: TrialRecord) -> bool:
        """Return True if a trial's score is no better than that of a model which does not look at the images.

        For accuracy such a model names the most frequent class. A score within two standard errors above that
        counts as chance, too. False for metrics whose chance level is not known.
        """
        chance = self.provenance.get("chance", {}).get(self.metric)
        score = trial.metrics["best"].get(self.metric)
        images = self.provenance.get("images", {}).get("val", 0)
        if chance is None or score is None or not images:
            return False
        return bool(score <= chance + 2 * math.sqrt(chance * (1 - chance) / images))


@dataclass(frozen=True, kw_only=True)
class StudyFacts:
    """Those facts about a whole study whose types are checked when its record is read."""

    state: str = "running"
    seconds: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)
    repeats: list[dict[str, Any]] = field(default_factory=list)
    verdict: dict[str, Any] | None = None


def lineage(number: int, trials: Iterable[TrialRecord]) -> list[int]:
    """Return the number of a trial, then that of the trial which it continues, and so on to the first."""
    before = {trial.number: trial.continues for trial in trials}
    found = [number]
    while (earlier := before.get(found[-1])) is not None and earlier not in found:
        found.append(earlier)
    return found


def standing(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials without the interrupted ones that another trial continues.

    Use these to count or compare trials and to report failures; the record itself keeps all trials.
    """
    trials = list(trials)
    continued = {trial.continues for trial in trials}
    return [trial for trial in trials if not (trial.interrupted and trial.number in continued)]


def check_types(record: TrialRecord | StudyRecord | StudyFacts) -> None:
    """Check the types of a record that was read from a file, since no view of it checks them.

    Raises:
        TypeError: a field has the wrong type.
    """
    for name, adapter in _TYPES[type(record)].items():
        try:
            adapter.validate_python(getattr(record, name), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, (name, *first["loc"])))
            raise TypeError(f"{at}: {first['msg']}, got {type(first['input']).__name__}") from None


_TYPES = {
    kind: {name: TypeAdapter(hint) for name, hint in get_type_hints(kind).items()}
    for kind in (TrialRecord, StudyRecord, StudyFacts)
}
