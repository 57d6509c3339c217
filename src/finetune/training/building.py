"""Build the model that a trial's settings describe, and the category relationship that `load` begins with."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from finetune import steps
from finetune.disk import checkpoint
from finetune.errors import CheckpointError
from finetune.frozen.features import Inputs
from finetune.images.batches import ImageData
from finetune.model import source_rows, strategies
from finetune.model.exact_head import ExactHead, ExactShape
from finetune.model.known_backbones import reads_clips, seen_shape
from finetune.model.sample_head import SampleShape
from finetune.model.strategies import TransferModel
from finetune.settings import ALL, FeatureSettings, TrialSettings, WeightsSettings
from finetune.strategy import STRATEGIES
from finetune.texts.encoders import Texts
from finetune.training import exact, shared


def model(
    settings: TrialSettings,
    data: ImageData,
    device: torch.device,
    shape: ExactShape | None = None,
    *,
    sample: SampleShape | None = None,
    texts: Texts | None = None,
    stored: FeatureSettings | None = None,
) -> TransferModel:
    """Return the model that the settings describe, on `device`, with its pretrained weights.

    Args:
        settings: settings of the trial.
        data: the images.
        device: device of the model.
        shape: for strategy `exact`, what its head is made of; None: the head through which features are read.
        sample: what the head reads of samples with several parts; None: what the settings say.
        texts: the texts of samples that have some.
        stored: store for the features of frozen blocks; None: no store.
    """
    own = STRATEGIES.get(settings.strategy)
    begins_related = own is not None and own.head_is_pretrained and settings.weights != WeightsSettings()
    source = shared.pretrained(settings.backbone, settings.weights, settings.cache_dir, device.type)
    backbone = shared.backbone(settings, device)
    if settings.data.has_parts and sample is None:
        sample = sample_shape(settings, backbone.features, texts)
    built = strategies.build(
        settings.strategy,
        backbone,
        classes=data.classes,
        head_size=settings.head_size,
        dropout=settings.dropout,
        frozen_layers=settings.frozen_layers,
        relation=relationship(settings, device, stored) if begins_related else None,
        source_names=source.classes,
        seed=settings.seed,
        exact=shape or exact.probe(settings.weights),
        sample=sample,
        seen=seen_shape(settings.backbone, settings.data.image_size, settings.data.frames),
    )
    built.head.to(device)  # its blocks are there already
    return built


def sample_shape(settings: TrialSettings, features: int, texts: Texts | None) -> SampleShape:
    """Return the structure of the head for samples with text or several frames.

    Args:
        settings: settings of the trial.
        features: number of features of a frame.
        texts: the texts; None: there are none, and the head reads the image alone.
    """
    fusion = "image" if texts is None else settings.fusion
    return SampleShape(
        fusion=fusion,
        pooling=settings.pooling,
        frames=1 if reads_clips(settings.backbone) else settings.frames_used or settings.data.frames,
        features=features,
        text=0 if texts is None or fusion == "image" else texts.size,
        image_scale=settings.image_scale,
        modality_dropout=settings.modality_dropout,
    )


def relationship(
    settings: TrialSettings, device: torch.device, stored: FeatureSettings | None = None
) -> Tensor:
    """Return the category relationship (C, K) between the target's classes and the source's.

    It is computed once per node and kept in the cache. A trial that reads the stored features of all blocks
    takes them for it; for any other the training images pass through the backbone once.
    """
    frozen = exact.frozen(settings)
    blocks = len(shared.pristine(settings, device).blocks)
    alike = frozen.data == settings.data and settings.mix == "none"
    reads_all = alike and settings.frozen_layers in (ALL, blocks)
    return _relationship(frozen, str(device), stored, reads_all)


@lru_cache(maxsize=4)
def _relationship(
    frozen: TrialSettings, device: str, stored: FeatureSettings | None, reads_all: bool
) -> Tensor:
    where = torch.device(device)
    data = shared.images(frozen.data, stored)
    source = shared.pretrained(frozen.backbone, frozen.weights, frozen.cache_dir, where.type)
    inputs = Inputs(
        model(frozen, data, where).eval(),
        data,
        frozen,
        source,
        where,
        blocks=lambda: shared.pristine(frozen, where).blocks,
        stored=stored if reads_all else None,
    )
    name = f"{frozen.backbone}-{inputs.key('train', view=0)}.safetensors"
    path = Path(frozen.cache_dir) / "relations" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several workers of a node may come here at once: one computes, the others wait and read its file.
    with FileLock(f"{path}.lock"):
        try:
            return checkpoint.read(path)[0]["relation"]
        except CheckpointError:
            relation = source_rows.category_relationship(_answers(inputs), len(data.classes))
            checkpoint.write(path, {"relation": relation}, {"backbone": frozen.backbone})
    return relation


@torch.no_grad()
def _answers(inputs: Inputs) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the source's softmax (B, K) and the labels of all training images, not cropped or mirrored."""
    head, labels = inputs.model.head, inputs.data.labels("train")
    assert isinstance(head, ExactHead)
    feed = inputs.feed("train", view=0)
    why = "once on each node: where `load` starts"
    done = 0
    with steps.step("relate classes to the source's", len(labels), "images", why) as told:
        for reduced in exact.reduced(inputs, feed, torch.arange(len(labels))):
            answers = head.parts(reduced)[1]
            assert answers is not None
            yield answers, labels[done : done + len(answers)]
            done += len(answers)
            told.add(len(answers))
