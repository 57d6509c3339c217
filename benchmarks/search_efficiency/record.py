"""Record a folder of tables in minutes: small networks on scikit-learn's data sets, offline.

`python -m benchmarks.search_efficiency.record FOLDER` trains the same random configurations of a multilayer
perceptron on each task, so the tables show what carries over from task to task. They are small and only a
second opinion beside tables of real trainings.
"""

import argparse
import csv
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

EPOCHS = 27
MOST = 1200
"""Rows of a task."""


def tasks() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return inputs and labels of each task."""
    images, digit = datasets.load_digits(return_X_y=True)
    found = {
        "digits": (images, digit),
        "digits-low": (images[digit < 5], digit[digit < 5]),
        "digits-high": (images[digit >= 5], digit[digit >= 5]),
        "digits-odd": (images, digit % 2),
        "breast": datasets.load_breast_cancer(return_X_y=True),
        "wine": datasets.load_wine(return_X_y=True),
    }
    for seed, (classes, useful) in enumerate(((2, 5), (4, 8), (8, 12), (3, 4))):
        found[f"made-{classes}"] = datasets.make_classification(
            MOST, 20, n_informative=useful, n_classes=classes, flip_y=0.05, random_state=seed
        )
    return found


def configs(count: int) -> list[dict[str, Any]]:
    """Return random configurations, the same for each task."""
    draw = np.random.default_rng(0)
    return [
        {
            "batch_size": int(2 ** draw.integers(4, 10)),
            "learning_rate": float(np.exp(draw.uniform(np.log(1e-4), np.log(0.3)))),
            "momentum": float(draw.uniform(0.1, 0.99)),
            "weight_decay": float(np.exp(draw.uniform(np.log(1e-5), np.log(1.0)))),
            "layers": int(draw.integers(1, 5)),
            "units": int(np.exp(draw.uniform(np.log(8), np.log(192)))),
            "activation": str(draw.choice(["relu", "tanh"])),
        }
        for _ in range(count)
    ]


def curve(config: dict[str, Any], data: Sequence[np.ndarray]) -> tuple[list[float], float]:
    """Train one configuration; return its accuracy after each epoch and its seconds of processor time."""
    train, val, labels, wanted = data
    began = time.process_time()
    network = MLPClassifier(
        (config["units"],) * config["layers"], activation=config["activation"], solver="sgd",
        alpha=config["weight_decay"], batch_size=min(config["batch_size"], len(train)),
        learning_rate_init=config["learning_rate"], momentum=config["momentum"], random_state=0,
    )  # fmt: skip
    scores = []
    for _ in range(EPOCHS):
        try:
            network.partial_fit(train, labels, classes=np.unique(labels))
            scores.append(float(network.score(val, wanted)))
        except ValueError:  # its weights are no longer finite
            scores.append(0.0)
    return scores, time.process_time() - began


def main() -> None:
    """Record the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--configs", type=int, default=80, help="configurations of each task")
    asked = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", RuntimeWarning)
    rows: list[tuple[dict[str, Any], list[float], float]] = []
    for name, (inputs, labels) in tasks().items():
        chosen = np.random.default_rng(0).permutation(len(labels))[:MOST]
        parts = train_test_split(
            inputs[chosen], labels[chosen], test_size=0.3, random_state=0, stratify=labels[chosen]
        )
        scale = StandardScaler().fit(parts[0])
        data = (scale.transform(parts[0]), scale.transform(parts[1]), parts[2], parts[3])
        for config in configs(asked.configs):
            rows.append(({"dataset": name, **config}, *curve(config, data)))
        print(f"{name}: best {max(max(c) for r, c, _ in rows if r['dataset'] == name):.3f}", flush=True)
    asked.folder.mkdir(parents=True, exist_ok=True)
    _write(asked.folder / "config.csv", [config for config, _, _ in rows])
    _write(asked.folder / "curve.csv", [dict(enumerate(scores)) for _, scores, _ in rows])
    _write(asked.folder / "cost.csv", [{"cost": seconds} for _, _, seconds in rows])


def _write(path: Path, rows: Sequence[dict[Any, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["", *rows[0]])
        table.writerows([number, *row.values()] for number, row in enumerate(rows))


if __name__ == "__main__":
    main()
