"""Scores of a head's outputs on held-out images: the loss that chooses, and the accuracies that are told.

A head is chosen by the cross-entropy of its outputs on the images of the folds that were held out. It needs
a scale, as outputs of a ridge regression lie near -1 and 1; the scale becomes part of the head. The loss
changes smoothly with every image where accuracy jumps with a few, so it picks a head that is good again
(docs/heads.md).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = torch.logspace(-1, 2, 31)
"""Factors of the outputs that are tried."""
MOST = 5_000
"""Images from which the scale and the loss are computed."""


@dataclass(frozen=True)
class Score:
    """Scores of a head on held-out images, with the classes as frequent as where it will be judged."""

    loss: float
    """Mean cross-entropy at the best scale."""
    scale: float
    accuracy: float
    accuracy_error: float
    """Standard error of the accuracy."""


def score(outputs: Tensor, labels: Tensor, shares: Tensor | None = None) -> Score:
    """Return the scores of outputs (N, C) for labels (N,).

    Args:
        outputs: the outputs of a head.
        labels: labels, int64.
        shares: share of each class (C,) where the head will be judged; None: as among `labels`. A class
            without a label here is left out.
    """
    classes = outputs.shape[1]
    sizes = labels.bincount(minlength=classes).double()
    shares = sizes if shares is None else shares.double() * (sizes > 0)
    shares = shares / shares.sum()
    step = -(-len(labels) // MOST)
    some, wanted = outputs[::step].float(), labels[::step]
    weights = (shares / sizes.clamp(min=1)).float()  # of an image, by class
    losses = torch.stack([F.cross_entropy(some * scale, wanted, weight=weights) for scale in SCALES])
    best = int(losses.nan_to_num(nan=torch.inf).argmin())
    right = (outputs.argmax(1) == labels).double()
    recall = torch.zeros(classes).double().index_add_(0, labels, right) / sizes.clamp(min=1)
    spread = shares.square() * recall * (1 - recall) / sizes.clamp(min=1)
    return Score(
        losses[best].item(), SCALES[best].item(), (shares * recall).sum().item(), spread.sum().sqrt().item()
    )
