"""Measure a model on one split, exactly for any number of workers: no image is counted twice.

Shapes: B images of a batch, C classes.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from finetune.metrics import RECALL, TOP, TOP5

BATCH = 64
"""Images per evaluation step and worker. It is fixed, so that an exported model gives the same results."""
SCORED_AT_ONCE = 2**20
"""Logits collected before an update of the metrics, which takes as long as running a small head."""
BINS = 15
"""Bins of the calibration error, as in Guo et al., ICML 2017."""


class Scores:
    """Sums over the images of a split, which the workers add up, and the metrics that follow from them.

    loss               mean cross-entropy, nats
    accuracy           share of images whose most probable class is the label's
    balanced_accuracy  mean recall over the classes that occur (Brodersen et al., ICPR 2010)
    macro_f1           mean F1 over the classes that occur or are predicted, as in scikit-learn
    ece                expected calibration error in 15 bins (Guo et al., ICML 2017), 0..1
    top5               share of images with the label among the five most probable classes; if C > 5
    recall/<class>     share of the class's images that are predicted as it; for classes that occur

    Tests compare them with scikit-learn's. torchmetrics has them too, but its import would take a third of
    the time in which a worker starts.

    Args:
        classes: names of the C classes in the order of the logits.
        device: device of the logits.
    """

    def __init__(self, classes: Sequence[str], device: torch.device) -> None:
        self.classes = classes
        count = len(classes)
        # One vector holds all sums, so that workers add them up at once: loss, images with the label among
        # the first five, hits, answers and labels of each class, and what `bins` returns.
        self._sizes = (1, 1, count, count, count, 3 * (BINS + 1))
        self._sums = torch.zeros(sum(self._sizes), dtype=torch.float64, device=device)

    def reset(self) -> None:
        """Set all sums to zero."""
        self._sums.zero_()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: float32 logits (B, C) and int64 labels (B,)."""
        loss, in_top, hits, answered, labelled, binned = self._sums.split(self._sizes)
        log_p, answers = F.log_softmax(logits, dim=1), logits.argmax(dim=1)
        right = answers == labels
        loss += F.nll_loss(log_p, labels, reduction="sum")
        hits.scatter_add_(0, labels, right.double())
        for sums, classes in ((answered, answers), (labelled, labels)):
            sums.scatter_add_(0, classes, torch.ones_like(classes, dtype=torch.float64))
        binned += bins(log_p.exp().amax(dim=1), right).flatten()
        if len(self.classes) > TOP:
            in_top += (logits.topk(TOP, dim=1).indices == labels[:, None]).sum()

    def compute(self) -> dict[str, float]:
        """Return all metrics over all workers, by name; all are NaN if the loss is not finite."""
        sums = self._sums.clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        loss, in_top, hits, answered, labelled, binned = sums.cpu().split(self._sizes)
        images, occurs = labelled.sum(), labelled > 0
        recalls = hits / labelled  # NaN where a class does not occur
        scores = {
            "loss": loss / images,
            "accuracy": hits.sum() / images,
            "balanced_accuracy": recalls[occurs].mean(),
            "macro_f1": (2 * hits / (labelled + answered))[occurs | (answered > 0)].mean(),
            "ece": calibration_error(binned.view(3, -1)),
        }
        if len(self.classes) > TOP:
            scores[TOP5] = in_top / images
        named = zip(self.classes, recalls, occurs.tolist(), strict=True)
        scores |= {f"{RECALL}{name}": recall for name, recall, there in named if there}
        values = {name: value.item() for name, value in scores.items()}
        # argmax takes a NaN logit for the largest, so without a finite loss the other metrics mean nothing.
        return values if math.isfinite(values["loss"]) else dict.fromkeys(values, math.nan)


def bins(confidence: Tensor, right: Tensor) -> Tensor:
    """Return number of images, sum of confidences and number of right answers in each bin of confidence.

    A bin holds its lower bound; confidences of exactly 1 have a bin of their own.

    Args:
        confidence: probability of the answer, float32 (B,).
        right: whether it is the label, bool (B,).

    Returns:
        float64 (3, BINS + 1).
    """
    edges = torch.linspace(0, 1, BINS + 1, device=confidence.device)
    own = torch.bucketize(confidence, edges, right=True) - 1
    told = torch.stack([torch.ones_like(confidence), confidence, right.to(confidence)]).double()
    return told @ F.one_hot(own, BINS + 1).double()  # a product adds up in the same order each time


def calibration_error(binned: Tensor) -> Tensor:
    """Return the expected calibration error, 0..1, of bins (3, BINS + 1) as `bins` returns them."""
    images, confidence, right = binned
    error: Tensor = (right - confidence).abs().sum() / images.sum()
    return error


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
