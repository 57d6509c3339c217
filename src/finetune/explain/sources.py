"""Say which source classes carry a model's decision for each class.

    mixture       `load`: each row began as a mixture of source rows; the shares are that mixture's
    contribution  `fuse`: what the source softmax adds to the logit, against the mean over the classes
    projection    `replace`, solved heads, and `fuse` where the head hardly hears the source's answers: the
                  logit, against the mean over the classes, projected on up to MOST source logits with
                  positive weights

Shapes: N images, D pooled features, K source classes, C classes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.explain import features
from finetune.model.backbones import last_layer
from finetune.model.head import FuseHead, LoadHead, answers_behind_pool, begins_with_pool
from finetune.model.source_rows import mixed_rows
from finetune.settings import WeightsSettings
from finetune.training import building, shared
from finetune.training.run import Run

MOST = 5
"""Source classes that are named for a class."""
HEARD = 0.1
"""Mean share of the logits from which the source's answers count as heard."""
SEEN = 30
"""Source classes that a projection chooses from: those with the most probability on images of the class."""
IMAGES = 512
"""Validation images that are looked at, at most."""
LEAST_IMAGES = 20
"""Images below which nothing can be projected."""

Floats = npt.NDArray[np.float64]


def of_run(run: Run) -> dict[str, Any] | None:
    """Return, as plain values, what the classes of a trained run lean on; None where it cannot be said.

    `how` is one of the words above. `classes` has for each class `explained`, the share of the decision that
    is explained, from 0 to 1, and `leans_on`: source class -> share. Under `mixture` the shares are those of
    the whole mixture, which sum to 1 with the classes that are not named; otherwise they sum to `explained`.
    Under `fuse` there is `answers`, the mean share of the logits that the source's answers make up.
    """
    settings = run.settings
    if settings.weights == WeightsSettings():
        return None
    source = shared.pretrained(settings.backbone, settings.weights, settings.cache_dir, run.world.device.type)
    names = list(source.classes or (f"source class {k}" for k in range(source.source_classes)))
    head = run.model.head
    if isinstance(head, LoadHead):
        if sorted(run.data.classes) == sorted(names):
            return None  # the rows were taken by name
        return _told("mixture", run, names, *_mixture(run, head))
    said = {}
    if isinstance(head, FuseHead):
        shares, explained = _contributions(run, head)
        said = {"answers": round(float(explained.mean()), 4)}
        if explained.mean() >= HEARD:
            return _told("contribution", run, names, shares, explained) | said
    found = _projected(run)
    return None if found is None else _told("projection", run, names, *found) | said


def _told(how: str, run: Run, names: list[str], shares: Floats, explained: Floats) -> dict[str, Any]:
    classes: dict[str, Any] = {}
    for name, row, part in zip(run.data.classes, shares, explained, strict=True):
        top = np.argsort(-row, kind="stable")[:MOST]
        leans: dict[str, float] = {}
        for k in top[row[top] > 0]:  # ImageNet has two classes of the same name
            leans[names[k]] = round(leans.get(names[k], 0.0) + float(row[k]), 4)
        classes[name] = {"explained": round(float(part), 4), "leans_on": leans}
    return {"how": how, "classes": classes}


@torch.no_grad()
def _mixture(run: Run, head: LoadHead) -> tuple[Floats, Floats]:
    """Return the mixture (C, K), and the share of each trained row (C,) that it still explains."""
    relation = building.relationship(run.settings, run.world.device, run.features)
    begun, _ = mixed_rows(last_layer(shared.pristine(run.settings, run.world.device).source_fc), relation)
    rows = [_centred(weight.flatten(1).double().cpu()) for weight in (begun, last_layer(head.new).weight)]
    kept = 1 - (rows[1] - rows[0]).square().sum(1) / rows[1].square().sum(1).clamp(min=1e-12)
    return relation.double().numpy(), kept.clamp(min=0).numpy()


def contributions(head: FuseHead, reduced: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each source answer adds to each logit (B, C, K), and the logits (B, C), both less the mean.

    For a head of one Linear this is weight times softmax; with hidden units it is the gradient times the
    softmax, exact as long as no unit switches.
    """
    pooled = reduced if head.pools else head.pool(reduced)
    logits = answers_behind_pool(head.source_fc, reduced) if head.pools else head.source_fc(reduced)
    with torch.enable_grad():
        answers = logits.detach().softmax(1).requires_grad_()
        out = head.new(torch.cat([pooled.detach(), answers], dim=1))
        margins = out - out.mean(1, keepdim=True)
        slopes = [
            torch.autograd.grad(margins[:, c].sum(), answers, retain_graph=True)[0]
            for c in range(out.shape[1])
        ]
    return torch.stack([slope * answers.detach() for slope in slopes], dim=1), margins.detach()


def _contributions(run: Run, head: FuseHead) -> tuple[Floats, Floats]:
    """Return the mean contributions (C, K) on validation images of each class, as shares of its logit."""
    images = features.spread(run.data.size("val"), IMAGES)
    labels = run.data.labels("val")[images]
    count = len(run.data.classes)
    sums, margins, done = None, torch.zeros(count).double(), 0
    for part in features.reduced(run, "val", images):
        own = labels[done : done + len(part)]
        done += len(part)
        added, out = contributions(head, part)
        mine = added.cpu().double()[torch.arange(len(own)), own]
        sums = torch.zeros(count, mine.shape[1]).double() if sums is None else sums
        sums.index_add_(0, own, mine)
        margins.index_add_(0, own, out.cpu().double()[torch.arange(len(own)), own])
    assert sums is not None
    # A class whose logit is not above the mean is not decided for, so there is nothing to share out.
    shares = torch.where(margins[:, None] > 0, sums / margins[:, None].clamp(min=1e-12), 0.0)
    return shares.numpy(), shares.sum(1).clamp(0, 1).numpy()


def _projected(run: Run) -> tuple[Floats, Floats] | None:
    """Return the projections; None where the source FC reads more than pooled features."""
    source_fc = shared.pristine(run.settings, run.world.device).source_fc
    images = features.spread(run.data.size("val"), IMAGES)
    if not begins_with_pool(source_fc) or not run.model.head.pools or len(images) < LEAST_IMAGES:
        return None
    source, own = [], []
    for part in features.reduced(run, "val", images):
        with torch.no_grad():
            source.append(answers_behind_pool(source_fc, part).double().cpu())
            own.append(run.model.head.classify(part).double().cpu())
    answers = torch.cat(source)
    x, y = _centred(answers.T).T.numpy(), _centred(torch.cat(own).T).T.numpy()
    seen = answers.softmax(1).numpy()
    labels = run.data.labels("val")[images].numpy()
    shares, explained = np.zeros((y.shape[1], x.shape[1])), np.zeros(y.shape[1])
    for c in np.unique(labels):
        # Any classes can be added up to a logit; those mean something that the source sees in the images.
        among = np.argsort(-seen[labels == c].mean(0), kind="stable")[:SEEN]
        shares[c, among], explained[c] = project(x[:, among], y[:, c])
    return shares, explained


def project(x: Floats, y: Floats) -> tuple[Floats, float]:
    """Return the shares (K,) of up to MOST columns of x (N, K) in y (N,), and the share of y they explain.

    Columns are chosen and weighted on the even rows, one after another, with positive weights; the share of
    the variance is measured on the odd rows. The shares sum to it.
    """
    from scipy.optimize import nnls  # a worker starts faster without it

    fit, held = slice(0, None, 2), slice(1, None, 2)
    mean, middle = x[fit].mean(0), y[fit].mean()
    a, b = x[fit] - mean, y[fit] - middle
    lengths = np.linalg.norm(a, axis=0)
    lengths[lengths < 1e-9] = np.inf
    chosen: list[int] = []
    weights = np.zeros(0)
    for _ in range(MOST):
        rest = b - a[:, chosen] @ weights
        scores = a.T @ rest / lengths
        scores[chosen] = -np.inf
        if scores.max() <= 0:
            break
        chosen.append(int(scores.argmax()))
        weights = nnls(a[:, chosen], b)[0]
    left = y[held] - middle - (x[held] - mean)[:, chosen] @ weights
    explained = max(0.0, 1 - float(np.square(left).sum() / max(np.square(y[held] - middle).sum(), 1e-12)))
    shares = np.zeros(x.shape[1])
    strength = weights * a[:, chosen].std(axis=0)
    shares[chosen] = explained * strength / max(strength.sum(), 1e-12)
    return shares, explained


def _centred(rows: Tensor) -> Tensor:
    """Return rows (C, ...) less their mean."""
    return rows - rows.mean(0, keepdim=True)
