"""The trials of a private study: their number is drawn, each is an independent draw, the best is released."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.model.exact_head import ExactHead, ExactShape
from finetune.private import accounting, trial
from finetune.private.accounting import Noise
from finetune.private.law import TrialLaw
from finetune.private.mechanisms import Mechanism, Private, one_thread
from finetune.private.noise import Draws
from finetune.private.rows import groups, pooled, unit
from finetune.private.trial import Outcome
from finetune.settings import FeatureSettings, TrialSettings
from finetune.training.run import Run
from finetune.training.workers import World

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Plan:
    """The privacy of a study, before it looks at an image."""

    epsilon: float
    delta: float
    law: TrialLaw
    unit: str
    mechanisms: tuple[Mechanism, ...]
    noise: Noise

    def to_dict(self) -> dict[str, Any]:
        """Return the facts that may be published."""
        noise = self.noise
        told: dict[str, Any] = {
            "epsilon": round(noise.study_epsilon, 4),
            "delta": self.delta,
            "unit": self.unit,
        }
        told["neighbours"] = "one unit left out, the number of units known"
        told["trials"] = {"law": "logarithmic", "mean": self.law.mean}
        told["trial_epsilon"] = round(noise.trial_epsilon, 4)
        told["epsilon_if_all_were_released"] = round(noise.naive_epsilon, 2)
        told["noise"] = {"one_shot": round(noise.one_shot, 4), "test": round(noise.test, 4)}
        told["noise"] |= {f"sgd {s.rate:g} x {s.count}": round(n, 4) for s, n in noise.steps.items()}
        return told


def plan(
    *,
    epsilon: float,
    delta: float | None,
    units: int,
    trials: int,
    unit: str,
    mechanisms: Sequence[Mechanism],
) -> Plan:
    """Return the plan of a study: the noise with which it meets its budget.

    Args:
        epsilon: budget of the study.
        delta: probability with which the promise may fail; None: by the number of units.
        units: number of units that train.
        trials: mean number of trials.
        unit: `image` or `group`.
        mechanisms: mechanisms that trials may draw.
    """
    delta = accounting.automatic_delta(units) if delta is None else delta
    law = TrialLaw(float(trials))
    steps = trial.STEPS if "sgd" in mechanisms else ()
    noise = accounting.solve(epsilon, delta, law, steps)
    return Plan(epsilon, delta, law, unit, tuple(mechanisms), noise)


def units_of(paths: Mapping[str, Sequence[str]], pattern: str | None) -> dict[str, np.ndarray]:
    """Return the unit of each image by split; see `rows.groups`."""
    return groups({split: paths[split] for split in SPLITS}, pattern)


class Images:
    """The features and labels of a study's images, read when they are first needed.

    Args:
        settings: settings of strategy `exact`, by backbone.
        features: store for the features.
        device: device that runs the backbone.
        pattern: pattern of the groups; None: each image is its own unit.
    """

    def __init__(
        self,
        settings: Mapping[str, TrialSettings],
        features: FeatureSettings | None,
        device: torch.device,
        pattern: str | None,
    ) -> None:
        self._settings, self._features, self._device, self._pattern = settings, features, device, pattern
        self._pooled: dict[tuple[str, str], torch.Tensor] = {}
        self._units: dict[str, np.ndarray] | None = None

    def run(self, backbone: str, *, root: bool = False) -> Run:
        """Return a new trial whose head is linear on features of norm 1."""
        shape = ExactShape(unit=True, root=root)
        return Run(self._settings[backbone], World(device=self._device), self._features, shape=shape)

    def rows(self, backbone: str, split: str, *, root: bool) -> Private:
        """Return the rows of a split."""
        run = self.run(backbone)
        if (backbone, split) not in self._pooled:
            self._pooled[backbone, split] = pooled(run, split)
        if self._units is None:
            self._units = units_of({split: run.data.paths(split) for split in SPLITS}, self._pattern)
        features = unit(self._pooled[backbone, split], root=root)
        labels = run.data.labels(split).numpy()
        return Private(features, labels, self._units[split], len(run.data.classes))


def search(
    plan: Plan, key: bytes, images: Images, backbones: Sequence[str], told: Callable[[Outcome], None]
) -> tuple[Outcome, int]:
    """Run all trials of a study and return the best one, by its noisy score, and the number of trials.

    All of it follows from the key and the images, so a second call returns the same.

    Args:
        plan: the study's privacy.
        key: the study's secret key.
        images: the private images.
        backbones: backbones that trials may draw.
        told: is called with each outcome. None but the best may leave the machine.
    """
    count = plan.law.draw(float(Draws(key, "number of trials").uniform(1)[0]))
    best: Outcome | None = None
    for number in range(count):
        drawn = trial.draw(Draws(key, f"trial {number}: settings"), backbones, plan.mechanisms)
        train, val = (images.rows(drawn.backbone, split, root=drawn.root) for split in ("train", "val"))
        with one_thread():
            outcome = trial.run(number, key, drawn, train, val, plan.noise)
        told(outcome)
        if best is None or outcome.score > best.score:
            best = outcome
    assert best is not None
    return best, count


def released(plan: Plan, key: bytes, images: Images, best: Outcome) -> tuple[Run, dict[str, Any]]:
    """Return the model of the best trial, and its noisy scores as model.yaml has them."""
    backbone, root = best.draw.backbone, best.draw.root
    run = images.run(backbone, root=root)
    head = run.model.head
    assert isinstance(head, ExactHead)
    last = head.new[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(best.head.weight))
        last.bias.copy_(torch.from_numpy(best.head.bias))
    metrics: dict[str, Any] = {
        "validation": {"accuracy": _share(best.score), "images": run.data.size("val"), "epoch": 1},
        "test": None,
    }
    if run.data.size("test"):
        rows = images.rows(backbone, "test", root=root)
        score = trial.noisy_accuracy(best.head, rows, plan.noise.test, Draws(key, "test"))
        metrics["test"] = {"accuracy": _share(score), "images": run.data.size("test")}
    return run, metrics


def _share(score: float) -> float:
    """Return a noisy share as one that people expect, from 0 to 1."""
    return min(1.0, max(0.0, score))
