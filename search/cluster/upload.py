"""Lay out the files that are sent to a cluster with a job: the code and the config, and nothing else."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from search.errors import ClusterError
from search.provenance import ROOT, code_files, code_folders

CONFIG = "study.yaml"
"""Name of the study's config in the folder that is sent."""
LIMIT_BYTES = 10_000_000
"""Limit of the size: the code is far smaller, so anything larger was put there by mistake."""


@dataclass(frozen=True)
class Upload:
    """A folder whose whole content is sent with a job."""

    folder: Path
    files: int
    """Number of files."""
    size: int
    """Size in bytes, before Ray compresses it."""


@contextmanager
def upload(config: str | None, root: Path = ROOT) -> Iterator[Upload]:
    """Copy the code and the config to a temporary folder, arranged as in a checkout.

    Args:
        config: Text of the study's config, or None to send the code alone.
        root: The checkout, or the folder of installed packages.

    Raises:
        ClusterError: the files exceed the limit; the message names the largest ones.
    """
    files = code_files(root)
    size = sum(path.stat().st_size for path in files.values()) + len((config or "").encode())
    if size > LIMIT_BYTES:
        raise ClusterError(_too_large(files, size, root))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, path in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        if config is not None:
            (folder / CONFIG).write_text(config, encoding="utf-8")
        yield Upload(folder, len(files) + (config is not None), size)


def megabytes(size: int) -> str:
    """Return a size in bytes as text in megabytes."""
    return f"{size / 1e6:.2f} MB"


def _too_large(files: Mapping[str, Path], size: int, root: Path) -> str:
    by_size = sorted(files.items(), key=lambda entry: -entry[1].stat().st_size)
    named = ", ".join(f"{name} {megabytes(path.stat().st_size)}" for name, path in by_size[:5])
    folders = " and ".join(map(str, code_folders(root).values()))
    return (
        f"{root}: what is sent with a job must be at most {megabytes(LIMIT_BYTES)}, got {megabytes(size)} "
        f"(largest: {named}). Move what is no code out of {folders}."
    )
