"""Choose and solve a head for samples with several parts: which parts, how they are joined, and the rest.

A view is what a head may read of the samples: the frames under one pooling, the text, or both with one scale.
The views are compared by one kernel; the choices that `finetune.exact.solve` makes for images follow for the
best of them.

Shapes: N training samples, C classes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from finetune.exact.rows import Preparation, Rows
from finetune.exact.solve import WIDER, WIDTH, Candidate, Choice, Search, Solved, uneven
from finetune.settings import Fusion, PoolingName

SCALES = (1.0, 0.3, 3.0)
"""Factors of the image beside the text that are tried; neighbours of the best one, half as far, follow."""
STEP = 3**0.5
KERNEL = Candidate(Preparation(), WIDTH)
"""The head by which views are compared."""


@dataclass(frozen=True)
class View:
    """One way to read the samples."""

    fusion: Fusion
    """`image`, `text`, or `concat` for both."""
    pooling: PoolingName = "mean"
    image_scale: float = 1.0
    unit: bool = True
    """True if each part of a sample is divided by its norm first."""

    @property
    def name(self) -> str:
        """Name for people."""
        image = f"image ({self.pooling})" if self.pooling != "mean" else "image"
        read = {"image": image, "text": "text"}.get(self.fusion, f"{self.image_scale:.2g} x {image} and text")
        return read + (", each of norm 1" if self.unit else "")


def solve(
    rows_of: Callable[[View], Rows], poolings: Sequence[PoolingName], shares: Tensor | None, *, text: bool
) -> tuple[View, Choice]:
    """Return the view and the head with the lowest loss on held-out folds, solved on all training samples.

    Args:
        rows_of: returns this worker's rows as a view reads them; all workers must call this alike.
        poolings: poolings of the frames that are tried.
        shares: share of each class (C,) where the head will be judged; None: as in training.
        text: True if samples have text.
    """
    begin = time.perf_counter()
    search = _Views(rows_of, shares)
    image = search.best([View("image", pooling) for pooling in poolings])
    if text:
        search.best([View("text")])
        joined = [View("concat", image.pooling, scale) for scale in SCALES]
        scale = search.best(joined, among="concat").image_scale
        search.best([View("concat", image.pooling, near) for near in (scale * STEP, scale / STEP)])
    search.refine()
    view, best = search.top()
    others = tuple(one for _, _, one in sorted(search.found, key=_loss))
    return view, Choice(best, search.heads, time.perf_counter() - begin, others)


def _loss(found: tuple[View, Candidate, Solved]) -> float:
    return found[2].score.loss


class _Views:
    """The heads solved so far, each with its view."""

    def __init__(self, rows_of: Callable[[View], Rows], shares: Tensor | None) -> None:
        self._rows_of, self._shares = rows_of, shares
        self.found: list[tuple[View, Candidate, Solved]] = []
        self.heads = 0

    def top(self) -> tuple[View, Solved]:
        """Return the best head so far and its view."""
        view, _, solved = min(self.found, key=_loss)
        return view, solved

    def best(self, views: Sequence[View], among: str | None = None) -> View:
        """Solve the kernel for each view; return the best view so far, of all or of one fusion."""
        for view in views:
            self._try(view, KERNEL, self._rows_of(view))
        return min((one for one in self.found if among in (None, one[0].fusion)), key=_loss)[0]

    def refine(self) -> None:
        """Try other heads for the best view: weights, parts as they are, other kernels, and linear ones."""
        view, candidate, _ = min(self.found, key=_loss)
        rows = self._rows_of(view)
        if uneven(rows):
            self._try(view, replace(candidate, balanced=True), rows)
        for changed in (replace(view, unit=False), view):
            rows, balanced = self._rows_of(changed), min(self.found, key=_loss)[1].balanced
            for width in (0.0, WIDER) if changed == view else (0.0, WIDTH):
                self._try(changed, Candidate(Preparation(), width, balanced), rows)
            if rows.workers == 1:
                search = Search(rows, self._shares)
                search.logistic(balanced, None)
                self._add(changed, Candidate(balanced=balanced), search)

    def _try(self, view: View, candidate: Candidate, rows: Rows) -> None:
        search = Search(rows, self._shares)
        search.stage([candidate])
        self._add(view, candidate, search)

    def _add(self, view: View, candidate: Candidate, search: Search) -> None:
        self.heads += search.heads
        for solved in search.found:
            kind = solved.name.replace("centred features", view.name)
            shape = replace(solved.shape, unit=view.unit)
            self.found.append((view, candidate, replace(solved, name=kind, shape=shape)))
