"""One array of a store: several processes compute its rows together, each chunk once, and all map them.

    KEY.bin     the rows, which readers map into memory; it exists only once they are complete
    KEY.json    a checksum per chunk of rows, a description of the entry, its worth
    KEY.part    the rows while they are being computed
    KEY.sums    the checksums of the chunks that are finished

A process holds a kernel lock (`fcntl`) on a byte of KEY.sums for the chunk that it computes, so a process
that dies releases its chunk, and the chunks that it finished are kept. Checksums are compared when a process
opens an entry for the first time, or after a change of the file; a damaged entry is removed.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.disk.atomic import replacing

Make = Callable[[int, int], Tensor]
"""Function that computes rows `begin` to `end`, (end - begin, *shape), in the entry's dtype, on the CPU."""

CHUNK_BYTES = 8 * 2**20
CHUNK_ROWS = 128
"""Largest chunk in bytes and rows: small enough that several processes share the work on an entry, large
enough that locking a chunk costs little compared with computing it."""
DTYPES = {"uint8": np.uint8, "float32": np.float32, "bfloat16": np.uint16}
"""torch's type names -> the numpy type that maps the same bytes; numpy has no bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Size, type and chunks of an entry's file."""

    rows: int
    shape: tuple[int, ...]
    """Shape of one row."""
    dtype: str
    """Type of the values, a key of DTYPES."""
    chunk_rows: int | None = None
    """Rows of a chunk; None for as many as CHUNK_BYTES and CHUNK_ROWS allow."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape)) * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def bytes(self) -> int:
        """Bytes of the file."""
        return self.rows * self.row_bytes

    def chunks(self) -> list[tuple[int, int]]:
        """Return the first row and the end of each chunk."""
        step = self.chunk_rows or max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, self.row_bytes)))
        return [(begin, min(begin + step, self.rows)) for begin in range(0, self.rows, step)]


_sound: dict[Path, tuple[int, int]] = {}
"""Inode and time of files whose checksums this process has compared. Every trial opens its entries, and
comparing reads them whole: 5 ms for 2,300 images of 1,280 features, and more for larger ones."""


class Entry:
    """One array and its files."""

    def __init__(self, root: Path, key: str, layout: Layout) -> None:
        self.layout = layout
        self.path, self.about = root / f"{key}.bin", root / f"{key}.json"
        self.part, self.sums = root / f"{key}.part", root / f"{key}.sums"

    def open(self) -> Tensor | None:
        """Return the rows if they are complete and undamaged, else None. A damaged entry is removed."""
        try:
            known = json.loads(self.about.read_text())
            expected = [tuple(c) for c in self.layout.chunks()]
            there = self.path.stat()
            whole = there.st_size == self.layout.bytes and len(known["sums"]) == len(expected)
            rows = self.map(self.path) if whole else None
        except FileNotFoundError:
            # `_finish` writes the JSON file first, so rows without it have no checksums to compare.
            if not self.about.exists():
                self.path.unlink(missing_ok=True)
            return None
        except (OSError, ValueError, KeyError, TypeError):
            rows = None
        if rows is not None:
            file = there.st_ino, there.st_mtime_ns
            checked = _sound.get(self.path) == file
            if checked or [_sum(rows[begin:end]) for begin, end in expected] == known["sums"]:
                _sound[self.path] = file
                os.utime(self.about)  # the time of last use, by which the store evicts entries
                return rows
        self.remove()
        return None

    def map(self, path: Path) -> Tensor:
        """Return the rows of a file as a private mapping: writing to them does not change the file."""
        layout = self.layout
        kind = DTYPES[layout.dtype]
        if not layout.bytes:
            return torch.empty((layout.rows, *layout.shape), dtype=getattr(torch, layout.dtype))
        array = np.memmap(path, kind, "c", shape=(layout.rows, *layout.shape))
        return torch.from_numpy(array).view(getattr(torch, layout.dtype))

    def remove(self) -> None:
        """Remove all files. Processes that have mapped the rows can still use them."""
        for path in (self.about, self.path, self.part, self.sums):
            with suppress(OSError):
                path.unlink()

    def reserve(self) -> None:
        """Create the files to fill. They are sparse, so nothing is written yet."""
        _sized(self.sums, 8 * len(self.layout.chunks()))
        _sized(self.part, self.layout.bytes)

    def fill(
        self,
        make: Make,
        about: Mapping[str, Any],
        *,
        threads: int = 1,
        tell: Callable[[int], object] = lambda rows: None,
    ) -> None:
        """Compute every chunk that is missing, and wait for chunks that other processes compute.

        With several threads, one chunk is read or written while another is computed. `tell` is called with
        the number of rows that are there so far, whoever has computed them.
        """
        chunks = self.layout.chunks()
        with ExitStack() as files:
            try:
                sums, part = (files.enter_context(open(path, "r+b")) for path in (self.sums, self.part))
            except FileNotFoundError:
                return  # another process has finished or removed the entry in the meantime

            # Each round computes the chunks that are free, then waits for one that another process holds.
            # The next round takes over chunks whose process died; those that it finished are seen as done.
            def one(number: int) -> bool:
                done = self._chunk(make, sums, part, chunks, number)
                tell(sum(end - begin for at, (begin, end) in enumerate(chunks) if _known(sums, at)))
                return done

            todo = list(range(len(chunks)))
            while todo:
                if threads == 1:
                    mine = [one(number) for number in todo]
                else:
                    with ThreadPoolExecutor(threads, "fill") as pool:
                        mine = list(pool.map(one, todo))
                others = [number for number, done in zip(todo, mine, strict=True) if not done]
                if others:
                    with _claim(sums, others[0], wait=True):
                        pass  # the other process has finished the chunk, or died
                todo = others
            # The byte behind the last chunk is the lock for finishing.
            with _claim(sums, len(chunks), wait=True):
                self._finish([_known(sums, number) - 1 for number in range(len(chunks))], about)

    def _chunk(self, make: Make, sums: Any, part: Any, chunks: list[tuple[int, int]], number: int) -> bool:
        """Compute a chunk unless it is finished. Return False if another process is computing it."""
        with _claim(sums, number, wait=False) as mine:
            if mine and not _known(sums, number):
                begin, end = chunks[number]
                rows = make(begin, end)
                # The checksum comes after the rows: a process that dies between leaves the chunk missing.
                _write(part, begin * self.layout.row_bytes, rows)
                _note(sums, number, _sum(rows))
            return mine

    def _finish(self, sums: list[int], about: Mapping[str, Any]) -> None:
        """Rename the filled file to its final name, unless another process has done so."""
        if not self.part.exists():
            return
        with replacing(self.about) as temporary:
            temporary.write_text(json.dumps({"sums": sums, **about}))
        os.replace(self.part, self.path)
        self.sums.unlink(missing_ok=True)


@contextmanager
def _claim(file: Any, number: int, *, wait: bool) -> Iterator[bool]:
    """Lock chunk `number` for this process. Yield False if another one has it and `wait` is False."""
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
    """Return the checksum of a chunk plus one, or 0 if the chunk is missing."""
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
