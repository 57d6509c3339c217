"""Features of the frozen blocks, which the trained part of a model reads: stored, or computed afresh.

Trials with the same backbone, weights and images share their features: each feature array is computed once
per node, and later trials map it into memory. Storing does not change which views of the images an epoch
sees. With `precision: exact`, stored and fresh features are the same to the last bit.

Shapes: B images of a batch, N images of a split, C, H, W of activations, D pooled features.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from finetune.disk.array_file import Layout
from finetune.disk.array_store import Store
from finetune.frozen import copies, execution, folding
from finetune.frozen.execution import Pass
from finetune.images.batches import ImageData, Sheet
from finetune.images.pixels import normalise
from finetune.model.strategies import TransferModel
from finetune.model.weights import Pretrained
from finetune.settings import FeatureSettings, TrialSettings

FORMAT = 2
"""Version of the format of an entry's content. It is part of the entry's key."""
RESIDENT_BYTES = 512 * 2**20
"""Largest size of a split's stored rows that are copied to the GPU's memory and read there."""
GPU_CHUNK_ROWS, GPU_CHUNK_BYTES = 256, 128 * 2**20
"""Largest chunk of an entry that a GPU computes, in rows and in bytes."""
GPU_THREADS = 3
"""Threads that fill an entry: one gathers images, the GPU computes for another, the last one writes."""


@lru_cache
def _one_thread(device: torch.device) -> ThreadPoolExecutor:
    """Return the thread that launches all passes of a GPU that fill an entry.

    cuDNN plans each convolution once per thread and shape: 2 s for mobilenet_v2 (docs/decisions.md).
    """
    return ThreadPoolExecutor(1, f"passes on {device}")


@dataclass(frozen=True)
class Cut:
    """The block behind which features are stored, and the value of storing them."""

    blocks: int
    """Number of leading blocks that have computed the stored features."""
    worth: float
    """Seconds saved per byte stored."""


class Inputs:
    """The inputs of one trial's trained part: features of its images, stored or computed when needed.

    Args:
        model: the model whose frozen blocks compute the features.
        data: the images.
        settings: the settings of the trial.
        source: the mean and deviation that normalise the images, and the hash of the pretrained weights.
        device: the device of the model.
        blocks: returns all blocks of the backbone, frozen, on the device. The cost of a pass is measured
            on them.
        stored: the folder, budget and use of stored features; None stores nothing.
    """

    def __init__(
        self,
        model: TransferModel,
        data: ImageData,
        settings: TrialSettings,
        source: Pretrained,
        device: torch.device,
        *,
        blocks: Callable[[], nn.Sequential],
        stored: FeatureSettings | None = None,
    ) -> None:
        self.model, self.data, self.settings, self.device = model, data, settings, device
        self.exact = settings.precision == "exact"
        self._source = source
        self._mean = torch.tensor(source.mean, device=device)
        self._std = torch.tensor(source.std, device=device)
        usual_batch = execution.batch_of(settings.precision, device)
        self._batch = execution.CLIP_BATCH if model.reads_clips else usual_batch
        self._least = min(execution.BATCH, self._batch)
        usual = execution.usual(settings.precision, device)
        self._passes = {True: usual, False: usual}
        """The pass that runs the frozen blocks, for training images (True) and for all others (False)."""
        self._cuts: dict[bool, Cut | None] = {True: None, False: None}
        self._ready: dict[tuple[Pass, int, int], Callable[[Tensor], Tensor]] = {}
        """Frozen blocks prepared for a pass, by pass, first block and end."""
        self._feeds: dict[tuple[str, str], Tensor | None] = {}
        """Stored rows by split and name of the sheet; None if the store has no room for them."""
        self._stores_test = stored is not None and stored.test
        if stored is not None and stored.mode != "off" and len(model.prefix):
            self._use(stored, blocks)

    def _use(self, stored: FeatureSettings, blocks: Callable[[], nn.Sequential]) -> None:
        """Choose the cuts whose features are stored, from the time that each saves on this machine."""
        settings = self.settings
        folder = Path(stored.folder)
        self._store = Store(folder, stored.budget_bytes)
        if not self._store.is_usable():
            return
        self._costs = execution.costs(
            blocks,
            settings.backbone,
            self._source.sha256 or "random",
            settings.data.image_size,
            settings.precision,
            images=self.data.sheets(settings.epochs) * self.data.size("train"),
            folder=folder,
            device=self.device,
            frames=settings.data.frames if self.model.reads_clips else 0,
        )
        # Validation and test images always take the default pass, so that reported scores are those of the
        # exported model. Training images take the fastest pass only if no backbone block is trained:
        # otherwise rounding differences in the frozen features can move accuracy by whole points.
        if not len(self.model.trunk):
            self._passes[True] = self._costs.fastest
        mixes = settings.mix != "none"  # mixed images are new in every batch, so storing them is useless
        for training in (True, False):
            if not (training and mixes):
                self._cuts[training] = self._best_cut(training, stored)

    def effective(self) -> dict[str, Any]:
        """Return the cut of the stored training features, and the pass of the frozen blocks in training."""
        cut = self._cuts[True]
        return {"stored_cut": cut.blocks if cut else None, "frozen_pass": asdict(self._passes[True])}

    def key(self, split: str, *, view: int | None) -> str:
        """Return a hash of everything that decides the output of the frozen blocks for a view of a split."""
        return self._key(split, self.data.sheet(split, view), len(self.model.prefix))

    def feed(self, split: str, *, view: int | None = None) -> "Feed":
        """Return the source of one epoch's batches, after storing its features if that pays.

        Args:
            split: `train`, `val` or `test`.
            view: the view of training images, as in `ImageData.batch`; None for evaluation.

        Raises:
            DataError: an image cannot be read.
        """
        training = view is not None
        sheet, cut = self.data.sheet(split, view), self._cuts[training]
        if split == "test" and not self._stores_test:
            cut = None  # an export alone reads it, so storing would not pay
        if cut is not None and (split, sheet.name) not in self._feeds:
            self._feeds[split, sheet.name] = self._near(self._rows(split, sheet, cut))
        rows = self._feeds.get((split, sheet.name))
        return Feed(self, split, view, self._passes[training], cut.blocks if cut else 0, rows)

    def features(self, x: Tensor, how: Pass, *, behind: int = 0) -> Tensor:
        """Return the input of `TransferModel.from_features`, in float32.

        Args:
            x: normalised images (B, 3, S, S), clips (B, 3, T, S, S), or the activations of the first `behind`
                blocks.
            how: the pass that runs the frozen blocks.
            behind: the number of blocks that `x` has already passed, at most the number of frozen blocks.
        """
        with execution.rounding(self.settings.precision):
            h = self._activations(x, how, behind, len(self.model.prefix)).float()
        return self.model.reduce(h)

    def images(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels of images or clips on the device, normalised as the backbone expects."""
        return normalise(pixels.to(self.device, non_blocking=True), self._mean, self._std)

    def read(self, rows: Tensor, blocks: int) -> Tensor:
        """Return stored rows of a cut behind `blocks` blocks as activations (B, C, H, W) on the device."""
        h = rows.to(self.device, non_blocking=True)
        return h.permute(0, 3, 1, 2) if self._is_turned(blocks) else h

    def _activations(self, x: Tensor, how: Pass, begin: int, end: int) -> Tensor:
        """Run the frozen blocks from `begin` up to, not including, `end`."""
        if begin == end:
            return x
        how = replace(how, compiled=False)  # here every trial would compile its own blocks
        blocks = self._blocks(how, begin, end)
        return how.run_padded(blocks, x, self._batch) if self.exact else how.run(blocks, x)

    def _blocks(self, how: Pass, begin: int, end: int) -> Callable[[Tensor], Tensor]:
        """Return the frozen blocks `begin` to `end`, prepared for a pass once and then kept."""
        if (how, begin, end) not in self._ready:
            self._ready[how, begin, end] = how.ready(self.model.prefix[begin:end])
        return self._ready[how, begin, end]

    def _best_cut(self, training: bool, stored: FeatureSettings) -> Cut | None:
        """Return the cut that saves the most time within the budget; None if storing does not pay.

        The features of a cut are computed and written once per sheet, then read in each epoch of each trial
        that uses the cut. The estimate assumes that half of the trials with the same images and backbone
        freeze all blocks, and that the other half spread evenly over the cuts, as in the default space.
        """
        costs, frozen = self._costs, len(self.model.prefix)
        blocks = frozen + len(self.model.trunk)
        sheets = self.data.sheets(self.settings.epochs) if training else 1
        passed = costs.seconds(self._passes[training])
        images = self.data.size("train" if training else "val")
        trials = stored.trials * (stored.alike_views if training else stored.alike)
        best, saved = None, 0.0
        for cut in range(1, frozen + 1):
            # All figures are seconds per image. Stored features replace the pass of the frozen blocks by a
            # read in every use; making them costs one pass and one write per sheet.
            size = self._layout(cut, 1, training).row_bytes
            share = 1 if cut == blocks else blocks
            uses = self.settings.epochs * max(1.0, trials / 2 / share)
            seconds = passed[cut]
            gain = uses * (seconds - size / costs.read_rate)
            gain -= sheets * (seconds + size / costs.write_rate)
            if gain > saved and sheets * images * size <= stored.budget_bytes:
                best, saved = Cut(cut, gain / (sheets * size)), gain
        return best

    def _rows(self, split: str, sheet: Sheet, cut: Cut) -> Tensor | None:
        """Return a sheet's features from the store, computing missing ones; None if the store has no room."""
        training = sheet.training
        how, key = self._passes[training], partial(self._key, split, sheet)
        layout = partial(self._layout, rows=sheet.rows, training=training)
        cuda = self.device.type == "cuda"
        most = layout(cut.blocks).chunk_rows or self._batch
        batch = max(self._least, min(self._batch, most))  # a batch larger than a chunk would be padded
        looking = Lock()

        # Another trial may have stored features of a lower cut: the pass then starts from the highest of
        # them instead of from the images.
        @cache
        def lower() -> tuple[int, Tensor | None]:
            for blocks in range(cut.blocks - 1, 0, -1):
                rows = self._store.peek(key(blocks), layout(blocks))
                if rows is not None:
                    return blocks, rows
            return 0, None

        def make(begin: int, end: int) -> Tensor:
            with looking:  # threads look once, and only if a chunk is missing
                below, rows = lower()
            parts: Iterator[Tensor]
            if rows is not None:
                parts = map(partial(self.read, blocks=below), rows[begin:end].split(batch))
            else:
                pixels = self.data.sheet_pixels(split, sheet, begin, end, batch, pinned=cuda)
                parts = copies.aside(pixels, self.images, self.device)
            made = [self._launched(x, how, below, cut.blocks, batch) for x in parts]
            whole = torch.cat(made).to(getattr(torch, layout(cut.blocks).dtype)).cpu()
            return whole.permute(0, 2, 3, 1) if self._is_turned(cut.blocks) else whole

        facts = {"backbone": self.settings.backbone, "blocks": cut.blocks, "split": split, "view": sheet.name}
        facts |= {"images": self.data.size(split), "data": self.data.fingerprint[:12]}
        # The precision is a flag of the whole process, so it is set once around all threads: a thread that
        # set it alone would reset it while others still compute.
        with execution.rounding(self.settings.precision):
            return self._store.get(
                key(cut.blocks),
                layout(cut.blocks),
                make,
                worth=cut.worth,
                facts=facts,
                step=f"features of {split}",
                threads=self._threads(how),
            )

    def _near(self, rows: Tensor | None) -> Tensor | None:
        """Return stored rows, copied to the GPU if they are at most RESIDENT_BYTES."""
        if rows is None or self.device.type != "cuda" or rows.nbytes > RESIDENT_BYTES:
            return rows
        return rows.to(self.device)

    def _threads(self, how: Pass) -> int:
        """Return the number of threads that fill an entry; torch.compile is not made for several."""
        return GPU_THREADS if self.device.type == "cuda" and not how.compiled else 1

    def _launched(self, x: Tensor, how: Pass, begin: int, end: int, batch: int) -> Tensor:
        """Return `_made`, computed by the one thread that a GPU has for it."""
        if self.device.type != "cuda" or how.compiled:
            return self._made(x, how, begin, end, batch)
        return _one_thread(self.device).submit(self._made, x, how, begin, end, batch).result()

    def _made(self, x: Tensor, how: Pass, begin: int, end: int, batch: int) -> Tensor:
        """Return what the store keeps of `x`: activations behind block `end`, pooled behind the last one."""
        blocks = self._blocks(how, begin, end)
        try:
            h = how.run_padded(blocks, x, batch)
        except torch.OutOfMemoryError:
            if batch <= self._least:
                raise
            h = None
        # The retry stands outside the `except`: inside it the error still holds the memory of the pass.
        if h is None:
            torch.cuda.empty_cache()
            h = how.run_padded(blocks, x, self._least)
        return self.model.reduce(h.float()) if self._is_pooled(end) else h

    def _is_pooled(self, blocks: int) -> bool:
        """True if the features stored behind `blocks` blocks are pooled."""
        return self.model.pools and blocks == len(self.model.prefix)

    def _is_turned(self, blocks: int) -> bool:
        """True if the features behind `blocks` blocks are stored as (H, W, C)."""
        return self._costs.channels_last[blocks] and not self._is_pooled(blocks)

    def _layout(self, blocks: int, rows: int, training: bool) -> Layout:
        """Return the layout of an entry with the features behind `blocks` blocks."""
        costs = self._costs
        if self._is_pooled(blocks):
            return self._chunked(Layout(rows=rows, shape=(self.model.pooled_features,), dtype="float32"))
        half = costs.half[blocks] and training and self._passes[training].dtype == "bfloat16"
        shape = costs.shapes[blocks]
        if self._is_turned(blocks):
            shape = (*shape[1:], shape[0])
        return self._chunked(Layout(rows=rows, shape=shape, dtype="bfloat16" if half else "float32"))

    def _chunked(self, layout: Layout) -> Layout:
        """Return the layout with larger chunks if the device is a GPU."""
        if self.device.type != "cuda":
            return layout
        most = max(1, min(GPU_CHUNK_ROWS, GPU_CHUNK_BYTES // layout.row_bytes))
        return replace(layout, chunk_rows=most)

    def _key(self, split: str, sheet: Sheet, blocks: int) -> str:
        """Return the key of an entry: a hash of everything that decides its content."""
        settings, source = self.settings, self._source
        facts = {
            "format": (FORMAT, folding.FORMAT),
            "backbone": settings.backbone,
            "weights": source.sha256 or f"random, seed {settings.seed}",
            "mean": source.mean,
            "std": source.std,
            "blocks": blocks,
            "pooled": self._is_pooled(blocks),
            "data": self.data.fingerprint,
            "split": split,
            "image_size": settings.data.image_size,
            "view": sheet.name,
            **({"frames": settings.data.frames} if self.model.reads_clips else {}),
            "pass": asdict(self._passes[sheet.training]),
            "batch": self._batch,
            "machine": execution.machine(self.device),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Feed:
    """The batches of one epoch, from stored rows or from images that are decoded for it."""

    inputs: Inputs
    split: str
    view: int | None
    how: Pass
    blocks: int
    """Number of frozen blocks that have computed the stored rows."""
    rows: Tensor | None
    """Stored rows of the sheet; None if nothing is stored."""

    def batches(self, order: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the input of `finish`, on the device, for each index tensor of `order`.

        Indices are int64 (B,) within the split, on the CPU.

        Raises:
            DataError: an image cannot be read.
        """
        data = self.inputs.data
        if self.rows is None:
            device = self.inputs.device
            batches = data.batches(self.split, order, view=self.view, pinned=device.type == "cuda")
            yield from copies.aside((pixels for pixels, _ in batches), self.inputs.images, device)
            return
        # The indices of the whole epoch go to the device of the rows in one copy, not in one per batch.
        places = data.places(self.split, self.view)
        numbers = torch.cat(list(order))
        numbers = (numbers if places is None else places[numbers]).to(self.rows.device)
        for indices in numbers.split([len(batch) for batch in order]):
            yield self.inputs.read(self.rows.index_select(0, indices), self.blocks).float()

    @property
    def kind(self) -> Hashable:
        """Return a key of what `finish` does: it does the same for all feeds with the same key."""
        return self.how, self.blocks, self.rows is None

    def finish(self, x: Tensor) -> Tensor:
        """Run the remaining frozen blocks on `x`. Return the input of `TransferModel.from_features`."""
        frozen = len(self.inputs.model.prefix)
        if self.rows is not None and self.blocks == frozen:
            return x
        return self.inputs.features(x, self.how, behind=0 if self.rows is None else self.blocks)
