"""Images for the training loop: decoded once, transformed alike everywhere, ready ahead of the loop.

Shapes: B images of a batch, N images of a split, S side of the square the model sees, in pixels.
Images are uint8 RGB (B, 3, S, S) until they are normalised.
"""

import hashlib
import math
import os
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import Image
from torch import Tensor

from finetune import augment, pixels
from finetune.catalog import Catalog, Example
from finetune.entry import Layout
from finetune.pixels import Pixels
from finetune.settings import DataSettings
from finetune.store import Store

Rows = npt.NDArray[np.int64]

BUDGET_BYTES = 2 * 2**30
"""14,000 images at 224 pixels."""
KEPT_SIDE = 1.5
"""Random crops are cut from an image whose shorter side is at most this multiple of S, so that large
photographs fit in memory and resize fast; kept or decoded afresh, they are cut from the same pixels."""
FORMAT = 1
"""Of stored pixels; part of their key, to be raised when the way from file to pixels changes."""
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
    """The images of one catalog at one size. Safe to use from several threads.

    Evaluation images stay in memory once decoded, in one array per split, and so do the images that
    random crops are cut from, as long as all of them together stay within `budget_bytes`. What does
    not fit is decoded each time; the pixels are the same.

    Args:
        catalog: what `finetune.catalog.scan` returned.
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
        self._shared = shared
        self._opening = Lock()  # of stores; decoding may take the other lock
        self._lock = Lock()  # guards what follows
        self._budget_bytes = budget_bytes
        self._stores: dict[str, _Store] = {}
        self._kept: dict[str, Image.Image] = {}
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
        return torch.tensor([example.label for example in self._catalog.splits[split]], dtype=torch.int64)

    def weights(self, split: str) -> Tensor | None:
        """Return how much each image of a split counts in a loss, float32 (N,); None: all count 1.

        They are as the manifest says, above 0 and not normalised. Metrics do not use them.
        """
        weights = [example.weight for example in self._catalog.splits[split]]
        return None if set(weights) <= {1.0} else torch.tensor(weights, dtype=torch.float32)

    def batch(self, split: str, indices: Tensor, *, view: int | None = None) -> Tensor:
        """Return the images at `indices` of a split, uint8 (B, 3, S, S).

        Args:
            split: `train`, `val` or `test`.
            indices: int64 (B,) on the CPU, each in 0..N-1; repetitions are allowed.
            view: None: as for evaluation. v: training view v, a pure function of (data.seed, the
                image's path, v): randomly cropped, mirrored and altered as far as the settings say.

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
            return self._evaluation_images(split, rows)
        mirrored = self._flips(split, view)[indices]
        if not (crops or augments):
            images = self._evaluation_images(split, rows)
            images[mirrored] = images[mirrored].flip(-1)
            return images
        examples = [self._catalog.splits[split][row] for row in rows]
        draws = [pixels.draws_of(self._data.seed, example.path, view) for example in examples]
        for draw in draws:
            draw.random()  # told whether to mirror
        images = self._crops(examples, draws) if crops else self._evaluation_images(split, rows)
        if flips:
            images[mirrored] = images[mirrored].flip(-1)
        if augments:
            images = torch.stack(list(self._decoders.map(augment.trivial, images, draws)))
        return images

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

    def sheet_pixels(self, split: str, sheet: Sheet, begin: int, end: int, batch: int) -> Iterator[Tensor]:
        """Yield rows `begin` to `end` of a sheet, uint8 (B, 3, S, S), decoded ahead of the caller.

        Raises:
            DataError: an image cannot be read.
        """
        rows = torch.arange(begin, end).split(batch)
        images = self.size(split)
        batches = self.batches(split, [part % images for part in rows], view=sheet.view)
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
        self, split: str, order: Iterable[Tensor], *, view: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images uint8 (B, 3, S, S) and labels int64 (B,) for each index tensor of `order`.

        The next batches are made in threads while the caller computes; closing the iterator drops them.

        Raises:
            DataError: an image cannot be read; raised in the place of its batch.
        """
        labels = self.labels(split)
        ahead: deque[tuple[Tensor, Future[Tensor]]] = deque()
        maker = ThreadPoolExecutor(1, "batches")  # its own: decoders that wait for decoders would hang
        try:
            for indices in order:
                ahead.append((labels[indices], maker.submit(self.batch, split, indices, view=view)))
                if len(ahead) > BATCHES_AHEAD:
                    answers, images = ahead.popleft()
                    yield images.result(), answers
            for answers, images in ahead:
                yield images.result(), answers
        finally:
            maker.shutdown(cancel_futures=True)

    def _evaluation_images(self, split: str, rows: Rows) -> Tensor:
        examples, store = self._catalog.splits[split], self._store(split)
        inside = rows < len(store.pixels)

        def fill(row: int) -> None:
            store.pixels[row] = self._evaluation_image(examples[row])
            store.ready[row] = True

        missing = [row for row in np.unique(rows[inside]) if not store.ready[row]]
        _finish(self._decoders.map(fill, missing))
        if inside.all():
            return torch.from_numpy(store.pixels).index_select(0, torch.from_numpy(rows))
        images = np.empty((len(rows), *store.pixels.shape[1:]), dtype=np.uint8)
        images[inside] = store.pixels[rows[inside]]

        def make(place: int) -> None:
            images[place] = self._evaluation_image(examples[rows[place]])

        _finish(self._decoders.map(make, np.flatnonzero(~inside)))
        return torch.from_numpy(images)

    def _evaluation_image(self, example: Example) -> Pixels:
        side, whole = self._data.image_size, self.whole
        image = self._catalog.open(example, pixels.evaluation_needs(side, whole))
        return pixels.evaluation(image, side, whole)

    def _store(self, split: str) -> "_Store":
        with self._opening:
            if split not in self._stores:
                self._stores[split] = self._shared_store(split) or self._own_store(split)
            return self._stores[split]

    def _own_store(self, split: str) -> "_Store":
        side = self._data.image_size
        with self._lock:
            rows = min(self.size(split), self._budget_bytes // (3 * side * side))
            self._budget_bytes -= rows * 3 * side * side
        return _Store(np.empty((rows, 3, side, side), dtype=np.uint8), np.zeros(rows, dtype=np.bool_))

    def _shared_store(self, split: str) -> "_Store | None":
        """Return all images of a split from the node's store, decoded now where they are not there."""
        if self._shared is None or not self.size(split):
            return None
        examples, side = self._catalog.splits[split], self._data.image_size
        layout = Layout(rows=len(examples), shape=(3, side, side), dtype="uint8")
        began = time.perf_counter()
        self._evaluation_image(examples[0])
        worth = (time.perf_counter() - began) / layout.row_bytes

        def make(begin: int, end: int) -> Tensor:
            images = list(self._decoders.map(self._evaluation_image, examples[begin:end]))
            return torch.from_numpy(np.stack(images))

        facts = {"what": "images", "split": split, "images": len(examples), "data": self.fingerprint[:12]}
        key = f"{FORMAT} {self.fingerprint} {split} {side} {self.whole} {PIL.__version__}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:24]
        rows = self._shared.get(digest, layout, make, worth=worth, facts=facts)
        return None if rows is None else _Store(rows.numpy(), np.ones(len(examples), dtype=np.bool_))

    def _crops(self, examples: Sequence[Example], draws: Sequence[random.Random]) -> Tensor:
        side, scale = self._data.image_size, self._data.crop_scale

        def crop(example: Example, draw: random.Random) -> Pixels:
            image = self._kept_image(example)
            return pixels.resize(image, pixels.random_box(image.width, image.height, scale, draw), side)

        images = np.empty((len(examples), 3, side, side), dtype=np.uint8)
        for place, cut in enumerate(self._decoders.map(crop, examples, draws)):
            images[place] = cut
        return torch.from_numpy(images)

    def _kept_image(self, example: Example) -> Image.Image:
        """Return the whole image, its shorter side at most KEPT_SIDE * S."""
        if example.path in self._kept:
            return self._kept[example.path]
        kept_side = KEPT_SIDE * self._data.image_size
        image = self._catalog.open(example, math.ceil(pixels.DECODED_SIDE * kept_side))
        shrink = kept_side / min(image.size)
        if shrink < 1:
            size = round(image.width * shrink), round(image.height * shrink)
            image = image.resize(size, Image.Resampling.BILINEAR)
        with self._lock:
            cost = 4 * image.width * image.height  # Pillow holds RGB in 4 bytes
            if example.path not in self._kept and cost <= self._budget_bytes:
                self._budget_bytes -= cost
                self._kept[example.path] = image
        return image


@dataclass(frozen=True)
class _Store:
    """Evaluation images of a split's first rows; memory is taken from the system as rows are filled."""

    pixels: Pixels
    ready: npt.NDArray[np.bool_]


def _finish(results: Iterator[None]) -> None:
    """Wait for all of them; raise the first error."""
    deque(results, maxlen=0)
