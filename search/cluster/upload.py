"""What is sent to a cluster with a job: the code and the config, and nothing else of the checkout."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from search.errors import ClusterError
from search.provenance import ROOT, code_files, code_folders

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


@contextmanager
def upload(config: str | None, root: Path = ROOT) -> Iterator[Upload]:
    """Lay out what is sent, in a temporary folder, as it lies in a checkout.

    Args:
        config: The text of the study's config; None where the study has begun and has its own.
        root: The checkout, or the folder of installed packages.

    Raises:
        ClusterError: it is larger than the limit; the message names the largest files.
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
    """Return a size as people read it."""
    return f"{size / 1e6:.2f} MB"


def _too_large(files: Mapping[str, Path], size: int, root: Path) -> str:
    by_size = sorted(files.items(), key=lambda entry: -entry[1].stat().st_size)
    named = ", ".join(f"{name} {megabytes(path.stat().st_size)}" for name, path in by_size[:5])
    folders = " and ".join(map(str, code_folders(root).values()))
    return (
        f"{root}: what is sent with a job must be at most {megabytes(LIMIT_BYTES)}, got {megabytes(size)} "
        f"(largest: {named}). Move what is no code out of {folders}."
    )
