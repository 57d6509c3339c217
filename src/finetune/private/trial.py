"""One trial of a private study: settings drawn without looking at the images, a head, and a noisy score."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finetune.private.accounting import Noise, Steps
from finetune.private.mechanisms import Choices, Linear, Mechanism, Private, fit
from finetune.private.noise import Draws

STEPS = (Steps(0.25, 60), Steps(1.0, 40))
"""Plans of DP-SGD that a trial may draw: batches of a quarter of the images, and all of them."""
ODDS: Mapping[Mechanism, float] = {"means": 0.3, "least_squares": 0.1, "sgd": 0.6}
"""Odds of the mechanisms. They were set once, by measurements on public photos (docs/privacy.md)."""
CLIPS = (0.25, 0.5, 1.0)
DIRECTIONS = (128, 256)


@dataclass(frozen=True)
class Draw:
    """The settings of a trial."""

    backbone: str
    root: bool
    """Take the square root of the features before they are divided by their norm."""
    choices: Choices

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that the trial uses, as plain values."""
        told: dict[str, Any] = {"backbone": self.backbone, "root": self.root}
        told |= {k: v for k, v in asdict(self.choices).items() if k in USED[self.choices.mechanism]}
        if (steps := told.pop("steps", None)) is not None:
            told |= {"sampling_rate": steps["rate"], "steps": steps["count"]}
        return told


USED: Mapping[Mechanism, tuple[str, ...]] = {
    "means": ("mechanism", "centre"),
    "least_squares": ("mechanism", "centre", "directions", "ridge"),
    "sgd": ("mechanism", "centre", "steps", "rate", "clip"),
}
"""Settings that each mechanism reads."""


def draw(
    draws: Draws,
    backbones: Sequence[str],
    mechanisms: Sequence[Mechanism],
    odds: Mapping[Mechanism, float] = ODDS,
) -> Draw:
    """Return settings drawn from the space of private trials; nothing else decides them."""
    backbone = backbones[draws.one_of(len(backbones))]
    up_to = np.cumsum([odds[one] for one in mechanisms])
    mechanism = mechanisms[int((draws.uniform(1)[0] * up_to[-1] >= up_to[:-1]).sum())]
    root, centre = bool(draws.one_of(2)), bool(draws.one_of(4))  # three in four take the mean away
    if mechanism == "means":
        return Draw(backbone, root, Choices(mechanism, centre))
    if mechanism == "least_squares":
        size, ridge = DIRECTIONS[draws.one_of(len(DIRECTIONS))], _log(draws, 0.5, 8.0)
        return Draw(backbone, root, Choices(mechanism, centre, directions=size, ridge=ridge))
    steps, clip = STEPS[draws.one_of(len(STEPS))], CLIPS[draws.one_of(len(CLIPS))]
    rate = _log(draws, 1.0, 8.0)
    return Draw(backbone, root, Choices(mechanism, centre, steps=steps, rate=rate, clip=clip))


def _log(draws: Draws, low: float, high: float) -> float:
    return float(low * (high / low) ** draws.uniform(1)[0])


def noisy_accuracy(head: Linear, rows: Private, noise: float, draws: Draws) -> float:
    """Return the share of the units that a head classifies well, from one noisy count (Gaussian).

    A unit moves the count by at most 1, and so does a group, of which each image counts as its share.
    """
    right = float(rows.weights @ (head.answers(rows.features) == rows.labels))
    return (right + noise * float(draws.normal(1)[0])) / max(rows.count, 1)


@dataclass(frozen=True)
class Outcome:
    """Everything that a trial gives away if it is released."""

    number: int
    draw: Draw
    head: Linear
    score: float


def run(number: int, key: bytes, drawn: Draw, train: Private, val: Private, noise: Noise) -> Outcome:
    """Return the outcome of a trial, a pure function of the key, its number and the images."""
    head = fit(train, drawn.choices, noise, Draws(key, f"trial {number}: head"))
    score = noisy_accuracy(head, val, noise.one_shot, Draws(key, f"trial {number}: score"))
    return Outcome(number, drawn, head, score)
