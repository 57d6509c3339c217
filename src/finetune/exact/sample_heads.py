"""Solve for a head that reads samples with text or several frames.

Shapes: B samples, C classes, T frames, D features of a frame, E numbers of a text's vector, F = T D + E + 2.
"""

import dataclasses

import torch
from torch import Tensor, nn

from finetune.exact import parts
from finetune.exact.parts import View
from finetune.exact.rows import CHUNK, Rows
from finetune.exact.solve import Choice
from finetune.model.exact_head import ExactShape
from finetune.model.sample_head import MARKS, SampleHead, SampleShape
from finetune.settings import PoolingName

POOLINGS: tuple[PoolingName, ...] = ("mean", "mean_std", "ordered")
"""Poolings of clips that are tried. `attention` learns its weights by gradients, and is not solved for."""


def solve(head: SampleHead, rows: Rows, shares: Tensor) -> tuple[SampleHead, Choice]:
    """Return the head that was solved for, and what it was chosen from.

    Args:
        head: the head of an exact trial that reads all parts.
        rows: this worker's rows (R, F) for it; all workers must call this.
        shares: share of each class (C,) where the head will be judged.
    """
    whole, marked = head.shape, rows.mirrored.split(CHUNK)

    def shape_of(view: View) -> SampleShape:
        made = dataclasses.asdict(view)
        return dataclasses.replace(
            whole,
            **{name: made[name] for name in ("fusion", "pooling", "image_scale")},
            text=0 if view.fusion == "image" else whole.text,
        )

    def fitted(view: View, shape: ExactShape) -> SampleHead:
        """Return a head that reads a view, with its scales, and with zeros for what is solved."""
        made = SampleHead(
            nn.Identity(), shape_of(view), head_size=0, classes=rows.classes, dropout=0.0, exact=shape
        )
        plain = (part[~mirrored] for part, mirrored in zip(rows.pooled.split(CHUNK), marked, strict=True))
        made.fit((_cut(part, whole, made.shape) for part in plain), rows.total)
        return made

    def rows_of(view: View) -> Rows:
        own = fitted(view, ExactShape(unit=view.unit))
        joined = [own.joined(_cut(part, whole, own.shape)) for part in rows.pooled.split(CHUNK)]
        return dataclasses.replace(rows, pooled=torch.cat(joined))

    poolings = POOLINGS if whole.frames > 1 else POOLINGS[:1]
    with torch.no_grad():
        view, choice = parts.solve(rows_of, poolings, shares, text=whole.reads_text)
        solved = fitted(view, choice.best.shape)
        solved.new.load_state_dict(dict(choice.best.state))
    return solved, choice


def _cut(row: Tensor, whole: SampleShape, wanted: SampleShape) -> Tensor:
    """Return rows (B, F) of a head that reads everything as those of another head."""
    image = whole.frames * whole.features
    kept = [row[:, :image]] * wanted.reads_image + [row[:, image:-MARKS]] * wanted.reads_text
    return torch.cat([*kept, row[:, -MARKS:]], dim=1)
