"""Findings on samples with text or several frames, from their names and texts alone. Imports no torch."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from finetune.datasets.findings import SHOWN, Finding, Grade, listed
from finetune.settings import SampleSettings

EMPTY_SHARE = 0.05
"""Share of samples without text above which there is a warning."""


class _Named(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def text(self) -> str: ...


def find(
    splits: Mapping[str, Sequence[_Named]], data: SampleSettings, groups: Mapping[str, str] | None
) -> Iterator[Finding]:
    """Yield the findings on the samples of a data set.

    Args:
        splits: the samples by split.
        data: the settings that ask for text and frames.
        groups: groups of the samples; None if there are none.
    """
    if data.text is not None:
        yield from _empty_texts(splits)
        yield from _shared_texts(splits)
    if data.frames > 1 and groups is None:
        yield from _like_groups(splits)


def _empty_texts(splits: Mapping[str, Sequence[_Named]]) -> Iterator[Finding]:
    every = [one for found in splits.values() for one in found]
    empty = [one.path for one in every if not one.text]
    if empty:
        share = len(empty) / len(every)
        text = (
            f"samples should have a text, got {len(empty)} of {len(every)} without ({share:.0%}). They are "
            "used with their image alone: fill the texts in, or search space.modality_dropout."
        )
        grade: Grade = "warning" if share > EMPTY_SHARE else "note"
        yield Finding(grade, "empty_text", text, tuple(empty[:SHOWN]), len(empty))


def _shared_texts(splits: Mapping[str, Sequence[_Named]]) -> Iterator[Finding]:
    known = {one.text for one in splits["train"] if one.text}
    for split in ("val", "test"):
        shared = [one.path for one in splits[split] if one.text in known]
        if shared:
            text = (
                f"texts of '{split}' should differ from those of 'train', got {len(shared)} of "
                f"{len(splits[split])} that are the same. Short texts may be; long ones may be of one sample."
            )
            yield Finding("note", "text_in_two_splits", text, tuple(shared[:SHOWN]), len(shared))


def _like_groups(splits: Mapping[str, Sequence[_Named]]) -> Iterator[Finding]:
    """Yield a finding if clips have names as of clips cut from one film, and splits divide these."""
    members: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, found in splits.items():
        for one in found:
            members[stem(one.path)].append((split, one.path))
    count = sum(map(len, splits.values()))
    classes = {os.path.dirname(path) for found in splits.values() for path in (one.path for one in found)}
    # One stem for each class is only a way of counting; nearly as many as clips are names of clips.
    if not len(classes) < len(members) <= count / 2:
        return
    divided = {name: found for name, found in members.items() if len({split for split, _ in found}) > 1}
    if divided:
        text = (
            f"clips of one film should be in one split, got names that look like films in several: "
            f"{listed(list(divided))}. Name the groups in a column `group` of a manifest or metadata.csv, "
            "else the score may be of films that the model knows."
        )
        first = tuple(path for found in divided.values() for _, path in found[:1])[:SHOWN]
        yield Finding("warning", "like_groups", text, first, len(divided))


def stem(path: str) -> str:
    """Return a path without its suffix and the number at its end: `x/film_12.mp4` gives `x/film`."""
    return re.sub(r"[\s_.-]*[a-zA-Z]?\(?\d+\)?$", "", os.path.splitext(path)[0])
