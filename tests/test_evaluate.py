"""The metrics of a split: scikit-learn's where it has them, honest where classes or numbers are missing."""

import importlib
import math

import pytest
import sklearn.metrics
import torch
from torch import Tensor, nn

from finetune.evaluation.scores import BINS, Scores, evaluate
from finetune.metrics import names

evaluate_module = importlib.import_module("finetune.evaluation.scores")
CLASSES = ["a", "b", "c", "d", "e", "f", "g"]


def scores_of(logits: Tensor, labels: Tensor, classes: list[str] = CLASSES) -> dict[str, float]:
    scores = Scores(classes, torch.device("cpu"))
    batches = list(zip(logits.split(10), labels.split(10), strict=True))
    return evaluate(nn.Identity(), batches, scores)


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(0, 7, (53,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def logits(labels: Tensor) -> Tensor:
    noise = torch.randn(53, 7, generator=torch.Generator().manual_seed(2))
    return noise + 1.5 * nn.functional.one_hot(labels, 7)


def test_every_metric_is_scikit_learns(logits: Tensor, labels: Tensor) -> None:
    found, answers, truth = scores_of(logits, labels), logits.argmax(1).numpy(), labels.numpy()
    p = logits.softmax(1).double().numpy()
    p /= p.sum(axis=1, keepdims=True)
    recalls = sklearn.metrics.recall_score(truth, answers, average=None)
    assert list(found) == names(CLASSES, labels.tolist())
    assert found == pytest.approx(
        {
            "loss": sklearn.metrics.log_loss(truth, p),
            "accuracy": sklearn.metrics.accuracy_score(truth, answers),
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(truth, answers),
            "macro_f1": sklearn.metrics.f1_score(truth, answers, average="macro"),
            "ece": calibration_error(logits, labels),
            "top5": sklearn.metrics.top_k_accuracy_score(truth, p, k=5),
            **{f"recall/{name}": recall for name, recall in zip(CLASSES, recalls, strict=True)},
        },
        rel=1e-5,
    )


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Sum over bins of share * |accuracy - confidence|, Guo et al., eq. 3, bin by bin."""
    p = [(row.softmax(0).max().item(), int(row.argmax())) for row in logits]
    total = 0.0
    for low in range(BINS):
        inside = [i for i, (sure, _) in enumerate(p) if low / BINS < sure <= (low + 1) / BINS]
        right = sum(p[i][1] == labels[i] for i in inside)
        total += abs(right - sum(p[i][0] for i in inside))
    return float(total) / len(p)


def test_a_class_that_does_not_occur_counts_for_nothing_even_if_it_is_answered(logits: Tensor) -> None:
    labels = logits.argmax(1).clamp(max=4)  # f and g do not occur; some images are answered so
    found = scores_of(logits, labels)
    truth, answers = labels.numpy(), logits.argmax(1).numpy()
    assert {5, 6} & set(answers.tolist())
    recalls = sklearn.metrics.recall_score(truth, answers, labels=range(5), average=None)
    assert found["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert not {"recall/f", "recall/g"} & found.keys()
    assert list(found) == names(CLASSES, labels.tolist())
    assert found["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(truth, answers, average="macro"))


def test_no_number_is_told_where_a_logit_is_not_a_number(logits: Tensor, labels: Tensor) -> None:
    logits[30, 2] = math.nan
    found = scores_of(logits, labels)
    assert list(found) == names(CLASSES, labels.tolist())
    assert all(math.isnan(value) for value in found.values())


def test_logits_that_look_like_probabilities_are_no_probabilities(labels: Tensor) -> None:
    logits = torch.rand(53, 7, generator=torch.Generator().manual_seed(3))
    assert scores_of(logits, labels)["ece"] == pytest.approx(calibration_error(logits, labels), rel=1e-4)


def test_top5_is_told_of_more_than_five_classes_only(logits: Tensor, labels: Tensor) -> None:
    few = scores_of(logits[:, :5], labels.clamp(max=4), CLASSES[:5])
    assert "top5" not in few


def test_a_split_is_measured_afresh_each_time(logits: Tensor, labels: Tensor) -> None:
    scores = Scores(CLASSES, torch.device("cpu"))
    first = evaluate(nn.Identity(), [(logits, labels)], scores)
    assert evaluate(nn.Identity(), [(logits, labels)], scores) == first


def test_small_splits_are_scored_at_once_and_large_ones_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each update of the metrics takes as long as a small head; their memory is bounded all the same."""
    logits, labels = torch.randn(300, 10), torch.randint(0, 10, (300,))
    scores = Scores([str(c) for c in range(10)], torch.device("cpu"))
    batches = list(zip(logits.split(64), labels.split(64), strict=True))
    updates: list[int] = []
    update = Scores.update

    def counted(self: Scores, logits: Tensor, labels: Tensor) -> None:
        updates.append(len(labels))
        update(self, logits, labels)

    monkeypatch.setattr(Scores, "update", counted)
    whole = evaluate(nn.Identity(), batches, scores)
    assert updates == [300]
    monkeypatch.setattr(evaluate_module, "SCORED_AT_ONCE", 1000)
    assert evaluate(nn.Identity(), batches, scores) == pytest.approx(whole)
    assert updates == [300, 128, 128, 44]
