"""Compare ways to search on recorded curves: `python -m benchmarks.search_efficiency --replay FOLDER...`.

Each method searches each task several times with the product's own parts (simulate.py). Regret is the
distance of the best score so far to the best of the task, as a share of the distance between its best and its
worst. Differences to the first method are paired by task and seed; their intervals (95 %) resample both.
"""

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from benchmarks import report
from benchmarks.search_efficiency import asking, tables
from benchmarks.search_efficiency.simulate import CHECKPOINTS, Method, Simulation
from benchmarks.search_efficiency.tables import Surrogate, Tables
from search.suggest import portfolio

SIZE = 8
METHODS = (
    Method("default", "auto", portfolio=SIZE, ahead=True),
    Method("no portfolio", "auto", ahead=True),
    Method("no early stopping", "auto", portfolio=SIZE, ahead=True, stopping="none"),
    Method("start-up of 3", "auto", portfolio=SIZE, ahead=True, start_up=3),
    Method("tpe", "tpe", portfolio=SIZE, ahead=True),
    Method("independent tpe", "tpe", portfolio=SIZE, ahead=True, multivariate=False),
    Method("random", "random", portfolio=SIZE, ahead=True),
    Method("start-up of 3, no portfolio", "auto", ahead=True, start_up=3),
    Method("tpe, no portfolio", "tpe", ahead=True),
    Method("independent tpe, no portfolio", "tpe", ahead=True, multivariate=False),
    Method("random, no portfolio", "random", ahead=True),
    Method("random alone", "random", ahead=True, stopping="none"),
    Method("start-up of 16", "auto", portfolio=SIZE, ahead=True, start_up=16),
    Method("grace of a quarter", "auto", portfolio=SIZE, ahead=True, grace=1 / 4),
    Method("no asking ahead", "auto", portfolio=SIZE),
)
RESAMPLED = 2000
"""Resamples of each interval."""


def main() -> None:
    """Print a table of regrets for each collection."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--replay", type=Path, nargs="+", metavar="FOLDER", help="folders of tables")
    said = "measure what a suggestion costs after so many trials, such as 100 1000 10000"
    which.add_argument("--ask", type=int, nargs="+", metavar="TRIALS", help=said)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--methods", nargs="+", help="names, the first to compare with; default: all")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    parser.add_argument("--keep", type=Path, help="folder in which searches are kept, to go on later")
    asked = parser.parse_args()
    if asked.ask:
        asking.main(asked.ask)
        return
    known = {method.name: method for method in METHODS}
    methods = [known[name] for name in asked.methods or known]
    for folder in asked.replay:
        collection = tables.load(folder)
        print(f"{collection.name}: {len(collection.tasks)} tasks, {len(collection.configs)} trainings of "
              f"{collection.epochs} epochs, {asked.seeds} seeds, load {os.getloadavg()}")  # fmt: skip
        jobs = [(str(folder), m, task, seed) for seed in range(asked.seeds)
                for task in range(len(collection.tasks)) for m in methods]  # fmt: skip
        with ProcessPoolExecutor(asked.processes) as pool:
            kept = [str(asked.keep)] * len(jobs) if asked.keep else [""] * len(jobs)
            found = dict(zip(jobs, pool.map(_search, jobs, kept), strict=True))
        show(methods, {m: _gather(found, m, len(collection.tasks), asked.seeds) for m in methods})


def _gather(found: dict[Any, list[list[float]]], method: Method, tasks: int, seeds: int) -> np.ndarray:
    """Return regrets as (tasks, seeds, by trainings or cost, checkpoints)."""
    values = {(task, seed): regret for (_, m, task, seed), regret in found.items() if m == method}
    return np.array([[values[task, seed] for seed in range(seeds)] for task in range(tasks)])


def show(methods: Sequence[Method], regrets: dict[Method, np.ndarray]) -> None:
    """Print regrets, and their differences to the first method."""
    rows, last = [], {}
    first = regrets[methods[0]]
    for method in methods:
        mean = regrets[method].mean(axis=(0, 1))
        off = regrets[method] - first
        better = int((off[:, :, 0, -1].mean(axis=1) < 0).sum())
        early, late = (interval(off[:, :, 0, place]) for place in (0, -1))
        rows.append((
            method.name, *(f"{value:.3f}" for value in mean[0]), *(f"{value:.3f}" for value in mean[1]),
            _said(off[:, :, 0, 0], early), _said(off[:, :, 0, -1], late), f"{better}/{len(off)}",
        ))  # fmt: skip
        last[method.name] = {
            "trainings": mean[0].tolist(),
            "cost": mean[1].tolist(),
            "intervals": [early, late],
        }
    heads = [str(count) for count in CHECKPOINTS]
    costs = [f"cost {count}" for count in CHECKPOINTS]
    report.table(("method", *heads, *costs, "minus first at 5", "at 50", "better tasks"), rows)
    report.last_line(last)


def _said(values: np.ndarray, ends: tuple[float, float]) -> str:
    return f"{values.mean():+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}]"


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean of values (tasks, seeds), both resampled."""
    draw = np.random.default_rng(0)
    tasks, seeds = values.shape
    means = [
        values[draw.integers(tasks, size=tasks)][:, draw.integers(seeds, size=seeds)].mean()
        for _ in range(RESAMPLED)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _search(job: tuple[str, Method, int, int], keep: str) -> list[list[float]]:
    """Run one search; return its regrets by trainings and by cost."""
    folder, method, task, seed = job
    file = Path(keep, f"{Path(folder).name}-{method.name}-{task}-{seed}.json".replace(" ", "_"))
    if keep and file.exists():
        kept: list[list[float]] = json.loads(file.read_text())
        return kept
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    surrogate, (best, worst), unit, first = _task(folder, task)
    own = seed * 1000 + task
    outcome = Simulation(surrogate, task, method, seed=own, first=first, unit=unit).run()
    regrets = [
        [(best - value) / (best - worst) for value in values]
        for values in (outcome.by_trainings, outcome.by_cost)
    ]
    if keep:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(regrets))
    return regrets


@lru_cache(maxsize=64)
def _task(folder: str, task: int) -> tuple[Surrogate, tuple[float, float], float, list[tables.Config]]:
    """Return the surrogate, the ends of the task, seconds of an average training, and its portfolio."""
    surrogate = _surrogate(folder)
    collection = surrogate.tables
    drawn = collection.random(200, seed=task)
    seconds = surrogate.predict(drawn, task)[1].mean() * collection.epochs
    return surrogate, surrogate.ends(task), float(seconds), _portfolio(collection, task)


@lru_cache(maxsize=2)
def _surrogate(folder: str) -> Surrogate:
    return Surrogate(tables.load(Path(folder)))


def _portfolio(collection: Tables, task: int) -> list[tables.Config]:
    """Return the configurations that a portfolio from all other tasks begins with."""
    others = [other for other in range(len(collection.tasks)) if other != task]
    blind = Surrogate(collection, without=task)
    candidates = [c for c, of in zip(collection.configs, collection.task_of, strict=True) if of != task]
    scores = np.stack([blind.predict(candidates, other)[0].max(axis=1) for other in others])
    return [candidates[i] for i in portfolio.greedy(scores, SIZE)]


if __name__ == "__main__":
    main()
