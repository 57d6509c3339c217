"""Measure a model on one split, exactly for any number of workers: no image is counted twice.

Shapes: B images of a batch, C classes.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassCalibrationError, MulticlassStatScores

from finetune.metrics import RECALL, TOP, TOP5

BATCH = 64
"""Images per evaluation step and worker. It is fixed, so that an exported model gives the same results."""
SCORED_AT_ONCE = 2**20
"""Logits collected before an update of the metrics, which takes as long as running a small head."""
BINS = 15
"""Bins of the calibration error, as in Guo et al., ICML 2017."""


class Scores:
    """The metrics of a split. They are built once and reset; torchmetrics sums their states over the workers.

    loss               mean cross-entropy, nats
    accuracy           share of images whose most probable class is the label's
    balanced_accuracy  mean recall over the classes that occur (Brodersen et al., ICPR 2010)
    macro_f1           mean F1 over the classes that occur or are predicted, as in scikit-learn
    ece                expected calibration error in 15 bins (Guo et al., ICML 2017), 0..1
    top5               share of images with the label among the five most probable classes; if C > 5
    recall/<class>     share of the class's images that are predicted as it; for classes that occur

    Args:
        classes: names of the C classes in the order of the logits.
        device: device of the logits.
    """

    def __init__(self, classes: Sequence[str], device: torch.device) -> None:
        self.classes = classes
        # A NaN must reach the sum; torchmetrics would leave it out and warn.
        self._loss = SumMetric(nan_strategy="disable").to(device)
        self._in_top = SumMetric(nan_strategy="disable").to(device)
        count = len(classes)
        self._counts = MulticlassStatScores(count, average=None, validate_args=False).to(device)
        self._calibration = MulticlassCalibrationError(count, n_bins=BINS, validate_args=False).to(device)

    def reset(self) -> None:
        """Clear all metrics."""
        for metric in (self._loss, self._in_top, self._counts, self._calibration):
            metric.reset()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: float32 logits (B, C) and int64 labels (B,)."""
        log_p = F.log_softmax(logits, dim=1)
        self._loss.update(F.nll_loss(log_p, labels, reduction="sum"))
        self._counts.update(logits.argmax(dim=1), labels)
        self._calibration.update(log_p.exp(), labels)  # it takes logits within 0..1 for probabilities
        if len(self.classes) > TOP:
            found = logits.topk(TOP, dim=1).indices == labels[:, None]  # (B, 5)
            self._in_top.update(found.sum().float())

    def compute(self) -> dict[str, float]:
        """Return all metrics over all workers, by name; all are NaN if the loss is not finite."""
        tp, fp, _, fn, support = self._counts.compute().double().cpu().unbind(dim=1)  # each (C,)
        images, occurs = support.sum(), support > 0
        answered = occurs | (fp > 0)
        recalls = tp / support  # NaN where a class does not occur
        scores = {
            "loss": self._loss.compute().double().cpu() / images,
            "accuracy": tp.sum() / images,
            "balanced_accuracy": recalls[occurs].mean(),
            "macro_f1": (2 * tp / (2 * tp + fp + fn))[answered].mean(),
            "ece": self._calibration.compute(),
        }
        if len(self.classes) > TOP:
            scores[TOP5] = self._in_top.compute().double().cpu() / images
        named = zip(self.classes, recalls, occurs.tolist(), strict=True)
        scores |= {f"{RECALL}{name}": recall for name, recall, there in named if there}
        values = {name: value.item() for name, value in scores.items()}
        # argmax takes a NaN logit for the largest, so without a finite loss the other metrics mean nothing.
        return values if math.isfinite(values["loss"]) else dict.fromkeys(values, math.nan)


@torch.no_grad()
def evaluate(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    scores: Scores,
    keep: list[Tensor] | None = None,
) -> dict[str, float]:
    """Return the metrics over all batches of all workers.

    Args:
        forward: function from the inputs in `batches` to logits (B, C), in evaluation mode.
        batches: this worker's share of the inputs, with int64 labels (B,), on the device.
        scores: metrics for these classes; they are reset first.
        keep: list that gets the logits (B, C), float32, of each batch of this worker; None: keep none.
    """
    scores.reset()
    logits, labels, waiting = [], [], 0
    for x, answers in batches:
        logits.append(forward(x).float())
        labels.append(answers)
        waiting += len(answers)
        if keep is not None:
            keep.append(logits[-1])
        if waiting * len(scores.classes) > SCORED_AT_ONCE:
            scores.update(torch.cat(logits), torch.cat(labels))
            logits, labels, waiting = [], [], 0
    if waiting:
        scores.update(torch.cat(logits), torch.cat(labels))
    return scores.compute()
