"""Explain an answer on a sample with text or several frames: which part, and which frame, carries it.

Shapes: T frames that the head reads, D features of a frame, E numbers of a text's vector, C classes.
"""

import torch
from torch import Tensor, nn

from finetune.model.sample_head import MARKS, SampleHead, SampleShape
from finetune.model.strategies import TransferModel


class HeldFixed(nn.Module):
    """The head of one sample as a function of its frames alone; the text stays as it is.

    Args:
        head: head of a model for samples, which reads the image.
        text: vector of the text (E,).
        marks: 1 or 0 for the image and for the text (2,).
    """

    def __init__(self, head: SampleHead, text: Tensor, marks: Tensor) -> None:
        super().__init__()
        self.head, self.text, self.marks = head, text, marks

    def forward(self, h: Tensor) -> Tensor:
        """Return logits (B, C) for the last block's activations of B times T frames."""
        return self.of_features(self.head.read(self.head.reduce(h)))

    def of_features(self, features: Tensor) -> Tensor:
        """Return logits (B, C) for the features of B times T frames, (B T, D)."""
        frames = features.reshape(-1, self.head.shape.frames * self.head.features)
        return self.head.classify(row_of(self.head.shape, frames, self.text, self.marks))


def row_of(shape: SampleShape, frames: Tensor, text: Tensor, marks: Tensor) -> Tensor:
    """Return rows (B, F) of a head: features of frames (B, T D), beside one text (E,) and its marks (2,)."""
    count = len(frames)
    parts = [frames] * shape.reads_image + [text.expand(count, -1)] * shape.reads_text
    return torch.cat([*parts, marks.expand(count, MARKS)], dim=1)


@torch.no_grad()
def without_parts(head: SampleHead, features: Tensor, text: Tensor, marks: Tensor) -> dict[str, Tensor]:
    """Return the logits (C,) of a sample without each of its parts, by the part that is left out.

    Nothing is returned for a sample, or a head, with one part only: there would be nothing left to read.

    Args:
        head: the head.
        features: features of the frames (T, D).
        text: vector of the text (E,).
        marks: 1 or 0 for the image and for the text (2,).
    """
    if not (head.shape.reads_image and head.shape.reads_text and bool(marks.all())):
        return {}
    frames, found = features.reshape(1, -1), {}
    for place, part in enumerate(("image", "text")):
        left = marks.clone()
        left[place] = 0
        found[part] = head.classify(row_of(head.shape, frames, text, left))[0]
    return found


@torch.no_grad()
def without_frames(model: TransferModel, held: HeldFixed, x: Tensor) -> Tensor:
    """Return the logits (T, C) of a clip in which each frame in turn is replaced by a neighbour.

    Args:
        model: the model.
        held: the head of the clip.
        x: its frames (T, 3, S, S), normalised.
    """
    if model.reads_clips:
        clips = [model.of_frames(x[row]) for row in _neighbours(len(x))]
        return held.of_features(torch.cat(clips))
    return held.of_features(model.of_frames(x)[_neighbours(len(x)).flatten()])


def _neighbours(count: int) -> Tensor:
    """Return the numbers of the frames of a clip, (T, T): row n does without frame n."""
    order = torch.arange(count).repeat(count, 1)  # a row for each frame that is left out
    # The frame before stands in, and the second one for the first: a clip keeps its length and its order.
    order[torch.arange(count), torch.arange(count)] = (torch.arange(count) - 1).abs().clamp(max=count - 1)
    return order
