"""Rank images by how little their label agrees with answers that did not see it. Imports no torch.

The list is for looking at, not for trusting: a model that is right on four of five images puts its own
mistakes on it, too. But wrong labels gather at its top.

Shapes: N images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Suspect:
    """An image whose label may be wrong."""

    place: int
    """Its place among the N images."""
    label: int
    given: float
    """Probability of its label."""
    likely: int
    """Most probable class, which is another one."""
    probability: float
    """Probability of that class."""


def rank(probabilities: Probabilities, labels: Sequence[int]) -> list[Suspect]:
    """Return the images whose most probable class is not their label, the least probable label first.

    Args:
        probabilities: (N, C), of models that did not train on the image (out of fold).
        labels: N labels, from 0.
    """
    said = np.asarray(labels, dtype=np.int64)
    given = probabilities[np.arange(len(said)), said]
    likely = probabilities.argmax(axis=1)
    return [
        Suspect(
            int(place),
            int(said[place]),
            float(given[place]),
            int(likely[place]),
            float(probabilities[place].max()),
        )
        for place in np.argsort(given, kind="stable")
        if likely[place] != said[place]
    ]
