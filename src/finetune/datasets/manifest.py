"""Read kind `manifest`: a table that names images, labels, splits and weights. Imports no torch.

    image,label,split,weight,group,text
    photos/0001.jpg,daisy,train,1,garden 1,small and white
    /data/0002.jpg,tulip,val,1,garden 2,
    s3://bucket/0003.jpg,tulip,train,0.5,garden 1,a red one

The table is a CSV file (UTF-8, with a header), a Parquet file, or a JSON Lines file (UTF-8, an object in each
line, such as {"image": "photos/0001.jpg", "label": "daisy"}). `image` may be called `path`; `split`,
`weight` and `group` may be left out. The text of a sample is in the columns that `data.text` names; further
columns are ignored. The manifest and each image may be a local path or any URL that fsspec opens
(s3:// and others need their fsspec package). Relative paths start at the manifest's folder.
"""

import csv
import io
import json
import math
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from finetune.datasets.sources import SPLIT_NAMES, SPLITS, Files, Source, readable
from finetune.disk.filesystems import is_url
from finetune.errors import DataError, did_you_mean
from finetune.settings import SampleSettings

REQUIRED = ("image", "label")
COLUMNS = (*REQUIRED, "split", "weight", "group")
SYNONYM = "path"
"""Other name of the column `image`."""
SHOWN = 20
"""Largest number of mistakes that an error lists; further ones are only counted."""
THREADS = 16
"""Threads that check whether images exist; they wait for a disk or a network, not for the processor."""


@dataclass(frozen=True)
class Row:
    """One row as text; a missing cell is an empty string."""

    line: int
    """Line of the row in the file, or number of the row in a Parquet file, both from 1."""
    image: str
    label: str
    split: str = ""
    weight: str = ""
    group: str = ""
    text: str = ""
    """The cells of all columns of text, joined by spaces."""


def manifest(data: SampleSettings) -> Source:
    """Return the images that the table at `data.path` names.

    Raises:
        DataError: the table cannot be read or has wrong rows; the message lists the mistakes, one per line.
    """
    if data.path is None:
        raise DataError(
            "data.path: kind 'manifest' needs a CSV, JSON Lines or Parquet file, got None. Name one."
        )
    rows = _read(data.path, data.text or ())
    files = Files(data.path.rpartition("/")[0], clips=data.frames > 1)
    mistakes = sorted(_mistakes(rows, files, look=data.on_error == "fail"))
    if mistakes:
        lines = [f"{data.path}:{line}: {text}" for line, text in mistakes[:SHOWN]]
        more = [f"{data.path}: ... and {len(mistakes) - SHOWN} mistakes more."] * (len(mistakes) > SHOWN)
        raise DataError("\n".join(lines + more))
    given: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        split = SPLIT_NAMES[row.split.lower()] if row.split else "train"
        given.setdefault(split, {}).setdefault(row.label, []).append(row.image)
    if "train" not in given:
        raise DataError(
            f"{data.path}: 'split' needs 'train' among its values, got {', '.join(sorted(given)) or 'none'}. "
            "Add training images, or leave the column out."
        )
    return Source(
        given,
        files,
        weights={row.image: float(row.weight) for row in rows if row.weight},
        texts=None if data.text is None else {row.image: row.text for row in rows},
        groups={row.image: row.group for row in rows} if any(row.group for row in rows) else None,
    )


def samples_of(path: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return the place of each row's image, empty if it has none, and its text; labels are not needed.

    Args:
        path: absolute path or URL of the table.
        texts: columns of text; those that the table lacks are empty.

    Raises:
        DataError: the table cannot be read, or has neither a column of images nor one of texts.
    """
    files = Files(path.rpartition("/")[0])
    columns, rows = _table(path, (*COLUMNS, SYNONYM, *texts))
    image = next((name for name in (REQUIRED[0], SYNONYM) if name in columns), None)
    if image is None and not set(texts) & set(columns):
        raise DataError(
            f"{path}: a table of samples must have a column 'path' or {' or '.join(map(repr, texts))}, got "
            f"{', '.join(columns) or 'none'}. Add one."
        )
    places = [row.get(image, "") if image else "" for _, row in rows]
    said = [joined(row.get(name, "") for name in texts) for _, row in rows]
    return [(files.location(place) if place else "", text) for place, text in zip(places, said, strict=True)]


def _mistakes(rows: Sequence[Row], files: Files, *, look: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, text) for every mistake in the rows; with `look` also for missing image files."""
    some_split = any(row.split for row in rows)
    first: dict[str, int] = {}
    there: list[Row] = []  # rows to look for: the first one of each image
    for row in rows:
        yield from ((row.line, text) for text in _cell_mistakes(row, some_split))
        if not row.image:
            continue
        place = _same_place(files.location(row.image))
        if place in first:
            at = f"again (first in line {first[place]})"
            yield row.line, f"an image may stand once, got {row.image!r} {at}. Remove one of the rows."
        else:
            first[place] = row.line
            there.append(row)
    if look:
        with ThreadPoolExecutor(THREADS, "look") as pool:
            for row, exists in zip(there, pool.map(files.exists, [row.image for row in there]), strict=True):
                if not exists:
                    fix = "Correct the path, remove the row, or leave such images out (data.on_error: skip)."
                    yield row.line, f"an image must exist, got no file {files.location(row.image)!r}. {fix}"


def _cell_mistakes(row: Row, some_split: bool) -> Iterator[str]:
    for name in REQUIRED:
        if not getattr(row, name):
            yield f"'{name}' must be given, got nothing. Fill it in, or remove the row."
    if row.split and row.split.lower() not in SPLIT_NAMES:
        hint = did_you_mean(row.split.lower(), SPLIT_NAMES)
        yield f"'split' must be one of {', '.join(SPLITS)}, got {row.split!r}. {hint}"
    if some_split and not row.split:
        yield "'split' must be given in every row or in none, got nothing. Fill it in."
    if row.weight and not _is_weight(row.weight):
        yield f"'weight' must be a number above 0, got {row.weight!r}. Correct it, or leave it empty for 1."


def _is_weight(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _same_place(location: str) -> str:
    """Return the same spelling for paths of one place, such as `a/b.jpg` and `a/../a/b.jpg`."""
    if not is_url(location):
        return posixpath.normpath(location)
    protocol, _, path = location.partition("://")
    return f"{protocol}://{posixpath.normpath(path)}"


def _table(path: str, wanted: Sequence[str]) -> "Table":
    """Return the columns and the rows of a table, with the wanted cells."""
    suffix = posixpath.splitext(path)[1].lower()
    if suffix not in _READERS:
        raise DataError(
            f"{path}: a manifest must be a file that ends in .csv, .jsonl or .parquet, got {suffix!r}. "
            "Rename it, or use kind 'folder'."
        )
    with readable(path) as file:
        content = file.read()
    try:
        return _READERS[suffix](content, wanted)
    except Exception as error:  # pyarrow has errors of its own
        fix = "Save it as UTF-8." if isinstance(error, UnicodeDecodeError) else "Write it again."
        raise DataError(
            f"{path}: a manifest must be a whole table, got {type(error).__name__}: {error}. {fix}"
        ) from error


def _read(path: str, texts: Sequence[str]) -> list[Row]:
    columns, rows = _table(path, (*COLUMNS, SYNONYM, *texts))
    if SYNONYM in columns and REQUIRED[0] not in columns:
        columns = [REQUIRED[0] if name == SYNONYM else name for name in columns]
        rows = [(line, {**row, REQUIRED[0]: row[SYNONYM]}) for line, row in rows]
    _check_columns(path, columns, texts)
    if not rows:
        raise DataError(f"{path}: a manifest must have rows below its header, got none. Add a row per image.")
    return [
        Row(
            line,
            **{name: cell for name, cell in row.items() if name in COLUMNS},
            text=joined(row.get(name, "") for name in texts),
        )
        for line, row in rows
    ]


def joined(cells: Iterable[str]) -> str:
    """Return the text of a sample from the cells of its columns."""
    return " ".join(" ".join(cell.split()) for cell in cells if cell.strip())


def _check_columns(path: str, columns: Sequence[str], texts: Sequence[str]) -> None:
    other = next((mark for mark in (";", "\t", "|") if len(columns) == 1 and mark in columns[0]), None)
    fix = f"Separate cells with commas, not with {other!r}." if other else "Add it."
    mistakes = [
        f"{path}: a manifest must have a column {name!r}, got {', '.join(columns) or 'none'}. {fix}"
        for name in REQUIRED
        if name not in columns
    ]
    mistakes += [
        f"data.text: must name columns of {path}, got {name!r}. {did_you_mean(name, columns)}"
        for name in texts
        if name not in columns
    ]
    for name in columns:
        if columns.count(name) > 1:
            mistakes.append(f"{path}: a column may stand once, got {name!r} again. Remove one of them.")
        elif name not in COLUMNS and name.strip().lower() in COLUMNS:
            plain = name.strip().lower()
            mistakes.append(f"{path}: a column must be spelt {plain!r}, got {name!r}. Rename it.")
    if mistakes:
        raise DataError("\n".join(dict.fromkeys(mistakes)))


Table = tuple[list[str], list[tuple[int, dict[str, str]]]]
"""Names of the columns, then line and cells of every row."""


def _read_csv(content: bytes, wanted: Sequence[str]) -> Table:
    text = io.StringIO(content.decode("utf-8-sig"), newline="")
    reader = csv.reader(text, strict=True)
    columns = next(reader, [])
    rows = []
    for cells in reader:
        if len(cells) > len(columns):
            raise ValueError(f"{len(cells)} cells in line {reader.line_num}, but {len(columns)} columns")
        if cells:
            rows.append((reader.line_num, dict(zip(columns, cells, strict=False))))
    kept = set(wanted) & set(columns) | {*REQUIRED}
    return columns, [(line, {name: row.get(name, "") for name in kept}) for line, row in rows]


def _read_json_lines(content: bytes, wanted: Sequence[str]) -> Table:
    columns: dict[str, None] = {}
    rows = []
    for number, line in enumerate(content.decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            raise ValueError(f"no JSON in line {number}, column {error.colno}: {error.msg}") from error
        except ValueError as error:
            raise ValueError(f"{error} in line {number}") from error
        if not isinstance(found, _Object):
            raise ValueError(f"no object in line {number}")
        columns |= dict.fromkeys(found)
        rows.append((number, {name: _scalar(name, found[name], number) for name in found if name in wanted}))
    kept = set(wanted) & set(columns) | {*REQUIRED}
    return list(columns), [(line, {name: row.get(name, "") for name in kept}) for line, row in rows]


class _Object(dict[str, Any]):
    """A JSON object."""


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice")
    return found


def _scalar(name: str, value: Any, line: int) -> str:
    """Return a cell of a JSON object as text: numbers and truth values as JSON has them, null as nothing."""
    if isinstance(value, dict | list):
        raise ValueError(f"{name!r} is no text or number in line {line}")
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _read_parquet(content: bytes, wanted: Sequence[str]) -> Table:
    import pyarrow.parquet  # 0.2 s that other kinds need not wait for

    table = pyarrow.parquet.read_table(io.BytesIO(content))
    columns: list[str] = table.column_names
    cells = {name: table.column(name).to_pylist() for name in dict.fromkeys(columns) if name in wanted}
    return columns, [
        (index + 1, {name: _text(values[index]) for name, values in cells.items()})
        for index in range(table.num_rows)
    ]


def _text(value: Any) -> str:
    return "" if value is None else str(value)


_READERS: dict[str, Callable[[bytes, Sequence[str]], Table]] = {
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}
