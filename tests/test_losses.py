"""What is done about classes of unequal size: each way against its paper's formula, computed apart."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from finetune.images import order
from finetune.settings import DataSettings, TrialSettings, WeightsSettings
from finetune.training.losses import Loss

SIZES = (40, 10, 3)
LABELS = torch.tensor([c for c, size in enumerate(SIZES) for _ in range(size)])
BATCH = torch.tensor([0, 0, 1, 2])
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -0.3], [3.0, 0.0, 1.0], [-1.0, 0.5, 4.0]])


def settings(**options: Any) -> TrialSettings:
    usual: dict[str, Any] = {"backbone": "resnet18", "strategy": "replace", "epochs": 1}
    return TrialSettings(
        data=DataSettings(kind="digits"),
        weights=WeightsSettings(),
        learning_rate=0.1,
        cache_dir="/",
        **usual | options,
    )


def loss(weights: torch.Tensor | None = None, **options: Any) -> Loss:
    return Loss(settings(**options), LABELS, weights, classes=3, device=torch.device("cpu"))


def mean(built: Loss, logits: torch.Tensor = LOGITS, labels: torch.Tensor = BATCH) -> float:
    """Return what a step on this batch follows: the sum over the sum of the images' weights."""
    weights = torch.stack([built.weights[label == LABELS][0] for label in labels])
    return float(built(logits, built.targets(labels, weights)) / weights.sum())


def probabilities(scores: list[float]) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("imbalance", ["none", "balanced_sampling"])
def test_cross_entropy_is_torchs(imbalance: str, smoothing: float) -> None:
    ours = mean(loss(imbalance=imbalance, label_smoothing=smoothing))
    assert ours == pytest.approx(F.cross_entropy(LOGITS, BATCH, label_smoothing=smoothing).item(), rel=1e-6)


def test_cross_entropy_has_torchs_gradient_to_the_bit() -> None:
    ours, theirs = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    built = loss()
    built(ours, built.targets(BATCH, torch.ones(4))).backward()
    F.cross_entropy(theirs, BATCH, reduction="sum").backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_class_weights_are_scikit_learns_balanced_ones_and_give_torchs_weighted_mean() -> None:
    built = loss(imbalance="class_weights")
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    assert built.weights.unique().tolist() == pytest.approx(sorted(balanced))
    weight = torch.tensor(balanced, dtype=torch.float32)
    assert mean(built) == pytest.approx(F.cross_entropy(LOGITS, BATCH, weight=weight).item(), rel=1e-6)


def test_class_balanced_weighs_by_the_inverse_effective_number() -> None:
    """E_n = (1 - beta^n) / (1 - beta) is 1 + beta + ... + beta^(n-1); the weights add up to C."""
    beta = 0.9
    inverse = [1 / sum(beta**i for i in range(size)) for size in SIZES]
    weight = torch.tensor([3 * w / sum(inverse) for w in inverse])
    built = loss(imbalance="class_balanced", class_balanced_beta=beta)
    assert built.weights[[0, 40, 50]].tolist() == pytest.approx(weight.tolist())
    assert mean(built) == pytest.approx(F.cross_entropy(LOGITS, BATCH, weight=weight).item(), rel=1e-6)


def test_class_balanced_lies_between_no_weights_and_class_weights() -> None:
    def ratio(beta: float) -> float:
        weights = loss(imbalance="class_balanced", class_balanced_beta=beta).weights
        return float(weights[-1] / weights[0])

    assert ratio(0.0) == 1
    assert ratio(1 - 1e-9) == pytest.approx(40 / 3, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_discounts_by_the_power_of_what_is_missing_to_certainty(gamma: float) -> None:
    """FL = -(1 - p)^gamma log(p), Lin et al., eq. 4."""
    p = [probabilities(row)[label] for row, label in zip(LOGITS.tolist(), BATCH.tolist(), strict=True)]
    expected = sum(-((1 - q) ** gamma) * math.log(q) for q in p) / 4
    assert mean(loss(imbalance="focal", focal_gamma=gamma)) == pytest.approx(expected, rel=1e-5)


def test_focal_has_a_finite_gradient_for_an_image_that_is_certain() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    built = loss(imbalance="focal", focal_gamma=0.5)
    built(logits, built.targets(BATCH[:1], torch.ones(1))).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_focal_uses_no_label_smoothing_and_says_so() -> None:
    smoothed = loss(imbalance="focal", label_smoothing=0.3)
    assert mean(smoothed) == mean(loss(imbalance="focal"))
    assert smoothed.effective() == {"imbalance": "focal", "label_smoothing": 0.0, "focal_gamma": 2.0}


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_logit_adjustment_adds_the_log_prior(tau: float) -> None:
    """The loss is log(1 + sum_c (pi_c / pi_y)^tau exp(f_c - f_y)), Menon et al., eq. 10."""
    expected = 0.0
    for f, y in zip(LOGITS.tolist(), BATCH.tolist(), strict=True):
        others = [(SIZES[c] / SIZES[y]) ** tau * math.exp(f[c] - f[y]) for c in range(3) if c != y]
        expected += math.log1p(sum(others)) / 4
    built = loss(imbalance="logit_adjustment", logit_adjustment_tau=tau)
    assert mean(built) == pytest.approx(expected, rel=1e-5)


def test_balanced_softmax_weighs_the_exponentials_with_the_class_sizes() -> None:
    """phi_y = n_y exp(eta_y) / sum_i n_i exp(eta_i), Ren et al., eq. 3 and 4: logit adjustment at tau 1."""
    expected = 0.0
    for eta, y in zip(LOGITS.tolist(), BATCH.tolist(), strict=True):
        sizes = [n * math.exp(e) for n, e in zip(SIZES, eta, strict=True)]
        expected -= math.log(sizes[y] / sum(sizes)) / 4
    assert mean(loss(imbalance="balanced_softmax")) == pytest.approx(expected, rel=1e-5)
    assert mean(loss(imbalance="logit_adjustment")) == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_composes_with_weights_and_with_a_shift() -> None:
    smoothed = torch.full((4, 3), 0.1 / 3).scatter_(1, BATCH[:, None], 0.9 + 0.1 / 3)
    weights = loss(imbalance="class_weights").weights[[0, 0, 40, 50]]
    each = F.cross_entropy(LOGITS, smoothed, reduction="none")
    expected = (each * weights).sum() / weights.sum()
    assert mean(loss(imbalance="class_weights", label_smoothing=0.1)) == pytest.approx(expected.item())
    shifted = F.cross_entropy(LOGITS + torch.tensor(SIZES).log(), smoothed)
    assert mean(loss(imbalance="balanced_softmax", label_smoothing=0.1)) == pytest.approx(shifted.item())


def test_the_manifests_weights_multiply_the_loss() -> None:
    given = torch.rand(len(LABELS)) + 0.5
    built = loss(given, imbalance="class_weights")
    assert torch.equal(built.weights, loss(imbalance="class_weights").weights * given)
    assert torch.equal(loss(given).weights, given)


@pytest.mark.parametrize(
    "imbalance", ["class_weights", "class_balanced", "logit_adjustment", "balanced_softmax"]
)
def test_a_class_without_training_images_gives_no_infinity(imbalance: str) -> None:
    labels = torch.tensor([0, 0, 2])
    options = settings(imbalance=imbalance)
    built = Loss(options, labels, None, classes=3, device=torch.device("cpu"))
    assert built.weights.isfinite().all()
    assert built(LOGITS[:3], built.targets(labels, built.weights)).isfinite()


def drawn(seed: int, labels: torch.Tensor = LABELS) -> torch.Tensor:
    batches = order.balanced_batches(labels, 8, torch.Generator().manual_seed(seed))
    assert [len(batch) for batch in batches[:-1]] == [8] * (len(batches) - 1)
    return torch.cat(batches)


def test_balanced_sampling_draws_all_classes_alike_and_each_image_of_a_class_alike() -> None:
    images = drawn(0)
    assert len(images) == len(LABELS)
    per_class = LABELS[images].bincount(minlength=3)
    assert per_class.max() - per_class.min() <= 1
    for label in range(3):
        often = images[LABELS[images] == label].bincount(minlength=len(LABELS))[label == LABELS]
        assert often.max() - often.min() <= 1


def test_balanced_sampling_depends_on_the_seed_alone() -> None:
    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


def test_balanced_sampling_leaves_out_a_class_without_images() -> None:
    labels = torch.tensor([0] * 9 + [2] * 3)
    assert labels[drawn(0, labels)].bincount().tolist() == [6, 0, 6]
