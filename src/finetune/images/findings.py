"""What a person should know about a data set, found while its images are listed or looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Grade = Literal["error", "warning", "note"]
GRADES: tuple[Grade, ...] = ("error", "warning", "note")
SHOWN = 10
"""Images or classes that a finding names; it counts all."""


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know about the data."""

    grade: Grade
    check: str
    """Name of the check, for programs: `unreadable`, `skipped`, `in_two_splits`, `two_labels`, `twice`,
    `missing_class`, `imbalance`, `single_image`, `similar_names`, `tiny`, `huge`, `passed_over`,
    `not_used`, `no_class`, `linked`, `split_as_class`, `two_forms`."""
    text: str
    """In the house form: rule, got, what to do."""
    images: tuple[str, ...] = ()
    """Up to SHOWN paths."""
    count: int = 0
    """Of all images or classes concerned."""


def listed(names: Sequence[str]) -> str:
    """Return the first names and how many there are."""
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")
