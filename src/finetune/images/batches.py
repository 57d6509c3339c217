"""Images for the training loop: decoded once, transformed alike everywhere, ready ahead of the loop.

Shapes: B images of a batch, N images of a split, S side of the square the model sees, in pixels.
Images are uint8 RGB (B, 3, S, S) until they are normalised.
"""

import os
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.disk.array_store import Store
from finetune.images import augment, pixels
from finetune.images.catalog import Catalog, Example
from finetune.images.decoded import Decoded
from finetune.images.pixels import Pixels
from finetune.settings import DataSettings

BUDGET_BYTES = 2 * 2**30
"""14,000 images at 224 pixels."""
BATCHES_AHEAD = 2
"""Made while the loop computes. More would only hold memory: one batch keeps all decoding threads busy."""


@dataclass(frozen=True)
class Sheet:
    """Pixels that every trial sees alike: what features are computed of and stored by.

    Where nothing but mirroring alters the images, one sheet has all of them as they are and, behind
    these, all of them mirrored: every view is a choice of its rows. Else a sheet is one view.
    """

    name: str
    """Says what its pixels depend on, beside the images and their size."""
    rows: int
    view: int | None
    """Of its images, as `ImageData.batch` takes it."""
    paired: bool
    """The second half of the rows is the first half mirrored."""
    training: bool


class ImageData:
    """The images of one catalog at one size, decoded once. Safe to use from several threads.

    Args:
        catalog: what `finetune.images.catalog.scan` returned.
        data: image size, augmentation and its seed; the rest is in the catalog.
        budget_bytes: memory for decoded images in this process.
        threads: decoding at the same time; None: one per CPU, at most 8.
        shared: where evaluation images are kept for all processes of the node, so that each is decoded
            once; None: in this process's memory.
    """

    def __init__(
        self,
        catalog: Catalog,
        data: DataSettings,
        *,
        budget_bytes: int = BUDGET_BYTES,
        threads: int | None = None,
        shared: Store | None = None,
    ):
        self.classes = catalog.classes
        self.fingerprint = catalog.fingerprint
        self.whole = catalog.whole
        self._catalog = catalog
        self._data = data
        self._decoders = ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1), "decode")
        self._decoded = Decoded(
            catalog, data.image_size, self._decoders, budget_bytes=budget_bytes, shared=shared
        )
        self._labels = {
            split: torch.tensor([example.label for example in examples], dtype=torch.int64)
            for split, examples in catalog.splits.items()
        }
        self._mirrored: dict[tuple[str, int], Tensor] = {}

    def effective(self) -> dict[str, object]:
        """Return how the images are seen, by the names of the settings."""
        seen = ("image_size", "crop_scale", "horizontal_flip", "augment")
        return {name: getattr(self._data, name) for name in seen}

    def size(self, split: str) -> int:
        """Return N, the number of images of a split."""
        return len(self._catalog.splits[split])

    def labels(self, split: str) -> Tensor:
        """Return the labels of a split, int64 (N,)."""
        return self._labels[split].clone()

    def weights(self, split: str) -> Tensor | None:
        """Return how much each image of a split counts in a loss, float32 (N,); None: all count 1.

        They are as the manifest says, above 0 and not normalised. Metrics do not use them.
        """
        weights = [example.weight for example in self._catalog.splits[split]]
        return None if set(weights) <= {1.0} else torch.tensor(weights, dtype=torch.float32)

    def batch(self, split: str, indices: Tensor, *, view: int | None = None, pinned: bool = False) -> Tensor:
        """Return the images at `indices` of a split, uint8 (B, 3, S, S).

        Args:
            split: `train`, `val` or `test`.
            indices: int64 (B,) on the CPU, each in 0..N-1; repetitions are allowed.
            view: None: as for evaluation. v: training view v, a pure function of (data.seed, the
                image's path, v): randomly cropped, mirrored and altered as far as the settings say.
            pinned: in memory from which a GPU copies them while it computes.

        Raises:
            DataError: an image cannot be read.
            IndexError: an index lies outside the split.
        """
        rows = indices.numpy()
        last = self.size(split) - 1
        if rows.size and (rows.min() < 0 or rows.max() > last):
            raise IndexError(
                f"{split}: indices must lie in 0..{last}, got {rows.min()}..{rows.max()}. "
                "Count within the split."
            )
        crops, flips = self._data.crop_scale < 1, self._data.horizontal_flip
        augments = self._data.augment != "none"
        if view is None or not (crops or flips or augments):
            return self._decoded.evaluation(split, rows, pinned=pinned)
        mirrored = self._flips(split, view)[indices]
        if not (crops or augments):
            images = self._decoded.evaluation(split, rows, pinned=pinned)
            images[mirrored] = images[mirrored].flip(-1)
            return images
        examples = [self._catalog.splits[split][row] for row in rows]
        draws = [pixels.draws_of(self._data.seed, example.path, view) for example in examples]
        for draw in draws:
            draw.random()  # told whether to mirror
        if crops:
            images = self._crops(examples, draws, pinned=pinned)
        else:
            images = self._decoded.evaluation(split, rows, pinned=pinned)
        if flips:
            images[mirrored] = images[mirrored].flip(-1)
        if augments:
            images = torch.stack(list(self._decoders.map(augment.trivial, images, draws)))
        return images.pin_memory() if pinned and augments else images

    def sheet(self, split: str, view: int | None) -> Sheet:
        """Return the sheet that has a view of a split; None: the images as for evaluation."""
        data, images = self._data, self.size(split)
        crops, augments = data.crop_scale < 1, data.augment != "none"
        if view is None or not (crops or augments or data.horizontal_flip):
            return Sheet("plain", images, None, False, view is not None)
        if not crops and not augments:
            return Sheet("plain and mirrored", 2 * images, None, True, True)
        how = f"crop_scale {data.crop_scale}, flip {data.horizontal_flip}, augment {data.augment}"
        return Sheet(f"view {view} of seed {data.seed}, {how}", images, view, False, True)

    def sheets(self, epochs: int) -> int:
        """Return how many copies of the training images their sheets hold, all epochs together."""
        sheet = self.sheet("train", 0)
        if sheet.view is None:
            return 2 if sheet.paired else 1
        return min(epochs, self._data.views or epochs)

    def places(self, split: str, view: int | None) -> Tensor | None:
        """Return in which row of its sheet each image of a view is, int64 (N,); None: in order."""
        sheet = self.sheet(split, view)
        if view is None or not sheet.paired:
            return None
        images = self.size(split)
        return torch.arange(images) + images * self._flips(split, view)

    def sheet_pixels(
        self, split: str, sheet: Sheet, begin: int, end: int, batch: int, *, pinned: bool = False
    ) -> Iterator[Tensor]:
        """Yield rows `begin` to `end` of a sheet, uint8 (B, 3, S, S), decoded ahead of the caller.

        Raises:
            DataError: an image cannot be read.
        """
        rows = torch.arange(begin, end).split(batch)
        images = self.size(split)
        batches = self.batches(split, [part % images for part in rows], view=sheet.view, pinned=pinned)
        for part, (found, _) in zip(rows, batches, strict=True):
            mirrored = part >= images
            found[mirrored] = found[mirrored].flip(-1)
            yield found

    def view(self, epoch: int) -> int:
        """Return which view of the training images epoch `epoch` (from 1) sees."""
        return (epoch - 1) % self._data.views if self._data.views else epoch - 1

    def _flips(self, split: str, view: int) -> Tensor:
        """Return for each image of a split whether a view mirrors it, bool (N,)."""
        if (split, view) not in self._mirrored:
            examples, seed = self._catalog.splits[split], self._data.seed
            flips = [pixels.draws_of(seed, example.path, view).random() < 0.5 for example in examples]
            self._mirrored[split, view] = torch.tensor(flips, dtype=torch.bool)
        return self._mirrored[split, view]

    def batches(
        self, split: str, order: Iterable[Tensor], *, view: int | None = None, pinned: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images uint8 (B, 3, S, S) and labels int64 (B,) for each index tensor of `order`.

        The next batches are made in threads while the caller computes; closing the iterator drops them.
        `pinned`: in memory from which a GPU copies them while it computes.

        Raises:
            DataError: an image cannot be read; raised in the place of its batch.
        """
        labels = self.labels(split)
        ahead: deque[tuple[Tensor, Future[Tensor]]] = deque()
        maker = ThreadPoolExecutor(1, "batches")  # its own: decoders that wait for decoders would hang

        def make(indices: Tensor) -> Tensor:
            return self.batch(split, indices, view=view, pinned=pinned)

        try:
            for indices in order:
                ahead.append((labels[indices], maker.submit(make, indices)))
                if len(ahead) > BATCHES_AHEAD:
                    answers, images = ahead.popleft()
                    yield images.result(), answers
            for answers, images in ahead:
                yield images.result(), answers
        finally:
            maker.shutdown(cancel_futures=True)

    def _crops(self, examples: Sequence[Example], draws: Sequence[random.Random], *, pinned: bool) -> Tensor:
        side, scale = self._data.image_size, self._data.crop_scale

        def crop(example: Example, draw: random.Random) -> Pixels:
            image = self._decoded.for_crops(example)
            return pixels.resize(image, pixels.random_box(image.width, image.height, scale, draw), side)

        whole = torch.empty((len(examples), 3, side, side), dtype=torch.uint8, pin_memory=pinned)
        images = whole.numpy()
        for place, cut in enumerate(self._decoders.map(crop, examples, draws)):
            images[place] = cut
        return whole
