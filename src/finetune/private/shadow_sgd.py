"""DP-SGD of many shadow heads at once, for audits: the same steps as `mechanisms`, as products of one matrix.

Its random numbers come from an ordinary generator, since no shadow head is ever released.

Shapes: S heads, N images, D features, C classes.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.private.accounting import CENTRE_SHARE, Noise
from finetune.private.mechanisms import TINY, Choices

MOST_NUMBERS = 2**24
"""Most logits that are held at once: heads are trained in parts."""
Normal = Callable[..., Tensor]
"""Function from a shape to independent standard normal numbers."""


def logits(
    features: np.ndarray,
    labels: np.ndarray,
    members: np.ndarray,
    classes: int,
    choices: Choices,
    noise: Noise,
    seed: int,
) -> np.ndarray:
    """Return the logits of all images by each head (S, N, C), float64.

    Args:
        features: features of norm 1 (N, D).
        labels: int64 (N,).
        members: the images that each head is trained on, bool (S, N).
        classes: C.
        choices: settings of mechanism `sgd`.
        noise: the noise of the study.
        seed: seed of samples and noise.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw)

    x, at_once = torch.from_numpy(features).float(), max(1, MOST_NUMBERS // (len(labels) * classes))
    wanted = F.one_hot(torch.from_numpy(labels), classes).float()
    parts = torch.from_numpy(members).float().split(at_once)
    found = [_train(x, wanted, part, choices, noise, normal, uniform) for part in parts]
    whole: np.ndarray = torch.cat(found).double().numpy()
    return whole


def _train(
    x: Tensor,
    wanted: Tensor,
    members: Tensor,
    choices: Choices,
    noise: Noise,
    normal: Normal,
    uniform: Normal,
) -> Tensor:
    """Return the logits (S, N, C) of heads trained on their members (S, N)."""
    steps = choices.steps
    assert steps is not None
    heads, classes, count = len(members), wanted.shape[1], members.sum(1).clamp(min=1)[:, None]
    centre = torch.zeros(heads, x.shape[1])
    if choices.centre:
        share = noise.one_shot / CENTRE_SHARE**0.5
        centre = (members @ x + share * normal(*centre.shape)) / count
    # Rows are (x - centre) / |x - centre|, a set for each head, which is never held.
    squares = (x * x).sum(1) - 2 * centre @ x.T + (centre * centre).sum(1, keepdim=True)
    norms = squares.clamp(min=TINY).sqrt()[:, :, None]  # (S, N, 1)
    weight = torch.zeros(heads, classes, x.shape[1])
    average = torch.zeros_like(weight)
    loud = noise.steps[steps] * choices.clip
    for step in range(steps.count):
        taken = (members * (uniform(*members.shape) < steps.rate))[:, :, None]
        off = ((_answers(x, weight, centre) / norms).softmax(-1) - wanted) * taken
        off *= (choices.clip / off.norm(dim=-1, keepdim=True).clamp(min=TINY)).clamp(max=1) / norms
        total = (off.transpose(1, 2).flatten(0, 1) @ x).view_as(weight)
        total -= off.sum(1)[:, :, None] * centre[:, None]
        total += loud * normal(*weight.shape)
        weight -= choices.rate * total / (choices.clip * steps.rate * count[:, :, None])
        if step >= steps.count // 2:
            average += weight
    return _answers(x, average / (steps.count - steps.count // 2), centre)


def _answers(x: Tensor, weight: Tensor, centre: Tensor) -> Tensor:
    """Return (x - centre) @ weight.T of each head (S, N, C)."""
    found = (x @ weight.flatten(0, 1).T).unflatten(1, weight.shape[:2]).transpose(0, 1)
    moved: Tensor = found - torch.einsum("scd,sd->sc", weight, centre)[:, None]
    return moved
