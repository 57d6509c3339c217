"""Features of the images, for mechanisms and attacks: a row for each image, by the frozen backbone alone."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from finetune import steps
from finetune.errors import DataError
from finetune.evaluation.scores import BATCH
from finetune.model.exact_head import ExactHead, powered
from finetune.training import workers
from finetune.training.run import Run


@torch.no_grad()
def pooled(run: Run, split: str) -> Tensor:
    """Return the pooled features of a split as evaluation sees its images, float32 (N, D), on the CPU.

    The row of an image depends on that image alone.

    Args:
        run: a trial of strategy `exact`.
        split: `train`, `val` or `test`.
    """
    assert isinstance(run.model.head, ExactHead)
    feed = run.inputs.feed(split)
    batches = workers.split(run.data.size(split), 0, 1, BATCH)
    run.model.eval()
    with steps.step(f"features of {split}", run.data.size(split), "images"):
        found = [run.model.head.parts(feed.finish(x))[0].float().cpu() for x in feed.batches(batches)]
    return torch.cat(found) if found else torch.zeros(0, run.model.pooled_features)


def unit(features: Tensor, *, root: bool) -> np.ndarray:
    """Return features of norm 1, float64 (N, D), as an exact head with this `root` reads them."""
    prepared: np.ndarray = powered(features.double(), root=root, unit=True).numpy()
    return prepared


def groups(paths: dict[str, Sequence[str]], pattern: str | None) -> dict[str, np.ndarray]:
    """Return the number of each image's unit of privacy, by split, int64 (N,).

    Args:
        paths: paths of the images of each split.
        pattern: regular expression whose first parenthesis names the group; None: each image is its own.

    Raises:
        DataError: an image has no group, or a group has images in two splits.
    """
    if pattern is None:
        return {split: np.arange(len(found)) for split, found in paths.items()}
    names = {split: [_group(path, pattern) for path in found] for split, found in paths.items()}
    home: dict[str, str] = {}
    for split, own in names.items():
        for name in set(own):
            if home.setdefault(name, split) != split:
                raise DataError(
                    f"privacy.group: all images of a group must be in one split, got some of {name!r} in "
                    f"{home[name]} and in {split}. Move them together."
                )
    return {split: np.unique(own, return_inverse=True)[1].astype(np.int64) for split, own in names.items()}


def _group(path: str, pattern: str) -> str:
    found = re.search(pattern, path)
    if found is None:
        raise DataError(
            f"privacy.group: every image needs a group, got none in {path!r} by {pattern!r}. "
            "Correct the pattern."
        )
    return found.group(1) or ""
