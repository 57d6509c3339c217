"""Tables of recorded trainings, and a surrogate that extends each to its whole search space.

A folder of tables holds `config.csv` (one row per training), `curve.csv` (its validation score after each
epoch) and, if there are any, `cost.csv` (its seconds). All share the index in their first column. The column
`dataset` of `config.csv`, or else of `meta.csv`, says which task a row belongs to. A folder that holds such
folders is read as one collection; without a column `dataset` each of its folders is a task.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from sklearn.ensemble import ExtraTreesRegressor

TREES = 100
CHUNK = 256
SAMPLED = 2000
"""Random configurations among which, besides the recorded ones, a task's best and worst are sought."""

Config = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """One searched hyperparameter."""

    distribution: BaseDistribution
    needs: tuple[str, frozenset[Any]] | None
    """Another field, and its values with which this one is used; None: always used."""


@dataclass(frozen=True)
class Tables:
    """Recorded trainings on several tasks in one search space."""

    name: str
    fields: Mapping[str, Field]
    """Fields by name, each after the one that it needs."""
    tasks: tuple[str, ...]
    configs: tuple[Config, ...]
    task_of: np.ndarray
    """Position in `tasks` of each row."""
    curves: np.ndarray
    """Score of each row after each epoch, larger is better: (rows, epochs)."""
    seconds: np.ndarray
    """Seconds of one epoch of each row."""

    @property
    def epochs(self) -> int:
        """Number of epochs of a full training."""
        return int(self.curves.shape[1])

    def suggest(self, trial: optuna.Trial) -> Config:
        """Ask Optuna for every field that is used."""
        config: Config = {}
        for name, field in self.fields.items():
            if field.needs is None or config.get(field.needs[0]) in field.needs[1]:
                config[name] = trial._suggest(name, field.distribution)
        return config

    def encode(self, configs: Sequence[Config]) -> np.ndarray:
        """Return the configurations as numbers from 0 to 1, -1 where a field is not used: (rows, columns)."""
        columns = []
        for name, field in self.fields.items():
            spread = field.distribution
            given = [config.get(name) for config in configs]
            if isinstance(spread, CategoricalDistribution):
                for choice in spread.choices:
                    columns.append([-1.0 if v is None else float(v == choice) for v in given])
            elif isinstance(spread, FloatDistribution | IntDistribution):
                low, high = (np.log(end) if spread.log else end for end in (spread.low, spread.high))
                numbers = [
                    -1.0 if v is None else ((np.log(v) if spread.log else v) - low) / max(high - low, 1e-12)
                    for v in given
                ]
                columns.append(numbers)
        return np.array(columns, dtype=np.float64).T

    def random(self, count: int, seed: int) -> list[Config]:
        """Return random configurations."""
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        return [self.suggest(study.ask()) for _ in range(count)]


class Surrogate:
    """Extremely randomised trees from a configuration and a task to its curve and its seconds per epoch.

    Args:
        tables: the recorded trainings.
        without: task whose rows are left out, for what may not know it.
        seed: of the trees.
    """

    def __init__(self, tables: Tables, *, without: int | None = None, seed: int = 0) -> None:
        self.tables = tables
        kept = np.ones(len(tables.configs), bool) if without is None else tables.task_of != without
        rows = self._rows(tables.encode(tables.configs), tables.task_of)[kept]
        wanted = np.hstack([tables.curves, np.log(tables.seconds)[:, None]])[kept]
        forest = ExtraTreesRegressor(TREES, min_samples_leaf=2, random_state=seed, n_jobs=1).fit(rows, wanted)
        self._stack([tree.tree_ for tree in forest.estimators_])

    def _rows(self, encoded: np.ndarray, task: Any) -> np.ndarray:
        one_hot = np.eye(len(self.tables.tasks))[np.broadcast_to(task, len(encoded))]
        return np.hstack([encoded, one_hot])

    def _stack(self, trees: Sequence[Any]) -> None:
        """Lay all trees into common arrays: scikit-learn's own prediction of one row costs milliseconds."""
        starts = np.cumsum([0, *(tree.node_count for tree in trees)])
        self._roots = starts[:-1]
        shifted = [
            (np.where(t.children_left < 0, np.arange(t.node_count), t.children_left) + start,
             np.where(t.children_left < 0, np.arange(t.node_count), t.children_right) + start)
            for t, start in zip(trees, starts, strict=False)
        ]  # fmt: skip
        self._left = np.concatenate([left for left, _ in shifted])
        self._right = np.concatenate([right for _, right in shifted])
        self._feature = np.concatenate([np.maximum(tree.feature, 0) for tree in trees])
        self._threshold = np.concatenate([tree.threshold for tree in trees])
        self._values = np.concatenate([tree.value[:, :, 0] for tree in trees])
        self._depth = max(tree.max_depth for tree in trees)

    def predict(self, configs: Sequence[Config], task: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the curves (rows, epochs) and the seconds of an epoch (rows) on a task."""
        rows = self._rows(self.tables.encode(configs), task).astype(np.float32)
        found = np.vstack([self._walk(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)])
        return found[:, :-1], np.exp(found[:, -1])

    def _walk(self, rows: np.ndarray) -> np.ndarray:
        at = np.tile(self._roots, (len(rows), 1))
        which = np.arange(len(rows))[:, None]
        for _ in range(self._depth):
            goes = rows[which, self._feature[at]] <= self._threshold[at]
            at = np.where(goes, self._left[at], self._right[at])
        mean: np.ndarray = self._values[at].mean(axis=1)
        return mean

    def ends(self, task: int) -> tuple[float, float]:
        """Return the best and the worst score of any configuration at its best epoch."""
        configs = [*self.tables.configs, *self.tables.random(SAMPLED, seed=task)]
        best = self.predict(configs, task)[0].max(axis=1)
        return float(best.max()), float(best.min())


def load(folder: Path) -> Tables:
    """Return the collection in a folder.

    Raises:
        ValueError: there is no table in the folder.
    """
    folders = [f.parent for f in sorted({*folder.glob("config.csv"), *folder.glob("*/config.csv")})]
    if not folders:
        raise ValueError(f"{folder}: a folder of tables must hold config.csv, got none. Name another folder.")
    rows = [row for one in folders for row in _rows(one)]
    configs, tasks, curves, costs = zip(*rows, strict=True)
    fields = _fields(configs)
    names = tuple(dict.fromkeys(tasks))
    values = np.array(curves, dtype=float)
    return Tables(
        folder.name,
        fields,
        names,
        tuple({name: c[name] for name in fields if c[name] is not None} for c in configs),
        np.array([names.index(task) for task in tasks]),
        values / (100.0 if values.max() > 1.5 else 1.0),
        np.maximum(np.array(costs, dtype=float), 1e-3) / values.shape[1],
    )


def _rows(folder: Path) -> list[tuple[Config, str, list[float], float]]:
    """Return configuration, task, curve and seconds of each row of one folder."""
    said = {name: _read(folder / f"{name}.csv") for name in ("config", "curve", "cost", "meta")}
    found = []
    for index, config in said["config"].items():
        meta = said["meta"].get(index, {})
        task = config.pop("dataset", None) or meta.get("dataset") or folder.name
        curve = [float(value) for value in said["curve"][index].values() if value != ""]
        seconds = float(next(iter(said["cost"].get(index, {"": str(len(curve))}).values())))
        found.append(({name: _value(text) for name, text in config.items()}, str(task), curve, seconds))
    epochs = max(len(curve) for _, _, curve, _ in found)
    return [(c, task, curve + curve[-1:] * (epochs - len(curve)), s) for c, task, curve, s in found]


def _read(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    index = next(iter(rows[0]))
    return {row[index]: {name: text for name, text in row.items() if name != index} for row in rows}


def _value(text: str) -> Any:
    if text == "":
        return None
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return int(number) if number == int(number) and abs(number) >= 1 else number
    return text


def _fields(configs: Sequence[Config]) -> dict[str, Field]:
    """Return the columns that vary, with distributions and conditions read off the values."""
    columns = {name: [config[name] for config in configs] for name in configs[0]}
    whole: dict[str, Field] = {}
    partly: dict[str, Field] = {}
    for name, values in columns.items():
        given = {value for value in values if value is not None}
        if len(given) < 2:
            continue
        if None not in values:
            whole[name] = Field(_distribution(given), None)
            continue
        for other, others in columns.items():
            used = {o for o, value in zip(others, values, strict=True) if value is not None}
            unused = {o for o, value in zip(others, values, strict=True) if value is None}
            if None not in others and len(used | unused) <= 20 and not used & unused:
                partly[name] = Field(_distribution(given), (other, frozenset(used)))
                break
    return whole | partly


def _distribution(values: set[Any]) -> BaseDistribution:
    if any(isinstance(value, str | bool) for value in values):
        return CategoricalDistribution(sorted(values, key=str))
    low, high = min(values), max(values)
    # They were drawn on the scale on which their mean lies nearer to the middle.
    numbers = np.array(list(values), float)
    log = low > 0 and len(values) > 10 and _off(np.log(numbers)) < _off(numbers)
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _off(numbers: np.ndarray) -> float:
    """Return how far the mean lies from the middle of the range, in ranges."""
    return float(abs((numbers.mean() - numbers.min()) / np.ptp(numbers) - 0.5))
