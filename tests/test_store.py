"""The shared folder of arrays: computed once, never half read, never over budget."""

import dataclasses
import errno
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.disk.array_file import CHUNK_ROWS, Layout
from finetune.disk.array_store import IDLE_SECONDS, TAG, Store

ROWS = 5 * CHUNK_ROWS + 7
LAYOUT = Layout(rows=ROWS, shape=(3, 2), dtype="float32")
SPAWN = multiprocessing.get_context("spawn")


def expected(begin: int = 0, end: int = ROWS) -> Tensor:
    return torch.arange(6 * begin, 6 * end, dtype=torch.float32).view(-1, 3, 2)


def get(
    store: Store, key: str = "a", layout: Layout = LAYOUT, worth: float = 1.0, make: Any = expected
) -> Any:
    return store.get(digest(key), layout, make, worth=worth, facts={"what": key}, step=key)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def names(store: Store) -> set[str]:
    return {entry["facts"]["what"] for entry in store.entries()}


def refuse(begin: int, end: int) -> Tensor:
    raise AssertionError(f"rows {begin} to {end} were computed again")


def count_and_wait(path: str, begin: int, end: int) -> Tensor:
    with open(path, "a") as log:
        log.write(f"{begin}\n")
    time.sleep(0.05)
    return expected(begin, end)


def fill(root: str, log: str) -> None:
    got = get(Store(Path(root), 2**20), make=lambda begin, end: count_and_wait(log, begin, end))
    assert torch.equal(got, expected())


def fill_and_die(root: str, log: str) -> None:
    def make(begin: int, end: int) -> Tensor:
        if begin == 2 * CHUNK_ROWS:
            os.kill(os.getpid(), signal.SIGKILL)
        return count_and_wait(log, begin, end)

    get(Store(Path(root), 2**20), make=make)


def test_what_was_computed_is_read_back_and_not_computed_again(tmp_path: Path) -> None:
    assert torch.equal(get(Store(tmp_path, 2**20)), expected())
    assert torch.equal(get(Store(tmp_path, 2**20), make=refuse), expected())


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
def test_every_type_comes_back_to_the_bit(tmp_path: Path, dtype: str) -> None:
    rows = (torch.randn(10, 4) * 50).abs().to(getattr(torch, dtype))
    layout = Layout(rows=10, shape=(4,), dtype=dtype)
    got = get(Store(tmp_path, 2**20), layout=layout, make=lambda begin, end: rows[begin:end])
    assert got.dtype == rows.dtype
    assert torch.equal(got, rows)


def test_writing_to_the_rows_changes_no_file(tmp_path: Path) -> None:
    get(Store(tmp_path, 2**20)).zero_()
    assert torch.equal(get(Store(tmp_path, 2**20), make=refuse), expected())


def test_a_file_that_another_process_renames_meanwhile_is_counted_by_its_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry is completed after the files were listed, and before they are looked at."""
    store = Store(tmp_path, LAYOUT.bytes + 1)
    get(store)
    whole = tmp_path / f"{digest('a')}.bin"
    monkeypatch.setattr(store, "_files", lambda *kinds: [whole.with_suffix(".part")] * ("part" in kinds))
    assert get(store, "b") is None  # the budget has room for one of them
    assert store.clear() == LAYOUT.bytes


def test_several_threads_fill_an_entry_with_the_same_rows_each_chunk_once(tmp_path: Path) -> None:
    asked: list[int] = []
    both = threading.Barrier(2, timeout=120)

    def make(begin: int, end: int) -> Tensor:
        asked.append(begin)
        if begin < 2 * 10:
            both.wait()  # two chunks are in the making at the same time
        return expected(begin, end)

    layout = dataclasses.replace(LAYOUT, chunk_rows=10)
    got = Store(tmp_path, 2**20).get("a", layout, make, worth=1.0, facts={}, step="a", threads=2)
    assert got is not None
    assert torch.equal(got, expected())
    assert sorted(asked) == [begin for begin, _ in layout.chunks()]
    assert layout.chunks()[:2] == [(0, 10), (10, 20)]


def test_what_a_thread_cannot_compute_is_said_to_who_asked_for_the_rows(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="were computed again"):
        Store(tmp_path, 2**20).get("a", LAYOUT, refuse, worth=1.0, facts={}, step="a", threads=3)


def test_two_processes_that_race_compute_each_chunk_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    both = [SPAWN.Process(target=fill, args=(str(tmp_path / "store"), str(log))) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    begins = [int(line) for line in log.read_text().split()]
    assert sorted(begins) == [begin for begin, _ in LAYOUT.chunks()]


def test_a_killed_process_leaves_its_finished_chunks_and_no_lock(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = SPAWN.Process(target=fill_and_die, args=(str(tmp_path / "store"), str(log)))
    first.start()
    first.join(60)
    assert first.exitcode == -signal.SIGKILL
    assert not list((tmp_path / "store").glob("*.bin"))  # a reader sees no half file
    fill(str(tmp_path / "store"), str(log))
    begins = [int(line) for line in log.read_text().split()]
    assert sorted(begins) == [begin for begin, _ in LAYOUT.chunks()]


@pytest.mark.parametrize("damage", ["a bit", "cut short", "no facts", "torn facts"])
def test_a_damaged_entry_is_noticed_and_computed_again(tmp_path: Path, damage: str) -> None:
    get(Store(tmp_path, 2**20))
    data, facts = (tmp_path / f"{digest('a')}{suffix}" for suffix in (".bin", ".json"))
    if damage == "a bit":
        content = bytearray(data.read_bytes())
        content[1000] ^= 1
        data.write_bytes(content)
    elif damage == "cut short":
        os.truncate(data, 1000)
    elif damage == "no facts":
        facts.unlink()
    else:
        facts.write_text(facts.read_text()[:20])
    computed = []

    def make(begin: int, end: int) -> Tensor:
        computed.append(begin)
        return expected(begin, end)

    assert torch.equal(get(Store(tmp_path, 2**20), make=make), expected())
    assert len(computed) == len(LAYOUT.chunks())


def test_a_half_written_chunk_of_a_dead_machine_is_noticed(tmp_path: Path) -> None:
    """After a power cut the checksums may be there without the rows: then the rows are zeros."""
    store = Store(tmp_path, 2**20)
    get(store)
    content = (tmp_path / f"{digest('a')}.bin").read_bytes()
    (tmp_path / f"{digest('a')}.bin").write_bytes(bytes(len(content)))
    assert store.peek(digest("a"), LAYOUT) is None


def test_an_error_while_computing_is_raised_and_leaves_nothing_locked(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="computed again"):
        get(Store(tmp_path, 2**20), make=refuse)
    assert torch.equal(get(Store(tmp_path, 2**20)), expected())


def test_the_budget_is_kept(tmp_path: Path) -> None:
    """What is worth less per byte makes room; what is worth more, and was just used, does not."""
    store = Store(tmp_path, 2 * LAYOUT.bytes + 100)
    get(store, "cheap", worth=1)
    get(store, "dear", worth=3)
    assert get(store, "cheaper", worth=0.5) is None
    assert get(store, "middling", worth=2) is not None
    assert names(store) == {"dear", "middling"}
    assert sum(path.stat().st_size for path in tmp_path.glob("*.bin")) <= store.budget_bytes


def test_a_full_disk_stores_nothing_and_fails_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the rows were written when the disk was full: they are given back."""
    written = []
    real = os.pwrite

    def pwrite(file: int, data: Any, offset: int) -> int:
        written.append(offset)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert get(Store(tmp_path, 2**20)) is None
    left = {path.name for path in tmp_path.iterdir() if path.suffix != ".lock" and path.name != ".lock"}
    assert left == {TAG}
    monkeypatch.undo()
    assert torch.equal(get(Store(tmp_path, 2**20)), expected())


def test_a_folder_that_cannot_be_made_stores_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "features", 2**20)
    assert not store.is_usable()
    assert get(store) is None


def test_an_entry_above_the_whole_budget_removes_nothing(tmp_path: Path) -> None:
    get(Store(tmp_path, LAYOUT.bytes), "small", worth=1)
    assert get(Store(tmp_path, LAYOUT.bytes - 1), "large", worth=9) is None
    assert names(Store(tmp_path, 1)) == {"small"}


def test_what_nobody_has_used_for_long_makes_room_for_anything(tmp_path: Path) -> None:
    store = Store(tmp_path, LAYOUT.bytes)
    get(store, "old", worth=9)
    past = time.time() - IDLE_SECONDS - 1
    os.utime(tmp_path / f"{digest('old')}.json", (past, past))
    assert get(store, "new", worth=0.1) is not None
    assert names(store) == {"new"}


def test_whoever_has_an_entry_mapped_keeps_it_when_it_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path, 2**20)
    rows = get(store)
    assert store.clear() >= LAYOUT.bytes
    assert not store.entries()
    assert torch.equal(rows, expected())


FOREIGN = {
    "pytorch_model.bin": "weights",
    "package.json": '{"name": "mine"}',
    "list.json": "[1, 2]",
    "film.part": "half",
    "SHA256.sums": "sums",
    "0123456789abcdef01234567.txt": "text",
    f"{digest('almost')}0.bin": "one digit more",
    "CACHEDIR.TAG.bak": "",
}


def test_files_that_are_not_the_store_s_are_neither_counted_nor_touched(tmp_path: Path) -> None:
    for name, text in FOREIGN.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "large.bin").write_bytes(bytes(2 * LAYOUT.bytes))
    store = Store(tmp_path, LAYOUT.bytes)
    get(store, "old", worth=1)
    get(store, "new", worth=2)
    assert names(store) == {"new"}
    store.clear()
    assert names(store) == set()
    assert {name: (tmp_path / name).read_text() for name in FOREIGN} == FOREIGN
    assert (tmp_path / "large.bin").stat().st_size == 2 * LAYOUT.bytes


@pytest.mark.parametrize("content", ["[]", '"text"', "{}", '{"worth": "much", "facts": {}}', "{"])
def test_an_entry_s_name_with_another_content_is_no_entry(tmp_path: Path, content: str) -> None:
    store = Store(tmp_path, LAYOUT.bytes)
    get(store)
    (tmp_path / f"{digest('b')}.json").write_text(content)
    (tmp_path / f"{digest('b')}.bin").write_bytes(b"")
    assert names(store) == {"a"}
    assert torch.equal(get(store, make=refuse), expected())


def test_a_store_marks_its_folder(tmp_path: Path) -> None:
    """The mark is what `cache --clear --dir` looks for before it removes anything."""
    assert not Store(tmp_path, 0).is_marked()
    get(Store(tmp_path / "new", 2**20))
    assert Store(tmp_path / "new", 0).is_marked()
    assert Store(tmp_path, 2**20).is_usable()
    assert Store(tmp_path, 0).is_marked()
    assert (tmp_path / TAG).read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
