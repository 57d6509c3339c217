"""What trials of one process share: decoded images, pretrained backbones, category relationships.

Everything here is a pure function of settings and is never changed by a trial, so a trial in a
warm process equals the same trial in a cold one.
"""

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from finetune import catalog, pretrain, strategies, weights
from finetune.backbones import Backbone
from finetune.data import ImageData, normalise
from finetune.evaluate import BATCH
from finetune.settings import DataSettings, TrialSettings, WeightsSettings
from finetune.weights import Pretrained


def images(data: DataSettings) -> ImageData:
    """Return the images of `data`; a decoded image is kept while it fits in memory."""
    return _images(dataclasses.replace(data, batch_size=1))  # pixels do not depend on the batch size


@lru_cache(maxsize=4)
def _images(data: DataSettings) -> ImageData:
    return ImageData(catalog.scan(data), data)


@lru_cache(maxsize=4)
def pretrained(backbone: str, settings: WeightsSettings, cache_dir: str, device: str) -> Pretrained:
    """Return the pretrained weights; those of a source task are trained on first use, once per node."""
    if settings.source is not None:
        return pretrain.ensure(backbone, settings.source, Path(cache_dir), torch.device(device))
    return weights.load(backbone, settings)


def backbone(settings: TrialSettings, device: torch.device) -> Backbone:
    """Return a backbone of its own for one trial, on the CPU, with its pretrained weights.

    Random weights (`weights: none`) are drawn from the trial's seed.
    """
    if settings.weights == WeightsSettings():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return weights.backbone(settings.backbone, weights.load(settings.backbone, settings.weights))
    source = pretrained(settings.backbone, settings.weights, settings.cache_dir, device.type)
    return weights.backbone(settings.backbone, source)


def relationship(settings: TrialSettings, device: torch.device) -> Tensor:
    """Return the category relationship (C, K) of the target's classes and the source's."""
    data = dataclasses.replace(settings.data, batch_size=1)
    return _relationship(data, settings.backbone, settings.weights, settings.cache_dir, device.type)


@lru_cache(maxsize=4)
def _relationship(
    data: DataSettings, backbone: str, weight: WeightsSettings, cache_dir: str, device: str
) -> Tensor:
    source = pretrained(backbone, weight, cache_dir, device)
    target = images(data)
    model = weights.backbone(backbone, source).to(device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(target.size("train")).split(BATCH)
        for pixels, labels in target.batches("train", order):
            yield normalise(pixels.to(device), source.mean, source.std), labels.to(device)

    return strategies.category_relationship(model, batches(), len(target.classes)).cpu()
