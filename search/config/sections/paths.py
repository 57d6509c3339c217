"""Paths in a config, made absolute: relative ones start at the current folder, `~` is the home folder.

For a config file, `config_file.load` has already replaced relative paths: they start at the file's folder.
"""

import os
from typing import Annotated

from pydantic import AfterValidator, Field

from finetune.disk.filesystems import is_url


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def absolute_or_url(path: str) -> str:
    """Return the absolute path, or a URL unchanged."""
    return path if is_url(path) else _absolute(path)


FilePath = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
"""A path in a mounted file system; a URL is not accepted as one."""
FilePathOrUrl = Annotated[str, Field(min_length=1), AfterValidator(absolute_or_url)]
