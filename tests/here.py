"""A command of the command line, run in this process."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """What a command said, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


Here = Callable[..., Told]
"""Runs a command with these words: see the fixture `here`."""
