"""Temperature scaling: one number that makes a model's probabilities as sure as it is right.

Guo et al., ICML 2017. The most probable class stays the same; shapes: N images, C classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.evaluation.scores import bins, calibration_error

LEAST, MOST = 0.05, 20.0
"""Bounds of a temperature."""


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it changed on the images of a split."""

    temperature: float
    """Divisor of the logits before softmax; above 1 makes the model less sure."""

    def of(self, logits: Tensor) -> Tensor:
        """Return the probabilities (N, C), float32, of logits (N, C)."""
        return (logits.float() / self.temperature).softmax(1)

    def change(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Return expected calibration error and cross-entropy (nats) on a split, before and after.

        Args:
            logits: float32 (N, C).
            labels: int64 (N,).
        """
        told: dict[str, float] = {}
        for when, one in (("before", Calibration(1.0)), ("after", self)):
            confidence, answers = one.of(logits).max(dim=1)
            error = calibration_error(bins(confidence, answers == labels))
            told |= {f"ece_{when}": float(error), f"loss_{when}": _loss(logits, labels, one.temperature)}
        return told


def fit(logits: Tensor, labels: Tensor) -> Calibration:
    """Return the temperature of least cross-entropy on these images, which are those of validation.

    Without a wrong answer among them it is 1: the fit would make the model sure without any limit.

    Args:
        logits: float32 (N, C).
        labels: int64 (N,).
    """
    from scipy.optimize import minimize_scalar  # a worker starts faster without it

    if logits.shape[1] < 2 or bool((logits.argmax(1) == labels).all()):
        return Calibration(1.0)
    found = minimize_scalar(
        lambda log: _loss(logits, labels, float(np.exp(log))),
        bounds=(float(np.log(LEAST)), float(np.log(MOST))),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return Calibration(float(np.exp(found.x)))


def facts(calibration: Calibration, splits: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Return the temperature and its effect on each split, for a model.yaml.

    Args:
        calibration: the temperature.
        splits: logits and labels of the splits that there are, by name.
    """
    return {
        "temperature": calibration.temperature,
        "fitted_on": "validation",
        **{name: calibration.change(*split) for name, split in splits.items()},
    }


def _loss(logits: Tensor, labels: Tensor, temperature: float) -> float:
    return float(torch.nn.functional.cross_entropy(logits.double() / temperature, labels))
