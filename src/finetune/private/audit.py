"""Audit a model folder: how well LiRA tells its training images from others, and which are most exposed."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from finetune import model_folder, steps
from finetune.errors import CheckpointError, DataError
from finetune.evaluation.scores import BATCH
from finetune.images.pixels import normalise
from finetune.model_folder import Model
from finetune.private import attack, mechanisms, shadow_sgd
from finetune.private.accounting import Noise, Steps
from finetune.private.attack import RATES, Fit, Found
from finetune.private.mechanisms import Choices, Private, one_thread
from finetune.private.noise import Draws, new_key
from finetune.private.rows import unit
from finetune.settings import DataSettings, FeatureSettings, TrialSettings
from finetune.training import shared

SHADOWS = 64
MOST = 3000
"""Most images that are attacked; of more, evenly spread ones are taken."""
EXPOSED = 10
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Read:
    """The parts of a model and its images that an audit reads."""

    paths: list[str]
    members: np.ndarray
    """Whether the model was trained on an image, bool (N,)."""
    labels: np.ndarray
    pooled: torch.Tensor
    logits: np.ndarray
    """Answers of the model (N, C)."""


def audit(
    folder: Path,
    *,
    place: Mapping[str, Any] | None = None,
    shadows: int = SHADOWS,
    stored: FeatureSettings | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how much a model tells about its training images, as JSON values.

    Args:
        folder: the model folder.
        place: `path` and `exclude` of its images, which no model.yaml has.
        shadows: number of shadow heads, at least 4.
        stored: store for decoded images.
        seed: seed of the draws.

    Raises:
        CheckpointError: the folder is not whole, or does not say where its images are.
        DataError: the images are missing, or none is left that the model was not trained on.
    """
    model = model_folder.load(folder)
    facts = model.facts
    read = _read(model, _data(folder, facts, place or {}), stored)
    if not 0 < read.members.sum() < len(read.members):
        raise DataError(
            f"{folder}: an audit needs images that the model was not trained on, got none. Add some."
        )
    promised = facts.get("privacy")
    fit = (
        _shadows(read, len(model.classes))
        if promised is None
        else _private(read, promised, len(model.classes))
    )
    with steps.step(f"{shadows} shadow heads on {len(read.labels)} images"):
        trained = attack.train(fit, read.labels, shadows, seed)
    recipe, scores = attack.of_recipe(trained, seed)
    confidence = attack.confidences(read.logits, read.labels)
    own = attack.of_model(trained, confidence, read.members, seed)
    told = {
        "shadows": shadows,
        "images": len(read.labels),
        "recipe": _told(recipe),
        "model": _told(own),
        "epsilon_at_least": round(attack.epsilon_below(trained, scores), 3),
        "epsilon_promised": None if promised is None else promised["trial_epsilon"],
        "exposed": _exposed(read, trained.scores(confidence)),
    }
    return told


def _data(folder: Path, facts: dict[str, Any], place: Mapping[str, Any]) -> DataSettings:
    settings = dataclasses.replace(TrialSettings.from_dict(facts["settings"]).data, **place)
    if settings.path is None and settings.kind in ("folder", "manifest", "torchvision"):
        raise CheckpointError(
            f"{folder}: an audit needs the images that the model was trained on, got no place of them. "
            "Name it with --data."
        )
    return settings


@torch.no_grad()
def _read(model: Model, settings: DataSettings, stored: FeatureSettings | None) -> Read:
    """Return features and answers of all images, from one pass through the model itself."""
    net, data, seen = model.net, shared.images(settings, stored), model.facts["preprocessing"]
    paths: list[str] = []
    members, labels, pooled, logits = [], [], [], []
    whole = sum(data.size(split) for split in SPLITS)
    with steps.step("pass of the images", whole, "images") as told:
        for split in SPLITS:
            images = torch.arange(data.size(split))[:: -(-whole // MOST)]
            for pixels, _ in data.batches(split, images.split(BATCH)):
                h = net.features(normalise(pixels.to(model.device), seen["mean"], seen["std"]))
                if len(net.trunk):
                    h = net.head.reduce(net.trunk(h))
                pooled.append((h if net.head.pools else net.head.pool(h)).float().cpu())
                logits.append(net.head.classify(h).float().cpu())
                told.add(len(pixels))
            names = data.paths(split)
            paths += [names[number] for number in images.tolist()]
            members.append(torch.full((len(images),), split == "train"))
            labels.append(data.labels(split)[images])
    answers = torch.cat(logits).double().numpy()
    return Read(paths, torch.cat(members).numpy(), torch.cat(labels).numpy(), torch.cat(pooled), answers)


def _shadows(read: Read, classes: int) -> Fit:
    """Return how shadow heads of an ordinary model are fitted: as closely as it fits its own images."""
    own = torch.from_numpy(read.members)
    loss = F.cross_entropy(torch.from_numpy(read.logits)[own], torch.from_numpy(read.labels)[own])
    return attack.softmax_regression(read.pooled.numpy(), read.labels, classes, loss=float(loss))


def _private(read: Read, promised: dict[str, Any], classes: int) -> Fit:
    """Return how shadow heads of a private model are fitted: by its mechanism, with its noise."""
    said = promised["mechanism"]
    rows = unit(read.pooled, root=said["root"])
    steps_of = Steps(said["sampling_rate"], said["steps"]) if said["mechanism"] == "sgd" else None
    named = ("mechanism", "centre", "directions", "ridge", "rate", "clip")
    choices = Choices(**{name: said[name] for name in named if name in said}, steps=steps_of)
    noises = promised["noise"]
    each = {} if steps_of is None else {steps_of: noises[f"sgd {steps_of.rate:g} x {steps_of.count}"]}
    noise = Noise(noises["one_shot"], each, noises["test"], promised["trial_epsilon"], promised["epsilon"])
    key = new_key()

    def fit(members: np.ndarray) -> np.ndarray:
        if steps_of is not None:
            seed = int.from_bytes(key[:7], "big")
            return shadow_sgd.logits(rows, read.labels, members, classes, choices, noise, seed)
        found = []
        with one_thread():
            for number, used in enumerate(members):
                own = Private(rows[used], read.labels[used], np.arange(used.sum()), classes)
                head = mechanisms.fit(own, choices, noise, Draws(key, f"shadow {number}"))
                found.append(rows @ head.weight.T + head.bias)
        return np.stack(found)

    return fit


def _told(found: Found) -> dict[str, Any]:
    rates = {
        f"{100 * rate:g} %": {"rate": round(share, 4), "between": [round(low, 4), round(high, 4)]}
        for rate, (share, low, high) in found.rates.items()
    }
    assert len(rates) == len(RATES)
    return {
        "auc": round(found.auc, 4),
        "auc_between": [round(end, 4) for end in found.auc_between],
        "true_positives": rates,
        "members": found.members,
        "others": found.others,
    }


def _exposed(read: Read, scores: np.ndarray) -> list[dict[str, Any]]:
    """Return the training images of which the attack is surest."""
    order = [number for number in (-scores).argsort() if read.members[number]][:EXPOSED]
    return [{"path": read.paths[number], "score": round(float(scores[number]), 3)} for number in order]
