"""Leave out the images that a list names, `data.exclude`. Imports no torch.

The list is a text file with one image in each line, by the path that `check` prints. What follows a tab is a
remark; empty lines and those that begin with `#` say nothing. `check --suspects FILE` writes such a list.
"""

from collections.abc import Iterable, Sequence

from finetune.datasets.findings import Finding, listed
from finetune.datasets.sources import Given
from finetune.disk.filesystems import open_binary
from finetune.errors import DataError


def leave_out(
    chosen: Given, file: str, folder: str | None
) -> tuple[Given, tuple[str, ...], tuple[Finding, ...]]:
    """Return the images without those that a list names, the paths left out, and what to say about the list.

    Args:
        chosen: images by split and class.
        file: path or URL of the list.
        folder: the folder of the images; paths below it may be written whole.

    Raises:
        DataError: the list cannot be read, or names images, of which none is there.
    """
    wanted = _read(file)
    begin = "" if folder is None else folder.rstrip("/") + "/"
    short = {name.removeprefix(begin) if begin else name: name for name in wanted}
    out: list[str] = []

    def kept(paths: Iterable[str]) -> list[str]:
        found: list[str] = []
        for path in paths:
            (out if path in short or path in wanted else found).append(path)
        return found

    left = {split: {name: kept(paths) for name, paths in found.items()} for split, found in chosen.items()}
    named = set(out)
    unknown = [name for place, name in short.items() if place not in named and name not in named]
    if wanted and not out:
        raise DataError(
            f"data.exclude: {file} must name images of this data, got none of {listed(unknown)}. "
            "Write paths as `check` prints them, one in each line."
        )
    return left, tuple(sorted(named)), _findings(file, unknown)


def _findings(file: str, unknown: Sequence[str]) -> tuple[Finding, ...]:
    if not unknown:
        return ()
    text = (
        f"data.exclude: every line of {file} should name an image, got {len(unknown)} that do not. "
        "Correct or remove these lines."
    )
    return (Finding("warning", "not_excluded", text, tuple(unknown[:10]), len(unknown)),)


def _read(file: str) -> list[str]:
    """Return the paths of a list, each once."""
    try:
        with open_binary(file) as opened:
            lines = opened.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(
            f"data.exclude: {file} must be UTF-8 text, got other bytes. Write one path in a line."
        ) from None
    except Exception as error:  # each of fsspec's file systems has its own exceptions
        got = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DataError(
            f"data.exclude: {file} must be a readable file, got '{got}'. Check the path."
        ) from error
    paths = (line.split("\t")[0].strip() for line in lines)
    return list(dict.fromkeys(path for path in paths if path and not path.startswith("#")))
