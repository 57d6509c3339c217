"""Measure a model on one split: exact over any number of workers, no image counted twice.

Shapes: B images of a batch, C classes.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassRecall

BATCH = 64
"""Images per evaluation step and worker; fixed, so that an exported model answers as the study did."""


def metrics(classes: int) -> MetricCollection:
    """Return the metrics of a split by their plain names; torchmetrics sums their states over workers.

    `balanced_accuracy` is the mean recall over the classes that occur (Brodersen et al., ICPR 2010).
    """
    named = {
        "accuracy": MulticlassAccuracy(classes, average="micro"),
        "balanced_accuracy": MulticlassRecall(classes, average="macro"),
        "macro_f1": MulticlassF1Score(classes, average="macro"),
    }
    if classes > 5:
        named["top5"] = MulticlassAccuracy(classes, average="micro", top_k=5)
    return MetricCollection(named)  # type: ignore[arg-type]


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, classes: int, device: torch.device
) -> dict[str, float]:
    """Return loss (mean cross-entropy in nats) and `metrics` over all batches of all workers.

    Args:
        model: images (B, 3, H, W) -> logits (B, C); left in `eval` mode.
        batches: this worker's share, normalised images (B, 3, H, W) and labels (B,) on `device`.
        classes: C.
        device: where the batches are.
    """
    model.eval()
    scores = metrics(classes).to(device)
    loss = MeanMetric(sync_on_compute=True).to(device)
    for images, labels in batches:
        logits = model(images).float()  # (B, C)
        scores.update(logits, labels)
        loss.update(F.cross_entropy(logits, labels), weight=len(labels))
    return {"loss": loss.compute().item()} | {name: value.item() for name, value in scores.compute().items()}
