"""Write the record of a study that nobody trained, of any size, to measure and test what shows a study.

Scores follow a formula with noise, so that curves, importances and ranks look like those of a real search.
"""

import base64
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from PIL import Image

from search.config.study import StudyConfig
from search.record.ledger import Ledger
from search.record.reader import read_study
from search.record.records import StudyRecord, TrialRecord
from search.record.study_folder import StudyFolder, write_text
from search.suggest.space import Space
from search.verdict import contest
from search.verdict.paired import Runs
from search.verdict.words import Contestant, Verdict, verdict

FINDINGS = [
    {
        "grade": "warning",
        "check": "near_copies",
        "text": "images of two splits should differ, got 2 pairs that look nearly the same (0.7% of val). "
        "Look at them: a score on copies says nothing about new images.",
        "images": ["roses/7.jpg and roses/12.jpg", "tulips/3.jpg and tulips/9.jpg"],
        "count": 2,
    }
]
"""What `check` has said about the images."""
CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")


def write(
    root: Path,
    trials: int,
    *,
    epochs: int = 8,
    seed: int = 0,
    seeds: int = 3,
    classes: tuple[str, ...] = CLASSES,
    **more: Any,
) -> StudyFolder:
    """Write a results folder with a finished study and return it.

    Args:
        root: new folder.
        trials: number of trials; the first is the recipe, the second is scratch.
        epochs: epochs of a full trial.
        seed: seed of all scores.
        seeds: other seeds of the settings in the verdict; 0: it was not measured.
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
    ledger = Ledger(folder.database, metric="val/accuracy", sampler=optuna.samplers.RandomSampler(seed))
    for number in range(trials):
        baseline = ("recipe", "scratch")[number] if number < 2 else None
        _trial(ledger, space, draw, baseline, epochs=epochs, classes=classes)
    images = {"train": 1000, "val": 300, "test": 412}
    provenance = {
        "seed": seed,
        "commit": "0123456789ab",
        "python": "3.11.7",
        "packages": {"torch": "2.15.0", "ray": "2.60.0"},
        "images": images,
        "skipped": [{"path": "roses/7.jpg", "reason": "truncated"}],
        "excluded": 2,
        "slots": {f"slot-{i}": {"device": "CPU", "host": "node-1"} for i in range(2)},
    }
    features = {"arrays": 4, "images": 2_600, "seconds": 21.5}
    facts = {"state": "finished", "seconds": 0.4 * trials, "provenance": provenance}
    facts |= {"features": features, "findings": FINDINGS} | more
    for name, fact in facts.items():
        ledger.set_fact(name, fact)
    ledger.flush()
    if seeds:
        ledger.set_fact("verdict", _verdict(read_study(folder), seeds, seed).to_json())
    ledger.close()
    if best := read_study(folder).best:
        _measured(folder, best, classes, seed)
    return folder


def _verdict(record: StudyRecord, seeds: int, seed: int) -> Verdict:
    """Return a verdict on made-up models that lose a little of the score that chose them."""
    draw = np.random.default_rng(seed)
    difficulty = draw.random(412)
    known = []
    for trial in contest.contestants(record, top=2):
        chosen = trial.metrics["best"]["val/accuracy"]
        skills = chosen - 0.01 + draw.normal(0, 0.006, size=(seeds, 1))
        right = (difficulty + draw.normal(0, 0.05, size=(seeds, 412)) < skills).astype(float)
        known.append(
            Contestant(
                trial=trial.id,
                strategy=trial.params["strategy"],
                baseline=trial.baseline,
                chosen=chosen,
                again=tuple(float(skill) for skill in skills[:, 0]),
                runs=Runs(right.mean(axis=1), right),
            )
        )
    winner = known[0] if known else None
    return verdict(winner, known[1:], objective=record.objective, split="test")


def _measured(folder: StudyFolder, best: TrialRecord, classes: tuple[str, ...], seed: int) -> None:
    """Write what an export leaves: facts of the model, answers on each image, and mistakes as pictures."""
    draw = np.random.default_rng(seed)
    content: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for name, split, count in (("validation", "val", 300), ("test", "test", 412)):
        answers = _answers(draw, count, len(classes), best.metrics["best"]["val/accuracy"])
        content |= {f"{split}/{key}": value for key, value in answers.items()}
        labels, right = answers["labels"], answers["labels"] == answers["predicted"]
        recalls = {
            f"recall/{one}": float(right[labels == i].mean())
            for i, one in enumerate(classes)
            if (labels == i).any()
        }
        scores = {
            "accuracy": float(right.mean()),
            "balanced_accuracy": float(np.mean(list(recalls.values()))),
        }
        metrics[name] = scores | {"macro_f1": scores["accuracy"], "loss": 0.5, "ece": 0.1} | recalls
        metrics[name]["images"] = count
    path = folder.answers(best.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **content)
    change = {"ece_before": 0.1, "ece_after": 0.03, "loss_before": 0.5, "loss_after": 0.45}
    facts = {
        "format": 2,
        "backbone": "mobilenet_v2",
        "strategy": best.params["strategy"],
        "classes": list(classes),
        "metrics": metrics,
        "calibration": {"temperature": 1.6, "fitted_on": "validation", "validation": change, "test": change},
        "provenance": {"trial": best.id},
        "source_classes": {
            "how": "projection",
            "classes": {
                name: {"explained": 0.6, "leans_on": {"daisy": 0.4, "vase": 0.2}} for name in classes
            },
        },
    }
    write_text(folder.best / "model.yaml", yaml.safe_dump(facts, allow_unicode=True))
    wrong = np.flatnonzero(content["test/labels"] != content["test/predicted"])[:18]
    told = [
        {
            "split": "test",
            "image": int(i),
            "path": f"{classes[content['test/labels'][i]]}/{i}.jpg",
            "label": classes[content["test/labels"][i]],
            "predicted": classes[content["test/predicted"][i]],
            "probability": float(content["test/calibrated"][i]),
            "picture": _picture(draw),
        }
        for i in wrong
    ]
    write_text(folder.mistakes(best.id), json.dumps(told))
    write_text(folder.explained(best.id), json.dumps(_explained(draw, told)))


def _explained(draw: np.random.Generator, mistakes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return maps and neighbours of mistakes, and the same images as doubtful labels."""
    picture = _picture(draw)
    near = [
        {"path": "train/1.jpg", "label": one["predicted"], "cosine": 0.9, "picture": picture}
        for one in mistakes[:3]
    ]
    doubts = [
        {key: one[key] for key in ("image", "path", "label", "picture")}
        | {"given": 0.01, "likely": one["predicted"], "probability": 0.98}
        for one in mistakes
    ]
    maps = [{"image": one["image"], "map": picture, "neighbours": near} for one in mistakes]
    return {"mistakes": maps, "suspects": doubts}


def _answers(draw: np.random.Generator, images: int, classes: int, accuracy: float) -> dict[str, Any]:
    labels = np.sort(draw.integers(0, classes, images))
    neighbours = (labels + draw.integers(1, max(2, classes), images)) % classes
    predicted = np.where(draw.random(images) < accuracy, labels, neighbours)
    confidence = draw.beta(6, 1, images)
    return {
        "labels": labels.astype(np.int32),
        "predicted": predicted.astype(np.int32),
        "confidence": confidence.astype(np.float32),
        "of_label": np.where(labels == predicted, confidence, 0.1).astype(np.float32),
        "calibrated": (0.9 * confidence).astype(np.float32),
        "in_top5": np.ones(images, dtype=bool),
    }


def _picture(draw: np.random.Generator) -> str:
    """Return noise as a small WebP in base64."""
    coded = io.BytesIO()
    Image.fromarray(draw.integers(0, 255, (96, 96, 3), dtype=np.uint8)).save(coded, "WEBP", quality=30)
    return base64.b64encode(coded.getvalue()).decode()


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
    cut = 19 if params["frozen_layers"] == -1 else params["frozen_layers"]
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
        "searched": round(0.4 * number + 1.5, 3),
        "slot": f"slot-{number % 2}",
        "effective": {
            "frozen_blocks": cut,
            "blocks": 19,
            "stored_cut": cut or None,
        },
        "history": history,
    }
    if number % 7 == 5:  # the loss diverged, and the trial began again with a lower rate
        ended["effective"]["learning_rate_limit"] = params["learning_rate"] / 10
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
