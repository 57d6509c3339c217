"""The budget of a study: wall time, GPU-hours, or money, which is GPU-hours at a price."""

import re
from dataclasses import dataclass

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "gpuh": 3600.0, "usd": 3600.0}
"""Seconds, or seconds of one GPU, in one of each unit; money is first divided by the price of a GPU-hour."""
FORM = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|gpuh|usd)")


@dataclass(frozen=True)
class Budget:
    """An upper limit for all runs of a study together."""

    seconds: float
    """Wall seconds, or seconds of one GPU if `of_gpus`."""
    of_gpus: bool = False


def parse(text: str, price: float | None = None) -> Budget:
    """Return the budget that a text such as `10m`, `3gpuh` or `5usd` describes.

    Args:
        text: a number with one of UNITS.
        price: price of a GPU-hour, needed for money.

    Raises:
        ValueError: the text has another form, is zero, or names money without a price.
    """
    found = FORM.fullmatch(text)
    if found is None or not float(found[1]):
        raise ValueError(f"budget: {text!r}")
    amount, unit = float(found[1]), found[2]
    if unit == "usd":
        if price is None:
            raise ValueError(f"budget: {text!r} without a price")
        amount /= price
    return Budget(amount * UNITS[unit], of_gpus=unit in ("gpuh", "usd"))
