"""Make text from outside, such as names of classes, files and tensors, safe to print or write."""

import re

_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # ECMA-48, C0 and C1: escape sequences begin with one of them
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # lines, and the direction of writing
    "\ud800-\udfff]"  # halves of characters: bytes of names that are not UTF-8
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""Characters that start a formula in a spreadsheet (OWASP, CSV injection)."""


def terminal(text: object, keep: str = "") -> str:
    r"""Return text as one line in which control characters, except `keep`, are escaped, such as \x1b."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else _written(found[0]), str(text))


def _written(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # the byte that Python could not decode
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def json_text(text: str) -> str:
    """Escape the control characters in JSON text that json.dumps leaves as they are: all except C0."""
    return _CONTROL.sub(lambda found: found[0] if found[0] < "\x7f" else f"\\u{ord(found[0]):04x}", text)


def markdown(text: object) -> str:
    """Return text as a Markdown code span, in which HTML, links, headings and emphasis have no effect."""
    plain = terminal(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    pad = " " if plain.startswith("`") or plain.endswith("`") or not plain.strip() else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def cell(value: object) -> object:
    """Return a CSV cell; text that a spreadsheet would read as a formula gets an apostrophe in front."""
    if not isinstance(value, str) or not value.startswith(_FORMULA) or _is_number(value):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
