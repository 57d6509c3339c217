"""Choose and solve a head: candidates in stages, each judged on folds of the training images.

A candidate is a way to prepare the features, with or without the source FC's answers, a linear or a Gaussian
kernel, and with or without weights for the classes; each is solved for all penalties together. Trying all
combinations finds hardly more than trying the ones that differ in one choice from the best so far
(docs/heads.md).

Shapes: N training images, E inputs of the head, C classes.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from finetune.exact import logistic, scores
from finetune.exact.few import Few, Made, Solution, folded
from finetune.exact.many import Many
from finetune.exact.rows import FOLDS, Preparation, Rows, class_weights, folds
from finetune.exact.scores import Score
from finetune.model.exact_head import ExactShape

FEW = 2_500
"""Most images that have an inner product with each other; more take normal equations."""
EVEN = 1.5
"""Class sizes that differ by less than this factor need no weights."""
PENALTIES = (1e-2, 1e-1, 1.0)
"""Penalties of the ridge regressions, as multiples of the mean eigenvalue. The neighbours of the best one,
half a power of ten away, are tried too."""
WIDTH, WIDER = 3.0, 1.0
"""Gamma of the Gaussian kernel that is tried first, and another one, as shares of 1 / mean squared
distance."""
PATH = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
"""Penalties of the logistic regressions, for inputs with a mean squared norm of 1."""
PULLS = (1e-1, 1e-2, 1e-3)
"""The same where the penalty pulls to the loaded rows."""
LOGISTIC_FLOPS = 1e11
"""Most floating-point operations of a path of logistic regressions; a larger one is left out."""

Start = tuple[Tensor, Tensor]
Loaded = Callable[[Tensor], Start]
"""Function from the images that are used, bool (N,), to the loaded rows (D, C) and their biases (C,)."""


@dataclass(frozen=True)
class Candidate:
    """One way to make a head."""

    preparation: Preparation = field(default_factory=Preparation)
    width: float = 0.0
    """Gamma of the Gaussian kernel as a share of 1 / mean squared distance; 0: linear."""
    balanced: bool = False
    """True if all classes count alike."""

    @property
    def name(self) -> str:
        """Name for people."""
        kind = f"Gaussian kernel (width {self.width:g})" if self.width else "ridge"
        return f"{kind} on {self.preparation.name}" + (", classes weighted" if self.balanced else "")


@dataclass(frozen=True)
class Solved:
    """A head with its weights."""

    name: str
    penalty: float
    score: Score
    """Scores on the folds that were held out."""
    shape: ExactShape
    state: Mapping[str, Tensor]
    """State of `ExactHead.new`."""


@dataclass(frozen=True)
class Choice:
    """The head that was chosen, and what it was chosen from."""

    best: Solved
    heads: int
    """Number of heads that were compared."""
    seconds: float
    others: tuple[Solved, ...] = ()
    """The best head of each candidate, the best first."""


def solve(
    rows: Rows, *, shares: Tensor | None = None, loaded: Loaded | None = None, linear: bool = False
) -> Choice:
    """Return the head with the lowest loss on held-out folds, solved on all training images.

    Args:
        rows: this worker's stored features; all workers must call this.
        shares: share of each class (C,) where the head will be judged; None: as in training.
        loaded: the rows of `load`, to which one path of logistic regressions is pulled; None: no such path.
        linear: only solve linear heads of centred features.
    """
    begin = time.perf_counter()
    search = Search(rows, shares)
    if linear:
        search.stage([Candidate(Preparation(answers=rows.answers is not None))])
    else:
        _stages(search, loaded)
    found = sorted(search.found, key=_loss)
    return Choice(found[0], search.heads, time.perf_counter() - begin, tuple(found))


def _loss(solved: Solved) -> float:
    return solved.score.loss


def _stages(search: "Search", loaded: Loaded | None) -> None:
    rows = search.rows
    unit, standard = Preparation(unit=True), Preparation(standard=True)
    best = search.stage([Candidate(unit, WIDTH), Candidate(standard, WIDTH), Candidate(unit)])
    # Weights of the classes come first of what changes the best: with them another kernel may be the best.
    if uneven(rows):
        best = search.stage([replace(best, balanced=True)])
    more = [
        replace(best, width=WIDER if best.width else WIDTH),
        replace(best, preparation=replace(best.preparation, root=True, unit=True)),
    ]
    if rows.answers is not None:
        more.append(replace(best, preparation=replace(best.preparation, answers=True)))
    best = search.stage(more)
    if rows.workers == 1:
        search.logistic(best.balanced, None)
        if loaded is not None:
            search.logistic(best.balanced, loaded)


def uneven(rows: Rows) -> bool:
    """Return True if the classes differ so much in size that weights for them are worth a try."""
    sizes = rows.labels.bincount(minlength=rows.classes)
    return bool(sizes.max() >= EVEN * sizes[sizes > 0].min())


class Search:
    """The candidates solved so far.

    Args:
        rows: this worker's stored features.
        shares: share of each class (C,) where the head will be judged; None: as in training.
    """

    def __init__(self, rows: Rows, shares: Tensor | None) -> None:
        self.rows = rows
        self.folds = folds(rows.labels, rows.groups)
        self.class_weights = class_weights(rows.labels, rows.classes)
        self.shares = shares
        few = rows.workers == 1 and len(rows.labels) <= FEW
        self.regression = partial(Few if few else Many, rows, self.folds)
        self.found: list[Solved] = []
        self.heads = 0
        self._candidates: list[tuple[float, Candidate]] = []

    def weights(self, balanced: bool) -> Tensor:
        """Return the weights of all training images."""
        weights = self.rows.weights
        return weights * self.class_weights[self.rows.labels] if balanced else weights

    def stage(self, candidates: list[Candidate]) -> Candidate:
        """Solve candidates; return the best of all so far."""
        tried = [candidate for _, candidate in self._candidates]
        for candidate in candidates:
            if candidate in tried:
                continue
            regression = self.regression(
                candidate.preparation, candidate.width, self.weights(candidate.balanced)
            )
            best = self._best(candidate.name, map(regression.solution, PENALTIES))
            near = (best.penalty * 10**0.5, best.penalty / 10**0.5)
            best = min(best, self._best(candidate.name, map(regression.solution, near)), key=_loss)
            self.found.append(best)
            self._candidates.append((best.score.loss, candidate))
        return min(self._candidates, key=lambda pair: pair[0])[1]

    def logistic(self, balanced: bool, loaded: Loaded | None) -> None:
        """Solve a path of logistic regressions on the images as they are, pulled to zero or loaded rows."""
        rows, penalties = self.rows, PULLS if loaded else PATH
        flops = 4.0 * len(rows.labels) * rows.pooled.shape[1] * rows.classes * (FOLDS + 1)
        if flops * logistic.STEPS * len(penalties) > LOGISTIC_FLOPS or len(rows.plain) != len(rows.labels):
            return
        name = "logistic regression" + (" from the loaded rows" if loaded else " on centred features")
        self.found.append(
            self._best(name + ", classes weighted" * balanced, self._path(balanced, loaded, penalties))
        )

    def _path(
        self, balanced: bool, loaded: Loaded | None, penalties: tuple[float, ...]
    ) -> Iterator[Solution]:
        rows, prepared = self.rows, Preparation()
        mean, scale, varies = prepared.fit(rows)
        scale = scale / varies**0.5
        z = (rows.pooled[rows.plain] - mean) * scale
        start = None
        if loaded is not None:
            starts = [loaded(self.folds != fold) for fold in range(FOLDS + 1)]
            start = (
                torch.cat([weight / scale[:, None] for weight, _ in starts], dim=1),
                torch.cat([bias + mean @ weight for weight, bias in starts]),
            )
        problems = logistic.path(
            z, rows.labels, self.folds, self.weights(balanced), penalties, classes=rows.classes, start=start
        )
        for penalty, outputs, weight, bias in problems:

            def made(factor: float, weight: Tensor = weight, bias: Tensor = bias) -> Made:
                return ExactShape(), folded(weight * factor, bias * factor, mean, scale)

            yield penalty, outputs, made

    def _best(
        self,
        name: str,
        solutions: Iterable[Solution],
    ) -> Solved:
        """Return the best of one candidate's penalties."""
        top: tuple[float, Score, Callable[[float], Made]] | None = None
        for penalty, outputs, make in solutions:
            self.heads += 1
            found = scores.score(outputs, self.rows.labels, self.shares)
            if top is None or found.loss < top[1].loss:
                top = penalty, found, make
        assert top is not None
        shape, state = top[2](top[1].scale)
        return Solved(name, top[0], top[1], shape, state)
