"""Section `study`: the goal of the search and its limits."""

import re
import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from finetune.errors import did_you_mean
from finetune.metrics import ALWAYS, TOP5, VAL_RECALL, VALIDATION, Mode, Objective
from search.config.domain import Section, refused

METRICS = tuple(f"{VALIDATION}{name}" for name in (*ALWAYS, TOP5))
"""Metrics that a study may optimise besides the recall of a class. The last one needs more than five
classes."""
SECONDS = {"s": 1, "m": 60, "h": 3600}

Baseline = Literal["recipe", "scratch"]


def _metric(name: str) -> str:
    if name not in METRICS and not (name.startswith(VAL_RECALL) and len(name) > len(VAL_RECALL)):
        known = did_you_mean(name, [*METRICS, f"{VAL_RECALL}<class>"])
        raise refused("must be a metric that every epoch reports", repr(name), known)
    return unicodedata.normalize("NFC", name)  # as the catalog names the classes


def _budget(text: object) -> object:
    if not re.fullmatch(r"\d+(\.\d+)?[smh]", str(text)) or not float(str(text)[:-1]):
        raise refused("must be a number above 0 with s, m or h", repr(text), "Write 90s, 10m or 2h.")
    return text


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
    """Metric that the search optimises, also `val/recall/<class>`. A trial counts with its best epoch."""
    mode: Mode = Field(default_factory=lambda study: Objective.of(study.get("metric", "")).mode)
    """Direction in which the metric is optimised. Default: `min` for val/loss and val/ece, `max` for the
    others."""
    trials: Annotated[int, Field(ge=1)] = 24
    """Number of trials, baselines included."""
    epochs: Annotated[int, Field(ge=1)] = 8
    """Passes over the training images of a trial that is not stopped early."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sampler and of the split. Each trial's own seed follows from it and the trial's number."""
    budget: Annotated[str, BeforeValidator(_budget)] | None = None
    """Wall time for all trials, counted from when the first slot is up: `90s`, `10m`, `2h`; null: no limit.
    When it is used up, no new trial starts, and running trials, baselines included, are stopped after their
    current epoch. A resumed study has only the time that its earlier runs left."""
    baselines: Annotated[tuple[Baseline, ...], Field(strict=False)] = ("recipe",)
    """Fixed trials that run before all sampled ones: `recipe` is the founding recipe, a new head on a frozen
    backbone; `scratch` trains the whole network from random weights. `scratch` runs only if it is named: it
    costs as much as any trial, and with few images it learns little."""
    warm_start: bool = True
    """After the baselines, try for each strategy one setting that did well elsewhere, if the search space
    contains it. These trials are judged and learned from like sampled ones."""
    sampler: Literal["tpe", "random"] = "tpe"
    """Algorithm that suggests trials: Optuna's TPE, or random search."""
    isolation: Literal["slot", "process"] = "slot"
    """`slot`: trials run one after another in warm slots; `process`: each trial runs in processes of its
    own, which is slow."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Number of times that a trial whose worker dies is tried again, from its last checkpoint, before it
    fails."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 5
    """Number of best trials whose models stay on disk."""

    @field_validator("mode")
    @classmethod
    def _mode_fits_metric(cls, mode: Mode, info: ValidationInfo) -> Mode:
        metric = info.data.get("metric")
        if metric is not None and mode != Objective.of(metric).mode:
            raise refused(f"{metric} cannot be optimised this way", repr(mode), "Delete `mode`: it follows.")
        return mode

    @field_validator("baselines")
    @classmethod
    def _baselines_fit(cls, names: tuple[Baseline, ...], info: ValidationInfo) -> tuple[Baseline, ...]:
        trials = info.data.get("trials")
        if len(set(names)) < len(names):
            raise refused("must name each baseline once", list(names), "Delete the second one.")
        if trials is not None and len(names) > trials:
            raise refused(
                f"must be at most as many as study.trials ({trials})",
                list(names),
                "Ask for more trials, or write [] for no baselines.",
            )
        return names

    @property
    def objective(self) -> Objective:
        """The rule by which trials are compared."""
        return Objective(self.metric, self.mode)

    @property
    def budget_seconds(self) -> float | None:
        """The budget in seconds; None: no limit."""
        return None if self.budget is None else float(self.budget[:-1]) * SECONDS[self.budget[-1]]
