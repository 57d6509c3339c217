"""Write the record of a study that nobody trained, of any size, to measure and test what shows a study.

Scores follow a formula with noise, so that curves, importances and ranks look like those of a real search.
"""

import math
import random
from pathlib import Path
from typing import Any

import optuna

from search.config.study import StudyConfig
from search.record.ledger import Ledger
from search.record.study_folder import StudyFolder, write_text
from search.suggest.space import Space

CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")


def write(
    root: Path,
    trials: int,
    *,
    epochs: int = 8,
    seed: int = 0,
    classes: tuple[str, ...] = CLASSES,
    **more: Any,
) -> StudyFolder:
    """Write a results folder with a finished study and return it.

    Args:
        root: new folder.
        trials: number of trials; the first is the recipe, the second is scratch.
        epochs: epochs of a full trial.
        seed: seed of all scores.
        classes: names of the classes.
        more: facts of the study that replace those made here.
    """
    folder = StudyFolder(root)
    root.mkdir(parents=True)
    config = StudyConfig.from_dict(
        {
            "study": {"name": root.name, "trials": trials, "epochs": epochs},
            "data": {"path": str(root / "images"), "image_size": 128},
            "model": {"backbone": "mobilenet_v2"},
            "space": {"strategy": ["replace", "load", "fuse"], "head_size": [0, 64, 256, 1024]},
        }
    )
    write_text(folder.config, config.to_yaml())
    space, draw = Space(config), random.Random(seed)
    ledger = Ledger(folder.database, mode="max", sampler=optuna.samplers.RandomSampler(seed))
    for number in range(trials):
        baseline = ("recipe", "scratch")[number] if number < 2 else None
        _trial(ledger, space, draw, baseline, epochs=epochs, classes=classes)
    images = {"train": 1000, "val": 300, "test": 412}
    provenance = {"seed": seed, "images": images, "skipped": [], "versions": {"python": "3.11.7"}}
    facts = {"state": "finished", "seconds": 0.4 * trials, "provenance": provenance} | more
    for name, fact in facts.items():
        ledger.set_fact(name, fact)
    ledger.close()
    return folder


def _trial(
    ledger: Ledger,
    space: Space,
    draw: random.Random,
    baseline: str | None,
    *,
    epochs: int,
    classes: tuple[str, ...],
) -> None:
    trial = ledger.ask()
    number = trial.number
    params = space.baseline(baseline) if baseline else space.suggest(trial)
    goal = _goal(params, baseline) + draw.gauss(0, 0.012)
    failed = number > 2 and draw.random() < 0.03
    lags = baseline is None and goal < 0.72 and draw.random() < 0.8
    end = 0 if failed else 2 if lags else epochs
    facts = {"params": params} | ({"baseline": baseline} if baseline else {})
    ledger.suggested(number, facts)
    history = [_epoch(goal, epoch, epochs, draw, classes) for epoch in range(1, end + 1)]
    for epoch in history:
        ledger.report(number, int(epoch["epoch"]), epoch["val/accuracy"])
    best = max(history, key=lambda epoch: epoch["val/accuracy"], default={})
    state = "FAIL" if failed else "PRUNED" if lags else "COMPLETE"
    ended = {
        "metrics": {"best": best, "last": history[-1] if history else {}},
        "epochs": end,
        "seconds": round(sum(epoch["seconds"] for epoch in history) + 0.1, 3),
        "slot": f"slot-{number % 2}",
        "effective": {"frozen_blocks": 19 if params["frozen_layers"] == -1 else params["frozen_layers"]},
        "history": history,
    }
    if failed:
        rate = params["learning_rate"]
        ended["error"] = (
            f"epoch 1: the training loss must stay finite, got nan. Lower learning_rate ({rate:.3g})"
        )
    ledger.end(number, state, best.get("val/accuracy"), ended)


def _goal(params: dict[str, Any], baseline: str | None) -> float:
    """Return the accuracy that a setting tends to."""
    if baseline == "scratch":
        return 0.52
    of_strategy = {"replace": 0.80, "load": 0.77, "fuse": 0.86}[params["strategy"]]
    off = math.log10(params["learning_rate"]) + 2.0
    of_head = 0.01 * math.log2(1 + params.get("head_size", 0)) / 10
    return float(of_strategy + of_head - 0.05 * off * off)


def _epoch(
    goal: float, epoch: int, epochs: int, draw: random.Random, classes: tuple[str, ...]
) -> dict[str, float]:
    accuracy = min(0.999, max(0.05, goal * (1 - math.exp(-1.1 * epoch)) + draw.gauss(0, 0.006)))
    scores = {
        "epoch": float(epoch),
        "train/loss": 1.6 * math.exp(-0.6 * epoch) + 0.2,
        "val/loss": 1.9 * (1 - accuracy) + 0.1,
        "val/accuracy": accuracy,
        "val/balanced_accuracy": accuracy - 0.004,
        "val/macro_f1": accuracy - 0.006,
        "val/ece": 0.04,
        "learning_rate": 0.01 * (1 + math.cos(math.pi * epoch / epochs)) / 2,
        "seconds": 0.15,
        "images_per_second": 6600.0,
    }
    return scores | {
        f"val/recall/{name}": min(1.0, max(0.0, accuracy + draw.gauss(0, 0.03))) for name in classes
    }
