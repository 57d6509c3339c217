"""Train one model: from settings to a report per epoch, the best weights and a way to go on.

Shapes: B images of a batch, C classes, H, W pixels.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from finetune import assets, optimize, order, strategies
from finetune.data import ImageData, normalise
from finetune.errors import NonFiniteLoss
from finetune.evaluate import BATCH, evaluate
from finetune.history import History, Keep
from finetune.settings import TrialSettings, WeightsSettings
from finetune.strategies import TransferModel

Report = Callable[[dict[str, Any]], None]
"""Takes one message: `{"kind": "effective", ...}` once, then `{"kind": "epoch", "epoch": 1, ...}`."""

LOOK_EVERY = 20
"""Batches between two looks at a loss that lies on a GPU; a look waits for the device."""


@dataclass(frozen=True)
class World:
    """The workers that train one model together, seen from one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any worker raised it; every worker must call this."""
        if self.size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised.tolist())


@dataclass(frozen=True)
class Outcome:
    """How training ended: `complete` or `stopped`, after so many epochs."""

    state: str
    epochs: int


def train(
    settings: TrialSettings,
    *,
    keep: Keep,
    report: Report,
    world: World | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train one model and leave its best weights at `keep.best`.

    Where `keep.last` lies from an interrupted run of the same settings, its epochs are reported
    again and training goes on behind them; the result equals an uninterrupted run.

    Raises:
        NonFiniteLoss: the loss became NaN or infinite; the message says where.
        FinetuneError: data, weights, backbone or checkpoint are not as the settings say.
    """
    run = Run(settings, world or World())
    history = History(run.model, run.optimizer, run.schedule, settings, keep, leads=run.world.rank == 0)
    report({"kind": "effective"} | run.effective())
    for past in history.restore():
        report({"kind": "epoch"} | past)
    for epoch in range(len(history.epochs) + 1, settings.epochs + 1):
        begin = time.perf_counter()
        loss = run.train_epoch(epoch, should_stop)
        if loss is None:
            history.save_best()
            return Outcome("stopped", epoch - 1)
        scores = {f"val/{name}": value for name, value in run.evaluate("val").items()}
        if not math.isfinite(scores["val/loss"]):
            raise NonFiniteLoss(_non_finite("validation", scores["val/loss"], epoch, settings))
        seconds = time.perf_counter() - begin
        rates = {"learning_rate": run.optimizer.param_groups[0]["lr"]}
        speed = {"seconds": seconds, "images_per_second": run.data.size("train") / seconds}
        metrics = {"epoch": epoch, "train/loss": loss} | scores | rates | speed
        history.add(metrics)
        report({"kind": "epoch"} | metrics)
    history.save_best()
    if run.world.rank == 0:
        keep.last.unlink(missing_ok=True)  # nothing is left to go on with
    return Outcome("complete", settings.epochs)


class Run:
    """The parts of one trial, built afresh: model, optimiser, schedule, order of the images."""

    def __init__(self, settings: TrialSettings, world: World) -> None:
        self.settings, self.world = settings, world
        self.data = assets.images(settings.data)
        source = assets.pretrained(settings.backbone, settings.weights, settings.cache_dir, world.device.type)
        self.mean, self.std = source.mean, source.std
        self.model = build_model(settings, self.data, world.device)
        self.steps = len(self._order(1))
        self.optimizer = optimize.optimizer(self.model.parameter_groups(), settings)
        self.schedule = optimize.schedule(self.optimizer, settings, steps_per_epoch=self.steps)
        self.step_model: nn.Module = self.model
        if world.size > 1:
            self.step_model = DistributedDataParallel(self.model, broadcast_buffers=False)
        self.weights_sha256 = source.sha256

    def effective(self) -> dict[str, Any]:
        """Return what is really used, read back from the model, the optimiser and the data."""
        facts = self.model.describe() | optimize.effective(self.optimizer)
        return facts | {
            "backbone": self.settings.backbone,
            "batch_size": self.settings.data.batch_size,
            "image_size": self.settings.data.image_size,
            "workers": self.world.size,
            "device": str(self.world.device),
            "weights_sha256": self.weights_sha256,
            "data_fingerprint": self.data.fingerprint,
        }

    def train_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> float | None:
        """Return the mean training loss per image, or None if told to stop between two batches."""
        settings, world = self.settings, self.world
        # Every epoch seeds itself: going on after an interruption needs no generator's state.
        torch.manual_seed(_mix(settings.seed, epoch, world.rank))
        self.step_model.train()
        whole = self._order(epoch)
        total = torch.zeros((), device=world.device)
        shares = [batch[world.rank :: world.size] for batch in whole]
        batches = self.data.batches("train", shares, view=epoch - 1)
        for step, (pixels, labels) in enumerate(batches):
            images, labels = self._on_device(pixels), labels.to(world.device, non_blocking=True)
            with self._autocast():
                losses = F.cross_entropy(
                    self.step_model(images),  # (B, C)
                    labels,
                    reduction="sum",
                    label_smoothing=settings.label_smoothing,
                )
            # DDP averages gradients over workers: this makes the average the mean over all images.
            loss = losses * (world.size / len(whole[step]))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += losses.detach()
            look = world.device.type == "cpu" or step % LOOK_EVERY == 0 or step + 1 == len(whole)
            stop, bad = world.agree(should_stop(), look and not math.isfinite(total.item()))
            if bad:
                raise NonFiniteLoss(_non_finite("training", total.item(), epoch, settings, step + 1))
            if stop:
                return None
        if world.size > 1:
            torch.distributed.all_reduce(total)
            self._average_buffers()
        return total.item() / sum(len(batch) for batch in whole)

    def evaluate(self, split: str) -> dict[str, float]:
        """Return loss and metrics of a split; each worker reads its own share of the images."""
        world = self.world
        mine = torch.arange(world.rank, self.data.size(split), world.size).split(BATCH)

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for pixels, labels in self.data.batches(split, mine):
                yield self._on_device(pixels), labels.to(world.device)

        with self._autocast():
            return evaluate(self.model, batches(), classes=len(self.data.classes), device=world.device)

    def _order(self, epoch: int) -> list[Tensor]:
        """Return the epoch's batches of image numbers, over all workers."""
        shuffle = torch.Generator().manual_seed(_mix(self.settings.seed, epoch))
        return order.batches(self.data.size("train"), self.settings.data.batch_size, shuffle)

    def _on_device(self, pixels: Tensor) -> Tensor:
        images = normalise(pixels.to(self.world.device, non_blocking=True), self.mean, self.std)
        return images.contiguous(memory_format=_memory_format(self.world.device))

    def _autocast(self) -> AbstractContextManager[Any]:
        wanted = self.settings.precision
        cuda = self.world.device.type == "cuda"
        if wanted == "bfloat16" or (wanted == "auto" and cuda and torch.cuda.is_bf16_supported()):
            return torch.autocast(self.world.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _average_buffers(self) -> None:
        """Give all workers the mean of the trained batch norms' running statistics."""
        for part in (self.model.trunk, self.model.head):
            for buffer in part.buffers():
                if buffer.is_floating_point():
                    torch.distributed.all_reduce(buffer)
                    buffer /= self.world.size


def build_model(settings: TrialSettings, data: ImageData, device: torch.device) -> TransferModel:
    """Return the model that the settings describe, on `device`, with its pretrained weights."""
    relation = None
    if settings.strategy == "load" and settings.weights != WeightsSettings():
        relation = assets.relationship(settings, device)
    source = assets.pretrained(settings.backbone, settings.weights, settings.cache_dir, device.type)
    model = strategies.build(
        settings.strategy,
        assets.backbone(settings, device),
        classes=data.classes,
        head_size=settings.head_size,
        dropout=settings.dropout,
        frozen_layers=settings.frozen_layers,
        relation=relation,
        source_names=source.classes,
        seed=settings.seed,
    )
    model.to(device, memory_format=_memory_format(device))  # type: ignore[call-overload]
    return model


def _memory_format(device: torch.device) -> torch.memory_format:
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def _mix(*parts: int) -> int:
    """Return one seed from several numbers: 63 bits, different for different parts."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 0x9E3779B97F4A7C15 + part + 1) % 2**63  # Knuth's multiplicative constant, 64 bits
    return mixed


def _non_finite(which: str, value: float, epoch: int, settings: TrialSettings, batch: int = 0) -> str:
    where = f"epoch {epoch}" + (f", batch {batch}" if batch else "")
    return (
        f"{where}: the {which} loss must stay finite, got {value}. "
        f"Lower learning_rate (here {settings.learning_rate:.3g}) or add warmup_epochs."
    )
