"""Replace a file in one step, so that a reader sees the old one or the new one, and never a part."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what the block writes there then replaces `path`.

    If the block raises an exception, `path` stays as it was and nothing is left of the temporary file. Each
    process has a temporary file of its own, so of several that write at a time the last one wins.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
