"""The workers that train one model together: how they agree, and how images are divided among them.

Shapes: S side of the images in pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.errors import DataError
from finetune.model.strategies import TransferModel
from finetune.settings import TrialSettings


@dataclass(frozen=True)
class World:
    """The workers that train one model together, with the rank and device of this one."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is True on any worker; every worker must call this."""
        if self.size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised.tolist())


def split(images: int, rank: int, workers: int, size: int) -> list[Tensor]:
    """Return the image numbers that worker `rank` evaluates, in batches of `size`; the list may be empty."""
    mine = torch.arange(images)[rank::workers]
    return list(mine.split(size)) if len(mine) else []


def check(settings: TrialSettings, model: TransferModel, sizes: Iterable[int], workers: int) -> None:
    """Check that batches of these sizes can be divided among the workers and normalised by batch norm.

    The result is the same on all workers, so none waits for another one that failed.

    Raises:
        DataError: a worker would get no image of a batch, or batch norm one value per channel.
    """
    sizes = set(sizes)
    if min(sizes) < workers:
        size = settings.data.batch_size
        what = f"data.batch_size {size}" if size < workers else f"{min(sizes)} training images"
        raise DataError(
            f"data.batch_size: every worker needs an image of each batch, got {what} for {workers} workers. "
            "Raise it, add images, or lower resources.workers_per_trial."
        )
    # The numbers of images that one forward pass may get: a worker's share, divided into accumulated parts.
    shares = {share for size in sizes for share in (size // workers, -(-size // workers))}
    parts = {len(part) for share in shares for part in torch.empty(share).chunk(settings.accumulate)}
    if min(parts) > 1:
        return
    single = _single_valued(model, settings.data.image_size)
    if single is not None:
        per = " per worker" * (workers > 1) + " per accumulated part" * (settings.accumulate > 1)
        raise DataError(
            f"data.batch_size: batch norm must train on more than one value per channel, got one image{per} "
            f"and one pixel of it in {single}. Give each two images or more, enlarge data.image_size, or "
            "freeze all blocks."
        )


@torch.no_grad()
def _single_valued(model: TransferModel, side: int) -> str | None:
    """Return the block of the first trained batch norm that gets one pixel of an image (3, S, S), or None."""
    names = [*model.block_names[len(model.prefix) :], "head"]
    found: list[str] = []
    hooks = [
        module.register_forward_pre_hook(partial(_look, found, name))
        for name, part in zip(names, [*model.trunk, model.head], strict=True)
        for module in part.modules()
        if isinstance(module, _BatchNorm)
    ]
    try:
        if hooks:
            device = next(model.parameters()).device
            model.eval()
            model(torch.zeros(1, 3, side, side, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _look(found: list[str], name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
    if given[0].numel() == given[0].size(1):
        found.append(name)
