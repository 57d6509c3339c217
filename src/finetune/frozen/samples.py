"""Rows of samples for the head: stored features of their frames, vectors of their texts, and marks.

Shapes: B samples of a batch, T frames that the head reads, D features of a frame, E numbers of a text's
vector, F = T D + E + 2 (finetune/model/sample_head.py).
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.frozen.features import Feed, Inputs
from finetune.model.known_backbones import reads_clips
from finetune.model.sample_head import SampleShape
from finetune.settings import TrialSettings
from finetune.texts.encoders import Texts


def chosen(frames: int, of: int) -> Tensor:
    """Return the numbers of `frames` frames, evenly spaced among `of`, int64 (frames,).

    They are the same from either end, so that the choice itself does not tell a clip from its reverse.
    """
    picks = (torch.arange(frames) * 2 + 1) * of // (2 * frames)
    late = torch.arange(frames) > (frames - 1) / 2
    return torch.where(late, of - 1 - picks.flip(0), picks)


def rows_of(settings: TrialSettings) -> int:
    """Return the rows of features that of a sample: one for each frame, or one of a clip read as a whole."""
    return 1 if reads_clips(settings.backbone) else settings.data.frames


def read_frames(reads_clips: bool, frames: int, of: int) -> Tensor:
    """Return the numbers of the frames that a model reads among `of`: all, if it reads clips as a whole."""
    return torch.arange(of) if reads_clips else chosen(frames, of)


class SampleInputs:
    """The rows of one trial's samples. All blocks of its backbone are frozen.

    Args:
        inputs: the inputs of the frames, each of which is an image there.
        shape: the structure of the head.
        texts: the texts of the samples; None if there are none.
        settings: settings of the trial.
    """

    def __init__(
        self, inputs: Inputs, shape: SampleShape, texts: Texts | None, settings: TrialSettings
    ) -> None:
        self.inputs, self.shape, self.texts = inputs, shape, texts
        self.settings = settings
        self.of = rows_of(settings)

    def effective(self) -> dict[str, Any]:
        """Return the facts about the frames' features, and the settings of the samples' parts in use."""
        shape = self.shape
        told: dict[str, Any] = {}
        if self.settings.data.frames > 1:
            told |= {"frames": self.settings.data.frames}
        if self.of > 1:
            told |= {"frames_used": self.settings.frames_used, "pooling": shape.pooling}
        if self.texts is not None:
            joined = {name: getattr(shape, name) for name in ("fusion", "image_scale", "modality_dropout")}
            told |= {"text_encoder": self.texts.name, **joined}
        return self.inputs.effective() | told

    def feed(self, split: str, *, view: int | None = None) -> "SampleFeed":
        """Return the source of one epoch's batches, as `Inputs.feed` does for images."""
        frames = self.inputs.feed(split, view=view) if self.shape.reads_image else None
        return SampleFeed(self, split, frames)


@dataclass(frozen=True)
class SampleFeed:
    """The batches of one epoch."""

    inputs: SampleInputs
    split: str
    frames: Feed | None
    """Source of the frames' features; None if the head does not read the image."""

    def batches(self, order: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield rows (B, F) on the device for each index tensor of `order`, int64 (B,) within the split.

        Raises:
            DataError: a frame cannot be read.
        """
        inputs, device = self.inputs, self.inputs.inputs.device
        vectors, there = None, None
        if inputs.shape.reads_text and inputs.texts is not None:
            vectors, there = (part.to(device) for part in inputs.texts.vectors(self.split))
        for indices, images in zip(order, self._images(order), strict=True):
            here = indices.to(device)
            marks = torch.ones(len(here), 2, device=device)
            parts = [] if images is None else [images]
            if vectors is not None and there is not None:
                parts.append(vectors[here])
                marks[:, 1] = there[here].float()
            yield torch.cat([*parts, marks], dim=1)

    def _images(self, order: Sequence[Tensor]) -> Iterator[Tensor | None]:
        """Yield the features of each batch's frames, (B, T D); None where they are not read."""
        if self.frames is None:
            yield from (None for _ in order)
            return
        picks = chosen(self.inputs.shape.frames, self.inputs.of)
        rows = [(indices[:, None] * self.inputs.of + picks).flatten() for indices in order]
        for indices, x in zip(order, self.frames.batches(rows), strict=True):
            with torch.no_grad():  # not around the `yield`: the caller's code would run inside
                features = self.frames.finish(x).float().reshape(len(indices), -1)
            yield features

    @property
    def kind(self) -> Hashable:
        """Return a key of what `finish` does."""
        return "samples"

    def finish(self, x: Tensor) -> Tensor:
        """Return the rows as they are: they are the input of `TransferModel.from_features`."""
        return x
