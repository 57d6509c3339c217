"""Read metadata.csv, which has the texts and groups of the samples of a folder. Imports no torch.

    file_name,text,group
    0001.jpg,small and white,garden 1

The file lies in any folder below `data.path`, and its names start there, as in Hugging Face's image folders.
"""

import csv
import io
import posixpath
from collections.abc import Iterable, Sequence

from finetune.datasets.manifest import joined
from finetune.datasets.sources import Files, readable
from finetune.errors import DataError, did_you_mean

NAME = "metadata.csv"
PATH, GROUP = "file_name", "group"


def read(
    files: Files, paths: Iterable[str], columns: Sequence[str] | None
) -> tuple[dict[str, str] | None, dict[str, str] | None]:
    """Return path -> text and path -> group of the samples; None if there are none.

    Args:
        files: reader of the data set's files.
        paths: all files of the data set.
        columns: columns of text; None: no text is read.

    Raises:
        DataError: a file cannot be read, lacks a column, or text is wanted and there is no file.
    """
    found = sorted(path for path in paths if posixpath.basename(path) == NAME)
    if not found and columns is not None:
        raise DataError(
            f"data.text: {files.base} must hold {NAME} with the columns {PATH} and {', '.join(columns)}, got "
            "none. Write it, or use kind 'manifest'."
        )
    texts: dict[str, str] = {}
    groups: dict[str, str] = {}
    for path in found:
        where, base = files.location(path), posixpath.dirname(path)
        for row in _rows(where, columns or ()):
            name = posixpath.normpath(posixpath.join(base, row[PATH]))
            texts[name] = joined(row.get(column) or "" for column in columns or ())
            if row.get(GROUP):
                groups[name] = row[GROUP]
    return (None if columns is None else texts), groups or None


def _rows(where: str, columns: Sequence[str]) -> list[dict[str, str]]:
    with readable(where) as file:
        content = file.read()
    try:
        table = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        rows = list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{where}: must be a whole CSV file in UTF-8, got {type(error).__name__}: {error}. "
            "Write it again."
        ) from error
    names = list(table.fieldnames or ())
    for name in (PATH, *columns):
        if name not in names:
            got = ", ".join(names) or "none"
            raise DataError(f"{where}: must have a column {name!r}, got {got}. {did_you_mean(name, names)}")
    return [row for row in rows if row[PATH]]
