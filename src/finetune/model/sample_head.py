"""The head for samples with several parts: frames of a clip, and a text.

The head's input is one row per sample: the features of its frames one after another, the vector of its text,
and two marks that say whether the image and the text are there. Under `fuse` the features of a frame end with
the source's answer to it. A backbone that reads clips makes one row of features of all frames: T is 1 then.

Where blocks are trained, or the source FC, the model's input is a row, too: what the frozen blocks make of
each frame, as A numbers, stands in the place of its features (`TransferModel.complete`).

Shapes: B samples, T frames, D features of a frame, E numbers of a text's vector, P = D x blocks of the
pooling, K source classes, C classes, F = T D + E + 2.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from finetune.model.exact_head import ExactHead, ExactShape, powered, solved_layers
from finetune.model.head import MLPHead, answers_behind_pool, begins_with_pool
from finetune.model.poolings import Pooling
from finetune.settings import Fusion, PoolingName
from finetune.strategy import FUSE, REPLACE

GAIN = 16.0
"""Standard deviation of each part as the head sees it, over all its numbers together. With it the usual
learning rates suit: of 8, 16 and 32 it lost least between .003 and .03 (benchmarks/LOG.md)."""
MARKS = 2
"""Numbers at the end of a row: 1 or 0 for the image, 1 or 0 for the text."""


@dataclass(frozen=True, kw_only=True)
class SampleShape:
    """The structure of a head for samples, without its numbers. A model folder stores it as `head.sample`."""

    fusion: Fusion
    """The parts that the head reads, and how it joins them."""
    pooling: PoolingName
    frames: int
    """T; 1 for still images."""
    features: int
    """D."""
    text: int
    """E; 0 if there is no text, or it is not read."""
    image_scale: float = 1.0
    """Factor of the image, where it is joined with the text."""
    modality_dropout: float = 0.0
    """Share of the training samples of which the head sees only one part, each part as often."""

    @property
    def reads_image(self) -> bool:
        """True if the head reads the frames."""
        return self.fusion != "text"

    @property
    def reads_text(self) -> bool:
        """True if the head reads the text."""
        return self.fusion != "image"

    @property
    def row(self) -> int:
        """F, the numbers of a row."""
        return self.frames * self.features * self.reads_image + self.text * self.reads_text + MARKS

    def to_dict(self) -> dict[str, Any]:
        """Return the shape as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SampleShape":
        """Rebuild a shape from `to_dict`.

        Raises:
            ValueError: a value is one that `to_dict` never returns.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, Mapping) or values.keys() != names:
            raise ValueError(f"a head for samples described by {values!r:.120}")
        counts = [values[name] for name in ("frames", "features", "text")]
        shares = [values[name] for name in ("image_scale", "modality_dropout")]
        known = values["fusion"] in get_args(Fusion) and values["pooling"] in get_args(PoolingName)
        sized = all(type(count) is int and 0 <= count <= 2**20 for count in counts)
        if (
            not known
            or not sized
            or not all(type(share) is float and math.isfinite(share) for share in shares)
        ):
            raise ValueError(f"a head for samples described by {values!r:.120}")
        return cls(**values)


class SampleHead(nn.Module):
    """Head of `replace` and `fuse` for samples with several parts.

    `fusion` says what it does with the scaled image (B, P) and text (B, E):

    image   new layers read the image alone
    text    new layers read the text alone
    concat  new layers read both, one after the other
    gated   the same, where each part is first multiplied by a number from 0 to 2 that a gate draws from both
    sum     each part has new layers of its own, which are trained alone: at each step a sample trains those
            of one part, drawn at random; the answer is the sum of their log-probabilities

    A part that a sample lacks is zero, which is its mean over the training samples; `sum` leaves it out.

    With `exact` the new layers are those of an exact head: a kernel or nothing, then one Linear, whose
    numbers were solved for. What its shape asks of the features is done to each part for itself, before the
    scaling. With `source_fc` the head is that of `fuse`: it reads the source's softmax over K classes beside
    the pooled features, and the source FC is trained with it; `answers` is K.
    """

    def __init__(
        self,
        pool: nn.Module,
        shape: SampleShape,
        *,
        head_size: int,
        classes: int,
        dropout: float,
        exact: ExactShape | None = None,
        source_fc: nn.Module | None = None,
        answers: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.pool, self.exact = shape, pool, exact
        self.source_fc, self.answers = source_fc, answers
        self.pools = source_fc is None or begins_with_pool(source_fc)
        self.strategy = FUSE.name if source_fc else REPLACE.name if exact is None else ExactHead.strategy
        self.features = shape.features + answers
        """Numbers that the head reads of a frame, D or D + K."""
        self.cut: tuple[int, ...] = (shape.features,)
        """Shape of what the model's input has of each frame: A numbers."""
        self.pooling = Pooling(shape.pooling, self.features, shape.frames)
        image = self.features * self.pooling.blocks
        self.image_mean, self.image_scale = (
            nn.Buffer(start(size))
            for start, size in ((torch.zeros, image), (torch.ones, self.pooling.blocks))
        )
        self.text_mean, self.text_scale = nn.Buffer(torch.zeros(shape.text)), nn.Buffer(torch.ones(1))
        sizes = {"image": image, "text": shape.text}

        def new(inputs: int) -> nn.Module:
            if exact is not None:
                return solved_layers(exact, inputs, classes)
            return MLPHead(inputs, head_size, classes, dropout)

        if shape.fusion == "sum":
            self.new: nn.Module = nn.ModuleDict({part: new(size) for part, size in sizes.items()})
        else:
            self.new = new(sizes[shape.fusion] if shape.fusion in sizes else sum(sizes.values()))
        self.gate = nn.Linear(sum(sizes.values()), len(sizes)) if shape.fusion == "gated" else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)  # training begins as with `concat`
            nn.init.zeros_(self.gate.bias)

    @torch.no_grad()
    def fit(self, rows: Iterable[Tensor], total: Callable[[Tensor], Tensor] = lambda sums: sums) -> None:
        """Set the scales from rows (B, F) of training samples, so that each part varies by GAIN.

        Args:
            rows: rows of all samples, or of this worker's.
            total: function that sums a tensor over the workers.
        """
        sums: dict[str, list[Tensor]] = {}
        for row in rows:
            frames, text, marks = self._split(row)
            for part, values, there in (("image", self._pooled(frames), 0), ("text", text, 1)):
                if values is not None:
                    known = values[marks[:, there] > 0].double()
                    now = [torch.full_like(known.sum(0), len(known)), known.sum(0), known.square().sum(0)]
                    sums[part] = (
                        [a + b for a, b in zip(sums[part], now, strict=True)] if part in sums else now
                    )
        for part, own in sums.items():
            count, whole, squares = total(torch.stack(own))
            mean = whole / count.clamp(min=1)
            spread = (squares / count.clamp(min=1) - mean.square()).clamp(min=0)
            scale = getattr(self, f"{part}_scale")
            varies = spread.view(len(scale), -1)
            varies = varies[:, : varies.shape[1] - (self.answers if part == "image" else 0)].sum(1)
            getattr(self, f"{part}_mean").copy_(mean)
            gains = torch.tensor(self.pooling.gains if part == "image" else [1.0], device=scale.device)
            # A block that never varies says nothing, and must not be blown up where it does in a new sample.
            share = torch.where(varies > 1e-12, gains / varies.clamp(min=1e-12).sqrt(), 0.0)
            scale.copy_(GAIN * share / gains.square().sum().sqrt())

    @property
    def width(self) -> int:
        """Numbers that the model's input has of the frames of a sample, T A."""
        return self.shape.frames * math.prod(self.cut) * self.shape.reads_image

    def reduce(self, h: Tensor) -> Tensor:
        """Return what may be stored of the last block's activations `h` of all frames: pooled, if `pools`."""
        pooled: Tensor = self.pool(h) if self.pools else h
        return pooled

    def read(self, reduced: Tensor) -> Tensor:
        """Return the features (B T, D) of frames that `reduce` has been through."""
        if self.source_fc is None:
            return reduced
        pooled = reduced if self.pools else self.pool(reduced)
        answers = answers_behind_pool(self.source_fc, reduced) if self.pools else self.source_fc(reduced)
        return torch.cat([pooled, answers.softmax(dim=1)], dim=1)

    def apart(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """Return the model's input (B, T A + E + 2) as frames (B T, ...) and the rest of the rows."""
        return row[:, : self.width].reshape(-1, *self.cut), row[:, self.width :]

    def classify(self, row: Tensor) -> Tensor:
        """Return logits (B, C) for rows (B, F)."""
        there = self._seen(row[:, -MARKS:])
        parts = self._scaled(row, there)
        if isinstance(self.new, nn.ModuleDict):
            return self._summed(parts, there)
        joined = torch.cat(list(parts.values()), dim=1)
        if self.gate is not None:
            factors = 2 * self.gate(joined).sigmoid()  # (B, 2)
            joined = torch.cat([factors[:, n, None] * part for n, part in enumerate(parts.values())], dim=1)
        # Distances between samples are differences of large numbers: they take float32 on any device.
        with torch.autocast(row.device.type, enabled=False) if self.exact else nullcontext():
            logits: Tensor = self.new(joined.float() if self.exact else joined)
        return logits

    def joined(self, row: Tensor) -> Tensor:
        """Return the scaled parts of rows (B, F), one after the other: the input of the new layers."""
        return torch.cat(list(self._scaled(row, row[:, -MARKS:]).values()), dim=1)

    def _scaled(self, row: Tensor, there: Tensor) -> dict[str, Tensor]:
        """Return the scaled parts that are read, (B, P) and (B, E); those that are not there (B, 2) are 0."""
        frames, text, _ = self._split(row)
        image = self._pooled(frames)
        parts: dict[str, Tensor] = {}
        if image is not None:
            scale = self.image_scale[:, None].repeat(1, self.features)
            if self.answers:  # probabilities keep their own scale: where they hardly vary, they say little
                scale[:, -self.answers :] = GAIN
            own = self.shape.image_scale if self.shape.reads_text else 1.0
            parts["image"] = (image - self.image_mean) * scale.flatten() * own * there[:, :1]
        if text is not None:
            parts["text"] = (text - self.text_mean) * self.text_scale * there[:, 1:]
        return parts

    def _summed(self, parts: dict[str, Tensor], there: Tensor) -> Tensor:
        """Return the sum of the log-probabilities by each part, or in training those by one of them."""
        assert isinstance(self.new, nn.ModuleDict)
        shares = there
        if self.training:
            first = torch.rand(len(there), 1, device=there.device) < 0.5
            drawn = torch.cat([first, ~first], dim=1).to(there)
            shares = torch.where(there.sum(1, keepdim=True) > 1, drawn, there)
        # With neither part the answer is that of both for an average sample.
        shares = torch.where(there.sum(1, keepdim=True) > 0, shares, torch.ones_like(shares))
        image, text = (self.new[part](values).log_softmax(1) for part, values in parts.items())
        both: Tensor = shares[:, :1] * image + shares[:, 1:] * text
        return both

    def _seen(self, marks: Tensor) -> Tensor:
        """Return which parts the head sees, (B, 2): those that are there and, in training, not dropped."""
        drop = self.shape.modality_dropout
        if not self.training or not drop or not (self.shape.reads_image and self.shape.reads_text):
            return marks
        draw = torch.rand(len(marks), 1, device=marks.device)
        lost = torch.cat([draw < drop / 2, (draw >= drop / 2) & (draw < drop)], dim=1)
        return torch.where(marks.sum(1, keepdim=True) > 1, marks * ~lost, marks)

    def _pooled(self, frames: Tensor | None) -> Tensor | None:
        if frames is None:
            return None
        return torch.cat([self._powered(block) for block in self.pooling(frames)], dim=1)

    def _powered(self, part: Tensor) -> Tensor:
        exact = self.exact
        return part if exact is None else powered(part, root=exact.root, unit=exact.unit)

    def _split(self, row: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Return frames (B, T, D), text (B, E) and marks (B, 2) of rows; None for a part that is not read."""
        shape = self.shape
        end = shape.frames * self.features if shape.reads_image else 0
        frames = row[:, :end].view(-1, shape.frames, self.features) if shape.reads_image else None
        text = self._powered(row[:, end:-MARKS]) if shape.reads_text else None
        return frames, text, row[:, -MARKS:]

    def forward(self, row: Tensor) -> Tensor:
        """Return logits (B, C) for rows (B, F)."""
        return self.classify(row)
