"""Errors that can occur while one model is trained.

FinetuneError
├── DataError         images or labels are missing, unreadable or contradictory
├── BackboneError     no such backbone, or one that cannot be cut as asked
├── WeightsError      pretrained weights are missing, unsafe or do not fit
├── CheckpointError   a checkpoint or model folder is missing, damaged or belongs to another trial
├── MissingPackage    a package of an extra is not installed
└── NonFiniteLoss     the loss became NaN or infinite

Messages have the form `<where>: <rule>, got <value>. <what to do>.`
"""

import difflib
from collections.abc import Iterable


class FinetuneError(Exception):
    """Base of every error this package raises on purpose."""


class DataError(FinetuneError):
    """Images or labels are missing, unreadable or contradictory."""


class BackboneError(FinetuneError):
    """There is no such backbone, or it cannot be cut as asked."""


class WeightsError(FinetuneError):
    """Pretrained weights are missing, unsafe to load or do not fit the backbone."""


class CheckpointError(FinetuneError):
    """A checkpoint or model folder is missing, damaged or belongs to another trial."""


class MissingPackage(FinetuneError):
    """A package of an extra, which a plain installation leaves out, is not installed."""


class NonFiniteLoss(FinetuneError):
    """The training loss became NaN or infinite."""


def clipped(text: str, most: int = 120) -> str:
    """Shorten a text to about `most` characters by replacing its middle with dots."""
    half = most // 2
    return text if len(text) <= most + 3 else f"{text[:half]}...{text[-half:]}"


def did_you_mean(name: str, known: Iterable[str], *, show: int = 12) -> str:
    """Return the end of an error message: the known names nearest to `name`, then up to `show` known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    more = ", ..." if len(known) > show else ""
    return f"{hint}Known: {', '.join(known[:show])}{more}."
