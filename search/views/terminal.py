"""Output of the command line: colour and tables on a terminal, plain lines anywhere else."""

import os
import re
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune import safe_text

_PIPE_WIDTH = 160
"""Width in columns if the output is no terminal; the widest output, the table of trials, needs about 120."""

_NARROW = 100
"""Width in columns below which the table of trials has no room for wide gaps."""

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x1f\x7f-\x9f]")
"""A terminal's escape sequences (ECMA-48 CSI and OSC), and every other control character."""


def console(stderr: bool = False) -> Console:
    """Return a console that uses colour on a terminal only, and never if `NO_COLOR` is set.

    The stream itself decides whether it is a terminal: `FORCE_COLOR`, which CI services set, would put cursor
    movements into a log file.
    """
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    plain = not terminal or bool(os.environ.get("NO_COLOR"))
    return Console(
        stderr=stderr,
        force_terminal=terminal,
        color_system=None if plain else "auto",
        width=None if terminal else _PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def clean(text: object) -> str:
    """Return foreign text, such as an error message, as one line without control characters."""
    return _CONTROL.sub("", " ".join(str(text).split()))


def print_line(out: Console, text: str, style: str = "") -> None:
    """Print one line without wrapping it, so that paths and commands in it can be copied.

    Control characters in the text, for example in names of classes or files, are not passed to the terminal.
    """
    out.print(Text(safe_text.terminal(text, keep="\t"), style=style), soft_wrap=True)


def print_table(
    out: Console, header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str]
) -> None:
    """Print a table: ruled on a terminal, elsewhere as aligned lines without trailing blanks.

    Args:
        out: Console to print to.
        header: Names of the columns.
        rows: Cells, one sequence per row.
        right: Names of the columns to align right (numbers).

    """
    if out.is_terminal:
        out.print(_ruled(header, rows, right, gap=1 if out.width < _NARROW else 2))
        return
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        cells = zip(line, widths, header, strict=True)
        text = "  ".join(c.rjust(w) if name in right else c.ljust(w) for c, w, name in cells)
        print_line(out, text.rstrip())


def _ruled(header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str], gap: int) -> Table:
    """Return a table with column names broken over several lines, so that no cell is cut on 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for i, name in enumerate(header):
        sentence = any(" " in row[i] for row in rows)
        lines = name.replace(" ", "\n").replace("/", "/\n")
        table.add_column(lines, justify="right" if name in right else "left", no_wrap=not sentence)
    for row in rows:
        table.add_row(*(Text(safe_text.terminal(cell)) for cell in row))
    return table


def seconds_text(seconds: float) -> str:
    """Return a duration as text: `3.2 s`, `2 min 05 s` or `1 h 04 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
