"""Choose the order of the images of an epoch, and split it into batches."""

import torch
from torch import Tensor

from finetune.settings import TrialSettings


def batches(images: int, size: int, shuffle: torch.Generator, *, workers: int = 1) -> list[Tensor]:
    """Return an epoch's batches of image numbers, in random order.

    A last batch of less than half the size is dropped, unless it is the only one: batch norm over a few
    images with one pixel each may have a variance near zero, and so huge gradients. A ShuffleNet's weights
    grew to 3.5e5 in an epoch that ended with a batch of 2 images (32 px, random weights). A last batch with
    fewer images than workers is dropped too, since each worker needs an image.
    """
    return _split(torch.randperm(images, generator=shuffle), size, workers)


def balanced_batches(
    labels: Tensor, size: int, shuffle: torch.Generator, *, workers: int = 1
) -> list[Tensor]:
    """Return an epoch's batches, in random order, in which all classes that occur are equally frequent.

    This is class-balanced sampling, p_c = 1 / C (Kang et al., ICLR 2020), without the variance of
    independent draws. An epoch still has N images: N // C or one more of each class. The images of a class
    are drawn equally often, or some once more. An image that is drawn twice in an epoch has the same view
    both times, since views are functions of the image and the epoch.

    Args:
        labels: the labels of all training images, int64 (N,).
        size: the number of images per batch.
        shuffle: the generator. The number of draws from it depends on the labels.
        workers: the number of workers that share each batch; last batches are dropped as in `batches`.
    """
    present = labels.unique()
    share, more = divmod(len(labels), len(present))
    lucky = torch.randperm(len(present), generator=shuffle)[:more].tolist()
    drawn = []
    # A small class is repeated in whole shuffled rounds, so that no image comes twice before all came once.
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
    """Return an epoch's batches of image numbers, each for all workers together.

    They depend only on the settings, the labels of the training images, the epoch and the number of workers.
    """
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
