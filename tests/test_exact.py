"""Heads in closed form give what scikit-learn's ridge regressions give."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from finetune.exact import closed_form

PENALTIES = (0.01, 1.0, 100.0)


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels[:300] / 16).float(), torch.from_numpy(labels[:300])


@pytest.mark.parametrize("count", [40, 300])  # fewer images than features, and more
@pytest.mark.parametrize("weighted", [False, True])
def test_ridge_is_that_of_scikit_learn(
    images: tuple[torch.Tensor, torch.Tensor], count: int, weighted: bool
) -> None:
    x, labels = images[0][:count], images[1][:count]
    y = closed_form.targets(labels, 10)
    weights = closed_form.balanced(labels, 10) if weighted else None
    heads = closed_form.ridge(x, y, PENALTIES, weights=weights)
    for penalty, weight, bias, answers in zip(PENALTIES, heads.weight, heads.bias, heads(x), strict=True):
        other = Ridge(alpha=penalty).fit(
            x.double().numpy(), y.numpy(), sample_weight=None if weights is None else weights.numpy()
        )
        np.testing.assert_allclose(weight.T, other.coef_, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(bias, other.intercept_, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(answers, other.predict(x.double().numpy()), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
def test_kernel_ridge_is_that_of_scikit_learn(
    images: tuple[torch.Tensor, torch.Tensor], weighted: bool
) -> None:
    (x, labels), gamma = images, 0.02
    y = closed_form.targets(labels, 10)
    weights = closed_form.balanced(labels, 10) if weighted else None
    heads = closed_form.kernel_ridge(
        x[:200], y[:200], PENALTIES, gamma=gamma, weights=None if weights is None else weights[:200]
    )
    for penalty, answers in zip(PENALTIES, heads(x[200:]), strict=True):
        other = KernelRidge(alpha=penalty, kernel="rbf", gamma=gamma).fit(
            x[:200].double().numpy(),
            y[:200].numpy(),
            sample_weight=None if weights is None else weights[:200].numpy(),
        )
        np.testing.assert_allclose(answers, other.predict(x[200:].double().numpy()), rtol=1e-6, atol=1e-8)


def test_balanced_weights_make_all_classes_count_alike() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 3])
    weights = closed_form.balanced(labels, 5)
    sums = torch.zeros(5, dtype=torch.float64).index_add(0, labels, weights)
    assert sums.tolist() == pytest.approx([2, 2, 0, 2, 0])
