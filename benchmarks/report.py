"""Output of every benchmark: the machine's load, a table, and one last line of JSON."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def load() -> list[float]:
    """Return the load averages over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    for line in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def last_line(values: Mapping[str, Any]) -> None:
    """Print the numbers for machines."""
    print(json.dumps(dict(values)))
