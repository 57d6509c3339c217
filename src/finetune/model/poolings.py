"""Poolings: what a head reads of the frames of a clip.

A pooling returns one or several blocks of D numbers, which the head scales each for itself.

Shapes: B clips, T frames in the order of time, D features of a frame.
"""

import math

import torch
from torch import Tensor, nn

WAVES = 3
"""Cosines over time by which `ordered` weighs the frames."""


class Pooling(nn.Module):
    """The frames (B, T, D) of clips as a list of blocks, each (B, D).

    mean       mean over the frames
    max        largest value over the frames
    mean_std   mean and standard deviation
    mean_diff  mean, and mean absolute difference of neighbours
    attention  a weighted mean; a frame's weight follows from its features
    ordered    standard deviation, sums of the frames weighed by cosines of 1 to WAVES half waves over the
               clip, and a weighted mean whose weights follow from features and position

    Only `ordered` changes with the order of the frames; `mean_diff` sees which frames are neighbours.

    Args:
        name: name of the pooling.
        features: D.
        frames: T.
    """

    def __init__(self, name: str, features: int, frames: int) -> None:
        super().__init__()
        self.name, self.frames = name, frames
        if name in ("attention", "ordered"):
            # At zero every frame weighs the same: training begins at the mean.
            self.query = nn.Parameter(torch.zeros(features))
        if name == "ordered":
            self.position = nn.Parameter(torch.zeros(frames))
            times = (torch.arange(frames) + 0.5) / frames
            halves = torch.arange(1, 1 + min(WAVES, frames - 1)) if frames > 1 else torch.arange(0)
            waves = torch.cos(math.pi * halves[:, None] * times) / frames
            self.register_buffer("waves", waves, persistent=False)

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        if self.name == "ordered":
            return 2 + min(WAVES, self.frames - 1)
        return 2 if self.name in ("mean_std", "mean_diff") else 1

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Return the blocks of `frames` (B, T, D)."""
        mean = frames.mean(1)
        if self.name == "max":
            return [frames.amax(1)]
        if self.name == "mean_std":
            return [mean, frames.std(1, correction=0)]
        if self.name == "mean_diff":
            steps = frames.diff(dim=1).abs()
            return [mean, steps.mean(1) if steps.shape[1] else torch.zeros_like(mean)]
        if self.name == "attention":
            return [self._weighed(frames, 0.0)]
        if self.name == "ordered":
            over_time = torch.einsum("jt,btd->jbd", self.waves, frames)
            return [frames.std(1, correction=0), *over_time, self._weighed(frames, self.position)]
        return [mean]

    def _weighed(self, frames: Tensor, position: Tensor | float) -> Tensor:
        """Return the mean of frames weighed by the softmax of query . frame + position."""
        told = frames @ self.query / math.sqrt(frames.shape[2]) + position  # (B, T)
        return (told.softmax(1)[..., None] * frames).sum(1)
