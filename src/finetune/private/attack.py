"""Membership inference by LiRA: tell which images a model was trained on.

Shadow heads are trained on random halves of the images; the confidence in an image's label among heads that
saw it is compared with that among heads that did not (Carlini et al., S&P 2022, the online attack). On stored
features a shadow head takes a fraction of a second.

Shapes: S shadow heads, N images, D features, C classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta, binom
from torch.nn import functional as F

TINY = 1e-9
LEAST_SPREAD = 1e-3
RATES = (0.001, 0.01)
"""False positive rates at which the attack is told."""
RESAMPLED = 100
GUESSED = 0.05
"""Share of the images, at each end of the scores, on which a guess is made for the bound on epsilon."""
LEVEL = 0.95

Fit = Callable[[np.ndarray], np.ndarray]
"""Function from the members of each head (bool, S, N) to their logits of all images (S, N, C)."""


def confidences(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)) of the labels, float64 (..., N), for logits (..., N, C)."""
    own = np.take_along_axis(logits, np.broadcast_to(labels, logits.shape[:-1])[..., None], -1)[..., 0]
    others = logits.copy()
    np.put_along_axis(others, np.broadcast_to(labels, logits.shape[:-1])[..., None], -np.inf, -1)
    top = others.max(axis=-1)
    rest = top + np.log(np.exp(others - top[..., None]).sum(axis=-1))
    found: np.ndarray = np.clip(own - rest, -50, 50)
    return found


@dataclass(frozen=True)
class Shadows:
    """Confidences of shadow heads."""

    members: np.ndarray
    """Whether a head was trained on an image, bool (S, N)."""
    confidence: np.ndarray
    """float64 (S, N)."""

    def scores(self, confidence: np.ndarray, *, without: int | None = None) -> np.ndarray:
        """Return how much likelier each image is a member than not, given a target's confidences (N,).

        Args:
            confidence: confidences of the target.
            without: a shadow head to leave out, if it is the target.
        """
        used = np.ones(len(self.members), bool)
        if without is not None:
            used[without] = False
        seen, said = self.members[used], self.confidence[used]
        parts = [_normal(said, seen), _normal(said, ~seen)]
        logs = [-np.log(spread) - (confidence - mean) ** 2 / (2 * spread**2) for mean, spread in parts]
        found: np.ndarray = logs[0] - logs[1]
        return found


def _normal(said: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the mean of each image (N,), and the spread that all images share."""
    count = used.sum(axis=0).clip(min=1)
    mean = (said * used).sum(axis=0) / count
    squares = ((said - mean) ** 2 * used).sum() / max(1, used.sum() - used.shape[1])
    return mean, max(float(np.sqrt(squares)), LEAST_SPREAD)


def train(fit: Fit, labels: np.ndarray, shadows: int, seed: int = 0) -> Shadows:
    """Return shadow heads, each trained on images that are drawn by a fair coin."""
    draw = np.random.default_rng(seed)
    members = draw.random((shadows, len(labels))) < 0.5
    return Shadows(members, confidences(fit(members), labels))


def auc(scores: np.ndarray, members: np.ndarray) -> float:
    """Return the area under the ROC curve; .5 is chance."""
    order = scores.argsort()
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    inside, outside = int(members.sum()), int((~members).sum())
    if not inside or not outside:
        return float("nan")
    return float((ranks[members].sum() - inside * (inside + 1) / 2) / (inside * outside))


def true_positives(scores: np.ndarray, members: np.ndarray, rate: float) -> float:
    """Return the share of members whose score is above that of all but a share `rate` of the others."""
    outside = np.sort(scores[~members])
    wrong = math.floor(rate * len(outside))
    return float((scores[members] > outside[len(outside) - 1 - wrong]).mean())


@dataclass(frozen=True)
class Found:
    """Result of an attack."""

    auc: float
    auc_between: tuple[float, float]
    rates: dict[float, tuple[float, float, float]]
    """True positive rate with its interval, by false positive rate."""
    members: int
    others: int


def of_recipe(shadows: Shadows, seed: int = 0) -> tuple[Found, np.ndarray]:
    """Return the attack on each shadow head by all others, and the scores (S, N).

    So many pairs of head and image resolve a false positive rate of .1 %. Intervals resample the images, each
    of which occurs with every head.
    """
    scores = np.stack(
        [shadows.scores(said, without=number) for number, said in enumerate(shadows.confidence)]
    )
    draw, images = np.random.default_rng(seed), scores.shape[1]
    told = [_measured(scores, shadows.members)]
    told += [
        _measured(scores[:, taken], shadows.members[:, taken])
        for taken in (draw.integers(0, images, images) for _ in range(RESAMPLED))
    ]
    low, high = np.quantile(told[1:], (0.025, 0.975), axis=0)
    rates = {
        rate: (float(told[0][1 + i]), float(low[1 + i]), float(high[1 + i])) for i, rate in enumerate(RATES)
    }
    inside = int(shadows.members.sum())
    found = Found(float(told[0][0]), (float(low[0]), float(high[0])), rates, inside, scores.size - inside)
    return found, scores


def _measured(scores: np.ndarray, members: np.ndarray) -> list[float]:
    flat, seen = scores.ravel(), members.ravel()
    return [auc(flat, seen), *(true_positives(flat, seen, rate) for rate in RATES)]


def of_model(shadows: Shadows, confidence: np.ndarray, members: np.ndarray, seed: int = 0) -> Found:
    """Return the attack on one model whose members are known; intervals are those of counts."""
    scores = shadows.scores(confidence)
    inside, outside = int(members.sum()), int((~members).sum())
    area = auc(scores, members)
    # Hanley and McNeil's standard error.
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = math.sqrt(
        max(0.0, area * (1 - area) + (inside - 1) * (q1 - area**2) + (outside - 1) * (q2 - area**2))
        / max(1, inside * outside)
    )
    rates = {}
    for rate in RATES:
        share = true_positives(scores, members, rate)
        rates[rate] = (share, *_clopper(round(share * inside), inside))
    return Found(area, (area - 1.96 * error, area + 1.96 * error), rates, inside, outside)


def _clopper(hits: int, of: int) -> tuple[float, float]:
    """Return Clopper and Pearson's interval of a share, at 95 %."""
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, of - hits + 1))
    high = 1.0 if hits == of else float(beta.ppf(0.975, hits + 1, of - hits))
    return low, high


def epsilon_below(shadows: Shadows, scores: np.ndarray) -> float:
    """Return a lower bound on the epsilon of one training, at 95 %, from guesses about who was a member.

    Membership was a fair coin for each image and head. Under pure epsilon-DP a guess is right with a
    probability of at most e^eps / (1 + e^eps), whatever else is known (Steinke, Nasr and Jagielski, NeurIPS
    2023, Theorem 5.2 without its term for delta). The images on which a guess is made follow
    from the scores alone.
    """
    count = max(1, int(GUESSED * scores.shape[1]))
    right = made = 0
    for own, seen in zip(scores, shadows.members, strict=True):
        order = own.argsort()
        right += int(seen[order[-count:]].sum() + (~seen[order[:count]]).sum())
        made += 2 * count
    low, high = 0.0, 20.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        odds = 1 / (1 + math.exp(-middle))
        low, high = (middle, high) if binom.sf(right - 1, made, odds) < 1 - LEVEL else (low, middle)
    return low


def softmax_regression(
    features: np.ndarray, labels: np.ndarray, classes: int, *, loss: float, most: int = 300
) -> Fit:
    """Return how shadow heads are fitted: linear heads, trained until they fit as the target does.

    Args:
        features: features of all images (N, D).
        labels: int64 (N,).
        classes: C.
        loss: mean cross-entropy of the target on its own training images.
        most: largest number of steps.
    """
    x = torch.from_numpy(features).float()
    x = (x - x.mean(0)) / (x.std() + TINY)
    # In the space of the images, N numbers for each class give the same head as D. All heads train at once.
    gram = x @ x.T / x.shape[1] + 1  # 1: the bias
    wanted = F.one_hot(torch.from_numpy(labels), classes).float()
    widest = float(torch.linalg.matrix_norm(gram - 1, 2)) / len(labels)

    def fit(members: np.ndarray) -> np.ndarray:
        used = torch.from_numpy(members).T.float()[:, :, None]  # (N, S, 1)
        size = used.sum(0).clamp(min=1)  # (S, 1)
        dual = torch.zeros(len(labels), len(members), classes)
        speed, going = torch.zeros_like(dual), torch.ones(len(members), 1)
        logits = torch.zeros_like(dual)
        for _ in range(most):
            logs = logits.log_softmax(-1)
            losses = -((logs * wanted[:, None]).sum(-1, keepdim=True) * used).sum(0) / size
            going = going * (losses > loss)
            if not going.any():
                break
            speed = MOMENTUM * speed + (wanted[:, None] - logs.exp()) * used
            dual += going * speed / (size * (0.5 * widest + 0.5))
            logits = (gram @ dual.flatten(1)).view_as(dual)
        found: np.ndarray = logits.transpose(0, 1).double().numpy()
        return found

    return fit


MOMENTUM = 0.9
