"""Objects that the trials of one process share: decoded images, pretrained backbones, category relationships.

Everything here is a pure function of settings and is never changed by a trial, so a trial in a
warm process equals the same trial in a cold one.
"""

import dataclasses
from functools import lru_cache
from pathlib import Path

import torch

from finetune.datasets import catalog
from finetune.datasets.catalog import Catalog
from finetune.disk.array_store import Store
from finetune.images.batches import ImageData
from finetune.images.clips import ClipData
from finetune.model import backbones, pretrain, weights
from finetune.model.backbones import Backbone
from finetune.model.known_backbones import reads_clips
from finetune.model.weights import Pretrained
from finetune.settings import DataSettings, FeatureSettings, SampleSettings, TrialSettings, WeightsSettings
from finetune.strategy import STRATEGIES
from finetune.texts.encoders import Texts


def images(data: DataSettings, features: FeatureSettings | None = None) -> ImageData:
    """Return the images of `data`; decoded images are kept in the store of `features`, or else in memory."""
    # Pixels do not depend on the batch size.
    return _images(dataclasses.replace(data, batch_size=1), _place(features))


@lru_cache(maxsize=4)
def _images(data: DataSettings, place: tuple[str, int] | None) -> ImageData:
    shared = Store(Path(place[0]), place[1]) if place else None
    return ImageData(_scanned(data.samples), data, shared=shared)


@lru_cache(maxsize=1)
def together(data: DataSettings, features: FeatureSettings | None = None) -> ImageData:
    """Return the images of `data` with those of validation among the training images."""
    place = _place(features)
    store = Store(Path(place[0]), place[1]) if place else None
    return ImageData(_scanned(data.samples).together(), data, shared=store)


@lru_cache(maxsize=4)
def _scanned(samples: SampleSettings) -> Catalog:
    """Return the catalog of the samples; files are scanned once, whatever trials do with their images."""
    return catalog.scan(samples)


@lru_cache(maxsize=4)
def _frames(data: DataSettings, place: tuple[str, int] | None) -> ImageData:
    shared = Store(Path(place[0]), place[1]) if place else None
    return ImageData(_scanned(data.samples).of_frames(data.frames), data, shared=shared)


def frames(data: DataSettings, features: FeatureSettings | None = None) -> ImageData:
    """Return the frames of all samples as images, those of one sample one after another in time."""
    if data.frames == 1:
        return images(data, features)
    return _frames(dataclasses.replace(data, batch_size=1), _place(features))


@lru_cache(maxsize=4)
def _clips(data: DataSettings, place: tuple[str, int] | None) -> ClipData:
    return ClipData(_scanned(data.samples), data, _frames(data, place))


def read(settings: TrialSettings, features: FeatureSettings | None = None) -> ImageData:
    """Return what the backbone reads of the samples: images, or each frame of clips, or clips as a whole."""
    if reads_clips(settings.backbone):
        return _clips(dataclasses.replace(settings.data, batch_size=1), _place(features))
    return frames(settings.data, features)


def texts(data: DataSettings, encoder: str, features: FeatureSettings | None = None) -> Texts | None:
    """Return the texts of the samples as vectors; None if there are none."""
    return None if data.text is None else _texts(data.samples, encoder, _place(features))


@lru_cache(maxsize=4)
def _texts(data: SampleSettings, encoder: str, place: tuple[str, int] | None) -> Texts:
    return Texts(_scanned(data), encoder, Store(Path(place[0]), place[1]) if place else None)


def _place(features: FeatureSettings | None) -> tuple[str, int] | None:
    stores = features is not None and features.mode != "off"
    return (features.folder, features.budget_bytes) if features and stores else None


@lru_cache(maxsize=4)
def pretrained(backbone: str, settings: WeightsSettings, cache_dir: str, device: str) -> Pretrained:
    """Return the pretrained weights; a source task is trained on first use, once per node."""
    if settings.source is not None:
        return pretrain.ensure(backbone, settings.source, Path(cache_dir), torch.device(device))
    return weights.load(backbone, settings)


def backbone(settings: TrialSettings, device: torch.device) -> Backbone:
    """Return a trial's backbone with its pretrained weights, on the device.

    Frozen blocks are shared by all trials of the process; trained blocks and the source FC are copied.
    Random weights (`weights: none`) are drawn from the trial's seed.
    """
    if settings.weights == WeightsSettings():
        return pristine(settings, device)
    own = STRATEGIES.get(settings.strategy)
    keeps_fc = own is None or own.keeps_source_fc
    return pristine(settings, device).fork(settings.frozen_layers, source_fc=keeps_fc)


def pristine(settings: TrialSettings, device: torch.device) -> Backbone:
    """Return the unchanged pretrained backbone, frozen, on the device; callers must not change it."""
    if settings.weights == WeightsSettings():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            drawn = weights.backbone(settings.backbone, weights.load(settings.backbone, settings.weights))
        return _placed(drawn, device)
    return _pristine(settings.backbone, settings.weights, settings.cache_dir, str(device))


@lru_cache(maxsize=4)
def _pristine(backbone: str, settings: WeightsSettings, cache_dir: str, device: str) -> Backbone:
    where = torch.device(device)
    return _placed(weights.backbone(backbone, pretrained(backbone, settings, cache_dir, where.type)), where)


def _placed(backbone: Backbone, device: torch.device) -> Backbone:
    # Channels last on CPUs too: of 18 families 12 trained a tenth to a third faster, two a little slower.
    backbone.to(device, memory_format=backbones.layout(backbone.name))  # type: ignore[call-overload]
    return backbone.requires_grad_(False).eval()
