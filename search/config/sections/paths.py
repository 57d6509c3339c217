"""Paths in a config file: relative ones start at the current folder, `~` is the home folder."""

import os
from typing import Annotated

from pydantic import AfterValidator, Field

from finetune.disk.filesystems import is_url


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def absolute_or_url(path: str) -> str:
    """The path from the root, or the URL as it is."""
    return path if is_url(path) else _absolute(path)


FilePath = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
"""On a disk."""
FilePathOrUrl = Annotated[str, Field(min_length=1), AfterValidator(absolute_or_url)]
