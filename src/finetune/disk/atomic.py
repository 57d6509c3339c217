"""Replace a file in one step, so that a reader sees the old one or the new one, and never a part."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune.disk.filesystems import no_pipe


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what the block writes there then replaces `path`.

    With `durable` the new file is on the disk when the block has ended. Without, it survives the death of the
    process, but a machine that loses its power may leave an empty file.

    If the block raises an exception, `path` stays as it was and nothing is left of the temporary file. Each
    process has a temporary file of its own, so of several that write at a time the last one wins.

    Raises:
        OSError: the file cannot be written; or `path` is a pipe or a device, such as /dev/null, which root
            would turn into a file for good.
    """
    no_pipe(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def settle(path: Path) -> None:
    """Wait until a file, if it is there, is on the disk under its name."""
    if path.exists():
        _sync(path)
        _sync(path.parent)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
