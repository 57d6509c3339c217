"""Measure what a trained model costs whoever uses it: the latency of a forward pass, parameters and size.

A model's latency is that of its blocks plus that of its head. The blocks of one backbone are timed once per
study and kind of machine, and so is each distinct head, so models of the same architecture have the same
latency to the digit, and a head on a known backbone costs milliseconds. The first trial of an architecture
pays for it, and what it measures is kept in a folder that all slots see.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from finetune import steps
from finetune.disk.atomic import replacing
from finetune.frozen import execution
from finetune.model.strategies import TransferModel
from finetune.model.timing import seconds

PASSES = 15
"""Forward passes of which the median counts, after WARM ones."""
WARM = 3
SECONDS = 1.0
"""Time after which no further pass is made, for large backbones; at least three count."""
LOCK_SECONDS = 60.0
"""Longest wait for another slot that measures."""


def measured(
    model: TransferModel, image_size: int, batch_size: int, device: torch.device, folder: Path
) -> dict[str, float]:
    """Return latencies in milliseconds, number of parameters and size in megabytes (10^6 bytes) of a model.

    `latency_ms` is the time of one image, `latency_batch_ms` that of `batch_size` images, from normalised
    pixels to logits, in evaluation mode and float32. The size is that of an exported model's weights.

    Args:
        model: the model, which is left in evaluation mode.
        image_size: side of its images, in pixels.
        batch_size: images of a batch.
        device: the model's device.
        folder: where latencies are kept; it is made if it is not there.
    """
    model.eval()
    state = model.state_dict().values()
    told: dict[str, float] = {}
    for name, images in (("latency_ms", 1), ("latency_batch_ms", batch_size)):
        told[name] = round(_latency(model, image_size, images, device, folder), 4)
    told["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    told["size_mb"] = round(sum(tensor.numel() * tensor.element_size() for tensor in state) / 1e6, 4)
    return told


@torch.no_grad()
def _latency(model: TransferModel, image_size: int, images: int, device: torch.device, folder: Path) -> float:
    """Return the milliseconds of one pass of a batch."""
    pixels = _pixels(images, image_size, device)
    activations: list[Tensor] = []

    def blocks() -> Tensor:
        h: Tensor = model.trunk(model.prefix(pixels))
        return h

    def head() -> None:
        if not activations:  # only a head that is timed needs them
            activations.append(blocks())
        model.head(activations[0])

    common = {
        "images": images,
        "image_size": image_size,
        "backbone": model.backbone_name,
        "threads": torch.get_num_threads(),
        **execution.machine(device),
    }
    body = _kept({"part": "blocks", **common}, folder, lambda: _median_ms(blocks, device))
    return body + _kept(
        {"part": "head", "head": _structure(model.head), **common}, folder, lambda: _median_ms(head, device)
    )


def _pixels(images: int, image_size: int, device: torch.device) -> Tensor:
    """Return random pixels; the global generators are left alone."""
    own = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, 3, image_size, image_size, generator=own)
    return pixels.to(device).contiguous(memory_format=torch.channels_last)


def _structure(head: nn.Module) -> list[Any]:
    """Return the modules and shapes of a head, by which heads of one architecture are known."""
    kinds = [type(module).__name__ for module in head.modules()]
    return [kinds, [list(tensor.shape) for tensor in head.state_dict().values()]]


def _kept(what: Mapping[str, Any], folder: Path, measure: Callable[[], float]) -> float:
    """Return a latency that was measured before in this study, or measure it and keep it."""
    text = json.dumps(what, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = folder / f"{digest}.json"
    found = _known(path)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Two slots that measure at a time would slow each other down.
        with FileLock(f"{path.parent / 'measuring'}.lock", timeout=LOCK_SECONDS):
            return _measure(path, what, measure)
    except Timeout:
        return _measure(path, what, measure)


def _measure(path: Path, what: Mapping[str, Any], measure: Callable[[], float]) -> float:
    found = _known(path)
    if found is not None:
        return found
    with steps.step("measure latency", 1, "passes", "once for each architecture"):
        milliseconds = measure()
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**what, "ms": milliseconds}), encoding="utf-8")
    return milliseconds


def _known(path: Path) -> float | None:
    """Return the latency in a file, which never changes once it is there; None if there is none."""
    try:
        return _read(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@cache
def _read(path: Path) -> float:
    return float(json.loads(path.read_text(encoding="utf-8"))["ms"])


def _median_ms(run: Callable[[], object], device: torch.device) -> float:
    """Return the median milliseconds of a call, after calls that warm up."""
    taken: list[float] = []
    begun = time.perf_counter()
    for turn in range(WARM + PASSES):
        if turn >= WARM + 3 and time.perf_counter() - begun > SECONDS:
            break
        taken.append(seconds(run, device))
    return 1000 * statistics.median(taken[WARM:])
