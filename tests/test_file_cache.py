"""Copies of far files on a node's own disk: fetched once, whole, under a budget, and equal to the file."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torchvision
from PIL import Image

from finetune.datasets import catalog
from finetune.disk import file_cache, filesystems
from finetune.disk.file_cache import FileCache
from finetune.errors import DataError, WeightsError
from finetune.images.batches import ImageData
from finetune.model import weights
from finetune.settings import DataSettings, WeightsSettings
from search.config import resolve
from search.config.study import StudyConfig


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The file system behind `memory://`, empty again afterwards, and a node with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def copies(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock")


def test_a_file_is_fetched_once_however_many_ask_at_the_same_time(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.pipe("/b/x.bin", bytes(range(256)) * 100)
    fetched: list[str] = []

    def slowly(location: str) -> Any:
        fetched.append(location)
        time.sleep(0.05)
        return filesystems.open_binary(location)

    monkeypatch.setattr(file_cache, "open_binary", slowly)
    found: list[Path | None] = []
    asking = [
        threading.Thread(
            target=lambda: found.append(FileCache(tmp_path / "m", 10**6).local("memory://b/x.bin"))
        )
        for _ in range(6)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert fetched == ["memory://b/x.bin"]
    assert {path.read_bytes() for path in found if path} == {far.cat("/b/x.bin")}
    assert len(found) == 6
    assert copies(tmp_path / "m") == [found[0]]


def test_copies_used_longest_ago_make_room_and_the_budget_holds(far: Any, tmp_path: Path) -> None:
    node = FileCache(tmp_path / "m", 25)
    made = {}
    for name in "abc":
        far.pipe(f"/b/{name}", name.encode() * 10)
    for name in "ab":
        made[name] = node.local(f"memory://b/{name}")
        assert made[name] is not None
        os.utime(str(made[name]), (time.time() - 1000,) * 2)
    assert node.local("memory://b/a") == made["a"]  # used again
    made["c"] = node.local("memory://b/c")
    assert copies(tmp_path / "m") == sorted(path for name, path in made.items() if path and name != "b")
    assert node.local("memory://b/b") is None  # the others were used just now
    with node.open("memory://b/b") as file:
        assert file.read() == b"b" * 10


def test_what_has_no_room_is_read_where_it_is(far: Any, tmp_path: Path) -> None:
    far.pipe("/b/large", b"x" * 100)
    for budget in (50, 0):
        with FileCache(tmp_path / "m", budget).open("memory://b/large") as file:
            assert file.read() == b"x" * 100
    assert copies(tmp_path / "m") == []


def test_a_process_keeps_to_the_budget_that_it_is_told(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_cache, "_budget_bytes", file_cache.BUDGET_BYTES)  # as it was, afterwards
    far.pipe("/b/x", b"x" * 100)
    for budget, count in [(50, 0), (200, 1)]:
        file_cache.limit(budget)
        with file_cache.here().open("memory://b/x") as file:
            assert file.read() == b"x" * 100
        assert len(copies(tmp_path / "cache" / "finetune" / "files")) == count


def test_the_budget_of_a_config_and_that_of_the_code_alone_are_the_same() -> None:
    config = StudyConfig.from_folder("flowers")
    assert resolve.copies_bytes(config) == file_cache.BUDGET_BYTES


def test_a_file_that_changed_is_fetched_again_and_a_broken_fetch_leaves_nothing(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.pipe("/b/x", b"first")
    assert FileCache(tmp_path / "m", 100).local("memory://b/x") is not None
    far.pipe("/b/x", b"other")  # as many bytes, but later
    again = FileCache(tmp_path / "m", 100).local("memory://b/x")
    assert again is not None
    assert again.read_bytes() == b"other"

    def breaks(location: str) -> Any:
        raise OSError("connection lost")

    far.pipe("/b/y", b"third")
    before = copies(tmp_path / "m")
    monkeypatch.setattr(file_cache, "open_binary", breaks)
    with pytest.raises(OSError, match="connection lost"):
        FileCache(tmp_path / "m", 100).local("memory://b/y")
    assert copies(tmp_path / "m") == before


@pytest.mark.parametrize("layout", ["{name}/{i}.png", "{split}/{name}/{i}.png"])
def test_a_folder_behind_a_url_is_the_folder(far: Any, tmp_path: Path, layout: str) -> None:
    """Same classes, splits, fingerprint and pixels; the pixels come from this node's copies."""
    for name, colour in {"daisy": 250, "tulip": 90}.items():
        for i in range(8):
            split = "train" if i < 5 else "Test"
            path = tmp_path / "images" / layout.format(split=split, name=name, i=i)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (colour, 9 * i, 0)).save(path)
    (tmp_path / "images" / ".hidden").mkdir()
    (tmp_path / "images" / ".hidden" / "x.png").write_bytes(b"no image")
    far.put(str(tmp_path / "images"), "/bucket/flowers", recursive=True)
    near, there = (
        DataSettings(kind="folder", path=path, image_size=16)
        for path in (str(tmp_path / "images"), "memory://bucket/flowers")
    )
    here, found = catalog.scan(near), catalog.scan(there)
    assert found.fingerprint == here.fingerprint
    assert found.counts() == here.counts()
    rows = torch.arange(3)
    assert torch.equal(
        ImageData(found, there).batch("train", rows), ImageData(here, near).batch("train", rows)
    )
    assert len(copies(tmp_path / "cache" / "finetune" / "files")) == 3


def test_a_folder_behind_a_url_that_is_not_there_is_refused(far: Any) -> None:
    for path in ("memory://bucket/none", "nonsense://bucket"):
        with pytest.raises(DataError, match=path):
            catalog.scan(DataSettings(kind="folder", path=path))


def test_weights_behind_a_url_are_those_of_the_file(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torchvision.models.get_model("squeezenet1_1", weights=None, num_classes=7)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    far.put(str(tmp_path / "w.pth"), "/bucket/w.pth")
    near = weights.load("squeezenet1_1", WeightsSettings(file=str(tmp_path / "w.pth")))
    there = weights.load("squeezenet1_1", WeightsSettings(file="memory://bucket/w.pth"))
    assert there.sha256 == near.sha256
    assert there.origin == "memory://bucket/w.pth"
    monkeypatch.setattr(file_cache, "_budget_bytes", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with pytest.raises(
        WeightsError, match=r"w\.pth must fit into this node's cache.* Raise data\.copies_gib"
    ):
        weights.load("squeezenet1_1", WeightsSettings(file="memory://bucket/w.pth"))
    with pytest.raises(WeightsError, match=r"memory://bucket/none\.pth must be readable, got FileNotFound"):
        weights.load("squeezenet1_1", WeightsSettings(file="memory://bucket/none.pth"))
