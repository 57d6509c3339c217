"""What is known of one trial, as every view of the record reads it.

The sampler fills these from Optuna's storage (`optuna.db`), which is the truth; the table, the
JSON, the CSV, TensorBoard and the exported model are views.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from finetune import metrics

STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")
"""Optuna's own names. PRUNED: stopped early. FAIL: no score, and `error` says why."""
RECALL = metrics.VAL_RECALL
"""Before the name of a class: its recall, one of an epoch's metrics."""
RECALLS_OF_AN_EPOCH = 20
"""Classes up to which every epoch keeps each one's recall; of more, the best and the last epoch do."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One suggestion and what came of it."""

    number: int
    """Order of suggestion, from 0."""
    id: str
    """Name of the trial's folders, such as `trial-0007`."""
    state: str
    params: dict[str, Any]
    """What was suggested for this trial, by its plain name (`learning_rate`, not one per strategy)."""
    baseline: str | None = None
    """`recipe` or `scratch` where the trial was set, not sampled."""
    metrics: dict[str, dict[str, float]] = field(default_factory=lambda: {"best": {}, "last": {}})
    """`best`: the epoch with the best `study.metric`, with its `epoch`; `last`: the last epoch."""
    epochs: int = 0
    """Epochs reported."""
    seconds: float = 0.0
    """Wall seconds from the trial's suggestion, which slots get at once, to its end."""
    error: str | None = None
    """Why it failed, one line; None if it did not."""
    note: str | None = None
    """What else is to be known of how it was trained, one line."""
    log: str | None = None
    """Path of the file with the failure's full trace."""
    interrupted: bool = False
    """It failed only because the study was interrupted; `resume` goes on with it as another trial."""
    continues: int | None = None
    """Number of the interrupted trial that this one goes on with."""
    seed_of: int | None = None
    """Number of the trial whose seed it uses, where not its own."""
    slot: str | None = None
    retries: int = 0
    """Times that it was tried again, from its last checkpoint, since its worker or node had died."""
    effective: dict[str, Any] = field(default_factory=dict)
    """What the worker really used, read back from the model and the optimiser."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Every epoch's metrics, in order, each with its `epoch` (from 1); without the recalls where there are
    more than RECALLS_OF_AN_EPOCH."""


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study as its folder tells it."""

    name: str
    metric: str
    mode: str
    """`max` or `min`."""
    planned: int
    """Trials the study was asked for, baselines included."""
    epochs: int
    state: str
    """`finished`, `interrupted` (resume goes on) or `running`."""
    seconds: float
    """Wall seconds of searching, all runs of the study together."""
    provenance: dict[str, Any]
    trials: tuple[TrialRecord, ...]
    folder: str
    """Path of the results folder."""
    test_reads: tuple[dict[str, Any], ...] = ()
    """Each read of the test split so far: the `trial` whose model was measured on it, and `at`."""

    @property
    def best(self) -> TrialRecord | None:
        """The complete trial with the best `metric` of its best epoch; ties: the earlier one."""
        done = [t for t in self.trials if t.state == "COMPLETE" and self.metric in t.metrics["best"]]
        sign = -1.0 if self.mode == "max" else 1.0
        return min(done, key=lambda t: (sign * t.metrics["best"][self.metric], t.number), default=None)


@dataclass(frozen=True, kw_only=True)
class StudyFacts:
    """The facts about a whole study that its storage holds, beside others."""

    state: str = "running"
    seconds: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)


def standing(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials without the interrupted ones that another one has gone on with.

    Whatever is counted, compared or told as a failure is among these; the record itself keeps them all.
    """
    trials = list(trials)
    continued = {trial.continues for trial in trials}
    return [trial for trial in trials if not (trial.interrupted and trial.number in continued)]


def check_types(record: TrialRecord | StudyRecord | StudyFacts) -> None:
    """Hold a record that was read from a file to its types, as no view of it does.

    Raises:
        TypeError: a field is of another type.
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
