"""Small copies of torchvision's sets, each written to disk as torchvision's own class expects it.

Every writer takes the root folder and writes six images per split, where the format allows it with the
labels LABELS. Sums (MD5) of the published files are not theirs: a test that reads them has to say so.
Not here: PCAM, whose files need h5py.
"""

import bz2
import json
import pickle
import struct
import tarfile
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

LABELS = (0, 1, 0, 1, 2, 2)


def image(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 40), (level, 0, 0)).save(path)


def idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def squares(side: int) -> np.ndarray:
    """Grey images (6, side, side), each of one level."""
    return np.stack([np.full((side, side), 10 * row, dtype=np.uint8) for row in range(len(LABELS))])


def mnist(name: str, train: str = "train", test: str = "t10k") -> Callable[[Path], None]:
    """A writer of MNIST's format, which other sets share."""

    def write(root: Path) -> None:
        for part in (train, test):
            idx(root / name / "raw" / f"{part}-images-idx3-ubyte", squares(28))
            idx(root / name / "raw" / f"{part}-labels-idx1-ubyte", np.array(LABELS))

    return write


fashion = mnist("FashionMNIST")


def qmnist(root: Path) -> None:
    """Labels are rows of eight numbers, of which the first is the digit."""
    raw = root / "QMNIST" / "raw"
    for part in ("train", "test"):
        idx(raw / f"qmnist-{part}-images-idx3-ubyte", squares(28))
        rows = np.array([[label, 0, 0, 0, 0, 0, 0, 0] for label in LABELS])
        head = struct.pack(f">BBBB{rows.ndim}I", 0, 0, 12, rows.ndim, *rows.shape)
        (raw / f"qmnist-{part}-labels-idx2-int").write_bytes(head + rows.astype(">i4").tobytes())


def cifar(folder: str, files: Sequence[str], meta: tuple[str, str], labels: str) -> Callable[[Path], None]:
    """A writer of CIFAR's format: pickled rows of 3072 bytes."""

    def write(root: Path) -> None:
        base = root / folder
        base.mkdir()
        pixels = np.tile(10 * np.arange(6, dtype=np.uint8)[:, None], 3072)
        for file in files:
            (base / file).write_bytes(pickle.dumps({"data": pixels, labels: list(LABELS)}))
        file, key = meta
        (base / file).write_bytes(pickle.dumps({key: ["frog", "ship", "truck"]}))

    return write


CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def svhn(root: Path) -> None:
    """The digit 0 has the label 10."""
    for part in ("train", "test"):
        pixels = np.repeat(squares(32).transpose(1, 2, 0)[:, :, None], 3, axis=2)  # (32, 32, 3, 6)
        labels = np.array([[label or 10] for label in LABELS], dtype=np.uint8)
        savemat(root / f"{part}_32x32.mat", {"X": pixels, "y": labels})


def stl10(root: Path) -> None:
    base = root / "stl10_binary"
    base.mkdir()
    (base / "class_names.txt").write_text("airplane\nbird\ncar\n")
    for part in ("train", "test"):
        pixels = np.repeat(squares(96)[:, None], 3, axis=1)
        (base / f"{part}_X.bin").write_bytes(pixels.tobytes())
        (base / f"{part}_y.bin").write_bytes(bytes(label + 1 for label in LABELS))
    (base / "unlabeled_X.bin").write_bytes(b"")


def semeion(root: Path) -> None:
    rows = []
    for row, label in enumerate(LABELS):
        pixels = [f"{int(place % 7 == row):.4f}" for place in range(256)]
        rows.append(" ".join([*pixels, *(str(int(digit == label)) for digit in range(10))]))
    (root / "semeion.data").write_text("\n".join(rows) + "\n")


def fer(root: Path) -> None:
    lines = ["emotion,pixels,Usage"]
    for usage in ("Training", "PublicTest", "PrivateTest"):
        for row, label in enumerate(LABELS):
            lines.append(f"{label},{' '.join([str(10 * row)] * 48 * 48)},{usage}")
    (root / "fer2013").mkdir()
    (root / "fer2013/fer2013.csv").write_text("\n".join(lines) + "\n")


def caltech101(root: Path) -> None:
    """Images are counted in each folder and named by number; one folder is no class."""
    base = root / "caltech101/101_ObjectCategories"
    for name, count in (("BACKGROUND_Google", 1), ("accordion", 2), ("anchor", 2), ("ant", 2)):
        for number in range(1, count + 1):
            image(base / name / f"image_{number:04}.jpg", 20 * number)


def caltech256(root: Path) -> None:
    base = root / "caltech256/256_ObjectCategories"
    for place, name in enumerate(("001.ak47", "002.american-flag", "003.backpack"), 1):
        for number in (1, 2):
            image(base / name / f"{place:03}_{number:04}.jpg", 20 * number + place)


def sun(root: Path) -> None:
    """Some classes lie two folders deep."""
    base = root / "SUN397"
    for name in ("a/abbey", "c/church/indoor", "c/church/outdoor"):
        for row in range(2):
            image(base / name / f"sun_{name.replace('/', '_')}{row}.jpg", 20 * row)
    (base / "ClassName.txt").write_text("/a/abbey\n/c/church/indoor\n/c/church/outdoor\n")


def flowers(root: Path) -> None:
    base = root / "flowers-102"
    for number in range(1, 19):
        image(base / f"jpg/image_{number:05}.jpg", number)
    parts = {"trnid": range(1, 7), "valid": range(7, 13), "tstid": range(13, 19)}
    savemat(base / "setid.mat", {name: np.array([list(numbers)]) for name, numbers in parts.items()})
    savemat(base / "imagelabels.mat", {"labels": np.array([LABELS * 3]) + 1})


def cars(root: Path) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(["Acura RL", "Audi R8", "BMW X5"], dtype=object)
    savemat(base / "devkit/cars_meta.mat", {"class_names": names})
    files = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for part, file in files.items():
        rows = np.zeros(len(LABELS), dtype=[("class", "O"), ("fname", "O")])
        for row, label in enumerate(LABELS):
            image(base / f"cars_{part}/{row:05}.jpg", row)
            rows[row] = (label + 1, f"{row:05}.jpg")
        savemat(base / file, {"annotations": rows})


def aircraft(root: Path) -> None:
    base = root / "fgvc-aircraft-2013b/data"
    names = ("707-320", "Cessna 172", "Falcon 900")
    for part in ("train", "val", "test"):
        lines = [f"{part}{row} {names[label]}" for row, label in enumerate(LABELS)]
        for row in range(len(LABELS)):
            image(base / f"images/{part}{row}.jpg", row)
        (base / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
    (base / "variants.txt").write_text("\n".join(names) + "\n")


def imagenette(root: Path) -> None:
    for part in ("train", "val"):
        for row, label in enumerate(LABELS):
            wnid = ("n01440764", "n02979186", "n03028079")[label]
            image(root / f"imagenette2/{part}/{wnid}/{row}.JPEG", row)


def sst(root: Path) -> None:
    for part in ("train", "valid", "test"):
        for row in range(6):
            image(root / f"rendered-sst2/{part}" / ("negative", "positive")[row % 2] / f"{row}.png", row)


def places(root: Path) -> None:
    names = ("/a/airfield", "/a/alley", "/b/beach")
    (root / "categories_places365.txt").write_text("".join(f"{n} {i}\n" for i, n in enumerate(names)))
    train = [f"{names[label]}/{row}.jpg {label}" for row, label in enumerate(LABELS)]
    val = [f"val{row}.jpg {label}" for row, label in enumerate(LABELS)]
    for row, line in enumerate(train):
        image(root / f"data_256_standard{line.split()[0]}", row)
        image(root / f"val_256/{val[row].split()[0]}", row)
    (root / "places365_train_standard.txt").write_text("\n".join(train) + "\n")
    (root / "places365_val.txt").write_text("\n".join(val) + "\n")


def imagenet(root: Path) -> None:
    """The three archives that its site offers; torchvision unpacks them where it finds them."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    names = ["tench, Tinca tinca", "crane", "crane"]
    wnids = ["n01440764", "n02012849", "n03126707"]
    synsets = np.zeros(4, dtype=kind)
    for place in range(3):
        synsets[place] = (place + 1, wnids[place], names[place], "", 0)
    synsets[3] = (4, "n00000000", "entity", "", 3)  # has children, so it is no class
    meta = BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "\n".join(str(label + 1) for label in LABELS) + "\n"
    data = "ILSVRC2012_devkit_t12/data"
    devkit = {f"{data}/meta.mat": meta.getvalue(),
              f"{data}/ILSVRC2012_validation_ground_truth.txt": truth.encode()}  # fmt: skip
    packed(root / "ILSVRC2012_devkit_t12.tar.gz", devkit, "w:gz")
    photos = {row: jpeg(20 * row) for row in range(len(LABELS))}
    classes = {}
    for place, wnid in enumerate(wnids):
        own = {f"{wnid}_{row}.JPEG": photos[row] for row, label in enumerate(LABELS) if label == place}
        classes[f"{wnid}.tar"] = packed(root / "class.tar", own).read_bytes()
    packed(root / "ILSVRC2012_img_train.tar", classes)
    (root / "class.tar").unlink()
    packed(root / "ILSVRC2012_img_val.tar", {f"val_{row:08}.JPEG": photo for row, photo in photos.items()})


def jpeg(level: int) -> bytes:
    content = BytesIO()
    Image.new("RGB", (48, 40), (level, 0, 0)).save(content, "jpeg")
    return content.getvalue()


def packed(path: Path, files: Mapping[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, BytesIO(content))
    return path


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


Format = tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]
_DIGITS = ("0", "1", "2")
FORMATS: dict[str, Format] = {
    "CIFAR10": (
        cifar("cifar-10-batches-py", CIFAR10_FILES, ("batches.meta", "label_names"), "labels"),
        ("frog", "ship", "truck"),
        ("val",),
    ),
    "CIFAR100": (
        cifar("cifar-100-python", ("train", "test"), ("meta", "fine_label_names"), "fine_labels"),
        ("frog", "ship", "truck"),
        ("val",),
    ),
    "CLEVRClassification": (clevr, ("09", "10", "11"), ()),
    "Caltech101": (caltech101, ("accordion", "anchor", "ant"), ("val", "test")),
    "Caltech256": (caltech256, ("001.ak47", "002.american-flag", "003.backpack"), ("val", "test")),
    "Country211": (country, ("AT", "BE", "CH"), ()),
    "DTD": (dtd, ("dotted", "lined", "woven"), ()),
    "EMNIST": (mnist("EMNIST", "emnist-balanced-train", "emnist-balanced-test"), _DIGITS, ("val",)),
    "EuroSAT": (eurosat, ("Forest", "Lake", "River"), ("val", "test")),
    "FER2013": (fer, _DIGITS, ("val",)),
    "FGVCAircraft": (aircraft, ("707-320", "Cessna 172", "Falcon 900"), ()),
    "FashionMNIST": (fashion, ("T-shirt/top", "Trouser", "Pullover"), ("val",)),
    "Flowers102": (flowers, ("pink primrose", "hard-leaved pocket orchid", "canterbury bells"), ()),
    "Food101": (food, ("pizza", "sushi"), ("val",)),
    "GTSRB": (gtsrb, _DIGITS, ("val",)),
    "ImageNet": (imagenet, ("tench, Tinca tinca", "crane (1)", "crane (2)"), ()),
    "Imagenette": (imagenette, ("tench, Tinca tinca", "cassette player", "church, church building"), ()),
    "KMNIST": (mnist("KMNIST"), ("o", "ki", "su"), ("val",)),
    "MNIST": (mnist("MNIST"), ("0 - zero", "1 - one", "2 - two"), ("val",)),
    "OxfordIIITPet": (pets, ("Abyssinian", "Basset Hound", "Sphynx"), ("val",)),
    "Places365": (places, ("/a/airfield", "/a/alley", "/b/beach"), ()),
    "QMNIST": (qmnist, ("0 - zero", "1 - one", "2 - two"), ("val",)),
    "RenderedSST2": (sst, ("negative", "positive"), ()),
    "SEMEION": (semeion, _DIGITS, ("val", "test")),
    "STL10": (stl10, ("airplane", "bird", "car"), ("val",)),
    "SUN397": (sun, ("abbey", "church/indoor", "church/outdoor"), ("val", "test")),
    "SVHN": (svhn, _DIGITS, ("val",)),
    "StanfordCars": (cars, ("Acura RL", "Audi R8", "BMW X5"), ("val",)),
    "USPS": (usps, _DIGITS, ("val",)),
}
"""Set -> writer of its format, its classes in torchvision's order, the splits that must be made."""
