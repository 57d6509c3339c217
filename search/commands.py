"""What every command of the command line shares: exit codes, common options, where words go."""

import json
from enum import IntEnum
from typing import Annotated, Any

import typer

from finetune import safe_text
from search.terminal import console, print_line


class Exit(IntEnum):
    """What the exit code says."""

    DONE = 0
    STUDY_FAILED = 1
    BAD_INPUT = 2
    INTERRUPTED = 130


JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout, nothing else.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as study.trials=8."),
]


def say(text: str) -> None:
    """Tell a person something, beside the payload."""
    for line in text.split("\n"):
        print_line(console(stderr=True), line)


def print_json(value: Any) -> None:
    """Print one JSON value on stdout."""
    print(safe_text.json_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)))
