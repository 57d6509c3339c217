"""Keep decoded images in memory within a budget, or on the node for all its processes.

Shapes: B images of a batch, S side of the square the model sees, in pixels.
"""

import hashlib
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import Image
from torch import Tensor

from finetune.datasets.catalog import Catalog, Example
from finetune.disk.array_file import Layout
from finetune.disk.array_store import Store
from finetune.images import pixels
from finetune.images.pixels import Pixels

Rows = npt.NDArray[np.int64]

KEPT_SIDE = 1.5
"""Random crops are cut from an image whose shorter side is at most this multiple of S, so that large
photographs fit in memory and resize fast. Images that are kept and images that are decoded again have the
same pixels."""
FORMAT = 1
"""Version of stored pixels, part of their key. Raise it when the way from file to pixels changes."""


class Decoded:
    """The images of one catalog at one size. It may be used from several threads.

    Decoded evaluation images stay in memory, in one array per split, and so do the images that random crops
    are cut from, as long as all of them together stay within `budget_bytes`. Images that do not fit are
    decoded each time, to the same pixels.

    Args:
        catalog: the images.
        side: S.
        decoders: the threads that decode.
        budget_bytes: the memory for decoded images in this process.
        shared: a store in which all processes of the node share evaluation images, so that each image is
            decoded once; None keeps them in the memory of this process.
    """

    def __init__(
        self,
        catalog: Catalog,
        side: int,
        decoders: ThreadPoolExecutor,
        *,
        budget_bytes: int,
        shared: Store | None,
    ) -> None:
        self._catalog = catalog
        self._side = side
        self._decoders = decoders
        self._shared = shared
        self._opening = Lock()  # held while a store is opened; `_lock` may be taken inside it
        self._lock = Lock()  # guards the budget and `_kept`
        self._budget_bytes = budget_bytes
        self._stores: dict[str, _Store] = {}
        self._kept: dict[tuple[str, int | None], Image.Image] = {}

    def evaluation(self, split: str, rows: Rows, *, pinned: bool = False) -> Tensor:
        """Return images as evaluation sees them, uint8 (B, 3, S, S), as a copy that the caller may change.

        With `pinned` they are in pinned memory, which a GPU can copy while it computes.
        """
        # Rows beyond the store had no room in the budget: they are decoded into the result each time.
        examples, store = self._catalog.splits[split], self._store(split)
        inside = rows < len(store.pixels)

        def fill(row: int) -> None:
            store.pixels[row] = self._evaluation_image(examples[row])
            store.ready[row] = True

        # Two threads may decode the same missing row at once; both write the same pixels.
        missing = [row for row in np.unique(rows[inside]) if not store.ready[row]]
        _finish(self._decoders.map(fill, missing))
        shape = (len(rows), *store.pixels.shape[1:])
        whole = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        images = whole.numpy()
        if inside.all():
            # numpy copies in this thread alone; torch would wake a thread per core, beside the one that
            # feeds a GPU.
            np.take(store.pixels, rows, axis=0, out=images, mode="clip")  # "raise" would copy twice
            return whole
        images[inside] = store.pixels[rows[inside]]

        def make(place: int) -> None:
            images[place] = self._evaluation_image(examples[rows[place]])

        _finish(self._decoders.map(make, np.flatnonzero(~inside)))
        return whole

    def for_crops(self, example: Example) -> Image.Image:
        """Return the whole image for random crops, its shorter side shrunk to KEPT_SIDE * S at most."""
        name = (example.path, example.frame)
        if name in self._kept:
            return self._kept[name]
        kept_side = KEPT_SIDE * self._side
        image = self._catalog.open(example, math.ceil(pixels.DECODED_SIDE * kept_side))
        shrink = kept_side / min(image.size)
        if shrink < 1:
            size = round(image.width * shrink), round(image.height * shrink)
            image = image.resize(size, Image.Resampling.BILINEAR)
        with self._lock:
            cost = 4 * image.width * image.height  # Pillow holds RGB in 4 bytes
            if name not in self._kept and cost <= self._budget_bytes:
                self._budget_bytes -= cost
                self._kept[name] = image
        return image

    def _evaluation_image(self, example: Example) -> Pixels:
        side, whole = self._side, self._catalog.whole
        image = self._catalog.open(example, pixels.evaluation_needs(side, whole))
        return pixels.evaluation(image, side, whole)

    def _store(self, split: str) -> "_Store":
        with self._opening:
            if split not in self._stores:
                self._stores[split] = self._shared_store(split) or self._own_store(split)
            return self._stores[split]

    def _own_store(self, split: str) -> "_Store":
        """Return an empty store in this process for as many images of a split as the budget has room for."""
        side = self._side
        with self._lock:
            rows = min(len(self._catalog.splits[split]), self._budget_bytes // (3 * side * side))
            self._budget_bytes -= rows * 3 * side * side
        return _Store(np.empty((rows, 3, side, side), dtype=np.uint8), np.zeros(rows, dtype=np.bool_))

    def _shared_store(self, split: str) -> "_Store | None":
        """Return all images of a split from the node's store, decoding those that are missing.

        None if there is no store, or no room in it.
        """
        examples, side, data = self._catalog.splits[split], self._side, self._catalog.fingerprint
        if self._shared is None or not examples:
            return None
        layout = Layout(rows=len(examples), shape=(3, side, side), dtype="uint8")

        def make(begin: int, end: int) -> Tensor:
            images = list(self._decoders.map(self._evaluation_image, examples[begin:end]))
            return torch.from_numpy(np.stack(images))

        facts = {"what": "images", "split": split, "images": len(examples), "data": data[:12]}
        key = f"{FORMAT} {data} {split} {side} {self._catalog.whole} {PIL.__version__}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:24]
        rows = self._shared.peek(digest, layout)
        if rows is None:
            # The time to decode one image is what the store saves per row.
            began = time.perf_counter()
            self._evaluation_image(examples[0])
            worth = (time.perf_counter() - began) / layout.row_bytes
            rows = self._shared.get(
                digest, layout, make, worth=worth, facts=facts, step=f"decode images of {split}"
            )
        return None if rows is None else _Store(rows.numpy(), np.ones(len(examples), dtype=np.bool_))


@dataclass(frozen=True)
class _Store:
    """Evaluation images of the first rows of a split; the system provides memory only for filled rows."""

    pixels: Pixels
    ready: npt.NDArray[np.bool_]


def _finish(results: Iterator[None]) -> None:
    """Wait for all results and raise the first error."""
    deque(results, maxlen=0)
