"""Replay searches of the product's own conditional space on recorded trials of real images.

    python -m benchmarks.search_efficiency.own compact RESULTS [--to TABLE]
    python -m benchmarks.search_efficiency.own replay [--table TABLE] [--seeds 20]

`compact` makes the table from what `own_space train` wrote: facts of each task, then settings, accuracies
after each epoch and seconds of each trial. `replay` searches each task with the product's space, chooser,
bandit, samplers, portfolio and early stopping. What a suggested trial would have given is said by extremely
randomised trees over the recorded trials of its strategy on all tasks (tables.Surrogate), not by its nearest
neighbour: that brings its own luck along, and a whole region of the space would share it. Strategies have
trees of their own, since their fields do not mean the same. The trees learn accuracies as shares of the way
from chance to the task's best recorded one, so that a leaf may mix tasks.

The trees are smooth, so noise is put back: what a search sees of an epoch is the trees' accuracy, an offset
of the trial and one of the epoch. Both have the spread that recorded accuracies have around their neighbours
in the second half of a training. A search is judged by the trees' accuracy of the trial that it would return.

Cost counts as in the bandit: an epoch that trains all blocks is one, and a full training is 8 of them.
Portfolios are made without the task's images, also where another backbone saw them.
"""

import argparse
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from benchmarks import report
from benchmarks.search_efficiency.tables import Field, Surrogate, Tables
from finetune.metrics import Objective
from search.config.study import StudyConfig
from search.record.ledger import Ledger
from search.suggest import portfolio, recorded
from search.suggest.chooser import HEAD_COST, Chooser, Planned
from search.suggest.models import samplers
from search.suggest.portfolio import EMPTY, Portfolio
from search.suggest.recorded import Task
from search.suggest.space import Space
from search.suggest.stopping import EarlyStopping, Rule

TABLE = Path(__file__).with_name("own_space.jsonl")
METRIC = "val/accuracy"
SAME = ("optimizer", "augment")
"""Fields that all recorded settings share."""
TRIALS = (4, 8, 16, 24)
"""Ended counted trials after which the choice is judged."""
COSTS = (1, 2, 4, 6)
"""Full trainings after whose cost the choice is judged."""
WORKERS = 2
HEAD_INITS = ("random", "exact")
DATA = {
    "flowers": "flowers5",
    "rose": "flowers5",
    "trash": "trashnet",
    "glass": "trashnet",
    "emoji": "twemoji",
}
"""First word of a task -> its images, where that is not their name."""


@dataclass(frozen=True)
class Way:
    """One way to search."""

    name: str
    sampler: str = "auto"
    bandit: bool = True
    """Whether the bandit chooses strategies; else the sampler does."""
    first: str = "others"
    """`others`: a portfolio without these images; `shipped`; `starts`, one for each strategy; or `none`."""
    stopping: Rule = "asha"
    grace: int = 2
    start_up: int = samplers.START_UP
    multivariate: bool = True
    head_init: tuple[str, ...] = HEAD_INITS


WAYS = (
    Way("default"),
    Way("shipped portfolio", first="shipped"),
    Way("starts", first="starts"),
    Way("no first trials", first="none"),
    Way("no bandit", bandit=False),
    Way("tpe", sampler="tpe"),
    Way("independent tpe", sampler="tpe", multivariate=False),
    Way("random", sampler="random"),
    Way("starts, tpe", sampler="tpe", first="starts"),
    Way("starts, independent tpe", sampler="tpe", multivariate=False, first="starts"),
    Way("starts, random", sampler="random", first="starts"),
    Way("starts, no bandit", bandit=False, first="starts"),
    Way("random alone", sampler="random", bandit=False, first="none", stopping="none"),
    Way("random by asha", sampler="random", bandit=False, first="none"),
    Way("no early stopping", stopping="none"),
    Way("grace of 1", grace=1),
    Way("grace of 3", grace=3),
    Way("start-up of 4", start_up=4),
    Way("start-up of 16", start_up=16),
    Way("head_init random", head_init=("random",)),
    Way("head_init exact", head_init=("exact",)),
)


def space_of(backbone: str, trials: int, head_init: Sequence[str] = HEAD_INITS) -> Space:
    """Return the default space, with the first weights of heads under `fuse` searched or fixed."""
    config = {
        "study": {"name": "replay", "trials": trials, "epochs": 8},
        "data": {"path": "/images"},
        "model": {"backbone": backbone},
        "space": {"head_init": {"replace": "random", "load": "random", "fuse": list(head_init)}},
    }
    return Space(StudyConfig.from_dict(config))


def compact(results: Path, table: Path) -> None:
    """Write the table of recorded trials: a line of facts for each task, then a line for each trial."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    rows = [row for row in rows if row.get("scores")]
    tasks: dict[str, dict[str, Any]] = {}
    lines = []
    for row in sorted(rows, key=lambda row: (row["task"], row["number"])):
        values, facts = row["values"], row["facts"]
        classes = facts["classes"] if isinstance(facts["classes"], int) else len(facts["classes"])
        tasks[row["task"]] = {
            "task": row["task"], "data": DATA.get(row["task"].split("-")[0], row["task"].split("-")[0]),
            "backbone": values["backbone"], "images": facts["images"], "val_images": facts["val_images"],
            "classes": classes, "common": {name: values[name] for name in SAME},
        }  # fmt: skip
        share = space_of(values["backbone"], 24).trained_share(values)
        setting = {n: v for n, v in recorded.setting_of(values, share).items() if n not in SAME}
        scores = [epoch[METRIC] for epoch in row["scores"]]
        if any(score is None or not math.isfinite(score) for score in scores):
            continue
        lines.append({
            "task": row["task"], "setting": setting, "scores": [round(score, 4) for score in scores],
            "seconds": round(row["seconds"], 2),
        })  # fmt: skip
    said = [json.dumps(line, separators=(",", ":")) for line in (*tasks.values(), *lines)]
    table.write_text("\n".join(said) + "\n", encoding="utf-8")
    print(f"{table}: {len(tasks)} tasks, {len(lines)} trials, {table.stat().st_size} bytes")


class Recording:
    """The recorded trials, and trees that say what any other trial would have given."""

    def __init__(self, table: Path) -> None:
        self.tasks: list[Task] = recorded.tasks(table)
        self.epochs = max(len(curve) for task in self.tasks for curve in task.curves)
        self._levels = [(1 / task.classes, max(max(curve) for curve in task.curves)) for task in self.tasks]
        self._backbones = sorted({task.backbone for task in self.tasks})
        strategies = {setting["strategy"] for task in self.tasks for setting in task.settings}
        self._trees = {strategy: Surrogate(self._of(strategy)) for strategy in sorted(strategies)}
        self._ends: dict[int, float] = {}

    def _of(self, strategy: str) -> Tables:
        rows = [
            (self._config(setting, number), number, self._shares(curve, number), seconds / len(curve))
            for number, task in enumerate(self.tasks)
            for setting, curve, seconds in zip(task.settings, task.curves, task.seconds, strict=True)
            if setting["strategy"] == strategy
        ]
        configs, of, curves, seconds = zip(*rows, strict=True)
        fields = {
            name: Field(FloatDistribution(*ends, log=name == "learning_rate"), None)
            for name in configs[0]
            if (ends := (min(c[name] for c in configs), max(c[name] for c in configs)))[0] < ends[1]
        }
        names = tuple(task.name for task in self.tasks)
        return Tables(strategy, fields, names, configs, np.array(of), np.array(curves), np.array(seconds))

    def _shares(self, curve: Sequence[float], task: int) -> np.ndarray:
        """Return a curve as shares of the way from chance to the task's best."""
        low, high = self._levels[task]
        whole = np.pad(np.array(curve), (0, self.epochs - len(curve)), mode="edge")
        return np.asarray((whole - low) / (high - low))

    def _config(self, setting: Mapping[str, Any], task: int) -> dict[str, float]:
        """Return a setting as numbers."""
        return {
            "backbone": float(self._backbones.index(self.tasks[task].backbone)),
            "learning_rate": setting["learning_rate"],
            "frozen_layers": setting["frozen_layers"],
            "head_size": math.log2(1 + setting.get("head_size", 0)),
            "backbone_rate": setting.get("backbone_rate", 1.0),
            "head_init": float(setting.get("head_init") == "exact"),
        }

    def curve(self, setting: Mapping[str, Any], task: int) -> tuple[np.ndarray, float]:
        """Return the accuracy after each epoch without luck, and the seconds of an epoch."""
        curves, seconds = self._trees[setting["strategy"]].predict([self._config(setting, task)], task)
        low, high = self._levels[task]
        return low + (high - low) * curves[0], float(seconds[0])

    def best(self, task: int) -> float:
        """Return the best accuracy of any setting that was recorded with the task's backbone."""
        if task not in self._ends:
            backbone = self.tasks[task].backbone
            settings = [s for other in self.tasks if other.backbone == backbone for s in other.settings]
            self._ends[task] = max(float(self.curve(s, task)[0].max()) for s in settings)
        return self._ends[task]

    def jitter(self, task: int) -> float:
        """Return the standard deviation of an epoch around its neighbours, late in a training."""
        half = self.epochs // 2
        late = np.array([curve[half:] for curve in self.tasks[task].curves if len(curve) == self.epochs])
        apart = late[:, 1:-1] - (late[:, :-2] + late[:, 2:]) / 2
        return float(np.sqrt((apart**2).mean() / 1.5))


class _Book:
    """A ledger in memory alone."""

    def __init__(self, sampler: optuna.samplers.BaseSampler) -> None:
        self.objective = Objective(METRIC)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self.open: set[int] = set()

    @property
    def trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def ask(self, enqueued: Mapping[str, Any] | None = None) -> optuna.Trial:
        if enqueued is not None:
            self._study.enqueue_trial(dict(enqueued))
        trial = self._study.ask()
        self.open.add(trial.number)
        return trial

    def is_open(self, number: int) -> bool:
        return number in self.open

    def end(self, trial: optuna.Trial, value: float | None) -> None:
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        self._study.tell(trial, value, state)
        self.open.discard(trial.number)


@dataclass
class Search:
    """One search of one task.

    Args:
        recording: says how each trial trains.
        task: position of the task.
        way: the way to search.
        seed: of the sampler and the noise.
        noise: factor of the recorded noise.
    """

    recording: Recording
    task: int
    way: Way
    seed: int
    noise: float = 1.0
    by_trials: list[float] = field(default_factory=list)
    by_cost: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        way, epochs = self.way, self.recording.epochs
        about = self.recording.tasks[self.task]
        self._space = space_of(about.backbone, TRIALS[-1], way.head_init)
        sampler = samplers.make(
            way.sampler, seed=self.seed, start_up=way.start_up, multivariate=way.multivariate
        )
        self.book = _Book(sampler)
        first = [
            Planned(params=params, counted=self._space.trains(params) or not way.bandit)
            for params in self._first(about)
        ]
        arms = self._space.arms if way.bandit else None
        self.chooser = Chooser(
            cast(Ledger, self.book), self._space, planned=first, sampled=500, epochs=epochs, arms=arms
        )
        self._stopping = EarlyStopping(
            objective=Objective(METRIC), epochs=epochs, grace=way.grace, factor=3, rule=way.stopping,
            strategy_of=lambda name: self._running[name].params["strategy"], number_of=int,
        )  # fmt: skip
        self._running: dict[str, Any] = {}
        self._draw = np.random.default_rng((self.seed, 7))
        self._jitter = self.noise * self.recording.jitter(self.task)
        self.cost, self.ended = 0.0, 0
        self.chosen = (-math.inf, 0.0)
        """Best score that was seen, and the accuracy behind it."""

    def _first(self, about: Task) -> list[dict[str, Any]]:
        if self.way.first == "none":
            return []
        found = EMPTY
        if self.way.first == "shipped":
            found = Portfolio.read()
        elif self.way.first == "others":
            found = without(self.recording, about.data)
        return portfolio.starts(self._space, found, about.situation, trials=TRIALS[-1])

    def run(self) -> "Search":
        """Search until every checkpoint is passed."""
        self.start()
        while len(self.by_trials) < len(TRIALS) or len(self.by_cost) < len(COSTS):
            self.step()
        return self

    def start(self) -> None:
        """Give each worker a trial."""
        for _ in range(WORKERS):
            self._begin(0.0)

    def step(self) -> None:
        """Train the epoch that ends next."""
        running = min(self._running.values(), key=lambda one: (one.next, one.trial.number))
        now = running.next
        if self._epoch(running):
            del self._running[running.trial_id]
            self._begin(now)
        else:
            running.next = now + running.seconds

    def _begin(self, now: float) -> None:
        chosen = self.chooser.take()
        assert chosen is not None
        chosen.trial.set_user_attr("params", chosen.params)
        setting = recorded.setting_of(chosen.params, self._space.trained_share(chosen.params))
        curve, seconds = self.recording.curve(setting, self.task)
        offsets = self._draw.normal(0, 1, 1 + len(curve)) * self._jitter
        self._running[str(chosen.trial.number)] = SimpleNamespace(
            trial=chosen.trial, trial_id=str(chosen.trial.number), params=chosen.params, curve=curve,
            seen=curve + offsets[0] + offsets[1:], seconds=seconds, next=now + seconds,
            counted=self._space.trains(chosen.params), epoch=0, best=-math.inf,
        )  # fmt: skip
        self.chooser.prepare()

    def note(self, running: Any) -> None:
        """Do nothing with a trial that has ended; for searches that are looked at more closely."""

    def _epoch(self, running: Any) -> bool:
        """Train one epoch, and return True if the trial ends with it."""
        value = float(running.seen[running.epoch])
        self.chosen = max(self.chosen, (value, float(running.curve[running.epoch])))
        running.epoch += 1
        running.best = max(running.best, value)
        self.cost += (HEAD_COST + self._space.trained_share(running.params)) / self.recording.epochs
        running.trial.report(value, running.epoch)
        ends = running.epoch == self.recording.epochs
        result = {"epoch": running.epoch, METRIC: value}
        stops = self._stopping.on_trial_result(None, running, result) == "STOP"
        if stops or ends:
            self._stopping.on_trial_complete(None, running, result)
            self.book.end(running.trial, running.best if ends else None)
            self.ended += running.counted
            self.note(running)
        for notes, done, at in ((self.by_trials, self.ended, TRIALS), (self.by_cost, self.cost, COSTS)):
            while len(notes) < len(at) and done >= at[len(notes)]:
                notes.append(self.chosen[1])
        return stops or ends


_MADE: dict[tuple[int, str], Portfolio] = {}


def without(recording: Recording, data: str) -> Portfolio:
    """Return the portfolio of all tasks but those with some images."""
    key = id(recording), data
    if key not in _MADE:
        studies = [study for task in recording.tasks if task.data != data if (study := task.recorded())]
        _MADE[key] = portfolio.made(studies)
    return _MADE[key]


@lru_cache(maxsize=1)
def _recording(table: str) -> Recording:
    return Recording(Path(table))


def _search(job: tuple[str, Way, int, int, float], keep: str) -> list[list[float]]:
    """Run one search; return its distances from the best by trials and by cost, in points."""
    table, way, task, seed, noise = job
    file = Path(keep, f"own-{way.name}-{task}-{seed}-{noise}.json".replace(" ", "_"))
    if keep and file.exists():
        kept: list[list[float]] = json.loads(file.read_text())
        return kept
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recording = _recording(table)
    done = Search(recording, task, way, seed * 1000 + task, noise).run()
    best = recording.best(task)
    found = [[100 * (best - value) for value in values] for values in (done.by_trials, done.by_cost)]
    if keep:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    return found


def replay(asked: argparse.Namespace) -> None:
    """Print the distances of each way from the best, and their differences to the first way."""
    known = {way.name: way for way in WAYS}
    ways = [known[name] for name in asked.ways or known]
    recording = _recording(str(asked.table))
    count = len(recording.tasks)
    print(f"{count} tasks, {sum(len(task.curves) for task in recording.tasks)} trials, {asked.seeds} seeds, "
          f"noise {asked.noise}, load {os.getloadavg()}")  # fmt: skip
    jobs = [(str(asked.table), way, task, seed, asked.noise)
            for seed in range(asked.seeds) for task in range(count) for way in ways]  # fmt: skip
    keep = [str(asked.keep or "")] * len(jobs)
    with ProcessPoolExecutor(asked.processes) as pool:
        found = dict(zip(jobs, pool.map(_search, jobs, keep), strict=True))
    values = {
        way.name: np.array([[found[str(asked.table), way, task, seed, asked.noise]
                             for seed in range(asked.seeds)] for task in range(count)])
        for way in ways
    }  # fmt: skip
    show(ways, values)


def show(ways: Iterable[Way], values: Mapping[str, np.ndarray]) -> None:
    """Print means of (tasks, seeds, by trials or cost, checkpoints), and differences to the first way."""
    from benchmarks.search_efficiency.__main__ import interval

    rows, last = [], {}
    first = next(iter(values.values()))
    for way in ways:
        mean, off = values[way.name].mean(axis=(0, 1)), values[way.name] - first
        said = []
        for kind, place in ((0, -1), (1, 1), (1, -1)):
            low, high = interval(off[:, :, kind, place])
            said.append(f"{off[:, :, kind, place].mean():+.2f} [{low:+.2f}, {high:+.2f}]")
        better = int((off[:, :, 1, -1].mean(axis=1) < 0).sum())
        rows.append((way.name, *(f"{v:.2f}" for v in mean.ravel()), *said, f"{better}/{len(off)}"))
        last[way.name] = {"trials": mean[0].tolist(), "cost": mean[1].tolist(), "differences": said}
    heads = (*(f"{n} trials" for n in TRIALS), *(f"cost {n}" for n in COSTS))
    ends = (f"minus first, {TRIALS[-1]} trials", f"cost {COSTS[1]}", f"cost {COSTS[-1]}", "better tasks")
    report.table(("way", *heads, *ends), rows)
    report.last_line(last)


def main() -> None:
    """Make the table, or replay searches on it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="what", required=True)
    making = parts.add_parser("compact")
    making.add_argument("results", type=Path)
    making.add_argument("--to", type=Path, default=TABLE)
    replaying = parts.add_parser("replay")
    replaying.add_argument("--table", type=Path, default=TABLE)
    replaying.add_argument("--seeds", type=int, default=20)
    replaying.add_argument("--noise", type=float, default=1.0)
    replaying.add_argument("--ways", nargs="+", help="names, the first to compare with; default: all")
    replaying.add_argument("--processes", type=int, default=1)
    replaying.add_argument("--keep", type=Path, help="folder in which searches are kept, to go on later")
    asked = parser.parse_args()
    if asked.what == "compact":
        compact(asked.results, asked.to)
    else:
        replay(asked)


if __name__ == "__main__":
    main()
