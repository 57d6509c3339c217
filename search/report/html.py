"""Parts of an HTML page. Text from outside is escaped here, and every number says where it comes from."""

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from finetune import safe_text


class Markup(str):
    """Text that is HTML already; all other text is escaped where it enters a page."""


def text(value: object) -> Markup:
    """Return a value as escaped text; control characters become visible escapes."""
    return value if isinstance(value, Markup) else Markup(html.escape(safe_text.terminal(value)))


def lines(value: str) -> Markup:
    """Return several lines as escaped text that keeps them apart, for a `pre`."""
    return Markup(html.escape(safe_text.terminal(value, keep="\n")))


def join(parts: Iterable[object], between: str = "") -> Markup:
    """Return the parts, each escaped unless it is markup, one after another."""
    return Markup(between.join(text(part) for part in parts))


def plain(value: object) -> str:
    """Return the text of markup without its elements, for an attribute; other values as text."""
    if not isinstance(value, Markup):
        return str(value)
    return html.unescape(re.sub(r"<[^<>]*>", "", value))


def tag(element: str, /, *parts: object, **attributes: object) -> Markup:
    """Return an element; attributes that are None are left out, and `class_` stands for `class`."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    told = "".join(
        f' {key}="{html.escape(safe_text.terminal(plain(value)))}"' if value is not True else f" {key}"
        for key, value in given.items()
        if value is not None and value is not False
    )
    return Markup(f"<{element}{told}>{join(parts)}</{element}>")


def pointer(*keys: object) -> str:
    """Return the JSON pointer (RFC 6901) of a value in `results --json --history`."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def number(value: float | None, shown: str, *source: object) -> Markup:
    """Return a number with its exact value and its place in `results --json --history`.

    Args:
        value: the number; None and values that are not finite are shown as a dash.
        shown: a format, such as `.4f`.
        source: keys that lead to it in the JSON; a list there stands for its length. None where the keys
            would say what a shareable page may not.
    """
    if value is None or not math.isfinite(value):
        return Markup("–")
    return told(format(value, shown), value, *source)


def told(words: str, value: float, *source: object) -> Markup:
    """Return a number in its own words, such as `2 min 05 s`, with value and place as `number` does.

    The exact value is left out where the words are the same: a large study has tens of thousands.
    """
    exact = repr(value)
    place = pointer(*source) if source else None
    return tag("data", words, value=None if exact == words else exact, data_json=place)


def quoted(words: object, *source: object) -> Markup:
    """Return text of `results --json --history` with its place there."""
    return tag("span", words, data_json=pointer(*source))


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: object = "",
    sortable: bool = False,
    aligned: bool = True,
) -> Markup:
    """Return a table that scrolls within its own box where it is wider than the page.

    Args:
        header: titles of the columns.
        rows: cells.
        caption: what the table shows.
        sortable: whether a click on a title sorts the rows.
        aligned: whether columns with numbers are aligned to the right.
    """
    cells = [list(row) for row in rows]
    right = [aligned and any(_is_number(row[i]) for row in cells) for i in range(len(header))]
    head = (
        tag("th", cell, scope="col", class_="n" if n else None) for cell, n in zip(header, right, strict=True)
    )
    body = (
        tag("tr", *(tag("td", cell, class_="n" if n else None) for cell, n in zip(row, right, strict=True)))
        for row in cells
    )
    inner = [tag("caption", caption)] if caption else []
    made = tag(
        "table",
        *inner,
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
        class_="sortable" if sortable else None,
    )
    return tag("div", made, class_="wide", tabindex="0", role="region", aria_label=plain(caption) or "table")


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float) or str(cell).startswith("<data")


def details(summary: object, *parts: object) -> Markup:
    """Return a part that opens on a click, also without scripts."""
    return tag("details", tag("summary", summary), *parts)


def script_json(value: Any) -> Markup:
    """Return JSON that can stand inside a script element: no text in it can end the element."""
    raw = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(raw.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
