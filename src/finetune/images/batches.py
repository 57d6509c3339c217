"""Batches of images for the training loop: decoded once, transformed reproducibly, prepared in threads.

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

from finetune.datasets.catalog import Catalog, Example
from finetune.disk.array_store import Store
from finetune.images import augment, pixels
from finetune.images.decoded import Decoded
from finetune.images.pixels import Pixels
from finetune.settings import DataSettings

BUDGET_BYTES = 2 * 2**30
"""Default memory for decoded images of one process: 14,000 images at 224 pixels."""
BATCHES_AHEAD = 2
"""Batches prepared while the loop computes. More would only take memory: one batch keeps all decoding
threads busy."""


@dataclass(frozen=True)
class Sheet:
    """The augmented images of a split for which features are computed and stored together.

    Trials with the same data settings have the same sheets. If mirroring is the only augmentation, one sheet
    holds all images as they are, followed by all images mirrored, and every view is a choice of its rows.
    With other augmentation, each view is a sheet of its own.
    """

    name: str
    """Name that contains everything that decides the pixels, except the images and their size."""
    rows: int
    view: int | None
    """View of the images, as `ImageData.batch` takes it."""
    paired: bool
    """True if the second half of the rows is the first half mirrored."""
    training: bool
    """True for views of training images, False for images as in evaluation."""


class ImageData:
    """The images of one catalog at one size, decoded once. It may be used from several threads.

    Args:
        catalog: the result of `finetune.datasets.catalog.scan`.
        data: the image size, the augmentation and its seed. The other data settings are in the catalog.
        budget_bytes: memory for decoded images in this process.
        threads: the number of decoding threads; None for one per CPU, at most 8.
        shared: a store in which all processes of the node share evaluation images, so that each image is
            decoded once; None keeps them in the memory of this process.
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
        """Return the size and augmentation settings of the images."""
        seen = ("image_size", "crop_scale", "horizontal_flip", "augment")
        return {name: getattr(self._data, name) for name in seen}

    def size(self, split: str) -> int:
        """Return N, the number of images of a split."""
        return len(self._catalog.splits[split])

    def labels(self, split: str) -> Tensor:
        """Return the labels of a split, int64 (N,)."""
        return self._labels[split].clone()

    def paths(self, split: str) -> list[str]:
        """Return the path of each image of a split, as the catalog names it."""
        return [example.path for example in self._catalog.splits[split]]

    def texts(self, split: str) -> list[str]:
        """Return the text of each sample of a split; empty where it has none."""
        return [example.text for example in self._catalog.splits[split]]

    def weights(self, split: str) -> Tensor | None:
        """Return the weight of each image of a split in the loss, float32 (N,); None if all are 1.

        The weights are those of the manifest, above 0 and not normalised. Metrics do not use them.
        """
        weights = [example.weight for example in self._catalog.splits[split]]
        return None if set(weights) <= {1.0} else torch.tensor(weights, dtype=torch.float32)

    def groups(self, split: str) -> Tensor | None:
        """Return the number of each image's group, int64 (N,); None if no image of the split has a group.

        An image without a group is alone in one.
        """
        examples = self._catalog.splits[split]
        if not any(example.group for example in examples):
            return None
        names = [("group", one.group) if one.group else ("image", one.path) for one in examples]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return torch.tensor([numbers[name] for name in names])

    def batch(self, split: str, indices: Tensor, *, view: int | None = None, pinned: bool = False) -> Tensor:
        """Return the images at `indices` of a split, uint8 (B, 3, S, S).

        Args:
            split: `train`, `val` or `test`.
            indices: int64 (B,) on the CPU, each in 0..N-1; repetitions are allowed.
            view: None returns the images as in evaluation. A number v returns training view v: randomly
                cropped, mirrored and altered as the settings say, which is a pure function of
                (data.seed, the image's path, v).
            pinned: return pinned memory, which a GPU can copy while it computes.

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
        # Each image has its own generator, so its view does not depend on the batch or the worker.
        examples = [self._catalog.splits[split][row] for row in rows]
        draws = [pixels.draws_of(self._data.seed, example.path, view) for example in examples]
        for draw in draws:
            draw.random()  # skip the draw for mirroring, which `_flips` has used
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
        """Return the sheet that holds a view of a split; view None means the images as in evaluation."""
        data, images = self._data, self.size(split)
        crops, augments = data.crop_scale < 1, data.augment != "none"
        if view is None or not (crops or augments or data.horizontal_flip):
            return Sheet("plain", images, None, False, view is not None)
        if not crops and not augments:
            return Sheet("plain and mirrored", 2 * images, None, True, True)
        how = f"crop_scale {data.crop_scale}, flip {data.horizontal_flip}, augment {data.augment}"
        return Sheet(f"view {view} of seed {data.seed}, {how}", images, view, False, True)

    def sheets(self, epochs: int) -> int:
        """Return the number of copies of the training images in the sheets of all epochs together."""
        sheet = self.sheet("train", 0)
        if sheet.view is None:
            return 2 if sheet.paired else 1
        return min(epochs, self._data.views or epochs)

    def places(self, split: str, view: int | None) -> Tensor | None:
        """Return the row of each image of a view in its sheet, int64 (N,); None if in order."""
        sheet = self.sheet(split, view)
        if view is None or not sheet.paired:
            return None
        images = self.size(split)
        return torch.arange(images) + images * self._flips(split, view)

    def sheet_pixels(
        self, split: str, sheet: Sheet, begin: int, end: int, batch: int, *, pinned: bool = False
    ) -> Iterator[Tensor]:
        """Yield rows `begin` to `end` of a sheet in batches, uint8 (B, 3, S, S), decoded ahead of use.

        Raises:
            DataError: an image cannot be read.
        """
        rows = torch.arange(begin, end).split(batch)
        images = self.size(split)
        batches = self.batches(split, [part % images for part in rows], view=sheet.view, pinned=pinned)
        # The rows of a paired sheet from `images` on are the same images mirrored.
        for part, (found, _) in zip(rows, batches, strict=True):
            mirrored = part >= images
            found[mirrored] = found[mirrored].flip(-1)
            yield found

    def view(self, epoch: int) -> int:
        """Return the view of the training images in epoch `epoch`, which counts from 1."""
        return (epoch - 1) % self._data.views if self._data.views else epoch - 1

    def _flips(self, split: str, view: int) -> Tensor:
        """Return whether a view mirrors each image of a split, bool (N,)."""
        if (split, view) not in self._mirrored:
            examples, seed = self._catalog.splits[split], self._data.seed
            flips = [pixels.draws_of(seed, example.path, view).random() < 0.5 for example in examples]
            self._mirrored[split, view] = torch.tensor(flips, dtype=torch.bool)
        return self._mirrored[split, view]

    def batches(
        self, split: str, order: Iterable[Tensor], *, view: int | None = None, pinned: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images uint8 (B, 3, S, S) and labels int64 (B,) for each index tensor of `order`.

        Threads prepare the next batches while the caller computes; closing the iterator drops them. With
        `pinned` the images are in pinned memory, which a GPU can copy while it computes.

        Raises:
            DataError: an image cannot be read. It is raised when the batch of the image is due.
        """
        labels = self.labels(split)
        ahead: deque[tuple[Tensor, Future[Tensor]]] = deque()
        maker = ThreadPoolExecutor(1, "batches")  # not a decoder thread: those would wait for each other

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
        """Return one random crop of each image, uint8 (B, 3, S, S)."""
        side, scale = self._data.image_size, self._data.crop_scale

        def crop(example: Example, draw: random.Random) -> Pixels:
            image = self._decoded.for_crops(example)
            return pixels.resize(image, pixels.random_box(image.width, image.height, scale, draw), side)

        whole = torch.empty((len(examples), 3, side, side), dtype=torch.uint8, pin_memory=pinned)
        images = whole.numpy()
        for place, cut in enumerate(self._decoders.map(crop, examples, draws)):
            images[place] = cut
        return whole
