"""The head of an exact trial: its weights were solved for on stored features (finetune/exact), not trained.

The head's input is the vector of pooled features, perhaps followed by the source softmax. It is a linear
layer, or a kernel machine: one hidden unit per centre, or per random frequency.

Shapes: B images, D pooled features, K source classes, E = D or D + K inputs, M hidden units, C classes.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from finetune.model.head import answers_behind_pool, begins_with_pool

Kind = Literal["linear", "kernel", "fourier"]
TINY = 1e-9
VERSION = 1
"""Version of what `ExactShape.to_dict` returns."""


@dataclass(frozen=True)
class ExactShape:
    """The structure of an exact head, without its numbers. A model folder stores it as `head.exact`."""

    kind: Kind = "linear"
    """`linear`; `kernel`: exp(-gamma |z - centre|^2) for each centre; `fourier`: cosines of random
    projections, which approximate that kernel where there are too many images for a centre each."""
    answers: bool = False
    """True if the head also reads the softmax of the source FC."""
    unit: bool = False
    """True if the pooled features of an image are divided by their Euclidean norm."""
    root: bool = False
    """True if the signed square root of the pooled features is taken, before `unit`."""
    size: int = 0
    """M, the number of hidden units; 0 for `linear`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the shape as plain values."""
        return {"version": VERSION} | dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ExactShape":
        """Rebuild a shape from `to_dict`.

        Raises:
            ValueError: a value is one that `to_dict` never returns.
        """
        flags = ("answers", "unit", "root")
        wrong = ValueError(
            f"an exact head described by {values!r:.120}, where this version knows version {VERSION}"
        )
        if not isinstance(values, Mapping) or values.keys() != {*flags, "version", "kind", "size"}:
            raise wrong
        kind, size = values["kind"], values["size"]
        known = values["version"] == VERSION and kind in get_args(Kind)
        sized = type(size) is int and (size > 0 if kind != "linear" else size == 0)
        if not known or not sized or not all(type(values[flag]) is bool for flag in flags):
            raise wrong
        return cls(kind=kind, size=size, **{flag: values[flag] for flag in flags})


def powered(pooled: Tensor, *, root: bool, unit: bool) -> Tensor:
    """Return pooled features (B, D) after the steps of a preparation that are no affine map."""
    if root:
        pooled = pooled.sign() * pooled.abs().sqrt()
    return pooled / pooled.norm(dim=1, keepdim=True).clamp(min=TINY) if unit else pooled


class Gaussian(nn.Module):
    """Hidden units exp(-|z - centre|^2), (B, E) -> (B, M), for inputs whose scale contains the width."""

    def __init__(self, inputs: int, centres: int) -> None:
        super().__init__()
        self.mean, self.scale, self.centres = (
            nn.Buffer(torch.zeros(shape)) for shape in ((inputs,), (inputs,), (centres, inputs))
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return the activations of the hidden units."""
        z = (z - self.mean) * self.scale
        squares = z.square().sum(dim=1)[:, None] + self.centres.square().sum(dim=1) - 2 * z @ self.centres.T
        return squares.clamp_(min=0).neg_().exp_()


class Fourier(nn.Module):
    """Hidden units sqrt(2 / M) cos(z W + phase), (B, E) -> (B, M) (Rahimi and Recht, NeurIPS 2007).

    With the columns of W drawn from a normal distribution of variance 2, the inner product of two images is
    close to exp(-|z - z'|^2).
    """

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.mean, self.scale, self.frequencies, self.phase = (
            nn.Buffer(torch.zeros(shape)) for shape in ((inputs,), (inputs,), (inputs, size), (size,))
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return the activations of the hidden units."""
        z = (z - self.mean) * self.scale
        waves: Tensor = (z @ self.frequencies + self.phase).cos_()
        return waves * math.sqrt(2 / len(self.phase))


def solved_layers(shape: ExactShape, inputs: int, classes: int) -> nn.Sequential:
    """Return the layers of an exact head behind the preparation of its inputs (B, E); the last is zero."""
    hidden = {"linear": nn.Identity, "kernel": Gaussian, "fourier": Fourier}[shape.kind]
    last = nn.Linear(shape.size or inputs, classes)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(hidden(inputs, shape.size), last)


class ExactHead(nn.Module):
    """Head of an exact trial; its source FC is kept only if the head reads its answers."""

    strategy = "exact"

    def __init__(
        self,
        pool: nn.Module,
        source_fc: nn.Module,
        shape: ExactShape,
        *,
        features: int,
        answers: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.shape, self.pool = shape, pool
        self.pools = not shape.answers or begins_with_pool(source_fc)
        self.source_fc = source_fc if shape.answers else nn.Identity()
        self.new = solved_layers(shape, features + answers * shape.answers, classes)

    def reduce(self, h: Tensor) -> Tensor:
        """Return pooled features (B, D), or `h` itself if a source FC is read that begins otherwise."""
        reduced: Tensor = self.pool(h) if self.pools else h
        return reduced

    def parts(self, reduced: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return pooled features (B, D) as they are, and the source softmax (B, K) if the head reads it."""
        pooled = reduced if self.pools else self.pool(reduced)
        if not self.shape.answers:
            return pooled, None
        logits = answers_behind_pool(self.source_fc, reduced) if self.pools else self.source_fc(reduced)
        return pooled, logits.softmax(dim=1)

    def classify(self, reduced: Tensor) -> Tensor:
        """Return logits (B, C)."""
        pooled, answers = self.parts(reduced)
        z = powered(pooled, root=self.shape.root, unit=self.shape.unit)
        # Distances between images are differences of large numbers: they take float32 on any device.
        with torch.autocast(z.device.type, enabled=False):
            logits: Tensor = self.new((z if answers is None else torch.cat([z, answers], dim=1)).float())
        return logits

    def forward(self, h: Tensor) -> Tensor:
        """Return logits (B, C) for the last block's activations `h`."""
        return self.classify(self.reduce(h))
