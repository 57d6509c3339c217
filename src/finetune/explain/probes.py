"""Ask behind each block of a pretrained backbone how well classes can be told apart there.

A linear probe behind a block is a head that is solved for on the pooled outputs of the block (Alain and
Bengio, 2016). Where its accuracy stops to grow, the blocks that follow add nothing for these classes. Those
up to there may be frozen, and those behind are worth training.

Shapes: B images, N probed images, (D, h, w) output of a block as a map, (T, D) as tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune import steps
from finetune.evaluation.scores import BATCH
from finetune.exact import solve
from finetune.exact.rows import Rows
from finetune.explain.features import spread
from finetune.images.pixels import normalise
from finetune.model.backbones import check_image_size
from finetune.settings import FeatureSettings, TrialSettings
from finetune.training import shared

MOST = 2000
"""Most training images that are looked at; of more some are left out evenly."""


@dataclass(frozen=True)
class Probe:
    """A linear head behind a block, and how well it tells the classes apart."""

    block: str
    frozen_layers: int
    """Number of blocks up to this one."""
    accuracy: float
    """Share of the training images that are right in the fold that was left out."""
    error: float
    """Standard error of the accuracy."""

    def to_dict(self) -> dict[str, Any]:
        """Return the probe as plain values."""
        return asdict(self)


def probe(settings: TrialSettings, stored: FeatureSettings | None) -> list[Probe]:
    """Return a probe behind each block of the pretrained backbone, in the order of the blocks.

    Args:
        settings: settings with the data, the backbone and its weights.
        stored: store in which decoded images are kept; None: keep them in memory.

    Raises:
        FinetuneError: data or weights are not as the settings say.
    """
    check_image_size(settings.backbone, settings.data.image_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, backbone = shared.images(settings.data, stored), shared.pristine(settings, device)
    source = shared.pretrained(settings.backbone, settings.weights, settings.cache_dir, device.type)
    images = spread(data.size("train"), MOST)
    labels, groups = data.labels("train")[images], data.groups("train")
    batches = (
        normalise(pixels.to(device), source.mean, source.std)
        for pixels, _ in data.batches("train", images.split(BATCH))
    )
    outputs = pooled_outputs(backbone.blocks, backbone.name, batches, len(images))
    held = None if groups is None else groups[images]
    return solved(backbone.block_names, outputs, labels, len(data.classes), held)


def solved(
    names: Sequence[str],
    outputs: Sequence[Tensor],
    labels: Tensor,
    classes: int,
    groups: Tensor | None = None,
) -> list[Probe]:
    """Return a probe behind each block.

    Args:
        names: names of the blocks.
        outputs: pooled outputs (N, D) of each block.
        labels: labels of the images, int64 (N,).
        classes: the number of classes.
        groups: number of each image's group, int64 (N,), which stays in one fold; None: no groups.
    """
    count, found = len(labels), []
    own, ones, mirrored = torch.arange(count), torch.ones(count), torch.zeros(count, dtype=torch.bool)
    for number, (name, x) in enumerate(zip(names, outputs, strict=True), start=1):
        rows = Rows(x, None, own, labels, ones, mirrored, classes, groups=groups)
        score = solve.solve(rows, linear=True).best.score
        found.append(Probe(name, number, score.accuracy, score.accuracy_error))
    return found


def separable(probes: Sequence[Probe]) -> Probe:
    """Return the first probe that is within a standard error of the best one."""
    best = max(probes, key=lambda one: one.accuracy)
    return next(one for one in probes if one.accuracy >= best.accuracy - best.error)


@torch.no_grad()
def pooled_outputs(
    blocks: nn.Sequential, backbone: str, batches: Iterable[Tensor], count: int
) -> list[Tensor]:
    """Return the pooled outputs (N, D) of every block, float32 on the CPU.

    Args:
        blocks: all blocks of a backbone.
        backbone: its name.
        batches: normalised images (B, 3, S, S), on the device of the blocks.
        count: N, the number of images.
    """
    found: list[list[Tensor]] = [[] for _ in blocks]
    with steps.step("probe the blocks", count, "images") as told:
        for x in batches:
            h = x
            for block, outputs in zip(blocks, found, strict=True):
                h = block(h)
                outputs.append(pooled(h, backbone).float().cpu())
            told.add(len(x))
    return [torch.cat(outputs) for outputs in found]


def pooled(h: Tensor, backbone: str) -> Tensor:
    """Return the mean (B, D) over the places of a block's output.

    Args:
        h: output of a block: (B, D), tokens (B, T, D), or a map (B, D, h, w); blocks of Swin, but for the
            last, return (B, h, w, D).
        backbone: name of the backbone.
    """
    if h.dim() == 2:
        return h
    if h.dim() == 3:
        return h.mean(1)
    channels_last = backbone.startswith("swin") and h.shape[1] == h.shape[2]
    return h.mean((1, 2)) if channels_last else h.mean((2, 3))
