"""Choose how frozen blocks are executed, and measure what a pass costs, once per backbone, size and device.

Frozen blocks need no gradient and no batch statistics, so their pass may use the fastest kernels available.
The best choice differs between backbones and machines by factors, so a probe of a few seconds finds it.

Shapes: B images, (3, S, S) pixels.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from filelock import FileLock
from torch import Tensor, nn

from finetune import steps
from finetune.disk.atomic import replacing
from finetune.frozen import folding

BATCH = 32
"""Images per pass of frozen blocks whose result is stored. The last bits of features depend on the batch
size, but not on the place in the batch or on its other images (measured for eight families)."""
GPU_BATCH = 256
"""Images per pass on a GPU, which is idle half the time with BATCH (docs/decisions.md). With
`precision: exact` a GPU takes BATCH as well, since fresh batches are then padded to this size."""
CLIP_BATCH = 4
"""Clips per pass: one takes as long as dozens of images."""
FASTER = 1.25
"""Factor by which a pass must beat the one before it to be chosen; repeated measurements differ less."""
ROUNDING = 1e-3
"""Largest relative error, in the norm of the activations, that folding may cause."""
HALF_ROUNDING = 0.01
"""Largest relative error that bfloat16 may cause: from 2 % on, the ranking of heads changed
(docs/decisions.md)."""
PROBED = 16
"""Images in a measured pass. The time per image is that of a pass of BATCH, and a study waits less for it."""
PASSES = 3
"""Measured passes per candidate. The fastest counts, since other processes can only slow a pass down."""
SAMPLE_BYTES = 64 * 2**20
"""Size of the file on which the rates of the disk are measured."""


@dataclass(frozen=True)
class Pass:
    """One way to execute frozen blocks, whose channels come last in memory (training/shared.py)."""

    dtype: str = "float32"
    """Type of the computation; `bfloat16` runs under autocast."""
    folded: bool = False
    """Use fused convolution, batch norm and activation kernels (folding.py), through `ready`."""
    compiled: bool = False
    """Use torch.compile, through `ready`; it pays if the same blocks run for many images."""

    def ready(self, blocks: nn.Sequential) -> Callable[[Tensor], Tensor]:
        """Return a fast callable that replaces `blocks` in `run`; prepare once, then run it many times.

        The weights are folded or compiled into it, so they must not change afterwards.
        """
        if not len(blocks):
            return blocks
        if self.compiled:
            return self._compiled(blocks)
        return folding.fold(blocks, getattr(torch, self.dtype)) if self.folded else blocks

    @staticmethod
    def _compiled(blocks: nn.Sequential) -> Callable[[Tensor], Tensor]:
        from torch._inductor import config

        compiled = torch.compile(blocks)

        def run(x: Tensor) -> Tensor:
            # An option of torch.compile would be set too late: tracing reads it as well.
            with config.patch(freezing=True):
                h: Tensor = compiled(x)
            return h

        return run

    def run(self, blocks: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return `blocks(x)` for `x` (B, ...), without gradient."""
        half = self.dtype == "bfloat16"
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext():
            return blocks(x)

    def run_padded(self, blocks: Callable[[Tensor], Tensor], x: Tensor, batch: int = BATCH) -> Tensor:
        """Return `run(blocks, x)`, computed in batches of one size; copies of an image fill up the last one.

        So each row of the result depends, to the last bit, on the same row of `x` alone.
        """
        parts = [self.run(blocks, filled(part, batch))[: len(part)] for part in x.split(batch)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def filled(x: Tensor, batch: int) -> Tensor:
    """Return `x` (B, ...) with copies of its first row behind it, so that it has `batch` rows at least."""
    missing = batch - len(x)
    if missing <= 0:
        return x
    layout = torch.channels_last if has_channels_last(x) else torch.contiguous_format
    return torch.cat([x, x[:1].expand(missing, *x.shape[1:])]).contiguous(memory_format=layout)


COMPILE_FROM_SECONDS = 120.0
"""Least seconds of computation for which compiling is tried: it takes seconds in every process
(docs/decisions.md)."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Measured costs of one image on this machine."""

    fastest: Pass
    """The fastest pass whose rounding is acceptable."""
    usual: tuple[float, ...]
    """Seconds per image of the first 0, 1, ... blocks in the default pass; the first entry is 0."""
    fast: tuple[float, ...]
    """Seconds per image of the first 0, 1, ... blocks in the fastest pass."""
    half: tuple[bool, ...]
    """Whether the output of the first 0, 1, ... blocks is bfloat16 in the fastest pass."""
    channels_last: tuple[bool, ...]
    """Whether the activations (C, H, W) of the first 0, 1, ... blocks lie in memory as (H, W, C) in the
    default pass. The kernels of the following blocks, and so the last bits, depend on this order."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of those activations, without B."""
    read_rate: float
    """Bytes per second when reading a mapped file that has been read before."""
    write_rate: float
    """Bytes per second when writing a file."""

    def seconds(self, how: Pass) -> tuple[float, ...]:
        """Return the cumulative seconds per image of `how`, which is the fastest or the default pass."""
        return self.fast if how == self.fastest else self.usual


def usual(precision: str, device: torch.device) -> Pass:
    """Return the default pass, which evaluation always takes.

    It is bfloat16 if `precision` says so, or if that is `auto` and the GPU supports bfloat16; else float32.
    """
    cuda = device.type == "cuda"
    half = precision == "bfloat16" or (precision == "auto" and cuda and torch.cuda.is_bf16_supported())
    return Pass("bfloat16" if half else "float32")


def batch_of(precision: str, device: torch.device) -> int:
    """Return the number of images per pass of frozen blocks whose result is stored."""
    return GPU_BATCH if device.type == "cuda" and precision != "exact" else BATCH


@contextlib.contextmanager
def rounding(precision: str) -> Iterator[None]:
    """Context in which GPU convolutions compute in full float32 if `precision` is `exact`.

    By default torch lets convolutions round their inputs to ten bits (TF32), but not matrix products.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and precision != "exact"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def has_channels_last(h: Tensor) -> bool:
    """True if the channels of `h` (B, C, H, W) come last in memory.

    The strides decide, as in torch: if H and W are 1, both orders are the same bytes.
    """
    return h.dim() == 4 and h.stride(1) == 1 and h.stride(3) == h.size(1)


def costs(
    blocks: Callable[[], nn.Sequential],
    name: str,
    weights: str,
    image_size: int,
    precision: str,
    *,
    images: int,
    folder: Path,
    device: torch.device,
    frames: int = 0,
) -> Costs:
    """Return the costs of passes on this machine, measured on first use and then kept in `folder`.

    Args:
        blocks: returns all blocks of backbone `name`, in evaluation mode, on `device`; called to measure.
        name: the name of the backbone.
        weights: the hash of its weights, or `random`.
        image_size: S, in pixels.
        precision: the precision of the trial's settings; `auto` chooses the fastest pass that rounds little.
        images: the number of images that will pass all blocks; torch.compile is tried if they take long.
        folder: a folder of this node.
        device: the device of the passes.
        frames: frames of the clips that the backbone reads; 0: it reads images.
    """
    facts: dict[str, Any] = {
        "format": folding.FORMAT,
        "backbone": name,
        "weights": weights,
        "image_size": image_size,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "machine": machine(device),
    }
    facts |= {"frames": frames} if frames else {}
    images_of = partial(_images, image_size, device, frames)
    # Two files: the first measurement serves every study; compiling is tried only for long ones.
    measured = _kept(folder, facts, lambda: _measure(blocks(), images_of(), precision, folder, device))
    if precision != "auto" or images * measured.fast[-1] < COMPILE_FROM_SECONDS:
        return measured
    return _kept(
        folder, facts | {"compiled": True}, lambda: _compile(blocks(), images_of(), measured, device)
    )


def _kept(folder: Path, facts: dict[str, Any], measure: Callable[[], Costs]) -> Costs:
    """Return the costs kept in the folder for `facts`, measuring them first if they are missing.

    A lock makes the other processes of the node wait for the measurement instead of repeating it.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{facts['backbone']}-{digest}.costs"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        try:
            return _from_json(json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            with steps.step("time the backbone", why="first run on this node, kept for later"):
                measured = measure()
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(measured) | {"facts": facts}))
    return measured


def machine(device: torch.device) -> Mapping[str, str]:
    """Return the versions and hardware that, with weights and images, decide the bits of a forward pass."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "device": gpu or f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def _measure(
    blocks: nn.Sequential, images: Tensor, precision: str, folder: Path, device: torch.device
) -> Costs:
    """Return the costs of the default pass and of the fastest one that rounds little, not compiled."""
    how = usual(precision, device)
    began = _now(device)
    how.run(blocks, images)
    if _now(device) - began > 1:  # for a large backbone fewer images suffice
        images = images[:4]
    usually, outputs = _by_block(blocks, how, images)
    layouts = tuple(has_channels_last(h) for h in outputs)
    fastest, fast = how, usually
    # Folding has kernels on CPUs only; on GPUs the default pass may already be bfloat16.
    if precision != "exact" and device.type == "cpu":
        fastest = dataclasses.replace(how, folded=can_fold(blocks, images))
        half = dataclasses.replace(fastest, dtype="bfloat16")
        # Without kernels for it, a convolution over time takes 75 times as long in bfloat16 (r3d_18, tried).
        is_clip = images.dim() == 5
        if precision == "auto" and not is_clip and rounds_little(blocks, images):
            whole, halved = (fastest_run(one.ready(blocks), one, images) for one in (fastest, half))
            fastest = half if halved * FASTER < whole else fastest
    if fastest != how:
        fast, outputs = _by_block(blocks, fastest, images)
    read, write = _disk_rates(folder)
    return Costs(
        fastest=fastest,
        usual=usually,
        fast=fast,
        half=tuple(h.dtype == torch.bfloat16 for h in outputs),
        channels_last=layouts,
        shapes=tuple(tuple(h.shape[1:]) for h in outputs),
        read_rate=read,
        write_rate=write,
    )


def rounds_little(blocks: nn.Sequential, images: Tensor) -> bool:
    """True if bfloat16 changes the output of these blocks by less than HALF_ROUNDING."""
    half, whole = (Pass(dtype).run(blocks, images[:8]) for dtype in ("bfloat16", "float32"))
    return _distance(half, whole) < HALF_ROUNDING


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference as a share of the norm of `expected`."""
    expected = expected.float()
    return float(torch.linalg.vector_norm(found.float() - expected) / torch.linalg.vector_norm(expected))


def can_fold(blocks: nn.Sequential, images: Tensor) -> bool:
    """True if there is something to fold, and folding changes the output by rounding only."""
    if not folding.is_worth_it(blocks):
        return False
    with torch.no_grad():
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints what it then raises
                folded, plain = folding.fold(blocks, torch.float32)(images[:2]), blocks(images[:2])
        except Exception:  # wrongly traced blocks may fail with any kind of error
            return False
        return _distance(folded, plain) < ROUNDING


def _compile(blocks: nn.Sequential, images: Tensor, eager: Costs, device: torch.device) -> Costs:
    """Return the costs with the compiled pass if it is faster; `eager` if it is not, or compiling fails.

    Only the whole pass is measured. The blocks are assumed to take the same shares of it as without
    compiling.
    """
    best = eager
    halves = device.type == "cpu" and images.dim() == 4 and rounds_little(blocks, images)
    for dtype in dict.fromkeys((eager.fastest.dtype, *(["bfloat16"] if halves else []))):
        plain = dataclasses.replace(eager.fastest, dtype=dtype)
        how = dataclasses.replace(plain, compiled=True)
        try:
            seconds = fastest_run(how.ready(blocks), how, images) / len(images)
        except Exception:  # no compiler here, or it fails on this model; each backend has its own errors
            return best
        if seconds * FASTER < best.fast[-1]:
            apart, outputs = _by_block(blocks, plain, images)
            fast = tuple(seconds * t / apart[-1] for t in apart)
            best = dataclasses.replace(
                eager,
                fastest=how,
                fast=fast,
                half=tuple(h.dtype == torch.bfloat16 for h in outputs),
            )
    return best


def _images(side: int, device: torch.device, frames: int = 0) -> Tensor:
    """Return PROBED random images (B, 3, S, S), always the same ones, or a clip (1, 3, T, S, S)."""
    shape = (1, 3, frames, side, side) if frames else (PROBED, 3, side, side)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    return images if frames else images.contiguous(memory_format=torch.channels_last)


def _by_block(blocks: nn.Sequential, how: Pass, images: Tensor) -> tuple[tuple[float, ...], list[Tensor]]:
    """Return the cumulative seconds per image of 0, 1, ... blocks, and the activations behind each."""
    ready = [how.ready(nn.Sequential(block)) for block in blocks]
    fastest = [float("inf")] * len(ready)
    outputs: list[Tensor] = []
    for _ in range(PASSES):
        h, outputs = images, [images]
        for number, block in enumerate(ready):
            began = _now(images.device)
            h = how.run(block, h)
            fastest[number] = min(fastest[number], _now(images.device) - began)
            outputs.append(h)
    return tuple(float(t) for t in np.cumsum([0.0, *fastest]) / len(images)), outputs


def fastest_run(blocks: Callable[[Tensor], Tensor], how: Pass, images: Tensor) -> float:
    """Return the seconds of a whole pass: the fastest of PASSES, after one that warms up."""
    measured = []
    for _ in range(PASSES + 1):
        began = _now(images.device)
        how.run(blocks, images)
        measured.append(_now(images.device) - began)
    return min(measured[1:])


def _disk_rates(folder: Path) -> tuple[float, float]:
    """Return the bytes per second of reading rows from a mapped file, and of writing a file."""
    rows = np.zeros((SAMPLE_BYTES // 2**16, 2**16), dtype=np.uint8)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        file.write(rows.tobytes())
        file.flush()
        write = SAMPLE_BYTES / (time.perf_counter() - began)
        mapped = torch.from_numpy(np.memmap(file.name, np.uint8, "c", shape=rows.shape))
        order = torch.randperm(len(rows))
        mapped.index_select(0, order)  # as later epochs read: rows in random order, pages in memory
        began = time.perf_counter()
        mapped.index_select(0, order)
        return SAMPLE_BYTES / (time.perf_counter() - began), write


def _now(device: torch.device) -> float:
    """Return the time after the GPU has finished all that was started on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _from_json(values: Mapping[str, Any]) -> Costs:
    values = {name: value for name, value in values.items() if name != "facts"}
    for name in ("usual", "fast", "half", "channels_last"):
        values[name] = tuple(values[name])
    values["shapes"] = tuple(tuple(shape) for shape in values["shapes"])
    return Costs(**{**values, "fastest": Pass(**values["fastest"])})
