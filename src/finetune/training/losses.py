"""The training loss of one trial, with its methods for classes of unequal size.

    none                cross-entropy, all images weigh the same
    class_weights       images weigh inversely to the size of their class
    class_balanced      ... to its effective number of images            Cui et al., CVPR 2019
    balanced_sampling   no change here: `finetune.images.order` draws all classes equally often
    focal               images that are classified well weigh less       Lin et al., ICCV 2017
    logit_adjustment    logits are shifted by the log prior in training  Menon et al., ICLR 2021
    balanced_softmax    the same with the class sizes                    Ren et al., NeurIPS 2020

Shapes: N training images, B images of a batch, C classes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.settings import TrialSettings

_OWN = {
    "focal": ("focal_gamma",),
    "class_balanced": ("class_balanced_beta",),
    "logit_adjustment": ("logit_adjustment_tau",),
}
"""Value of `imbalance` -> the settings that only it uses."""


class Loss:
    """Sum over images of weight * loss, in nats, for targets that carry the weights.

    A target is a row (C,) whose sum is the image's weight. It is all at the label, or divided between the
    two labels of a mixed image. The training loop divides the loss of a batch by the sum of the weights of
    its images, over all workers, so a step follows the weighted mean.

    Args:
        settings: `imbalance` with its parameters, and `label_smoothing`.
        labels: labels of all training images, int64 (N,), on the CPU.
        weights: weight of each image from the manifest, (N,); None: all weigh 1.
        classes: C.
        device: device of the logits.
    """

    def __init__(
        self,
        settings: TrialSettings,
        labels: Tensor,
        weights: Tensor | None,
        *,
        classes: int,
        device: torch.device,
    ) -> None:
        sizes = labels.bincount(minlength=classes).double()  # (C,)
        per_class = class_weights(settings, sizes).float()
        self.imbalance = settings.imbalance
        self.own = {name: getattr(settings, name) for name in _OWN.get(settings.imbalance, ())}
        self.weights = per_class[labels] * (1.0 if weights is None else weights)  # (N,), on the CPU
        self.classes, self.device = classes, device
        self.shift = logit_shift(settings, sizes).float().to(device)  # (C,)
        self.gamma = settings.focal_gamma if settings.imbalance == "focal" else 0.0
        # Lin et al. define the factor (1 - p) for one true class, which smoothed labels do not have.
        self.smoothing = 0.0 if settings.imbalance == "focal" else settings.label_smoothing

    def targets(self, labels: Tensor, weights: Tensor) -> Tensor:
        """Return the targets (B, C) of images with `labels` int64 (B,) and `weights` (B,)."""
        one_hot = F.one_hot(labels.to(self.device), self.classes)
        return one_hot * weights.to(self.device)[:, None]

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the weighted losses, a scalar, for logits and targets (B, C).

        -sum_ic t_ic (1 - p_ic)^gamma log p_ic with p = softmax(logits + shift) and the smoothed
        targets t. This is cross-entropy if gamma and shift are 0 (label smoothing: Szegedy et al., CVPR
        2016), the focal loss if gamma is not 0, and logit adjustment if the shift is not 0.
        A smoothed image keeps its whole weight; torch's `cross_entropy(weight=...)` would weigh each
        class of a smoothed label on its own.
        """
        log_p = F.log_softmax(logits.float() + self.shift, dim=1)
        if self.smoothing:
            spread = targets.sum(dim=1, keepdim=True) / self.classes
            targets = (1 - self.smoothing) * targets + self.smoothing * spread
        if self.gamma:
            # For gamma < 1 the gradient of 0^gamma is infinite, so p is kept just below 1.
            rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps)
            targets = targets * rest**self.gamma
        return -(targets * log_p).sum()

    def effective(self) -> dict[str, Any]:
        """Return the settings actually in use, by their names."""
        return {"imbalance": self.imbalance, "label_smoothing": self.smoothing, **self.own}


def class_weights(settings: TrialSettings, sizes: Tensor) -> Tensor:
    """Return the weight of an image of each class, float64 (C,), for `sizes` training images per class.

    `class_weights`: N / (C n_c), scikit-learn's "balanced" (King and Zeng, Political Analysis 2001).
    `class_balanced`: 1 / E_n with the effective number E_n = (1 - beta^n) / (1 - beta), scaled to the
    sum C (Cui et al.). Other methods give 1. A class without training images gets 0 under these two.
    """
    if settings.imbalance == "class_weights":
        return torch.where(sizes > 0, sizes.sum() / (len(sizes) * sizes), 0.0)
    if settings.imbalance == "class_balanced":
        beta = settings.class_balanced_beta
        inverse = torch.where(sizes > 0, (1 - beta) / (1 - beta**sizes), 0.0)
        return inverse * (len(sizes) / inverse.sum())
    return torch.ones_like(sizes)


def logit_shift(settings: TrialSettings, sizes: Tensor) -> Tensor:
    """Return the shift added to the logits in training only, float64 (C,).

    `logit_adjustment`: tau * log(pi_c) with the prior pi_c = n_c / N (Menon et al.).
    `balanced_softmax`: log(n_c) (Ren et al.). The two differ by log N, which softmax cancels, so it equals
    `logit_adjustment` with tau = 1. Other methods give 0. A class without training images counts as half an
    image, so that its shift stays finite.
    """
    counted = sizes.clamp(min=0.5)
    if settings.imbalance == "logit_adjustment":
        return settings.logit_adjustment_tau * (counted / sizes.sum()).log()
    if settings.imbalance == "balanced_softmax":
        return counted.log()
    return torch.zeros_like(sizes)
