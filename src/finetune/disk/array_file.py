"""One array of a store: rows that several processes compute together, each chunk once, and all map.

    KEY.bin     the rows, mapped by whoever reads them; there only when it is whole
    KEY.json    shape, dtype, a checksum per chunk of rows, what it is, what it is worth
    KEY.part    the rows while they are being computed, and KEY.sums, the checksums of the chunks that
                are there

A process that dies while it fills gives its chunk back: the locks are the kernel's (`fcntl`), bytes of
KEY.sums. What it had finished is kept. A damaged entry is noticed by its checksums when a process first
opens it, or opens it after it was written to, and removed.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Make = Callable[[int, int], Tensor]
"""Computes rows `begin` to `end`, (end - begin, *shape), in the entry's dtype, on the CPU."""

CHUNK_BYTES = 8 * 2**20
CHUNK_ROWS = 128
"""A chunk has at most so many bytes and rows: small enough that several processes share the work on an
entry, large enough that claiming a chunk costs nothing beside computing it."""
DTYPES = {"uint8": np.uint8, "float32": np.float32, "bfloat16": np.uint16}
"""Torch's names -> how numpy maps them; numpy has no bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What an entry's file looks like."""

    rows: int
    shape: tuple[int, ...]
    """Of one row."""
    dtype: str
    """A key of DTYPES."""
    chunk_rows: int | None = None
    """Rows of a chunk; None: as many as CHUNK_BYTES and CHUNK_ROWS allow."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape)) * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def bytes(self) -> int:
        """Bytes of the file."""
        return self.rows * self.row_bytes

    def chunks(self) -> list[tuple[int, int]]:
        """Return first row and end of each chunk."""
        step = self.chunk_rows or max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, self.row_bytes)))
        return [(begin, min(begin + step, self.rows)) for begin in range(0, self.rows, step)]


_sound: dict[Path, tuple[int, int]] = {}
"""Files whose checksums this process found right: their number and time on the disk. Every trial opens its
entries, and to read them whole takes 5 ms for 2,300 images of 1,280 features, and more for more."""


class Entry:
    """One array and its files."""

    def __init__(self, root: Path, key: str, layout: Layout) -> None:
        self.layout = layout
        self.path, self.about = root / f"{key}.bin", root / f"{key}.json"
        self.part, self.sums = root / f"{key}.part", root / f"{key}.sums"

    def open(self) -> Tensor | None:
        """Return the rows if they are whole and sound; what is damaged is removed."""
        try:
            known = json.loads(self.about.read_text())
            expected = [tuple(c) for c in self.layout.chunks()]
            there = self.path.stat()
            whole = there.st_size == self.layout.bytes and len(known["sums"]) == len(expected)
            rows = self.map(self.path) if whole else None
        except FileNotFoundError:
            if not self.about.exists():
                self.path.unlink(missing_ok=True)  # rows that nobody can check
            return None
        except (OSError, ValueError, KeyError, TypeError):
            rows = None
        if rows is not None:
            file = there.st_ino, there.st_mtime_ns
            checked = _sound.get(self.path) == file
            if checked or [_sum(rows[begin:end]) for begin, end in expected] == known["sums"]:
                _sound[self.path] = file
                os.utime(self.about)  # used now
                return rows
        self.remove()
        return None

    def map(self, path: Path) -> Tensor:
        """Return the rows of a file, mapped; writing to them changes no file."""
        layout = self.layout
        kind = DTYPES[layout.dtype]
        if not layout.bytes:
            return torch.empty((layout.rows, *layout.shape), dtype=getattr(torch, layout.dtype))
        array = np.memmap(path, kind, "c", shape=(layout.rows, *layout.shape))
        return torch.from_numpy(array).view(getattr(torch, layout.dtype))

    def remove(self) -> None:
        """Remove all files; whoever has the rows mapped keeps them."""
        for path in (self.about, self.path, self.part, self.sums):
            with suppress(OSError):
                path.unlink()

    def reserve(self) -> None:
        """Make the files that are filled; sparse, so that nothing is written yet."""
        _sized(self.sums, 8 * len(self.layout.chunks()))
        _sized(self.part, self.layout.bytes)

    def fill(self, make: Make, about: Mapping[str, Any], *, threads: int = 1) -> None:
        """Compute every chunk that nobody has computed, waiting for those that others compute.

        With several threads, one chunk is read or written while another is computed.
        """
        chunks = self.layout.chunks()
        with ExitStack() as files:
            try:
                sums, part = (files.enter_context(open(path, "r+b")) for path in (self.sums, self.part))
            except FileNotFoundError:
                return  # finished by another process, or removed, since we looked
            todo = list(range(len(chunks)))
            while todo:
                one = partial(self._chunk, make, sums, part, chunks)
                if threads == 1:
                    mine = [one(number) for number in todo]
                else:
                    with ThreadPoolExecutor(threads, "fill") as pool:
                        mine = list(pool.map(one, todo))
                others = [number for number, done in zip(todo, mine, strict=True) if not done]
                if others:
                    with _claim(sums, others[0], wait=True):
                        pass  # whoever had it is done, or dead
                todo = others
            with _claim(sums, len(chunks), wait=True):
                self._finish([_known(sums, number) - 1 for number in range(len(chunks))], about)

    def _chunk(self, make: Make, sums: Any, part: Any, chunks: list[tuple[int, int]], number: int) -> bool:
        """Compute a chunk unless it is there; False if another process is at it."""
        with _claim(sums, number, wait=False) as mine:
            if mine and not _known(sums, number):
                begin, end = chunks[number]
                rows = make(begin, end)
                _write(part, begin * self.layout.row_bytes, rows)
                _note(sums, number, _sum(rows))
            return mine

    def _finish(self, sums: list[int], about: Mapping[str, Any]) -> None:
        """Give the filled file its name, unless another process has done so."""
        if not self.part.exists():
            return
        temporary = self.about.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"sums": sums, **about}))
        os.replace(temporary, self.about)
        os.replace(self.part, self.path)
        self.sums.unlink(missing_ok=True)


@contextmanager
def _claim(file: Any, number: int, *, wait: bool) -> Iterator[bool]:
    """Hold chunk `number` for this process; False if another one holds it and we do not wait."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, number)


def _known(sums: Any, number: int) -> int:
    """Return the checksum of a chunk plus one; 0: it is not there."""
    return int.from_bytes(os.pread(sums.fileno(), 8, 8 * number), "little")


def _note(sums: Any, number: int, checksum: int) -> None:
    os.pwrite(sums.fileno(), (checksum + 1).to_bytes(8, "little"), 8 * number)


def _write(part: Any, offset: int, rows: Tensor) -> None:
    data = memoryview(_bytes(rows))
    while data:
        written = os.pwrite(part.fileno(), data, offset)
        data, offset = data[written:], offset + written


def _sum(rows: Tensor) -> int:
    return zlib.crc32(_bytes(rows))


def _bytes(rows: Tensor) -> Any:
    """Return the memory of contiguous rows, without a copy."""
    return rows.contiguous().view(-1).view(torch.uint8).numpy() if rows.numel() else b""


def _sized(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)
