"""Torchvision's sets, read by its own classes from files in their real formats, without a network."""

import hashlib
import inspect
import pickle
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from torchvision import datasets

from finetune import steps
from finetune.datasets.catalog import Catalog, scan
from finetune.datasets.torchvision_sets import NO_DOWNLOAD, SETS
from finetune.errors import DataError
from finetune.images.batches import ImageData
from finetune.settings import DataSettings
from finetune.steps import Step
from tests.torchvision_copies import FORMATS, LABELS, eurosat, fashion, usps


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address on this machine that serves it."""
    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def read(name: str, root: Path, **changes: object) -> Catalog:
    return scan(DataSettings(kind="torchvision", name=name, path=str(root), **changes))


def test_every_set_but_the_one_that_needs_h5py_has_a_copy_here() -> None:
    assert set(SETS) - set(FORMATS) == {"PCAM"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_set_is_read_with_its_own_splits_and_classes_and_torchvisions_pixels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torchvision's class from files in its format; only sums are not those of the published files."""
    monkeypatch.setattr(datasets.utils, "check_md5", lambda *_, **__: True)
    write, classes, made = FORMATS[name]
    write(tmp_path)
    found = read(name, tmp_path, test_share=0.1)
    assert (found.classes, found.made, found.whole) == (classes, made, SETS[name].whole)
    theirs = getattr(datasets, name)(str(tmp_path), **SETS[name].splits["train"])
    pixels = sorted(picture.convert("RGB").tobytes() for picture, _ in theirs)
    ours = [e for split in ("train", *made) for e in found.splits[split]]
    assert sorted(found.open(e).tobytes() for e in ours) == pixels
    assert found == read(name, tmp_path, test_share=0.1)


def test_a_set_without_files_travels_by_pickle_and_is_seen_whole(tmp_path: Path) -> None:
    fashion(tmp_path)
    found = pickle.loads(pickle.dumps(read("FashionMNIST", tmp_path)))
    settings = DataSettings(kind="torchvision", name="FashionMNIST", path=str(tmp_path), image_size=28)
    batch = ImageData(found, settings).batch("test", torch.arange(6))
    levels = [int(e.path.split("/")[1]) * 10 for e in found.splits["test"]]
    assert batch[:, 0, 0, 0].tolist() == levels


def test_images_in_files_go_by_their_paths(tmp_path: Path) -> None:
    eurosat(tmp_path)
    found = read("EuroSAT", tmp_path)
    assert found.splits["train"][0].path.startswith("eurosat/2750/Forest/")


def test_changed_pixels_change_the_fingerprint_of_a_set_without_files(tmp_path: Path) -> None:
    for root, level in ((tmp_path / "a", 0), (tmp_path / "b", 1)):
        fashion(root)
        file = root / "FashionMNIST/raw/t10k-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:-1] + bytes([level]))
    datasets_ = [read("FashionMNIST", tmp_path / name) for name in "ab"]
    assert datasets_[0].fingerprint != datasets_[1].fingerprint


def test_every_set_is_a_class_of_torchvision_and_takes_its_arguments() -> None:
    for name, facts in SETS.items():
        known = inspect.signature(getattr(datasets, name)).parameters
        any_of_them = any(value.kind is inspect.Parameter.VAR_KEYWORD for value in known.values())
        for arguments in facts.splits.values():
            assert any_of_them or set(arguments) <= set(known), name
        if name not in NO_DOWNLOAD:
            assert any_of_them or "download" in known, name


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("FashonMNIST", "got 'FashonMNIST'. Did you mean 'FashionMNIST'"),
        ("FakeData", "must name one of torchvision's sets, got 'FakeData'."),
        (None, "must name one of torchvision's sets, got None. Known: CIFAR10"),
    ],
)
def test_an_unknown_set_is_answered_with_the_nearest(name: str | None, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        scan(DataSettings(kind="torchvision", name=name, path=str(tmp_path)))
    assert told in str(caught.value)


def test_a_set_that_is_not_there_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read("CIFAR10", tmp_path)
    assert f"{tmp_path}: must hold torchvision's CIFAR10 (train True), got RuntimeError" in str(caught.value)
    assert "Correct data.path, or download it." in str(caught.value)


def test_a_set_whose_reader_is_not_installed_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)  # as where it is not installed
    told = r"PCAM \(split train\), got RuntimeError: .* pip install h5py\. Install it on every node\."
    with pytest.raises(DataError, match=told):
        read("PCAM", tmp_path)


def test_a_set_that_is_not_there_is_fetched_if_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: tuple[Path, str]
) -> None:
    """By torchvision's own downloader, from a server on this machine."""
    folder, url = site
    usps(folder)
    resources = {
        split: [f"{url}/{name}", name, hashlib.md5((folder / name).read_bytes()).hexdigest()]
        for split, name in (("train", "usps.bz2"), ("test", "usps.t.bz2"))
    }
    monkeypatch.setattr(datasets.USPS, "split_list", resources)
    told: list[Step] = []
    with steps.listening(told.append):
        found = read("USPS", tmp_path / "new" / "root", download=True)
    assert len(found.splits["test"]) == len(LABELS)
    last = [step for step in told if step.name == "download USPS"][-1]
    assert last.over
    assert last.done >= sum((folder / name).stat().st_size for name in ("usps.bz2", "usps.t.bz2"))


def test_a_set_that_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: fail())
    eurosat(tmp_path)
    assert read("EuroSAT", tmp_path, download=True).classes == ("Forest", "Lake", "River")
    with pytest.raises(
        DataError, match=r"DTD \(split train, download True\).*Check the network, or put its files there"
    ):
        read("DTD", tmp_path, download=True)
    with pytest.raises(DataError, match=r"torchvision cannot download ImageNet, got true"):
        read("ImageNet", tmp_path, download=True)
