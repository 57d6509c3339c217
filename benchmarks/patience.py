"""Replay recorded trials and end the study by its patience: the cost that saves, and the score that loses.

    python -m benchmarks.patience ../shared/material/hpo/medquicktune

Trials come in random order, each with its best recorded epoch. What is lost is counted in standard errors of
the validation score, against the best of all the trials of the same order.
"""

import argparse
import csv
import random
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from search.suggest import patience


def recorded(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Return the best score in 0..1 and the cost in seconds of each recorded trial, by data set."""

    def rows(name: str) -> dict[str, dict[str, str]]:
        with (folder / name).open(newline="") as file:
            return {next(iter(row.values())): row for row in csv.DictReader(file)}

    curves, costs, about = rows("curve.csv"), rows("cost.csv"), rows("meta.csv")
    found = defaultdict(list)
    for key, curve in curves.items():
        scores = [float(value) for value in list(curve.values())[1:] if value]
        seconds = [float(value) for value in list(costs[key].values())[1:] if value]
        found[about[key]["dataset"]].append((max(scores) / 100, sum(seconds)))
    return found


def replay(trials: list[tuple[float, float]], images: int) -> tuple[float, float]:
    """Return the share of the cost that patience saves, and the standard errors that it loses."""
    count = len(trials)
    for ended in range(1, count + 1):
        so_far = [("", score) for score, _ in trials[:ended]]
        if ended == count or patience.is_enough(so_far, images, count - ended):
            break
    whole, best = sum(cost for _, cost in trials), max(score for score, _ in trials)
    saved = 1 - sum(cost for _, cost in trials[:ended]) / whole
    lost = best - max(score for _, score in so_far)
    return saved, lost / patience.standard_error(best, images)


def main() -> None:
    """Print a line for each number of validation images."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("records", type=Path)
    options.add_argument("--trials", type=int, default=50)
    options.add_argument("--orders", type=int, default=40)
    given = options.parse_args()
    sets = recorded(given.records)
    for images in (150, 300, 1000):
        draw = random.Random(0)
        found = [
            replay(draw.sample(trials, min(given.trials, len(trials))), images)
            for trials in sets.values()
            for _ in range(given.orders)
        ]
        saved, lost = (fmean(values) for values in zip(*found, strict=True))
        print(f"{images:5} images: saves {saved:.2f} of the cost, loses {lost:.2f} standard errors")


if __name__ == "__main__":
    main()
