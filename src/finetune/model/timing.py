"""Time one batch of a backbone on this machine, for the plan of a study before it runs.

Random weights and random pixels take as long as real ones, so nothing is downloaded or read.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from finetune.model import backbones, strategies
from finetune.model.known_backbones import reads_clips
from finetune.strategy import REPLACE

IMAGES = 8
"""Images of a timed batch: large enough for the kernels, small enough for a second on two cores."""


@dataclass(frozen=True)
class Timed:
    """Seconds per image or sample of one backbone, at one image size, on one device."""

    forward: float
    """A pass through all blocks, without gradient."""
    train: float
    """A training step of all blocks and a head."""


def measure(backbone: str, image_size: int, device: torch.device, frames: int = 1) -> Timed:
    """Return what a sample costs. It takes a few batches, after one that warms up.

    Args:
        backbone: name of the backbone.
        image_size: S, in pixels.
        device: the device.
        frames: frames of a sample, each of which is an image unless the backbone reads clips.
    """
    clips = reads_clips(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = backbones.build(backbone)
    model = strategies.build(
        REPLACE.name,
        built,
        classes=("a", "b"),
        head_size=0,
        dropout=0.0,
        frozen_layers=0,
        relation=None,
        source_names=None,
        seed=0,
    ).to(device, memory_format=backbones.layout(backbone))  # type: ignore[call-overload]
    count = 2 if clips else IMAGES  # batch norm needs two
    x = torch.randn(count, 3, *([frames] if clips else []), image_size, image_size, device=device)
    x = x.contiguous(memory_format=backbones.layout(backbone))
    labels = torch.zeros(count, dtype=torch.int64, device=device)
    share = (1 if clips else frames) / count

    def forward() -> None:
        model.eval()
        with torch.no_grad():
            model(x)

    def train() -> None:
        model.train()
        F.cross_entropy(model(x), labels).backward()

    return Timed(_fastest(forward, device) * share, _fastest(train, device) * share)


def _fastest(run: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of the faster of two runs, after one that warms up."""
    return min([seconds(run, device) for _ in range(3)][1:])


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, with all that it lets a GPU do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
