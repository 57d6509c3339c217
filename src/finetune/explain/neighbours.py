"""Find the training images that look most alike to a model: by the cosine of its own features.

Shapes: Q queries, N training images, D features.
"""

import torch.nn.functional as F
from torch import Tensor


def nearest(queries: Tensor, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return cosines and places (Q, count) of the nearest of N images, the nearest first.

    Args:
        queries: (Q, D).
        features: (N, D).
        count: images for each query; fewer if there are fewer.
    """
    found = (F.normalize(queries, dim=1) @ F.normalize(features, dim=1).T).topk(
        min(count, len(features)), dim=1
    )
    return found.values, found.indices
