"""Measure a map: how fast the class's probability falls where marked parts are blurred, marked most first.

Blurred pixels are used, since black ones look like nothing that a model has seen. The number says little by
itself; what counts is the difference from random maps.

Shapes: B images, (3, S, S) normalised pixels, maps (B, S, S).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.explain.maps import blurred

CELLS = 16
"""Cells along each side; a cell is blurred as a whole."""
STEPS = 16
"""Steps in which all cells go."""
RANDOM = 4
"""Random orders that an order is compared with."""


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


def random_area(probabilities: Callable[[Tensor], Tensor], x: Tensor, classes: Tensor) -> Tensor:
    """Return the same (B,) for cells in random order, the mean of RANDOM orders."""
    draw = torch.Generator().manual_seed(0)
    orders = torch.rand(RANDOM, len(x), CELLS, CELLS, generator=draw)
    return torch.stack([area(probabilities, x, classes, order) for order in orders]).mean(0)


def ranks(marked: Tensor) -> Tensor:
    """Return the place of each cell (B, CELLS, CELLS), from 0 for the one marked most; ties are drawn."""
    cells = F.adaptive_avg_pool2d(marked[:, None].float(), CELLS).flatten(1)
    shuffled = torch.randperm(cells.shape[1], generator=torch.Generator().manual_seed(1))
    order = shuffled[cells[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    places = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    grid: Tensor = places.unflatten(1, (CELLS, CELLS))
    return grid
