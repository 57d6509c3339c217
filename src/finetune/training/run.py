"""All parts of one trial, built from its settings: train an epoch with them, measure a split.

Shapes: B images of a batch, C classes, H, W pixels.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from finetune import steps
from finetune.errors import NonFiniteLoss
from finetune.evaluation.outputs import Outputs
from finetune.evaluation.scores import BATCH, Scores, evaluate
from finetune.frozen import execution, latency
from finetune.frozen.features import Feed, Inputs
from finetune.frozen.samples import SampleFeed, SampleInputs
from finetune.images import augment, order
from finetune.model import backbones
from finetune.model.exact_head import ExactShape
from finetune.model.sample_head import SampleHead, SampleShape
from finetune.model.strategies import TransferModel
from finetune.settings import FeatureSettings, TrialSettings
from finetune.training import building, exact, graphs, limits, optimize, shared, workers
from finetune.training.averaging import Average
from finetune.training.losses import Loss
from finetune.training.workers import World

LOOK_EVERY = 20
"""Batches between two reads of a loss that is on a GPU; each read waits for the device."""

EPOCH_PATIENCE = 2.0
"""Seconds after which an epoch says how far it is."""

TARGETS_AT_ONCE = 2**20
"""Elements of the targets computed at once: few calls for small data sets, little memory for large ones."""


class Run:
    """All parts of one trial, newly built: images, model, loss, optimiser, learning rates.

    Args:
        settings: settings of the trial.
        world: this worker and its group.
        features: store for the features of frozen blocks; None: no store.
        limit: learning rate to use instead of the settings' one, which is too high for the model.
        shape: for strategy `exact`, what its head is made of; None: the head through which features are read.
        sample: what the head reads of samples with several parts; None: what the settings say.
        together: train on the validation images, too.
    """

    def __init__(
        self,
        settings: TrialSettings,
        world: World,
        features: FeatureSettings | None = None,
        limit: float | None = None,
        *,
        shape: ExactShape | None = None,
        sample: SampleShape | None = None,
        together: bool = False,
    ) -> None:
        self.settings, self.world, self.limit, self.features = settings, world, limit, features
        # First of all, so that an impossible size fails before images and weights are read.
        backbones.check_input(settings.backbone, settings.data.image_size, settings.data.frames)
        images_of = shared.together if together else shared.images
        self.data = images_of(settings.data, features)
        source = shared.pretrained(settings.backbone, settings.weights, settings.cache_dir, world.device.type)
        parts = settings.data.has_parts
        images = shared.read(settings, features) if parts else self.data
        self.texts = shared.texts(settings.data, settings.text_encoder, features)
        self.model = building.model(
            settings, self.data, world.device, shape, sample=sample, texts=self.texts, stored=features
        )
        self.inputs = Inputs(
            self.model,
            images,
            settings,
            source,
            world.device,
            blocks=lambda: shared.pristine(settings, world.device).blocks,
            stored=features,
        )
        self.rows: Inputs | SampleInputs = self.inputs
        """Source of the trained part's input: `inputs`, or where samples have several parts rows of these."""
        if isinstance(self.model.head, SampleHead):
            self.rows = SampleInputs(self.inputs, self.model.head.shape, self.texts, settings)
            self._fit(self.rows, self.model.head)
        self.head_init = "random"
        if settings.head_init == "exact" and exact.begins(self.model):
            exact.begin(self)
            self.head_init = "exact"
        self.labels = self.data.labels("train")
        weights, classes = self.data.weights("train"), len(self.data.classes)
        self.loss = Loss(settings, self.labels, weights, classes=classes, device=world.device)
        first = self._order(1)
        workers.check(settings, self.model, map(len, first), world.size)
        self.steps = len(first)
        limited = settings if limit is None else dataclasses.replace(settings, learning_rate=limit)
        self.optimizer = optimize.optimizer(self.model.parameter_groups(), limited)
        self.watch = limits.Watch(limited, classes=len(self.data.classes), steps_per_epoch=self.steps)
        self.rates = optimize.Rates(self.optimizer, settings, steps_per_epoch=self.steps)
        self.starts = optimize.starts(self.optimizer)
        self.average = Average(self.model, settings.ema_decay) if settings.ema_decay else None
        self.mixing = augment.mixing(settings)
        self.scores = Scores(self.data.classes, world.device)
        self.parts = settings.accumulate
        """Parts in which a share of a batch is computed: the setting, or more if GPU memory ran out."""
        self.step_model = self._parallel()
        replays = graphs.ON and world.device.type == "cuda" and world.size == 1
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.replays = graphs.Replays(trained, on=replays and settings.precision != "exact")
        self.weights_sha256 = source.sha256

    @torch.no_grad()
    def _fit(self, rows: SampleInputs, head: SampleHead) -> None:
        """Scale the parts of samples, as the trained blocks show them when training begins."""
        samples = torch.arange(self.data.size("train"))
        # Shares of nearly one size: batch norms of trained blocks cannot read a single image.
        batches = rows.feed("train", view=0).batches(samples.tensor_split(-(-len(samples) // BATCH)))
        before = [(buffer, buffer.clone()) for buffer in self.model.trunk.buffers()]
        self.model.train()
        head.eval()
        head.fit(map(self.model.complete, batches))
        for buffer, value in before:
            buffer.copy_(value)

    def effective(self) -> dict[str, Any]:
        """Return the settings actually in use, read back from the model, the optimiser and the data."""
        facts = self.model.describe() | optimize.effective(self.optimizer, self.rates)
        facts |= self.loss.effective() | augment.effective(self.mixing) | self.data.effective()
        return (
            facts
            | self.rows.effective()
            | {
                "head_init": self.head_init,
                "ema_decay": self.average.decay if self.average else 0.0,
                "clip_norm": self.settings.clip_norm,
                "accumulate": self.settings.accumulate,
                "unfreeze_epochs": self.settings.unfreeze_epochs,
                "batch_size": self.settings.data.batch_size,
                "workers": self.world.size,
                "device": str(self.world.device),
                **({} if self.limit is None else {"learning_rate_limit": self.limit}),
                "weights_sha256": self.weights_sha256,
                "data_fingerprint": self.data.fingerprint,
            }
        )

    def costs(self, latencies: Path | None) -> dict[str, Any]:
        """Return `measured`, the latency, parameters and size of the model; nothing if `latencies` is None.

        Only the first worker measures; the others wait for it at their first exchange.
        """
        if latencies is None or self.world.rank:
            return {}
        data = self.settings.data
        found = latency.measured(
            self.model, data.image_size, data.batch_size, self.world.device, folder=latencies
        )
        return {"measured": found}

    def train_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> float | None:
        """Train one epoch; return the weighted mean loss, or None if it was stopped between two batches."""
        settings, world = self.settings, self.world
        # Each epoch is seeded on its own, so resuming needs no saved generator state.
        _seed(order.mixed_seed(settings.seed, epoch, world.rank), world.device)
        self._thaw(epoch)
        self.model.train()
        whole = self._order(epoch)
        # Worker r takes every size-th image of each batch, so shares differ by one image at most.
        mine = [batch[world.rank :: world.size] for batch in whole]
        # DDP averages gradients over the workers. Each loss is a sum over images, so these factors turn the
        # average into the weighted mean over the whole batch, uneven shares included.
        sums = self._sums(whole)
        scales = [world.size / weight for weight in sums]
        total = torch.zeros((), device=world.device)
        feed = self.rows.feed("train", view=self.data.view(epoch))
        batches = steps.counted(
            zip(feed.batches(mine), self._targets(mine), scales, strict=True),
            *(f"epoch {epoch}", len(whole), "batches"),
            patience=EPOCH_PATIENCE,
        )
        for step, (x, targets, scale) in enumerate(batches):
            x, targets = augment.mix(self.mixing, x, targets)
            optimize.clear(self.optimizer)
            loss = self._backward(feed, x, targets, scale=scale)
            total += loss
            self.watch.add(loss, sums[step] / world.size)
            optimize.step(self.optimizer, self.starts, clip_norm=settings.clip_norm)
            self.rates.step()
            if self.average:
                self.average.update(self.rates.steps)
            # A NaN stays in the running total, so on a GPU it is enough to read it now and then.
            look = world.device.type == "cpu" or (step + 1) % LOOK_EVERY == 0 or step + 1 == len(whole)
            if world.size > 1 and not look:
                continue  # agreeing is a collective call, and would wait for the device after each batch
            # Only rank 0 is told to stop; agreeing lets all workers leave the epoch at the same batch.
            high = look and self.watch.is_too_high()
            stop, bad, high = world.agree(should_stop(), look and not math.isfinite(total.item()), high)
            if high:
                raise self.watch.error()
            if bad:
                raise NonFiniteLoss(non_finite("training", total.item(), epoch, settings, step + 1))
            if stop:
                return None
        # Each worker has summed over its own images, and its batch norms have seen only those.
        if world.size > 1:
            torch.distributed.all_reduce(total)
            self._average_buffers()
        return total.item() / sum(sums)

    def _targets(self, order: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the targets (B, C) of each batch, on the device, computed for many batches at once."""
        count = TARGETS_AT_ONCE // (self.loss.classes * self.settings.data.batch_size)
        for start in range(0, len(order), max(1, count)):
            some = order[start : start + max(1, count)]
            images = torch.cat(list(some))
            targets = self.loss.targets(self.labels[images], self.loss.weights[images])
            yield from targets.split([len(batch) for batch in some])

    def _sums(self, order: Sequence[Tensor]) -> list[float]:
        """Return the sum of the images' weights in each batch."""
        ends = torch.tensor([len(batch) for batch in order]).cumsum(0) - 1
        sums = self.loss.weights[torch.cat(list(order))].double().cumsum(0)[ends]
        parts: list[float] = sums.diff(prepend=sums.new_zeros(1)).tolist()
        return parts

    def _backward(self, feed: Feed | SampleFeed, x: Tensor, targets: Tensor, *, scale: float) -> Tensor:
        """Compute the gradient of scale * (sum of losses) in `parts` parts; return the sum of losses.

        If the GPU runs out of memory, the batch is computed again in twice as many parts, and so are all
        later ones. Batch norms that had already seen a part of the batch then see it twice.
        """
        while True:
            try:
                step = partial(self._in_parts, feed)
                return self.replays.take(step, (feed.kind, self.model.waiting), x, targets, scale)
            except torch.OutOfMemoryError:
                # A part of one image cannot be divided, and a worker cannot repeat a step alone:
                if 2 * self.parts >= len(x) or self.world.size > 1:  # others already wait for our gradients
                    raise
            # After the except block: inside it, the error's traceback would keep the step's tensors alive.
            self.parts *= 2
            self.replays.drop()
            optimize.clear(self.optimizer)
            if self.world.device.type == "cuda":
                torch.cuda.empty_cache()

    def _in_parts(self, feed: Feed | SampleFeed, x: Tensor, targets: Tensor, scale: float | Tensor) -> Tensor:
        """Compute the gradient part by part; the workers exchange gradients once, with the last part."""
        model, count = self.step_model, self.parts
        parts = list(zip(x.chunk(count), targets.chunk(count), strict=True))
        sums = []
        for number, (some, wanted) in enumerate(parts, 1):
            # Without `no_sync`, DDP would exchange gradients after every part.
            waits = number < len(parts) and isinstance(model, DistributedDataParallel)
            with model.no_sync() if waits else nullcontext():  # type: ignore[operator]
                h = feed.finish(some)
                with self._autocast():
                    losses = self.loss(model(h), wanted)
                (losses * scale).backward()
            sums.append(losses.detach())
        return sums[0] if len(sums) == 1 else torch.stack(sums).sum()

    def _thaw(self, epoch: int) -> None:
        """Unfreeze the blocks that train from this epoch on: one more every `unfreeze_epochs` epochs.

        This is gradual unfreezing (Howard and Ruder, ACL 2018); the head trains alone first.
        """
        every = self.settings.unfreeze_epochs
        if every and self.model.thaw((epoch - 1) // every):
            self.step_model = self._parallel()

    def _parallel(self) -> nn.Module:
        """Return the trained part as the step calls it, wrapped in DDP for several workers.

        DDP expects a gradient for every parameter that requires one when it is wrapped, so the model is
        wrapped again after blocks were unfrozen.
        """
        trained = _Trained(self.model)
        if self.world.size == 1:
            return trained
        return DistributedDataParallel(trained, broadcast_buffers=False)

    def evaluate(self, split: str, keep: list[Tensor] | None = None) -> dict[str, float]:
        """Return the metrics of a split; each worker reads its own share, and all get the same result.

        The list `keep` gets the logits of this worker's images, which are every size-th of the split.
        """
        world = self.world
        mine = workers.split(self.data.size(split), world.rank, world.size, BATCH)
        feed = self.rows.feed(split)
        own = self.data.labels(split)[world.rank :: world.size].to(world.device)
        labels = own.split([len(batch) for batch in mine])
        batches = zip(feed.batches(mine), labels, strict=True)
        self.model.eval()
        with self._autocast(), execution.rounding(self.settings.precision):
            return evaluate(partial(self._answers, feed), batches, self.scores, keep)

    def _answers(self, feed: Feed | SampleFeed, x: Tensor) -> Tensor:
        """Return the logits of a batch of a split.

        On a GPU copies of an image fill up the last batch, since cuDNN would plan each convolution anew for
        another size: 2 s for mobilenet_v2 (docs/decisions.md).
        """
        whole = execution.filled(x, BATCH) if self.world.device.type == "cuda" else x
        return self.model.from_features(feed.finish(whole))[: len(x)]

    def measure(self, split: str) -> tuple[dict[str, float], Outputs]:
        """Return the metrics of a split and the outputs behind them; every worker must call this."""
        own: list[Tensor] = []
        world = self.world
        with steps.step(f"measure on {split}", self.data.size(split), "images"):
            scores = self.evaluate(split, own)
        logits = torch.zeros(self.data.size(split), len(self.data.classes))
        logits[world.rank :: world.size] = torch.cat(own).cpu()
        if world.size > 1:
            whole = logits.to(world.device)
            torch.distributed.all_reduce(whole)
            logits = whole.cpu()
        return scores, Outputs(logits, self.data.labels(split))

    def first_batch(self) -> Tensor:
        """Return the image numbers of the first batch of the first epoch, int64 (B,)."""
        return self._order(1)[0]

    def _order(self, epoch: int) -> list[Tensor]:
        """Return the epoch's batches of image numbers, over all workers."""
        return order.epoch_batches(self.settings, self.labels, epoch, workers=self.world.size)

    def _autocast(self) -> AbstractContextManager[Any]:
        usual = execution.usual(self.settings.precision, self.world.device)
        if usual.dtype == "bfloat16":
            return torch.autocast(self.world.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _average_buffers(self) -> None:
        """Set the running statistics of the trained batch norms to their mean over the workers."""
        for name, buffer in self.model.moving_statistics().items():
            for statistic in [buffer, self.average.state[name]] if self.average else [buffer]:
                torch.distributed.all_reduce(statistic)
                statistic /= self.world.size


class _Trained(nn.Module):
    """The part of a model after its frozen blocks: output of `TransferModel.features` -> logits (B, C)."""

    def __init__(self, model: TransferModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, h: Tensor) -> Tensor:
        """Return logits (B, C)."""
        return self.model.from_features(h)


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators directly.

    torch.manual_seed also records a stack trace for devices that are initialised later, which is slow.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def non_finite(which: str, value: float, epoch: int, settings: TrialSettings, batch: int = 0) -> str:
    """Return the message about a loss that became NaN or infinite."""
    where = f"epoch {epoch}" + (f", batch {batch}" if batch else "")
    return (
        f"{where}: the {which} loss must stay finite, got {value}. "
        f"Lower learning_rate (here {settings.learning_rate:.3g}) or add warmup_epochs."
    )
