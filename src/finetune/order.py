"""In which order an epoch sees its images, and which make one batch."""

import torch
from torch import Tensor


def batches(images: int, size: int, shuffle: torch.Generator) -> list[Tensor]:
    """Return an epoch's batches of image numbers, in random order.

    A last batch of less than half the size is left out, unless it is the only one: batch norm over a
    few images with one pixel each has a variance near zero, and its gradient, multiplied from block to
    block, has thrown ShuffleNet's weights to 1e5 in one step (measured: 2 images, 32 px, random weights).
    """
    order = list(torch.randperm(images, generator=shuffle).split(size))
    return order[:-1] if len(order) > 1 and 2 * len(order[-1]) < size else order
