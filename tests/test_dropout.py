"""Dropout with one random word for four activations: the same law as torch's, and as reproducible."""

import pytest
import torch
from torch import nn

from finetune.model.dropout import Dropout, swap_dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_each_element_is_dropped_with_probability_p_and_the_rest_makes_up_for_it(p: float) -> None:
    torch.manual_seed(0)
    x = torch.full((400, 1001), 3.0)  # rows that are no multiple of four
    answer = Dropout(p)(x)
    assert answer.unique().tolist() == [0.0, pytest.approx(3 / (1 - p), rel=1e-3)]
    dropped = (answer == 0).float()
    deviation = (p * (1 - p)) ** 0.5
    assert abs(dropped.mean().item() - p) < 5 * deviation / x.numel() ** 0.5
    for place in range(4):  # of a word: none is special, and neighbours are independent
        mine = dropped.flatten()[place::4]
        assert abs(mine.mean().item() - p) < 5 * deviation / mine.numel() ** 0.5
    pairs = torch.stack([dropped.flatten()[:-1], dropped.flatten()[1:]])
    assert abs(torch.corrcoef(pairs)[0, 1].item()) < 0.01


def test_the_gradient_passes_where_the_activation_did() -> None:
    torch.manual_seed(0)
    x = torch.ones(8, 33, requires_grad=True)
    answer = Dropout(0.4)(x)
    answer.sum().backward()
    assert torch.equal(x.grad, answer.detach())


def test_the_global_generator_decides_and_the_type_stays() -> None:
    x = torch.ones(5, 7, dtype=torch.bfloat16)
    layer = Dropout(0.5)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert first.dtype == torch.bfloat16


def test_nothing_happens_in_evaluation_and_at_the_ends_torch_answers() -> None:
    x = torch.randn(4, 6)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(4, 6))


def test_swap_replaces_every_dropout_and_nothing_else() -> None:
    inner = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.3), nn.ReLU())
    model = swap_dropout(nn.Sequential(inner, nn.Dropout2d(0.2), nn.Dropout(0.1, inplace=True)))
    assert [type(module) for module in model.modules() if isinstance(module, nn.Dropout)] == [
        Dropout,
        Dropout,
    ]
    assert [module.p for module in model.modules() if isinstance(module, Dropout)] == [0.3, 0.1]
    assert type(model[1]) is nn.Dropout2d
