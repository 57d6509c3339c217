"""Which images make a batch: every worker of a trial has one in each."""

import pytest
import torch

from finetune.images import order


@pytest.mark.parametrize(
    ("images", "size", "workers", "sizes"),
    [
        (10, 4, 1, [4, 4, 2]),
        (10, 4, 2, [4, 4, 2]),
        (10, 4, 3, [4, 4]),  # its last two images are fewer than the workers
        (9, 4, 1, [4, 4]),
        (3, 4, 3, [3]),
    ],
)
def test_no_batch_has_fewer_images_than_there_are_workers(
    images: int, size: int, workers: int, sizes: list[int]
) -> None:
    shuffle = torch.Generator().manual_seed(0)
    found = order.batches(images, size, shuffle, workers=workers)
    assert [len(batch) for batch in found] == sizes
    labels = torch.zeros(images, dtype=torch.int64)
    balanced = order.balanced_batches(labels, size, shuffle, workers=workers)
    assert [len(batch) for batch in balanced] == sizes
