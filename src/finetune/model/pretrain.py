"""Pretrain a backbone on a source task, once per node, and cache the weights under a fingerprint.

This is for users who have no downloadable weights. The result is an ordinary weights file with torchvision's
keys, and is used like one.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from filelock import FileLock

from finetune import steps
from finetune.datasets import catalog
from finetune.disk import checkpoint
from finetune.images import order
from finetune.images.batches import ImageData
from finetune.images.pixels import normalise
from finetune.model import backbones, weights
from finetune.model.weights import Pretrained
from finetune.settings import SourceSettings, WeightsSettings

VERSION = 2
"""Version of the recipe below. It is part of the fingerprint, so that a changed recipe trains again."""
MOMENTUM = 0.9


def ensure(backbone: str, source: SourceSettings, cache_dir: Path, device: torch.device) -> Pretrained:
    """Return weights of `backbone` trained on the source task, from the cache if possible.

    If several processes of a node call this at once, one trains and the others wait for its file.

    Raises:
        DataError: the source's images do not match its settings.
        BackboneError: there is no such backbone.
    """
    images = catalog.scan(source.data)
    # The fingerprint covers all that decides the weights; paths do not, since the images are hashed.
    facts = {
        "version": VERSION,
        "backbone": backbone,
        "source": dataclasses.asdict(source)
        | {"data": dataclasses.asdict(source.data) | {"path": None, "download": None}},
        "data": images.fingerprint,
        "device": device.type,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir / "weights" / f"{backbone}-{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            data = ImageData(images, source.data)
            total = source.epochs * data.size("train")
            with steps.step(f"pretrain {backbone}", total, "images", "once on each node") as told:
                model, accuracy = _train(backbone, source, data, device, told)
            checkpoint.write(path, model.state_dict(), facts | {"val/accuracy": accuracy})
    loaded = weights.load(backbone, WeightsSettings(file=str(path)))
    origin = f"{backbone} pretrained on {source.data.kind} ({', '.join(images.classes)})"
    return dataclasses.replace(loaded, classes=images.classes, origin=origin)


def _train(
    backbone: str, source: SourceSettings, data: ImageData, device: torch.device, told: steps.Counting
) -> tuple[torch.nn.Module, float]:
    """Return the torchvision model after training, and its accuracy on the source's validation split."""
    mean, std = weights.IMAGENET_MEAN, weights.IMAGENET_STD
    with torch.enable_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(source.seed)
        model = backbones.classifier(
            backbone, source_classes=len(data.classes), image_size=source.data.image_size
        )
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(
            model.parameters(), lr=source.learning_rate, momentum=MOMENTUM, weight_decay=source.weight_decay
        )
        size, count = source.data.batch_size, data.size("train")
        shuffle = torch.Generator().manual_seed(source.seed)
        steps = source.epochs * len(order.batches(count, size, shuffle))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for epoch in range(source.epochs):
            model.train()
            for pixels, labels in data.batches("train", order.batches(count, size, shuffle), view=epoch):
                logits = model(normalise(pixels.to(device), mean, std))
                loss = F.cross_entropy(logits, labels.to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                told.add(len(labels))
        return model, _accuracy(model, data, device)


@torch.no_grad()
def _accuracy(model: torch.nn.Module, data: ImageData, device: torch.device) -> float:
    model.eval()
    right = 0
    for pixels, labels in data.batches("val", torch.arange(data.size("val")).split(64)):
        images = normalise(pixels.to(device), weights.IMAGENET_MEAN, weights.IMAGENET_STD)
        right += int((model(images).argmax(1).cpu() == labels).sum())
    return right / data.size("val")
