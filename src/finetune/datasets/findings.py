"""Findings: remarks on a data set for people, made while its images are listed or inspected."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Grade = Literal["error", "warning", "note"]
GRADES: tuple[Grade, ...] = ("error", "warning", "note")
SHOWN = 10
"""Largest number of images or classes that a finding names; its count covers all."""


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know about the data."""

    grade: Grade
    check: str
    """Name of the check, for programs: `unreadable`, `skipped`, `in_two_splits`, `two_labels`, `twice`,
    `missing_class`, `imbalance`, `single_image`, `similar_names`, `tiny`, `huge`, `passed_over`,
    `not_used`, `no_class`, `linked`, `split_as_class`, `two_forms`, `near_copies`, `near_labels`,
    `nearly_twice`, `shortcut_border`, `shortcut_thumbnail`, `shortcut_colour`, `shortcut_file`,
    `shortcut_camera`, `not_excluded`, `empty_text`, `text_in_two_splits`, `like_groups`."""
    text: str
    """Message in the form of the project's errors: the rule, what was found, what to do."""
    images: tuple[str, ...] = ()
    """Paths of images concerned, at most SHOWN."""
    count: int = 0
    """Number of all images or classes concerned."""


def listed(names: Sequence[str]) -> str:
    """Return the first SHOWN names as text, with the total number if there are more."""
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")
