"""Section `study`: the goal of the search and its limits."""

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from finetune.errors import did_you_mean
from finetune.metrics import ALWAYS, TOP5, VAL_RECALL, VALIDATION, Objective
from finetune.objectives import Constraint, Goal
from search.config.budget import Budget, parse
from search.config.domain import Section, refused
from search.config.sections.paths import FilePath

METRICS = tuple(f"{VALIDATION}{name}" for name in (*ALWAYS, TOP5))
"""Metrics that a study may optimise besides the recall of a class. The last one needs more than five
classes."""
TRIALS = 24
MANY_TRIALS = 10_000
"""Default of `trials` without and with a budget."""

Measured = Literal["latency_ms", "latency_batch_ms", "parameters", "size_mb", "train_seconds"]
Baseline = Literal["exact", "recipe", "scratch", "image_only", "text_only"]
EXACT: Literal["exact"] = "exact"
"""The baseline that does not count as a trial."""


def _metric(name: str) -> str:
    if name not in METRICS and not (name.startswith(VAL_RECALL) and len(name) > len(VAL_RECALL)):
        known = did_you_mean(name, [*METRICS, f"{VAL_RECALL}<class>"])
        raise refused("must be a metric that every epoch reports", repr(name), known)
    return unicodedata.normalize("NFC", name)  # as the catalog names the classes


def _constraint(text: str) -> str:
    try:
        return str(Constraint.parse(text))
    except ValueError as error:
        rule, _, fix = str(error).partition(". ")
        raise refused(rule, repr(text), fix or "Write latency_ms <= 5.") from None


def _budget(text: object) -> object:
    try:
        parse(str(text), price=1.0)
    except ValueError:
        rule = "must be a number above 0 with s, m, h, gpuh or usd"
        raise refused(rule, repr(text), "Write 90s, 10m, 2h, 3gpuh or 5usd.") from None
    return text


def _timeout(text: object) -> object:
    if text in ("auto", "none"):
        return text
    try:
        of_gpus = parse(str(text), price=1.0).of_gpus
    except ValueError:
        of_gpus = True
    if of_gpus:
        rule = "must be auto, none or a number above 0 with s, m or h"
        raise refused(rule, repr(text), "Write 90s, 10m or 2h.")
    return text


def _warm(value: object) -> object:
    """Return `auto` or `none` for true and false, as older configs have it."""
    if isinstance(value, bool):
        return "auto" if value else "none"
    if isinstance(value, list | tuple) or value in ("auto", "none"):
        return value
    raise refused("must be auto, none or a list of results folders", repr(value), "Write [results/flowers].")


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        rule = "must be a folder name of at most 64 letters, digits, `.`, `_` and `-`"
        raise refused(rule, repr(text), "Rename it, such as flowers-2.")
    return text


Metric = Annotated[
    str,
    AfterValidator(_metric),
    WithJsonSchema({"anyOf": [{"enum": list(METRICS)}, {"type": "string", "pattern": f"^{VAL_RECALL}.+"}]}),
]


class Study(Section):
    """The goal of the search and its limits."""

    name: Annotated[str, AfterValidator(_name)]
    """Name of the study and of its folder, `<results>/<name>`."""
    metric: Metric = "val/accuracy"
    """Metric that the search optimises, also `val/recall/<class>`. Less of val/loss and val/ece is better,
    more of the others. A trial counts with its best epoch."""
    objectives: Annotated[tuple[Measured, ...], Field(strict=False)] = ()
    """Measures besides the metric by which trials are compared; less is better. `latency_ms`: milliseconds
    of one image, `latency_batch_ms`: of a batch of `data.batch_size`, both the median of passes on the device
    that trains; `parameters`; `size_mb` of the exported weights; `train_seconds`: seconds of all epochs.
    Views mark the Pareto front, and early stopping ranks by it. The best trial is still that of the
    metric."""
    constraints: Annotated[tuple[Annotated[str, AfterValidator(_constraint)], ...], Field(strict=False)] = ()
    """Limits that a model must keep, such as `latency_ms <= 5`, for any name that `objectives` takes. A trial
    that breaks one ends after its first epoch unless it is a baseline, and is never the best."""
    price_per_gpu_hour: Annotated[float, Field(gt=0)] | None = None
    """Price of a GPU for an hour, for a budget in money and for the plan of `check`. A slot counts with the
    GPUs that its workers hold, also while it waits."""
    budget: Annotated[str, BeforeValidator(_budget)] | None = None
    """Limit for all trials: wall time counted from when the first slot is up (`90s`, `10m`, `2h`), hours of
    GPUs (`3gpuh`) or money (`5usd`, with `price_per_gpu_hour`); null: no limit. When it is used up, no new
    trial starts, and running trials, baselines included, are stopped after their current epoch. A resumed
    study has only what its earlier runs left."""
    trials: Annotated[int, Field(ge=1)] = Field(
        default_factory=lambda study: TRIALS if study.get("budget") is None else MANY_TRIALS,
        json_schema_extra={"default": TRIALS},
    )
    """Number of baselines and of trials that train blocks. Default: 24, or as many as the budget allows if
    there is one. Heads on frozen features come on top: three of each strategy, and more while they lead;
    where the space has nothing else, they are counted."""
    epochs: Annotated[int, Field(ge=1)] = 8
    """Passes over the training images of a trial that is not stopped early."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sampler and of the split. Each trial's own seed follows from it and the trial's number."""
    baselines: Annotated[tuple[Baseline, ...], Field(strict=False)] = (EXACT, "recipe")
    """Fixed trials that run before all sampled ones: `exact` solves for the best head on each frozen backbone
    in seconds instead of training one, and does not count as a trial; `recipe` is the founding recipe, a new
    head on a frozen backbone; `scratch` trains the whole network from random weights. `scratch` runs only if
    it is named: it costs as much as any trial, and with few images it learns little. Where samples have text,
    `image_only` and `text_only` are linear heads that read one of both; they run by default there."""
    warm_start: Annotated[
        Literal["auto", "none"] | Annotated[tuple[FilePath, ...], Field(strict=False)], BeforeValidator(_warm)
    ] = "auto"
    """Settings to try after the baselines, if the search space contains them. `auto`: one for heads of each
    strategy, and for trials that train blocks up to eight that did well in recorded studies like this one (at
    most a third of study.trials); a list of results folders adds one's own finished studies to those; `none`:
    no such trials. They are judged and learned from like sampled ones."""
    patience: Annotated[int, Field(ge=1)] | Literal["auto", "none"] = "auto"
    """End of the study before its trials or budget are used up. `auto`: when the trials that are left promise
    less than half a standard error of the validation score, by the scores so far of each strategy; it needs a
    metric that is a share of the images, such as val/accuracy. A number: after so many trials in a row that
    bring no new best. Default: `auto`, or `none` if study.trials is given."""
    sampler: Literal["auto", "tpe", "gp", "cmaes", "random", "grid"] = "auto"
    """Algorithm that suggests trials. `auto` is `gp`, a Gaussian process over settings and epochs; `tpe` and
    `cmaes` are Optuna's (`cmaes` needs the extra of that name). Each has a model for each strategy, and a
    bandit that weighs costs chooses the strategy. `random` and `grid` choose strategies themselves, and then
    every trial counts; a grid takes four values of a range."""
    isolation: Literal["slot", "process"] = "slot"
    """`slot`: trials run one after another in warm slots; `process`: each trial runs in processes of its
    own, which is slow."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Number of times that a trial whose worker dies is tried again, from its last checkpoint, before it
    fails."""
    trial_timeout: Annotated[str, BeforeValidator(_timeout)] = "auto"
    """Longest time in which a running trial may show no progress (`90s`, `10m`, `2h`, `none`): no batch
    trained, no epoch told, no step of preparing its images. Its worker is then killed, as stopped or waiting
    for ever, and the trial is tried again (`retries`). `auto`: ten times the longest such time of this study
    so far, at least 10 minutes; 30 minutes before its first epoch."""
    refit: bool = False
    """Train the best trial's settings once more, on training and validation images together and for as many
    epochs as were best, into `<results>/<name>/final`; `export` hands on models that are trained like that,
    too. Scores on validation images stay those from before. `best` is the model as the search left it."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 5
    """Number of best trials whose models stay on disk."""

    @model_validator(mode="before")
    @classmethod
    def _mode_follows_from_the_metric(cls, values: Any) -> Any:
        """Drop `mode`, a key of earlier versions: the study.yaml of each study that they began has it."""
        if not isinstance(values, Mapping) or "mode" not in values:
            return values
        metric, mode = values.get("metric", cls.model_fields["metric"].default), values["mode"]
        if not isinstance(metric, str) or mode != Objective(metric).mode:
            fix = "Delete `mode`: it follows from the metric."
            raise refused(f"{metric} cannot be optimised this way", repr(mode), fix, ("study", "mode"))
        return {key: value for key, value in values.items() if key != "mode"}

    @model_validator(mode="before")
    @classmethod
    def _who_names_trials_gets_them(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "trials" in values and "patience" not in values:
            return {**values, "patience": "none"}
        return values

    @field_validator("budget")
    @classmethod
    def _money_has_a_price(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is not None and text.endswith("usd") and info.data.get("price_per_gpu_hour") is None:
            fix = "Write study.price_per_gpu_hour, or a budget such as 3gpuh."
            raise refused("a budget in money needs the price of a GPU-hour", repr(text), fix)
        return text

    @field_validator("objectives")
    @classmethod
    def _objectives_differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise refused("must name each objective once", list(names), "Delete the second one.")
        return names

    @field_validator("baselines")
    @classmethod
    def _baselines_fit(cls, names: tuple[Baseline, ...], info: ValidationInfo) -> tuple[Baseline, ...]:
        trials = info.data.get("trials")
        if len(set(names)) < len(names):
            raise refused("must name each baseline once", list(names), "Delete the second one.")
        if trials is not None and len(set(names) - {EXACT}) > trials:
            raise refused(
                f"must be at most as many as study.trials ({trials})",
                list(names),
                "Ask for more trials, or write [] for no baselines.",
            )
        return names

    @property
    def objective(self) -> Objective:
        """The rule by which trials are compared."""
        return Objective(self.metric)

    @property
    def goal(self) -> Goal:
        """The rule by which trials are compared, with all objectives and constraints."""
        return Goal(self.metric, self.objectives, tuple(map(Constraint.parse, self.constraints)))

    @property
    def spending(self) -> Budget | None:
        """The budget; None: no limit."""
        return None if self.budget is None else parse(self.budget, self.price_per_gpu_hour)

    @property
    def timeout_seconds(self) -> float | None:
        """Limit of `trial_timeout` in seconds, infinite for `none`; None for `auto`."""
        if self.trial_timeout == "auto":
            return None
        return math.inf if self.trial_timeout == "none" else parse(self.trial_timeout).seconds

    @property
    def is_open(self) -> bool:
        """True if the budget ends the study and the number of trials was left open."""
        return self.trials == MANY_TRIALS
