"""Columns of the HParams page, and names of runs: what people look for comes first.

TensorBoard sorts the columns by `differs` and then by name, and shows the first five; of the metrics it shows
the first five in the order given. So a column's name begins with its rank, and its display name is what
people see.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tensorboard.plugins.hparams import api_pb2

from search.config.domain import ALL_WORD, PerStrategy, Range
from search.config.sections import SETTINGS
from search.config.study import StudyConfig
from search.suggest.baselines import BASELINES
from search.suggest.question import count_frozen
from search.suggest.space import FIELDS
from search.views.tensorboard.events import fill

FRONT = tuple(name for name, setting in SETTINGS.items() if setting.shown)
"""Fields of the first columns, whether they are searched or not."""
BEST = "work/best "
"""Prefix of the tag with the best value so far of the study's metric."""
BEST_EPOCH, TRAINED = "work/best epoch", "work/seconds trained"
OBJECTIVE, ON_FRONT = "objective/", "objective/on the front"
"""Prefix of the tags of what a trial costs, and tag that is 1 on the Pareto front and 0 beside it."""
OF_WORK = {"learning_rate": "work/learning rate", "images_per_second": "work/images per second"}
"""Tags of an epoch's metrics about the work: TensorBoard sorts them behind `train/...` and `val/...`."""


class Columns:
    """The columns of a study's trials.

    Args:
        config: the study's config.
    """

    def __init__(self, config: StudyConfig) -> None:
        said = {**dict(config.data), **dict(config.model), **dict(config.space)}
        # Without texts or clips there are no columns about them.
        fields = [f for f in FIELDS if f not in SETTINGS or SETTINGS[f].needs in config.parts]
        self.measured = config.study.goal.measured
        """Quantities that the study measures of each trial."""
        self._has_front = bool(config.study.objectives)
        self._domains = {field: said[field] for field in fields}
        self._blocks, self.metric = config.blocks, config.study.metric
        front = [field for field in FRONT if field in fields]
        front += ["backbone"] if len(config.backbones) > 1 else []
        others = [field for field in fields if field not in front]
        searched = [field for field in others if _is_searched(self._domains[field])]
        self._differ = (*front, *searched)
        ranked = (*self._differ, *(field for field in others if field not in searched))
        self._names = {field: f"{rank:02d}.{field}" for rank, field in enumerate(ranked, 1)}
        self._kinds = {field: self._kind(field) for field in ranked}

    def values(self, params: Mapping[str, Any]) -> dict[str, bool | float | str]:
        """Return a trial's parameters by column, without those that it does not use.

        `frozen_layers` is a number of blocks everywhere, so that it can be filtered and drawn on an axis.
        """
        return {
            self._names.get(field, field): self._plain(field, value, params)
            for field, value in params.items()
            if value is not None
        }

    def run_name(self, trial_id: str, params: Mapping[str, Any], baseline: str | None = None) -> str:
        """Return the name of a trial's run, such as `0008-fuse-lr.035-mobilenet_v2`."""
        rate = params.get("learning_rate")
        parts = [
            trial_id.removeprefix("trial-"),
            baseline or params.get("strategy"),
            None if rate is None else "lr" + f"{rate:.2g}".removeprefix("0"),
            params.get("backbone"),
        ]
        return "-".join(re.sub(r"[^\w.+-]", "_", str(part)) for part in parts if part)

    def experiment(self) -> api_pb2.Experiment:
        """Return the columns for TensorBoard: parameters, then metrics with the study's own first."""
        return api_pb2.Experiment(
            hparam_infos=[self._info(field) for field in self._names], metric_infos=self._metrics()
        )

    def _info(self, field: str) -> api_pb2.HParamInfo:
        info = api_pb2.HParamInfo(
            name=self._names[field],
            display_name=field.replace("_", " "),
            type=self._kinds[field],
            differs=field in self._differ,
        )
        values = self._possible(field)
        if info.type == api_pb2.DATA_TYPE_FLOAT64:
            info.domain_interval.min_value, info.domain_interval.max_value = min(values), max(values)
        else:
            for value in sorted(set(values), key=str):
                fill(info.domain_discrete.values.add(), value)
        return info

    def _kind(self, field: str) -> int:
        """Return TensorBoard's type of a field, of which all possible values are."""
        kinds = {type(value) for value in self._possible(field, plain=False)}
        if kinds == {bool}:
            return int(api_pb2.DATA_TYPE_BOOL)
        return int(api_pb2.DATA_TYPE_FLOAT64 if kinds <= {int, float} else api_pb2.DATA_TYPE_STRING)

    def _possible(self, field: str, *, plain: bool = True) -> list[Any]:
        """Return values that a trial may have: all of a list, the ends of a range."""
        values = list(_values(self._domains[field]))
        values += [settings[field] for settings in BASELINES.values() if field in settings]
        if field == "frozen_layers":
            values = [self._frozen(value, blocks) for value in values for blocks in self._blocks.values()]
        known = [value for value in values if value is not None]
        return [self._typed(field, value) for value in known] if plain else known

    def _plain(self, field: str, value: Any, params: Mapping[str, Any]) -> bool | float | str:
        if field == "frozen_layers" and params.get("backbone") in self._blocks:
            value = self._frozen(value, self._blocks[params["backbone"]])
        return self._typed(field, value)

    def _typed(self, field: str, value: Any) -> bool | float | str:
        """Return a value as the column's type: one text among numbers makes all of them texts."""
        texts = self._kinds.get(field) == api_pb2.DATA_TYPE_STRING
        return str(value) if texts else value

    @staticmethod
    def _frozen(value: Any, blocks: int) -> int:
        return blocks if value == ALL_WORD or value == -1 else count_frozen(value, blocks)

    def _metrics(self) -> list[api_pb2.MetricInfo]:
        name = self.metric
        shown = {
            f"{BEST}{name}": f"best {name}",
            BEST_EPOCH: "best epoch",
            name: f"last {name}",
            "train/loss": "last train/loss",
            TRAINED: "seconds trained",
        }
        costs = {f"{OBJECTIVE}{name}": name for name in self.measured}
        costs |= {ON_FRONT: "on the front"} if self._has_front else {}
        shown = {f"{BEST}{name}": shown.pop(f"{BEST}{name}")} | costs | shown
        more = [f"val/{other}" for other in ("loss", "accuracy", "balanced_accuracy", "macro_f1", "ece")]
        shown |= {tag: f"last {tag}" for tag in more if tag != name}
        shown |= {tag: tag.removeprefix("work/") for tag in OF_WORK.values()}
        return [
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=text)
            for tag, text in shown.items()
        ]


def _is_searched(domain: Any) -> bool:
    parts = [value for _, value in domain] if isinstance(domain, PerStrategy) else [domain]
    return any(isinstance(part, tuple | Range) for part in parts) or len(set(map(str, parts))) > 1


def _values(domain: Any) -> Iterable[Any]:
    if isinstance(domain, PerStrategy):
        for _, part in domain:
            yield from _values(part)
    elif isinstance(domain, Range):
        yield from (domain.low, domain.high)
    elif isinstance(domain, tuple):
        yield from domain
    else:
        yield domain
