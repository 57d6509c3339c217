"""Read what the head of a run sees of its images: stored features where there are any.

Shapes: B images, D pooled features.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from finetune.datasets.inspection import Vectors
from finetune.datasets.sources import SPLITS
from finetune.evaluation.scores import BATCH
from finetune.training.run import Run


@torch.no_grad()
def reduced(run: Run, split: str, images: Tensor) -> Iterator[Tensor]:
    """Yield what the head reads of the images with these numbers, as in evaluation, in batches.

    Raises:
        DataError: an image cannot be read.
    """
    run.model.eval()
    for h in _inputs(run, split, images.split(BATCH)):
        yield run.model.head.reduce(run.model.trunk(h)) if len(run.model.trunk) else h


def pooled(run: Run, split: str, images: Tensor) -> Tensor:
    """Return pooled features (B, D) of images behind the last block, float32 on the CPU."""
    head = run.model.head
    found = [(h if head.pools else head.pool(h)).float().cpu() for h in reduced(run, split, images)]
    return torch.cat(found) if found else torch.zeros(0, run.model.pooled_features)


def by_path(run: Run, images: Tensor, rows: Tensor, most: int) -> Vectors:
    """Return features by the path of the image: those given, and those of images of the other splits.

    Args:
        run: a run whose features have not learned the labels.
        images: numbers of training images (N,).
        rows: their features (N, D).
        most: images of each other split, at most.
    """
    paths = run.data.paths("train")
    found = {paths[image]: row for image, row in zip(images.tolist(), rows.numpy(), strict=True)}
    for split in SPLITS[1:]:
        others, paths = spread(run.data.size(split), most), run.data.paths(split)
        found_rows = pooled(run, split, others).numpy()
        found |= {paths[image]: row for image, row in zip(others.tolist(), found_rows, strict=True)}
    return found


def spread(count: int, most: int) -> Tensor:
    """Return at most `most` numbers below `count`, evenly spread, int64."""
    return torch.arange(count)[:: max(1, -(-count // most))]


def _inputs(run: Run, split: str, order: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Yield the inputs of the trained part."""
    inputs, said = run.inputs, run.settings.data
    if split != "train":
        feed = inputs.feed(split)
        yield from map(feed.finish, feed.batches(order))
        return
    # The first rows that are stored for training are the images as in evaluation, unless views are drawn.
    feed = inputs.feed("train", view=0)
    if feed.rows is not None and said.crop_scale == 1 and said.augment == "none":
        for places in order:
            x = inputs.read(feed.rows[places.to(feed.rows.device)], feed.blocks).float()
            yield feed.finish(x)
        return
    for pixels, _ in run.data.batches("train", order):
        yield inputs.features(inputs.images(pixels), feed.how)
