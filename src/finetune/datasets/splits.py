"""Make missing validation and test splits: take them from the training images by the seed."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from finetune.datasets.sources import Given
from finetune.errors import DataError
from finetune.settings import SampleSettings


def missing_shares(data: SampleSettings, given: Given) -> dict[str, float]:
    """Return split -> share of `train` for the splits to make; empty if `val` is given.

    Raises:
        DataError: the shares leave nothing to train or to validate on.
    """
    if "val" in given:
        return {}
    val, test = data.validation_share, 0.0 if "test" in given else data.test_share
    if not 0 < val < 1:
        raise DataError(
            f"data.validation_share: must lie between 0 and 1, got {val}. Use 0.2, or give a 'val' split."
        )
    if not 0 <= test < 1 - val:
        raise DataError(
            f"data.test_share: must be 0 or more and leave images to train on, got {test} beside a "
            f"validation_share of {val}. Use 0.1."
        )
    return {"val": val, "test": test} if test else {"val": val}


def take_from_train(
    given: Given, shares: Mapping[str, float], seed: int, groups: Mapping[str, str] | None = None
) -> dict[str, dict[str, Sequence[str]]]:
    """Return `given` with the splits of `shares` taken out of `train`, class by class.

    The choice depends on the seed and the paths alone: images are ordered by a hash of both. Samples of one
    group stay together.
    """
    if groups is not None:
        return _take_groups(given, shares, seed, groups)
    splits: dict[str, dict[str, Sequence[str]]] = {split: dict(paths) for split, paths in given.items()}
    splits.update({split: {} for split in shares})
    for name, paths in given["train"].items():
        order = sorted(paths, key=lambda path: _digest(f"{seed}\0{path}"))
        val, test = split_sizes(len(order), shares["val"], shares.get("test", 0.0))
        splits["val"][name] = order[:val]
        if "test" in shares:
            splits["test"][name] = order[val : val + test]
        splits["train"][name] = order[val + test :]
    return splits


def _take_groups(
    given: Given, shares: Mapping[str, float], seed: int, groups: Mapping[str, str]
) -> dict[str, dict[str, Sequence[str]]]:
    """Return `take_from_train` where whole groups change splits; a sample without a group is one of its own.

    Groups are taken in turn, the largest first, and equal ones by a hash. Each goes to the split that lacks
    most of the group's classes, measured by the number of samples that its share promises.
    """
    members: dict[str, list[tuple[str, str]]] = {}
    for name, paths in given["train"].items():
        for path in paths:
            members.setdefault(groups.get(path) or f"\0{path}", []).append((name, path))
    goal = {"train": 1 - sum(shares.values()), **shares}
    splits: dict[str, dict[str, Sequence[str]]] = {split: dict(paths) for split, paths in given.items()}
    taken: dict[str, dict[str, list[str]]] = {split: {name: [] for name in given["train"]} for split in goal}
    order = sorted(members, key=lambda group: (-len(members[group]), _digest(f"{seed}\0{group}")))
    for group in order:
        inside = Counter(name for name, _ in members[group])

        def lack(split: str, inside: Counter[str] = inside) -> float:
            return sum(
                count * (1 - len(taken[split][name]) / max(1e-9, goal[split] * len(given["train"][name])))
                for name, count in inside.items()
            )

        place = max(goal, key=lack)
        for name, path in members[group]:
            taken[place][name].append(path)
    splits.update({split: dict(found) for split, found in taken.items()})
    return splits


def divided(given: Given, groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the groups with samples in more than one split, and these splits."""
    places: dict[str, set[str]] = {}
    for split, found in given.items():
        for paths in found.values():
            for path in paths:
                if groups.get(path):
                    places.setdefault(groups[path], set()).add(split)
    return {group: sorted(splits) for group, splits in sorted(places.items()) if len(splits) > 1}


def split_sizes(images: int, val_share: float, test_share: float) -> tuple[int, int]:
    """Return the numbers of a class's images that go to val and to test.

    Shares are rounded, except that one image stays in train, and one goes to val if there are two or more.
    """
    val = min(max(1, round(images * val_share)), images - 1)
    return val, min(round(images * test_share), images - 1 - val)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
