"""How frozen blocks are run, and what a run costs here: measured once per backbone, size and device.

Frozen blocks need no gradient and no batch statistics, so their pass may use whatever is fastest; what
that is differs between backbones and machines by factors, so a probe of a few seconds finds it.

Shapes: B images, (3, S, S) pixels.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from filelock import FileLock
from torch import Tensor, nn

from finetune.frozen import folding

BATCH = 32
"""Images per pass of frozen blocks whose result is stored. Features depend in their last bits on the
batch size, not on the place in the batch or the other images in it (measured for eight families)."""
GPU_BATCH = 256
"""The same on a GPU, which is idle half the time with BATCH (docs/decisions.md). With `exact` it is BATCH
there, too: fresh batches are then filled up to it."""
FASTER = 1.25
"""A pass must beat the plain one by this factor to be taken: more than two measurements differ."""
ROUNDING = 1e-3
"""Most that folding may change of a pass's norm."""
HALF_ROUNDING = 0.01
"""Most that bfloat16 may: with 2 % and more, the ranking of heads was another (docs/decisions.md)."""
PROBED = 16
"""Images in a pass that is measured: per image it takes as long as one of BATCH, and a study waits for it."""
PASSES = 3
"""Measured per candidate; the fastest counts, since other processes only ever slow one down."""
SAMPLE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Pass:
    """How frozen blocks are run; in memory, channels always come last (shared.py)."""

    dtype: str = "float32"
    """`bfloat16`: under autocast."""
    folded: bool = False
    """With what stands around each convolution done by it (folding.py); for what is stored: see `ready`."""
    compiled: bool = False
    """By torch.compile, where the same blocks are run for many images: see `ready`."""

    def ready(self, blocks: nn.Sequential) -> Callable[[Tensor], Tensor]:
        """Return what `run` takes in the place of these blocks for as long as they are run again and again.

        Their weights are folded or compiled in: they must not change.
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
            # As an option of torch.compile it comes too late: tracing looks at it, too.
            with config.patch(freezing=True):
                h: Tensor = compiled(x)
            return h

        return run

    def run(self, blocks: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return what `blocks` make of `x` (B, ...), without gradient."""
        half = self.dtype == "bfloat16"
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext():
            return blocks(x)

    def run_padded(self, blocks: Callable[[Tensor], Tensor], x: Tensor, batch: int = BATCH) -> Tensor:
        """Return the same in batches of one size, the last one filled up with copies of an image.

        So a row of the result depends on that row of `x` alone, to the last bit.
        """
        parts = []
        for part in x.split(batch):
            missing = batch - len(part)
            if missing:
                layout = torch.channels_last if has_channels_last(part) else torch.contiguous_format
                filled = torch.cat([part, part[:1].expand(missing, *part.shape[1:])])
                parts.append(self.run(blocks, filled.contiguous(memory_format=layout))[: len(part)])
            else:
                parts.append(self.run(blocks, part))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


COMPILE_FROM_SECONDS = 120.0
"""Least work for which compiling is tried, as it takes seconds in every process (docs/decisions.md)."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one image costs on this machine."""

    fastest: Pass
    usual: tuple[float, ...]
    """Seconds of the first 0, 1, ... blocks in the usual pass; the first entry is 0."""
    fast: tuple[float, ...]
    """The same in the fastest pass."""
    half: tuple[bool, ...]
    """True where the fastest pass leaves bfloat16 behind those blocks."""
    channels_last: tuple[bool, ...]
    """True where the usual pass's activations (C, H, W) lie in memory as (H, W, C): how what follows is
    computed, and so its last bits, depends on it."""
    shapes: tuple[tuple[int, ...], ...]
    """Of those activations, without B."""
    read_rate: float
    """Bytes per second from a mapped file that has been read before."""
    write_rate: float

    def seconds(self, how: Pass) -> tuple[float, ...]:
        """Return the cumulative seconds per image of the fastest pass or of the usual one."""
        return self.fast if how == self.fastest else self.usual


def usual(precision: str, device: torch.device) -> Pass:
    """Return how a model runs its blocks where nothing faster was looked for."""
    cuda = device.type == "cuda"
    half = precision == "bfloat16" or (precision == "auto" and cuda and torch.cuda.is_bf16_supported())
    return Pass("bfloat16" if half else "float32")


def batch_of(precision: str, device: torch.device) -> int:
    """Return how many images pass at once through frozen blocks whose result is stored."""
    return GPU_BATCH if device.type == "cuda" and precision != "exact" else BATCH


@contextlib.contextmanager
def rounding(precision: str) -> Iterator[None]:
    """Inside, convolutions on GPUs compute in float32 where `precision` is `exact`.

    By torch's default they round what they read to ten bits (TF32); matrix products do not.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and precision != "exact"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def has_channels_last(h: Tensor) -> bool:
    """True if the channels of `h` (B, C, H, W) come last in memory.

    By its strides, as torch decides: where H and W are 1, both orders are the same bytes.
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
) -> Costs:
    """Return what passes cost here, measured on first use and kept in `folder`.

    Args:
        blocks: gives all blocks of backbone `name`, in evaluation mode, on `device`; called to measure.
        name: of the backbone.
        weights: which ones it has.
        image_size: S, in pixels.
        precision: as the trial's settings have it; `auto` looks for the fastest pass that rounds little.
        images: that will be run through all blocks; torch.compile is tried if they take long.
        folder: of this node.
        device: where the passes run.
    """
    facts = {
        "format": folding.FORMAT,
        "backbone": name,
        "weights": weights,
        "image_size": image_size,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "machine": machine(device),
    }
    measured = _kept(folder, facts, lambda: _measure(blocks(), image_size, precision, folder, device))
    if precision != "auto" or images * measured.fast[-1] < COMPILE_FROM_SECONDS:
        return measured
    return _kept(folder, facts | {"compiled": True}, lambda: _compile(blocks(), image_size, measured, device))


def _kept(folder: Path, facts: dict[str, Any], measure: Callable[[], Costs]) -> Costs:
    """Return the costs that belong to `facts` from the folder, or have them measured once per node."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{facts['backbone']}-{digest}.costs"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        try:
            return _from_json(json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            measured = measure()
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(dataclasses.asdict(measured) | {"facts": facts}))
        os.replace(temporary, path)
    return measured


def machine(device: torch.device) -> Mapping[str, str]:
    """Return what decides the bits of a forward pass beside weights and images."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "device": gpu or f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def _measure(
    blocks: nn.Sequential, image_size: int, precision: str, folder: Path, device: torch.device
) -> Costs:
    images, how = _images(image_size, device), usual(precision, device)
    began = _now(device)
    how.run(blocks, images)
    if _now(device) - began > 1:  # a large backbone: fewer images tell as much
        images = images[:4]
    usually, outputs = _by_block(blocks, how, images)
    layouts = tuple(has_channels_last(h) for h in outputs)
    fastest, fast = how, usually
    if precision != "exact" and device.type == "cpu":
        fastest = dataclasses.replace(how, folded=can_fold(blocks, images))
        half = dataclasses.replace(fastest, dtype="bfloat16")
        if precision == "auto" and rounds_little(blocks, images):
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
    """True if bfloat16 leaves what these blocks make of images as it was, but for HALF_ROUNDING."""
    half, whole = (Pass(dtype).run(blocks, images[:8]) for dtype in ("bfloat16", "float32"))
    return _distance(half, whole) < HALF_ROUNDING


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference as a share of what is expected."""
    expected = expected.float()
    return float(torch.linalg.vector_norm(found.float() - expected) / torch.linalg.vector_norm(expected))


def can_fold(blocks: nn.Sequential, images: Tensor) -> bool:
    """True if there is something to fold, and that leaves the answer as it was but for rounding."""
    if not folding.is_worth_it(blocks):
        return False
    with torch.no_grad():
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints what it then raises
                folded, plain = folding.fold(blocks, torch.float32)(images[:2]), blocks(images[:2])
        except Exception:  # what it traced wrongly fails in as many ways as there are backbones
            return False
        return _distance(folded, plain) < ROUNDING


def _compile(blocks: nn.Sequential, image_size: int, eager: Costs, device: torch.device) -> Costs:
    """Return what the compiled pass costs, if it is faster; `eager` where it is not, or nothing can compile.

    The shares of the blocks are taken to be those of the same pass, not compiled.
    """
    images = _images(image_size, device)
    best = eager
    halves = device.type == "cpu" and rounds_little(blocks, images)
    for dtype in dict.fromkeys((eager.fastest.dtype, *(["bfloat16"] if halves else []))):
        plain = dataclasses.replace(eager.fastest, dtype=dtype)
        how = dataclasses.replace(plain, compiled=True)
        try:
            seconds = fastest_run(how.ready(blocks), how, images) / len(images)
        except Exception:  # no compiler here, or a model that it does not know: as many kinds as backends
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


def _images(side: int, device: torch.device) -> Tensor:
    images = torch.rand(PROBED, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    return images.contiguous(memory_format=torch.channels_last)


def _by_block(blocks: nn.Sequential, how: Pass, images: Tensor) -> tuple[tuple[float, ...], list[Tensor]]:
    """Return cumulative seconds per image behind 0, 1, ... blocks, and the first pass's activations."""
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
    """Return the seconds of a whole pass, the fastest of a few behind a first one."""
    measured = []
    for _ in range(PASSES + 1):
        began = _now(images.device)
        how.run(blocks, images)
        measured.append(_now(images.device) - began)
    return min(measured[1:])


def _disk_rates(folder: Path) -> tuple[float, float]:
    """Return bytes per second of reading rows from a mapped file, and of writing one."""
    rows = np.zeros((SAMPLE_BYTES // 2**16, 2**16), dtype=np.uint8)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        file.write(rows.tobytes())
        file.flush()
        write = SAMPLE_BYTES / (time.perf_counter() - began)
        mapped = torch.from_numpy(np.memmap(file.name, np.uint8, "c", shape=rows.shape))
        order = torch.randperm(len(rows))
        mapped.index_select(0, order)
        began = time.perf_counter()
        mapped.index_select(0, order)
        return SAMPLE_BYTES / (time.perf_counter() - began), write


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _from_json(values: Mapping[str, Any]) -> Costs:
    values = {name: value for name, value in values.items() if name != "facts"}
    for name in ("usual", "fast", "half", "channels_last"):
        values[name] = tuple(values[name])
    values["shapes"] = tuple(tuple(shape) for shape in values["shapes"])
    return Costs(**{**values, "fastest": Pass(**values["fastest"])})
