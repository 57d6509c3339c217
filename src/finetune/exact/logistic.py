"""Logistic regression over a path of penalties, for all folds at once, by L-BFGS.

The problems of the folds, and that of all images, are independent; they are solved side by side in one
matrix, since one wide product costs hardly more than a narrow one. Each penalty starts from the solution of
the one before. The penalty may pull to given rows instead of zero (L2-SP), for `load`.

Shapes: n images, E inputs, P = folds + 1 problems, C classes.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.exact.rows import FOLDS

STEPS = 30
"""Most steps of L-BFGS for a penalty. The path is a choice among heads, so the last digits do not matter."""


def path(
    z: Tensor,
    labels: Tensor,
    folds: Tensor,
    weights: Tensor,
    penalties: Sequence[float],
    *,
    classes: int,
    start: tuple[Tensor, Tensor] | None = None,
) -> Iterator[tuple[float, Tensor, Tensor, Tensor]]:
    """Yield penalty, held-out outputs (n, C), and weight (E, C) and bias (C,) of all images.

    Args:
        z: inputs (n, E).
        labels: labels, int64 (n,).
        folds: fold of each image (n,).
        weights: weights of the images (n,).
        penalties: penalties, from the strongest on.
        classes: C.
        start: rows (E, P C) and biases (P C,) of each problem, to which the penalty pulls and from which the
            path starts; None: zeros.
    """
    count = FOLDS + 1
    pull, begun = start or (z.new_zeros(z.shape[1], count * classes), z.new_zeros(count * classes))
    weight, bias = pull.clone().requires_grad_(), begun.clone().requires_grad_()
    # Problem p leaves out fold p; the last one leaves out none.
    uses = torch.stack([weights * (folds != fold) for fold in range(count)], dim=1)
    shares = uses / uses.sum(0)  # (n, P)
    wanted = labels[:, None].expand(-1, count)
    for penalty in penalties:
        search = torch.optim.LBFGS(
            [weight, bias], max_iter=STEPS, history_size=8, line_search_fn="strong_wolfe"
        )

        def loss(penalty: float = penalty, search: torch.optim.LBFGS = search) -> Tensor:
            search.zero_grad()
            logits = (z @ weight + bias).view(len(z), count, classes)
            losses = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
            value: Tensor = (losses * shares).sum() + penalty / 2 * (weight - pull).square().sum()
            value.backward()
            return value

        search.step(loss)
        with torch.no_grad():
            logits = (z @ weight + bias).view(len(z), count, classes)
            outputs = logits[torch.arange(len(z)), folds]
            yield penalty, outputs, weight[:, -classes:].clone(), bias[-classes:].clone()
