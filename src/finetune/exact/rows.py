"""The stored features that a head is solved from, and how they are prepared.

Shapes: N training images, R rows (each image as it is, then perhaps mirrored), D pooled features, K source
classes, E = D or D + K inputs of the head, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.model.exact_head import powered

FOLDS = 5
"""Parts of the training images, each of which is held out once."""
LEAST_SPREAD = 0.1
"""Features with less than this share of the mean spread are not stretched further by `standard`."""
CHUNK = 4096
"""Rows that are prepared at a time where not all are."""


@dataclass(frozen=True)
class Rows:
    """One worker's rows of the training images."""

    pooled: Tensor
    """Pooled features, float32 (R, D)."""
    answers: Tensor | None
    """Softmax of the source FC, float32 (R, K); None: not used."""
    images: Tensor
    """Number of each row's image among all training images, int64 (R,)."""
    labels: Tensor
    """Labels of all training images, int64 (N,)."""
    weights: Tensor
    """Weights of all training images in the loss, float32 (N,)."""
    mirrored: Tensor
    """Whether a row is a mirrored copy, bool (R,)."""
    classes: int
    total: Callable[[Tensor], Tensor] = lambda sums: sums
    """Function that sums a tensor over all workers."""
    workers: int = 1
    groups: Tensor | None = None
    """Number of the group of each training image, int64 (N,): a fold holds all of a group, or nothing."""

    @property
    def plain(self) -> Tensor:
        """Numbers of the rows that are no mirrored copies, int64."""
        return (~self.mirrored).nonzero().flatten()


def folds(labels: Tensor, groups: Tensor | None = None, *, seed: int = 0, count: int = FOLDS) -> Tensor:
    """Return the fold of each image, int64 (N,): classes are spread evenly, images drawn from the seed.

    Args:
        labels: labels, int64 (N,).
        groups: number of each image's group, int64 (N,). Images of a group come into the same fold: a head is
            then judged on groups that it has not seen, as it is on validation images. With fewer groups than
            folds, some folds are empty. None, or a single group: images are spread one by one.
        seed: seed of the draw.
        count: the number of folds.
    """
    draw = torch.Generator().manual_seed(seed)
    if groups is not None and len(groups.unique()) > 1:
        return _grouped(labels, groups, draw, count)
    order = torch.randperm(len(labels), generator=draw)
    # Sorted by class, neighbours get different folds, so each fold has its share of every class.
    order = order[labels[order].argsort(stable=True)]
    found = torch.empty(len(labels), dtype=torch.int64)
    found[order] = torch.arange(len(labels)) % count
    return found


def _grouped(labels: Tensor, groups: Tensor, draw: torch.Generator, count: int) -> Tensor:
    """Return the fold of each image where groups stay together.

    One group after another, the largest first, comes into the fold that keeps the classes most even.
    """
    names, own = groups.unique(return_inverse=True)
    held = torch.zeros(len(names), int(labels.max()) + 1)  # images of a group by class
    held.index_put_((own, labels), torch.ones(len(labels)), accumulate=True)
    shares = held / held.sum(0).clamp(min=1)  # rare classes count as much as frequent ones
    shuffled = torch.randperm(len(names), generator=draw)
    filled, found = torch.zeros(count, held.shape[1]), torch.empty(len(names), dtype=torch.int64)
    for group in shuffled[held.sum(1)[shuffled].argsort(descending=True, stable=True)]:
        # The sum of squares grows by 2 filled . shares, up to what is the same for all folds.
        fold = (filled @ shares[group] + 1e-6 * filled.sum(1)).argmin()
        filled[fold] += shares[group]
        found[group] = fold
    return found[own]


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Return weights of the classes, float32 (C,), with which all classes that occur count alike."""
    sizes = labels.bincount(minlength=classes).float()
    return torch.where(sizes > 0, len(labels) / ((sizes > 0).sum() * sizes.clamp(min=1)), 0.0)


@dataclass(frozen=True)
class Preparation:
    """Preparation of features as the inputs of a head."""

    unit: bool = False
    """Divide the features of an image by their norm."""
    root: bool = False
    """Take the signed square root first."""
    standard: bool = False
    """Divide each feature by its standard deviation."""
    answers: bool = False
    """Add the source softmax, stretched so that it varies as much as the features do."""

    @property
    def name(self) -> str:
        """Name for people."""
        steps = [name for name in ("root", "unit", "standard") if getattr(self, name)]
        return " ".join(steps or ["centred"]) + (
            " features and source answers" if self.answers else " features"
        )

    def raw(self, pooled: Tensor, answers: Tensor | None) -> Tensor:
        """Return the inputs (R, E) before they are centred and stretched."""
        made = powered(pooled, root=self.root, unit=self.unit)
        if not self.answers:
            return made
        assert answers is not None
        return torch.cat([made, answers], dim=1)

    def fit(self, rows: Rows) -> tuple[Tensor, Tensor, float]:
        """Return mean, scale (both (E,)) and variance of the inputs over all workers.

        The head reads (raw - mean) * scale; the variance is the mean squared norm of that.
        """
        answers = rows.answers.shape[1] if self.answers and rows.answers is not None else 0
        sums = torch.zeros(3, rows.pooled.shape[1] + answers).double()
        for raw in self.chunks(rows):
            sums += torch.stack([torch.full_like(raw[0], len(raw)), raw.sum(0), raw.square().sum(0)]).double()
        count, total, squares = rows.total(sums)
        mean = total / count
        spread = (squares / count - mean.square()).clamp(min=0)  # variance of each input
        scale = torch.ones_like(spread)
        features = rows.pooled.shape[1]
        if self.standard:
            deviation = spread[:features].sqrt()
            scale[:features] = 1 / deviation.clamp(min=LEAST_SPREAD * deviation.mean()).clamp(min=1e-12)
        if self.answers:
            varies = (spread[:features] * scale[:features].square()).sum()
            scale[features:] = (varies / spread[features:].sum().clamp(min=1e-12)).sqrt()
        return mean.float(), scale.float(), max(1e-12, float((spread * scale.square()).sum()))

    def chunks(self, rows: Rows) -> list[Tensor]:
        """Return the raw inputs of all rows in parts."""
        answers = rows.answers.split(CHUNK) if rows.answers is not None else [None] * len(rows.pooled)
        return [self.raw(x, a) for x, a in zip(rows.pooled.split(CHUNK), answers, strict=False)]
