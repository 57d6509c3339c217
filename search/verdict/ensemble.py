"""Choose an ensemble of models by their answers, and judge the choice on images that did not make it.

Greedy selection with replacement (Caruana et al., ICML 2004): again and again the model whose answers improve
the mean probability most is added. An ensemble that was chosen on some images reads too high on them, so the
images are cut into halves: one chooses, the other judges, and the best single model is chosen and judged in
the same way.

Shapes: M models, N images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.metrics import VALIDATION, Objective
from search.verdict.answers import Answers, Floats, Ints, credits_of

ROUNDS = 15
"""Most additions to an ensemble; a model may be added several times."""
HALVINGS = 5
"""Ways in which the images are cut into two halves, each of which judges once."""
LEAST = 20
"""Images below which nothing can be judged."""
SURE = 1.96
"""Standard errors by which an ensemble must be ahead: 95 % of chance alone lies within."""


@dataclass(frozen=True)
class Judged:
    """Comparison of an ensemble with the best single model, on images that chose neither."""

    gain: float
    """Mean difference of the metric, positive if the ensemble is better."""
    error: float
    """Its standard error over the images."""
    ensemble: float
    """Metric of the ensembles."""
    single: float
    """Metric of the single models."""

    @property
    def wins(self) -> bool:
        """True if the ensemble is ahead by more than noise."""
        return self.gain > SURE * self.error


@dataclass(frozen=True)
class Pool:
    """The probabilities of models on the same images.

    Args:
        probabilities: (M, N, C).
        labels: (N,).
        classes: names of the C classes.
        metric: the study's metric, such as `val/accuracy`.
        joined: number of models that may be members, the first ones; the others can only be the best single
            model. None: all.
    """

    probabilities: Floats
    labels: Ints
    classes: list[str]
    metric: str
    joined: int | None = None

    def choose(self, images: Ints | None = None) -> list[int]:
        """Return how often each model is in the ensemble that these images choose; None: all images."""
        at = np.arange(len(self.labels)) if images is None else images
        many = self.probabilities.shape[0] if self.joined is None else self.joined
        total = np.zeros_like(self.probabilities[0, at])
        order: list[int] = []
        values: list[tuple[float, float]] = []
        for size in range(1, ROUNDS + 1):
            tried = self._values((total + self.probabilities[:many, at]) / size, at)
            best = max(range(many), key=lambda m: (tried[m], -m))
            order.append(best)
            values.append(tried[best])
            total += self.probabilities[best, at]
        # The smallest ensemble of equals: it is the cheapest.
        length = 1 + max(range(len(values)), key=lambda i: (values[i], -i))
        return [order[:length].count(m) for m in range(self.probabilities.shape[0])]

    def single(self, images: Ints | None = None) -> int:
        """Return the model that these images choose."""
        at = np.arange(len(self.labels)) if images is None else images
        values = self._values(self.probabilities[:, at], at)
        return max(range(len(values)), key=lambda m: (values[m], -m))

    def mean(self, counts: Sequence[int]) -> Floats:
        """Return the probabilities (N, C) of an ensemble."""
        shares = np.asarray(counts, dtype=np.float64) / sum(counts)
        return np.asarray(np.tensordot(shares, self.probabilities, axes=1))

    def judge(self, seed: int = 0) -> Judged:
        """Return how ensembles compare with single models on the halves that did not choose them.

        Raises:
            ValueError: there are fewer than LEAST images.
        """
        if len(self.labels) < LEAST:
            raise ValueError(
                f"must be at least {LEAST} validation images to judge by, got {len(self.labels)}"
            )
        rng = np.random.default_rng(seed)
        both = np.zeros((2, len(self.labels)))
        for _ in range(HALVINGS):
            halves = _halves(self.labels, rng)
            for chooses, judges in (halves, halves[::-1]):
                ensemble = self.mean(self.choose(chooses))[judges]
                single = self.probabilities[self.single(chooses), judges]
                both[0, judges] += self._credits(ensemble, judges)
                both[1, judges] += self._credits(single, judges)
        both /= HALVINGS
        worth = Objective(self.metric).worth
        gains = np.array([worth(a) - worth(b) for a, b in both.T])
        error = float(gains.std(ddof=1) / np.sqrt(len(gains)))
        return Judged(float(gains.mean()), error, float(both[0].mean()), float(both[1].mean()))

    def _values(self, probabilities: Floats, images: Ints) -> list[tuple[float, float]]:
        """Return the worth of the metric on some images for each of (M, N, C), and the log likelihood."""
        labels = self.labels[images]
        said = probabilities[:, np.arange(len(labels)), labels]
        likely = np.log(np.maximum(said, 1e-12)).mean(axis=1)
        if self.metric == "val/accuracy":  # all models at once: most studies choose by it
            values = (probabilities.argmax(axis=2) == labels).mean(axis=1)
        else:
            values = np.array([self._credits(one, images).mean() for one in probabilities])
        worth = Objective(self.metric).worth
        return [(worth(float(v)), float(one)) for v, one in zip(values, likely, strict=True)]

    def _credits(self, probabilities: Floats, images: Ints) -> Floats:
        answers = _answers(probabilities, self.labels[images])
        return credits_of(answers, self.metric.removeprefix(VALIDATION), self.classes)


def _answers(probabilities: Floats, labels: Ints) -> Answers:
    at = np.arange(len(labels))
    predicted = probabilities.argmax(axis=1)
    above = (probabilities > probabilities[at, labels][:, None]).sum(axis=1)
    return Answers(
        labels, predicted, probabilities[at, predicted], probabilities[at, labels], np.asarray(above < 5)
    )


def _halves(labels: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return two halves of the images, of which each has as many images of a class as the other, within one.

    Classes with an odd number of images give their last one to either half in turn.
    """
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.sort(order[::2]), np.sort(order[1::2])
