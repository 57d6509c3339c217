"""Measure a map: how fast the class's probability falls where marked parts are blurred, marked most first.

Blurred pixels are used, since black ones look like nothing that a model has seen. The number says little by
itself; what counts is the difference from random maps. Those must be as smooth as the map: parts that lie
scattered hide more of an object than the same area in one piece.

Shapes: B images, (3, S, S) normalised pixels, maps (B, S, S).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.explain.maps import blurred, noise, scaled

CELLS = 16
"""Cells along each side; a cell is blurred as a whole."""
STEPS = 16
"""Steps in which all cells go."""
RANDOM = 4
"""Random maps that a map is compared with."""
TIE = 1e-4
"""Weight of the random map that decides between cells that are marked alike."""


@torch.no_grad()
def area(probabilities: Callable[[Tensor], Tensor], x: Tensor, classes: Tensor, marked: Tensor) -> Tensor:
    """Return the mean probability of the class (B,) while cells are blurred, those marked most first.

    Args:
        probabilities: function from normalised images (B, 3, S, S) to probabilities (B, C).
        x: normalised images.
        classes: class of each image (B,).
        marked: maps (B, S, S).
    """
    order = ranks(marked)  # (B, CELLS, CELLS), from 0 for the cell that goes first
    smooth = blurred(x)
    found = []
    for step in range(STEPS + 1):
        gone = (order < step * CELLS * CELLS / STEPS).float()
        mask = F.interpolate(gone[:, None], size=x.shape[-2:], mode="nearest").to(x.device)
        answers = probabilities(torch.where(mask > 0, smooth, x)).cpu()
        found.append(answers.gather(1, classes.cpu()[:, None])[:, 0])
    return torch.stack(found).mean(0)


def random_area(
    probabilities: Callable[[Tensor], Tensor], x: Tensor, classes: Tensor, shape: tuple[int, int]
) -> Tensor:
    """Return the same (B,) for random maps with `shape` values of their own, the mean of RANDOM maps."""
    drawn = [scaled(noise(len(x), shape, seed), x.shape[-1]) for seed in range(RANDOM)]
    return torch.stack([area(probabilities, x, classes, one) for one in drawn]).mean(0)


def ranks(marked: Tensor) -> Tensor:
    """Return the place of each cell (B, CELLS, CELLS), from 0 for the one marked most."""
    ties = scaled(noise(len(marked), (CELLS // 4, CELLS // 4), seed=RANDOM), CELLS)
    cells = F.adaptive_avg_pool2d(marked[:, None].float(), CELLS)[:, 0] + TIE * ties
    order = cells.flatten(1).argsort(dim=1, descending=True)
    places = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    grid: Tensor = places.unflatten(1, (CELLS, CELLS))
    return grid
