"""What the trained part of a model reads: features of the frozen blocks, stored or computed afresh.

Trials that share backbone, weights and images share their features: those are computed once per node
and mapped from then on. An epoch sees view v of each image whether they are stored or not; with
`precision: exact` the features are the same to the last bit.

Shapes: B images of a batch, N images of a split, C, H, W of activations, D pooled features.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
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
"""Of what an entry holds; part of its key."""
RESIDENT_BYTES = 512 * 2**20
"""Stored rows of a split up to this size are read from the GPU's own memory."""
GPU_CHUNK_ROWS, GPU_CHUNK_BYTES = 256, 128 * 2**20
"""Most that one chunk of an entry has where a GPU computes it."""
GPU_THREADS = 3
"""That fill an entry: one gathers images, the GPU computes for another, the last one writes."""


@dataclass(frozen=True)
class Cut:
    """Where stored features are taken, and what storing them is worth."""

    blocks: int
    """Leading blocks that they lie behind."""
    worth: float
    """Seconds saved per byte stored."""


class Inputs:
    """The images of one trial, as its trained part reads them.

    Args:
        model: its frozen blocks are run here.
        data: the images.
        settings: of the trial.
        source: says how images are normalised, and which weights the frozen blocks have.
        device: of the model.
        blocks: gives all blocks of the backbone, frozen, on the device: what passes cost is measured on.
        stored: where features are kept; None: nowhere.
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
        self._batch = execution.batch_of(settings.precision, device)
        usual = execution.usual(settings.precision, device)
        self._passes = {True: usual, False: usual}
        """How frozen blocks are run: for training images (True), for others (False)."""
        self._cuts: dict[bool, Cut | None] = {True: None, False: None}
        self._ready: dict[tuple[Pass, int, int], Callable[[Tensor], Tensor]] = {}
        """Frozen blocks from a number to another, ready for a pass."""
        self._feeds: dict[tuple[str, str], Tensor | None] = {}
        """Stored rows by split and name of the sheet; None: the store has no room for them."""
        if stored is not None and stored.mode != "off" and len(model.prefix):
            self._use(stored, blocks)

    def _use(self, stored: FeatureSettings, blocks: Callable[[], nn.Sequential]) -> None:
        """Decide what is read from the store, by what it saves on this machine."""
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
        )
        # What is reported and compared is measured as the exported model will answer. Blocks that are trained
        # on frozen ones make whole points of accuracy out of the last bits of what they read.
        if not len(self.model.trunk):
            self._passes[True] = self._costs.fastest
        mixes = settings.mix != "none"  # then the frozen blocks see new images in every batch
        for training in (True, False):
            if not (training and mixes):
                self._cuts[training] = self._best_cut(training, stored)

    def effective(self) -> dict[str, Any]:
        """Return which features are stored, and how frozen blocks are run in training."""
        cut = self._cuts[True]
        return {"stored_cut": cut.blocks if cut else None, "frozen_pass": asdict(self._passes[True])}

    def feed(self, split: str, *, view: int | None = None) -> "Feed":
        """Return where the batches of one epoch come from.

        Args:
            split: `train`, `val` or `test`.
            view: of training images, see `ImageData.batch`; None: as for evaluation.

        Raises:
            DataError: an image cannot be read.
        """
        training = view is not None
        sheet, cut = self.data.sheet(split, view), self._cuts[training]
        if split == "test":
            cut = None  # it is read once, for one model
        if cut is not None and (split, sheet.name) not in self._feeds:
            self._feeds[split, sheet.name] = self._near(self._rows(split, sheet, cut))
        rows = self._feeds.get((split, sheet.name))
        return Feed(self, split, view, self._passes[training], cut.blocks if cut else 0, rows)

    def features(self, x: Tensor, how: Pass, *, behind: int = 0) -> Tensor:
        """Return what `TransferModel.from_features` takes, in float32.

        Args:
            x: normalised images (B, 3, S, S), or activations behind the first `behind` blocks.
            how: the frozen blocks are run.
            behind: at most the number of frozen blocks.
        """
        with execution.rounding(self.settings.precision):
            h = self._activations(x, how, behind, len(self.model.prefix)).float()
        return self.model.reduce(h)

    def images(self, pixels: Tensor) -> Tensor:
        """Return pixels, uint8 (B, 3, S, S), as the backbone expects them, on the device."""
        return normalise(pixels.to(self.device, non_blocking=True), self._mean, self._std)

    def read(self, rows: Tensor, blocks: int) -> Tensor:
        """Return activations (B, C, H, W) behind so many blocks, on the device, as stored rows have them."""
        h = rows.to(self.device, non_blocking=True)
        return h.permute(0, 3, 1, 2) if self._is_turned(blocks) else h

    def _activations(self, x: Tensor, how: Pass, begin: int, end: int) -> Tensor:
        """Run frozen blocks number `begin` to `end`."""
        if begin == end:
            return x
        how = replace(how, compiled=False)  # every trial would compile its own
        blocks = self._blocks(how, begin, end)
        return how.run_padded(blocks, x, self._batch) if self.exact else how.run(blocks, x)

    def _blocks(self, how: Pass, begin: int, end: int) -> Callable[[Tensor], Tensor]:
        """Return frozen blocks number `begin` to `end` for this pass; to make them ready takes a moment."""
        if (how, begin, end) not in self._ready:
            self._ready[how, begin, end] = how.ready(self.model.prefix[begin:end])
        return self._ready[how, begin, end]

    def _best_cut(self, training: bool, stored: FeatureSettings) -> Cut | None:
        """Return the cut that saves most time within the budget; None: storing does not pay.

        A cut is read in each epoch of each trial that has it, and its features are computed and
        written once per sheet. Of the trials that see the same images with the same backbone, half are taken
        to freeze all blocks, the other half to spread over the cuts, as they do in the default space.
        """
        costs, frozen = self._costs, len(self.model.prefix)
        blocks = frozen + len(self.model.trunk)
        sheets = self.data.sheets(self.settings.epochs) if training else 1
        passed = costs.seconds(self._passes[training])
        images = self.data.size("train" if training else "val")
        trials = stored.trials * (stored.alike_views if training else stored.alike)
        best, saved = None, 0.0
        for cut in range(1, frozen + 1):
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
        """Return a sheet's features from the store, computing those that are not there yet."""
        training = sheet.training
        how, key = self._passes[training], partial(self._key, split, sheet)
        layout = partial(self._layout, rows=sheet.rows, training=training)
        cuda = self.device.type == "cuda"
        most = layout(cut.blocks).chunk_rows or self._batch
        batch = max(execution.BATCH, min(self._batch, most))  # no batch is larger than a chunk and filled up
        looking = Lock()

        @cache
        def lower() -> tuple[int, Tensor | None]:
            for blocks in range(cut.blocks - 1, 0, -1):
                rows = self._store.peek(key(blocks), layout(blocks))
                if rows is not None:
                    return blocks, rows
            return 0, None

        def make(begin: int, end: int) -> Tensor:
            with looking:  # once, where something is to be computed at all
                below, rows = lower()
            parts: Iterator[Tensor]
            if rows is not None:
                parts = map(partial(self.read, blocks=below), rows[begin:end].split(batch))
            else:
                pixels = self.data.sheet_pixels(split, sheet, begin, end, batch, pinned=cuda)
                parts = copies.aside(pixels, self.images, self.device)
            made = [self._made(x, how, below, cut.blocks, batch) for x in parts]
            whole = torch.cat(made).to(getattr(torch, layout(cut.blocks).dtype)).cpu()
            return whole.permute(0, 2, 3, 1) if self._is_turned(cut.blocks) else whole

        facts = {"backbone": self.settings.backbone, "blocks": cut.blocks, "split": split, "view": sheet.name}
        facts |= {"images": self.data.size(split), "data": self.data.fingerprint[:12]}
        # Around all threads: one that ends would give the others its precision back.
        with execution.rounding(self.settings.precision):
            return self._store.get(
                key(cut.blocks),
                layout(cut.blocks),
                make,
                worth=cut.worth,
                facts=facts,
                threads=self._threads(how),
            )

    def _near(self, rows: Tensor | None) -> Tensor | None:
        """Return stored rows where they are read fastest: on the GPU, if they are few."""
        if rows is None or self.device.type != "cuda" or rows.nbytes > RESIDENT_BYTES:
            return rows
        return rows.to(self.device)

    def _threads(self, how: Pass) -> int:
        """Return how many threads fill an entry; torch.compile is not made for several."""
        return GPU_THREADS if self.device.type == "cuda" and not how.compiled else 1

    def _made(self, x: Tensor, how: Pass, begin: int, end: int, batch: int) -> Tensor:
        blocks = self._blocks(how, begin, end)
        try:
            h = how.run_padded(blocks, x, batch)
        except torch.OutOfMemoryError:
            if batch <= execution.BATCH:
                raise
            h = None
        if h is None:  # behind the error, which holds what the pass had allocated
            torch.cuda.empty_cache()
            h = how.run_padded(blocks, x, execution.BATCH)
        return self.model.reduce(h.float()) if self._is_pooled(end) else h

    def _is_pooled(self, blocks: int) -> bool:
        """True if what is stored behind so many blocks is pooled."""
        return self.model.pools and blocks == len(self.model.prefix)

    def _is_turned(self, blocks: int) -> bool:
        """True if what is stored behind so many blocks is stored as (H, W, C)."""
        return self._costs.channels_last[blocks] and not self._is_pooled(blocks)

    def _layout(self, blocks: int, rows: int, training: bool) -> Layout:
        costs = self._costs
        if self._is_pooled(blocks):
            return self._chunked(Layout(rows=rows, shape=(self.model.pooled_features,), dtype="float32"))
        half = costs.half[blocks] and training and self._passes[training].dtype == "bfloat16"
        shape = costs.shapes[blocks]
        if self._is_turned(blocks):
            shape = (*shape[1:], shape[0])
        return self._chunked(Layout(rows=rows, shape=shape, dtype="bfloat16" if half else "float32"))

    def _chunked(self, layout: Layout) -> Layout:
        """Return the layout with chunks as large as the device wants them."""
        if self.device.type != "cuda":
            return layout
        most = max(1, min(GPU_CHUNK_ROWS, GPU_CHUNK_BYTES // layout.row_bytes))
        return replace(layout, chunk_rows=most)

    def _key(self, split: str, sheet: Sheet, blocks: int) -> str:
        """Return the name of an entry: a hash of all that decides its content."""
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
            "pass": asdict(self._passes[sheet.training]),
            "batch": self._batch,
            "machine": execution.machine(self.device),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Feed:
    """The batches of one epoch: stored rows, or images that are decoded now."""

    inputs: Inputs
    split: str
    view: int | None
    how: Pass
    blocks: int
    """Frozen blocks that stored rows lie behind."""
    rows: Tensor | None
    """What is stored of the sheet; None: nothing."""

    def batches(self, order: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield what `finish` takes, on the device, for each index tensor of `order`.

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
        places = data.places(self.split, self.view)
        numbers = torch.cat(list(order))
        numbers = (numbers if places is None else places[numbers]).to(self.rows.device)
        for indices in numbers.split([len(batch) for batch in order]):
            yield self.inputs.read(self.rows.index_select(0, indices), self.blocks).float()

    @property
    def kind(self) -> Hashable:
        """Say what `finish` does: feeds of one kind do the same."""
        return self.how, self.blocks, self.rows is None

    def finish(self, x: Tensor) -> Tensor:
        """Return what `TransferModel.from_features` takes: run the frozen blocks that `x` has not seen."""
        frozen = len(self.inputs.model.prefix)
        if self.rows is not None and self.blocks == frozen:
            return x
        return self.inputs.features(x, self.how, behind=0 if self.rows is None else self.blocks)
