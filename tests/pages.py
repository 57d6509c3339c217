"""Read a report as a reader does, and compare its numbers and quotations with `results --json --history`."""

import json
import math
import re
import shlex
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from search.report.space_figures import ABOVE
from search.views.ranking import without_paths
from search.views.terminal import seconds_text

VOID = ("meta", "br", "img", "link", "input")
SPOKEN = ("aria-label", "alt", "title")
"""Attributes that a reader may hear or see."""


@dataclass
class Mark:
    """An element that names its place in the JSON."""

    place: str
    value: str | None
    """The exact value; None for a quotation, and for a number that is shown exactly."""
    shown: str = ""


@dataclass
class Loose:
    """Text, or a spoken attribute, that names no place."""

    text: str
    within: str
    """The element that it stands in, or the attribute."""
    section: str


@dataclass
class _Open:
    element: str
    mark: Mark | None = None


class Page(HTMLParser):
    """Marks, loose texts, sections and figures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.marks: list[Mark] = []
        self.loose: list[Loose] = []
        self.sections: list[str] = []
        self.figures: dict[str, Any] = {}
        self.captions: list[str] = []
        """Sentences of the figures, and what a screen reader says of each."""
        self.labels: list[str] = []
        self._open: list[_Open] = []
        self._figure: str | None = None
        self._caption: str | None = None
        self.feed(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))  # code is no text

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        mark = Mark(given["data-json"], given.get("value")) if "data-json" in given else None
        if mark is not None:
            self.marks.append(mark)
        if tag not in VOID:
            self._open.append(_Open(tag, mark))
        if tag == "section":
            self.sections.append(given["id"])
        if given.get("type") == "application/json":
            self._figure = given["id"].removeprefix("data-")
        if tag in ("figcaption", "caption"):
            self._caption = ""
        if "data-figure" in given:
            self.captions.append(self._last)
            self.labels.append(given["aria-label"])
        elif given.get("role") == "region":
            self.labels.append(given["aria-label"])  # a table is read by its caption
        else:
            self._attributes(given)

    def _attributes(self, given: dict[str, str]) -> None:
        where = self.sections[-1] if self.sections else ""
        self.loose += [Loose(given[name], name, where) for name in SPOKEN if name in given]

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop().element != tag:
            pass
        if tag == "caption":
            self.captions.append(self._caption or "")
        if tag in ("figcaption", "caption"):
            self._last, self._caption = self._caption or "", None
        if tag == "script":
            self._figure = None

    def handle_data(self, data: str) -> None:
        if self._caption is not None:
            self._caption += data
        if self._figure is not None:
            self.figures[self._figure] = json.loads(data)
        element = self._open[-1].element if self._open else ""
        if element in ("script", "style"):
            return
        mark = next((one.mark for one in reversed(self._open) if one.mark), None)
        if mark is not None:
            mark.shown += data
        else:
            where = self.sections[-1] if self.sections else ""
            self.loose.append(Loose(data, element, where))


def at(value: Any, place: str) -> Any:
    """Return the value at a JSON pointer."""
    for key in place.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def rounds_to(value: float, shown: str) -> bool:
    """Return True if the text is the value, rounded to the digits that it has."""
    if re.search(r" (s|min|h)\b", shown):
        return shown == seconds_text(value)
    scale = 100 if shown.endswith((" points", " %")) else 1
    plain = shown.removesuffix(" points").removesuffix(" %").replace(",", "")
    if "e" in plain:
        digits = len(plain.split("e")[0].replace(".", "").lstrip("-+")) - 1
        return float(plain) == float(f"{scale * value:.{digits}e}")
    decimals = len(plain.partition(".")[2])
    return abs(float(plain) - scale * value) <= 0.5 * 10**-decimals + 1e-12


def fault_of(mark: Mark, told: Any) -> str | None:
    """Return what is wrong with a mark, or None if the JSON says the same."""
    try:
        found = at(told, mark.place)
    except (KeyError, IndexError, ValueError, TypeError):
        return f"{mark.place}: not in the JSON"
    found = len(found) if isinstance(found, list) else found
    if mark.value is None:
        name = mark.place.split("/")[-1].replace("~1", "/").replace("~0", "~")
        right = mark.shown in (str(found), name)
        cut = mark.shown.endswith("…") and str(found).startswith(mark.shown[:-1])
        return None if right or cut else f"{mark.place}: {found!r} is shown as {mark.shown!r}"
    if repr(found) != mark.value:
        return f"{mark.place}: {found!r} is given as {mark.value}"
    return None if rounds_to(found, mark.shown) else f"{mark.place}: {found!r} is shown as {mark.shown!r}"


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


@dataclass
class Allowed:
    """The digits that a page may show without naming a place: a short list, with a reason for each."""

    told: Any
    config: str
    shareable: bool = False
    names: set[str] = field(init=False)
    """Names of settings, metrics, slots and packages: keys of the JSON, which are no numbers."""
    strings: set[str] = field(init=False)

    def __post_init__(self) -> None:
        keys = {key for key in _keys(self.told) if re.search(r"\d", key) and re.search("[a-z]", key)}
        self.names = {
            form for key in keys for form in (key, key.replace("_", " "), key.replace("_f1", " F1"))
        }
        self.strings = set(_strings(self.told))

    def numbers_in(self, loose: Loose) -> list[str]:
        """Return the numbers of a loose text that no exception explains."""
        text = loose.text
        folder = self.told["study"]["folder"]
        command = shlex.join(["python", "-m", "search", "run", f"{folder}/study.yaml"])
        # The command to run it again and the config are text to copy, and no results.
        if loose.within == "pre" and text in (command, self.config):
            return []
        # The title of the window is the name of the study.
        if loose.within == "title" and text == f"{self.told['study']['name']}: report":
            return []
        # Paths and names of classes stand in the words for pictures.
        if loose.within in SPOKEN:
            for name in sorted(self.strings, key=len, reverse=True):
                text = text.replace(name, "") if re.search(r"\d", name) else text
        # The columns of learning curves are numbered by epoch.
        header = re.fullmatch(r"epoch (\d+)", text)
        if loose.within == "th" and header and int(header[1]) <= self.told["study"]["epochs"]:
            return []
        # A shareable page numbers the classes instead of naming them, and hides the paths of causes.
        if self.shareable:
            text = re.sub(r"\bclass \d+\b", "", text)
            for one in self.told["analysis"]["failures"]["causes"]:
                text = text.replace(without_paths(one["cause"]), "")
        # Trials are called by their ids.
        ids = {trial["id"] for trial in self.told["trials"]}
        text = re.sub(r"\btrial-\d+\b", lambda found: "" if found[0] in ids else found[0], text)
        for name in sorted(self.names, key=len, reverse=True):
            text = text.replace(name, "")
        return re.findall(r"\S*\d\S*", text)


def faults(text: str, told: Any, config: str, *, shareable: bool = False) -> list[str]:
    """Return every number and quotation of a page that is not one of `results --json --history`.

    Args:
        text: the page.
        told: the JSON.
        config: the text of study.yaml.
        shareable: whether the page was written to be shared.
    """
    page = Page(text)
    found = [fault for mark in page.marks if (fault := fault_of(mark, told))]
    allowed = Allowed(told, config, shareable)
    for loose in page.loose:
        found += [f"{loose.section} <{loose.within}>: {number}" for number in allowed.numbers_in(loose)]
    said = zip(page.captions, page.labels, strict=True)
    found += [f"a figure of {caption!r} is read as {label!r}" for caption, label in said if caption != label]
    for key, figure in page.figures.items():
        known = sorted(_of(key, told))
        found += [
            f"figure {key}: {number:g}" for number in _drawn(key, figure) if not _is_near(number, known)
        ]
    return found


DRAWN_FROM: dict[str, tuple[str, ...]] = {
    "best-so-far": ("/analysis/best_so_far",),
    "front": ("/trials",),
    "importance": ("/analysis/importance",),
    "curves": ("/trials",),
    "recall": ("/analysis/model/recalls",),
    "confusion": ("/analysis/model/matrix",),
    "reliability": ("/analysis/model/reliability",),
}
"""Places in the JSON of the numbers of each figure. Slices show settings and scores of trials."""


def _drawn(key: str, figure: Any) -> set[float]:
    """Return the numbers that a figure draws."""
    # Parallel coordinates are heights between 0 and 1; what they show on hover are the settings of trials.
    if key == "parallel":
        return set()
    traces = [trace for trace in figure["data"] if trace.get("name") != "perfect"]  # the diagonal
    if key == "confusion":
        texts = (text for trace in traces for row in trace["text"] for text in row)
        return {float(text) for text in texts if text}
    values = [value for trace in traces for name in ("x", "y") for value in trace[name]]
    return {value for value in values if isinstance(value, int | float) and not isinstance(value, bool)}


def _of(key: str, told: Any) -> set[float]:
    places = DRAWN_FROM.get(key, ("/trials",))
    found = {value for place in places for value in _numbers(at(told, place))}
    if key.startswith("slice-"):  # `all` stands one step above the largest number of blocks
        name = key.removeprefix("slice-")
        top = max(
            (v for t in told["trials"] if isinstance(v := t["params"].get(name), int | float)), default=0
        )
        found.add(top + max(1, round(ABOVE * top)))
    return found


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield value


def _is_near(value: float, known: list[float]) -> bool:
    """Return True if one of the sorted numbers is the value, but for rounding."""
    place = bisect(known, value)
    return any(
        math.isclose(value, one, rel_tol=1e-4, abs_tol=1e-5) for one in known[max(0, place - 1) : place + 1]
    )
