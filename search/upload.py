"""What is sent to a cluster with a job: the code and the config, and nothing else of the checkout."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from search.errors import ClusterError
from search.provenance import ROOT

CODE = ("search", "src/finetune")
"""The folders that a study needs; images, results and caches never lie in them."""
CONFIG = "study.yaml"
"""The study's config, as it travels."""
LIMIT_BYTES = 10_000_000
"""Code is far smaller: what is larger was put there by mistake."""


@dataclass(frozen=True)
class Upload:
    """A folder that is sent whole, and its size."""

    folder: Path
    files: int
    size: int
    """Bytes, before Ray zips it."""


def code_files(root: Path = ROOT) -> list[Path]:
    """Return the files of the code, without what Python and tools leave beside it."""
    return sorted(
        path
        for folder in CODE
        for path in (root / folder).rglob("*")
        if path.is_file() and not any(_is_left_over(part) for part in path.relative_to(root).parts)
    )


@contextmanager
def upload(config: str | None, root: Path = ROOT) -> Iterator[Upload]:
    """Lay out what is sent, in a temporary folder.

    Args:
        config: The text of the study's config; None where the study has begun and has its own.
        root: The checkout.

    Raises:
        ClusterError: it is larger than the limit; the message names the largest files.
    """
    files = code_files(root)
    size = sum(path.stat().st_size for path in files) + len((config or "").encode())
    if size > LIMIT_BYTES:
        raise ClusterError(_too_large(files, root, size))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in files:
            target = folder / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        if config is not None:
            (folder / CONFIG).write_text(config, encoding="utf-8")
        yield Upload(folder, len(files) + (config is not None), size)


def megabytes(size: int) -> str:
    """Return a size as people read it."""
    return f"{size / 1e6:.2f} MB"


def _is_left_over(part: str) -> bool:
    return part.startswith(".") or part == "__pycache__" or part.endswith((".egg-info", ".pyc"))


def _too_large(files: list[Path], root: Path, size: int) -> str:
    largest = sorted(files, key=lambda path: -path.stat().st_size)[:5]
    named = ", ".join(f"{path.relative_to(root)} {megabytes(path.stat().st_size)}" for path in largest)
    return (
        f"{root}: what is sent with a job must be at most {megabytes(LIMIT_BYTES)}, got {megabytes(size)} "
        f"(largest: {named}). Move what is no code out of {' and '.join(CODE)}."
    )
