"""Poolings: what a head reads of the frames of a clip.

A pooling returns one or several blocks of D numbers, which the head scales each for itself.

Shapes: B clips, T frames in the order of time, D features of a frame.
"""

import math

import torch
from torch import Tensor, nn

WAVES = 3
"""Cosines over time by which `ordered` weighs the frames."""
QUIET = 0.5
"""Factor of what `ordered` reads of the order: louder, it costs accuracy where order tells nothing."""


class Pooling(nn.Module):
    """The frames (B, T, D) of clips as a list of blocks, each (B, D).

    mean       mean over the frames
    max        largest value over the frames
    mean_std   mean and standard deviation
    mean_diff  mean, and mean absolute difference of neighbours
    attention  a weighted mean; a frame's weight follows from its features
    ordered    standard deviation and mean absolute difference; then, more quietly, sums of the frames weighed
               by cosines of 1 to WAVES half waves over the clip, and how far a mean whose weights follow from
               features and position lies from the plain one

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
            self.position = nn.Parameter(torch.linspace(-1, 1, frames))  # later frames count more at first
            times = (torch.arange(frames) + 0.5) / frames
            halves = torch.arange(1, 1 + min(WAVES, frames - 1)) if frames > 1 else torch.arange(0)
            waves = torch.cos(math.pi * halves[:, None] * times) / frames
            self.register_buffer("waves", waves, persistent=False)

    @property
    def gains(self) -> list[float]:
        """Factor of each block beside the others, once all are scaled to one variance."""
        if self.name == "ordered":
            return [1.0, 1.0] + [QUIET] * (1 + min(WAVES, self.frames - 1))
        return [1.0] * (2 if self.name in ("mean_std", "mean_diff") else 1)

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return len(self.gains)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Return the blocks of `frames` (B, T, D)."""
        mean = frames.mean(1)
        if self.name == "max":
            return [frames.amax(1)]
        if self.name == "mean_std":
            return [mean, frames.std(1, correction=0)]
        if self.name == "mean_diff":
            return [mean, self._steps(frames)]
        if self.name == "attention":
            return [self._weighed(frames, 0.0)]
        if self.name == "ordered":
            over_time = torch.einsum("jt,btd->jbd", self.waves, frames)
            turned = self._weighed(frames, self.position) - mean
            return [frames.std(1, correction=0), self._steps(frames), *over_time, turned]
        return [mean]

    def _steps(self, frames: Tensor) -> Tensor:
        """Return the mean absolute difference of neighbouring frames."""
        steps = frames.diff(dim=1).abs()
        return steps.mean(1) if steps.shape[1] else torch.zeros_like(frames[:, 0])

    def _weighed(self, frames: Tensor, position: Tensor | float) -> Tensor:
        """Return the mean of frames weighed by the softmax of query . frame + position."""
        told = frames @ self.query / math.sqrt(frames.shape[2]) + position  # (B, T)
        return (told.softmax(1)[..., None] * frames).sum(1)
