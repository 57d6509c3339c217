"""In which order an epoch sees its images, and which make one batch."""

import torch
from torch import Tensor

from finetune.settings import TrialSettings


def batches(images: int, size: int, shuffle: torch.Generator, *, workers: int = 1) -> list[Tensor]:
    """Return an epoch's batches of image numbers, in random order.

    A last batch of less than half the size is left out, unless it is the only one: batch norm over a
    few images with one pixel each may have a variance near zero, and huge gradients. A ShuffleNet's
    weights stood at 3.5e5 after an epoch that ended with 2 images (32 px, random weights). One with fewer
    images than workers is left out, too: each of them needs an image.
    """
    return _split(torch.randperm(images, generator=shuffle), size, workers)


def balanced_batches(
    labels: Tensor, size: int, shuffle: torch.Generator, *, workers: int = 1
) -> list[Tensor]:
    """Return an epoch's batches in which all classes that occur are drawn alike, in random order.

    Class-balanced sampling: p_c = 1 / C (Kang et al., ICLR 2020), without the variance of independent
    draws: an epoch has as many images as ever, N // C or one more of each
    class, and each image of a class equally often, or once more. An image that comes twice in an
    epoch comes with the same view: views are functions of the image and the epoch.

    Args:
        labels: of all training images, int64 (N,).
        size: images per batch.
        shuffle: moved by a number of draws that depends on the labels.
        workers: that share each batch; a last batch is left out as in `batches`.
    """
    present = labels.unique()
    share, more = divmod(len(labels), len(present))
    lucky = torch.randperm(len(present), generator=shuffle)[:more].tolist()
    drawn = []
    for place, label in enumerate(present):
        members = (labels == label).nonzero().flatten()
        wanted = share + (place in lucky)
        rounds = -(-wanted // len(members))
        often = [members[torch.randperm(len(members), generator=shuffle)] for _ in range(rounds)]
        drawn.append(torch.cat(often)[:wanted] if often else members[:0])
    images = torch.cat(drawn)
    return _split(images[torch.randperm(len(images), generator=shuffle)], size, workers)


def _split(order: Tensor, size: int, workers: int) -> list[Tensor]:
    parts = list(order.split(size))
    least = max(workers, size / 2)
    return parts[:-1] if len(parts) > 1 and len(parts[-1]) < least else parts


def epoch_batches(settings: TrialSettings, labels: Tensor, epoch: int, *, workers: int = 1) -> list[Tensor]:
    """Return an epoch's batches of image numbers, over all workers, for the training images' labels."""
    shuffle = torch.Generator().manual_seed(mixed_seed(settings.seed, epoch))
    size = settings.data.batch_size
    if settings.imbalance == "balanced_sampling":
        return balanced_batches(labels, size, shuffle, workers=workers)
    return batches(len(labels), size, shuffle, workers=workers)


def mixed_seed(*parts: int) -> int:
    """Return one seed from several numbers: 63 bits, different for different parts."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 0x9E3779B97F4A7C15 + part + 1) % 2**63  # Knuth's multiplicative constant, 64 bits
    return mixed
