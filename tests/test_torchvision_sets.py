"""Torchvision's sets, read by its own classes from files in their real formats, without a network."""

import bz2
import hashlib
import inspect
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from finetune.catalog import Catalog, scan
from finetune.data import ImageData
from finetune.errors import DataError
from finetune.settings import DataSettings
from finetune.torchvision_sets import NO_DOWNLOAD, SETS

LABELS = (0, 1, 0, 1, 2, 2)


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


def image(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 40), (level, 0, 0)).save(path)


def idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def fashion(root: Path) -> None:
    for part in ("train", "t10k"):
        raw = root / "FashionMNIST" / "raw"
        pixels = np.stack([np.full((28, 28), 10 * row) for row in range(len(LABELS))])
        idx(raw / f"{part}-images-idx3-ubyte", pixels)
        idx(raw / f"{part}-labels-idx1-ubyte", np.array(LABELS))


def usps(root: Path) -> None:
    for name in ("usps.bz2", "usps.t.bz2"):
        rows = [
            f"{label + 1} " + " ".join(f"{i + 1}:{row / 10 - 1}" for i in range(256))
            for row, label in enumerate(LABELS)
        ]
        (root / name).write_bytes(bz2.compress("\n".join(rows).encode()))


def eurosat(root: Path) -> None:
    for row, label in enumerate(LABELS):
        image(root / "eurosat/2750" / ("Forest", "River", "Lake")[label] / f"{row}.jpg", row)


def dtd(root: Path) -> None:
    for part in ("train", "val", "test"):
        names = [f"{('dotted', 'lined', 'woven')[label]}/{part}{row}.jpg" for row, label in enumerate(LABELS)]
        for row, name in enumerate(names):
            image(root / "dtd/dtd/images" / name, row)
        (root / "dtd/dtd/labels").mkdir(exist_ok=True)
        (root / f"dtd/dtd/labels/{part}1.txt").write_text("\n".join(names) + "\n")


def food(root: Path) -> None:
    for part in ("train", "test"):
        names = {kind: [f"{kind}/{part}{row}" for row in range(2)] for kind in ("pizza", "sushi")}
        for row, name in enumerate(name for part_ in names.values() for name in part_):
            image(root / f"food-101/images/{name}.jpg", row)
        (root / "food-101/meta").mkdir(exist_ok=True)
        (root / f"food-101/meta/{part}.json").write_text(json.dumps(names))


def pets(root: Path) -> None:
    for part in ("trainval", "test"):
        lines = []
        for row, label in enumerate(LABELS):
            name = f"{('Abyssinian', 'basset_hound', 'sphynx')[label]}_{part}{row}"
            image(root / f"oxford-iiit-pet/images/{name}.jpg", row)
            lines.append(f"{name} {label + 1} 1 1")
        (root / "oxford-iiit-pet/annotations").mkdir(exist_ok=True)
        (root / f"oxford-iiit-pet/annotations/{part}.txt").write_text("\n".join(lines) + "\n")


def country(root: Path) -> None:
    for part in ("train", "valid", "test"):
        for row, label in enumerate(LABELS):
            image(root / f"country211/{part}" / ("AT", "BE", "CH")[label] / f"{row}.jpg", row)


def gtsrb(root: Path) -> None:
    base = root / "gtsrb"
    for row, label in enumerate(LABELS):
        image(base / f"GTSRB/Training/{label:05}/{row}.ppm", row)
        image(base / f"GTSRB/Final_Test/Images/{row}.ppm", row)
    lines = ["Filename;ClassId", *(f"{row}.ppm;{label}" for row, label in enumerate(LABELS))]
    (base / "GT-final_test.csv").write_text("\n".join(lines) + "\n")


def clevr(root: Path) -> None:
    base = root / "clevr/CLEVR_v1.0"
    (base / "scenes").mkdir(parents=True)
    for part in ("train", "val"):
        scenes = []
        for row, label in enumerate(LABELS):
            image(base / f"images/{part}/{row}.png", row)
            scenes.append({"image_filename": f"{row}.png", "objects": [{}] * (label + 9)})
        (base / f"scenes/CLEVR_{part}_scenes.json").write_text(json.dumps({"scenes": scenes}))


FORMATS: dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]] = {
    "FashionMNIST": (fashion, ("T-shirt/top", "Trouser", "Pullover"), ("val",)),
    "USPS": (usps, ("0", "1", "2"), ("val",)),
    "EuroSAT": (eurosat, ("Forest", "Lake", "River"), ("val", "test")),
    "DTD": (dtd, ("dotted", "lined", "woven"), ()),
    "Food101": (food, ("pizza", "sushi"), ("val",)),
    "OxfordIIITPet": (pets, ("Abyssinian", "Basset Hound", "Sphynx"), ("val",)),
    "Country211": (country, ("AT", "BE", "CH"), ()),
    "GTSRB": (gtsrb, ("0", "1", "2"), ("val",)),
    "CLEVRClassification": (clevr, ("09", "10", "11"), ()),
}
"""Set -> writer of its format, its classes in torchvision's order, the splits that must be made."""


@pytest.mark.parametrize("name", FORMATS)
def test_a_set_is_read_with_its_own_splits_and_classes_and_torchvisions_pixels(
    name: str, tmp_path: Path
) -> None:
    write, classes, made = FORMATS[name]
    write(tmp_path)
    found = read(name, tmp_path, test_share=0.1)
    assert (found.classes, found.made, found.whole) == (classes, made, SETS[name].whole)
    theirs = getattr(datasets, name)(str(tmp_path), **SETS[name].splits["train"])
    pixels = sorted(picture.convert("RGB").tobytes() for picture, _ in theirs)
    ours = [e for split in ("train", *made) for e in found.splits[split]]
    assert sorted(found.open(e).tobytes() for e in ours) == pixels
    assert found == read(name, tmp_path, test_share=0.1)


def test_cifar10_is_read_as_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class checks MD5 sums; here they are those of smaller files in the same format."""
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    names = ["frog", "ship", "truck"]
    batch = {"data": np.tile(np.arange(6, dtype=np.uint8)[:, None], 3072), "labels": list(LABELS)}
    sums = {}
    for name, content in (("one", batch), ("test", batch), ("meta", {"label_names": names})):
        (base / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    meta = {"filename": "meta", "key": "label_names", "md5": sums["meta"]}
    for field, value in (("train_list", "one"), ("test_list", "test")):
        monkeypatch.setattr(datasets.CIFAR10, field, [[value, sums[value]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    found = read("CIFAR10", tmp_path)
    assert (found.classes, found.made, found.whole) == (("frog", "ship", "truck"), ("val",), True)
    assert [found.open(e).getpixel((3, 4))[0] for e in found.splits["test"]] == [0, 2, 1, 3, 4, 5]


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
    assert len(read("USPS", tmp_path / "new" / "root", download=True).splits["test"]) == len(LABELS)


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
