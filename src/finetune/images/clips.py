"""Batches of whole clips, for backbones that read several frames at once.

Shapes: B clips of a batch, T frames of a clip, S side of a frame in pixels.
"""

import torch
from torch import Tensor

from finetune.datasets.catalog import Catalog
from finetune.images.batches import ImageData
from finetune.settings import DataSettings


class ClipData(ImageData):
    """The clips of one catalog, made of frames that are decoded once; used like `ImageData`.

    A clip is uint8 RGB (3, T, S, S). Its frames are mirrored, cropped and altered alike.

    Args:
        catalog: the result of `finetune.datasets.catalog.scan`.
        data: number and size of the frames, the augmentation and its seed.
        frames: the frames of the same catalog.
    """

    def __init__(self, catalog: Catalog, data: DataSettings, frames: ImageData) -> None:
        super().__init__(catalog, data, budget_bytes=0)
        self._frames, self._count = frames, data.frames
        self.fingerprint = frames.fingerprint

    def batch(self, split: str, indices: Tensor, *, view: int | None = None, pinned: bool = False) -> Tensor:
        """Return the clips at `indices` of a split, uint8 (B, 3, T, S, S); arguments as for images.

        Raises:
            DataError: a clip cannot be read.
            IndexError: an index lies outside the split.
        """
        places = (indices[:, None] * self._count + torch.arange(self._count)).flatten()
        found = self._frames.batch(split, places, view=view).unflatten(0, (len(indices), self._count))
        turned: Tensor = found.transpose(1, 2).contiguous()
        return turned.pin_memory() if pinned else turned
