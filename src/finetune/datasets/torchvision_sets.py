"""Read kind `torchvision`: torchvision's classification sets, by the name of their class.

Only torchvision knows the layout of its sets on disk. So the process that scans one imports torchvision, and
with it torch. In a search this happens once per study, and for this kind alone. A child process would cost
the same seconds, and need a protocol for pixels, since half of the sets are not made of image files.

Some sets are left out: those without one label per image (detection, captions, attributes, video), Omniglot
and LFW (their test classes differ), iNaturalist (its labels have six levels), LSUN (lmdb), and FakeData,
which reseeds torch from its reading threads (kind `digits` needs no download either).

All sets but PCAM, whose files need h5py, were tried without a network, on small copies in the formats that
torchvision reads. The published files themselves were not tried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image

from finetune import steps
from finetune.datasets.sources import Files, Reader, Source
from finetune.errors import DataError, did_you_mean
from finetune.settings import SampleSettings

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class SetFacts:
    """The splits of a set, as arguments of torchvision's class."""

    splits: Mapping[str, Arguments]
    """Split -> arguments of the class. Splits that are missing here are made from `train`."""
    whole: bool = False
    """True if the images show their object from edge to edge; evaluation then does not crop them."""


def _named(train: str = "train", **others: str) -> dict[str, Arguments]:
    return {split: {"split": name} for split, name in {"train": train, **others}.items()}


_FLAG: Mapping[str, Arguments] = {"train": {"train": True}, "test": {"train": False}}
_ALL: Mapping[str, Arguments] = {"train": {}}
_SMALL: Mapping[str, Arguments] = {
    split: {"split": name, "small": True} for split, name in (("train", "train-standard"), ("val", "val"))
}
_BALANCED: Mapping[str, Arguments] = {
    split: {"split": "balanced", **arguments} for split, arguments in _FLAG.items()
}

SETS: Mapping[str, SetFacts] = {
    "CIFAR10": SetFacts(_FLAG, whole=True),
    "CIFAR100": SetFacts(_FLAG, whole=True),
    "CLEVRClassification": SetFacts(_named(val="val")),
    "Caltech101": SetFacts(_ALL),
    "Caltech256": SetFacts(_ALL),
    "Country211": SetFacts(_named(val="valid", test="test")),
    "DTD": SetFacts(_named(val="val", test="test")),
    "EMNIST": SetFacts(_BALANCED, whole=True),
    "EuroSAT": SetFacts(_ALL, whole=True),
    "FER2013": SetFacts(_named(test="test"), whole=True),
    "FGVCAircraft": SetFacts(_named(val="val", test="test")),
    "FashionMNIST": SetFacts(_FLAG, whole=True),
    "Flowers102": SetFacts(_named(val="val", test="test")),
    "Food101": SetFacts(_named(test="test")),
    "GTSRB": SetFacts(_named(test="test"), whole=True),
    "ImageNet": SetFacts(_named(val="val")),
    "Imagenette": SetFacts(_named(val="val")),
    "KMNIST": SetFacts(_FLAG, whole=True),
    "MNIST": SetFacts(_FLAG, whole=True),
    "OxfordIIITPet": SetFacts(_named("trainval", test="test")),
    "PCAM": SetFacts(_named(val="val", test="test"), whole=True),
    "Places365": SetFacts(_SMALL),
    "QMNIST": SetFacts(_FLAG, whole=True),
    "RenderedSST2": SetFacts(_named(val="val", test="test"), whole=True),
    "SEMEION": SetFacts(_ALL, whole=True),
    "STL10": SetFacts(_named(test="test"), whole=True),
    "SUN397": SetFacts(_ALL),
    "SVHN": SetFacts(_named(test="test"), whole=True),
    "StanfordCars": SetFacts(_named(test="test")),
    "USPS": SetFacts(_FLAG, whole=True),
}
"""Name of a class in `torchvision.datasets` -> its splits."""
NO_DOWNLOAD = frozenset({"FER2013", "ImageNet", "StanfordCars"})
"""Sets that torchvision cannot download: their sites require an account, or are gone."""


def check_name(name: str | None) -> str:
    """Return `name`.

    Raises:
        DataError: `name` is not in `SETS`; the message names the nearest sets.
    """
    if name is None or name not in SETS:
        hint = did_you_mean(name or "", SETS)
        raise DataError(f"data.name: must name one of torchvision's sets, got {name!r}. {hint}")
    return name


def torchvision_set(data: SampleSettings) -> Source:
    """Return the images of torchvision's set `data.name` below the folder `data.path`.

    The set's own train, val and test splits are used, except a split whose labels are not public.

    Raises:
        DataError: there is no such set, or torchvision does not find all of it below the folder.
    """
    name = check_name(data.name)
    if data.path is None:
        raise DataError("data.path: kind 'torchvision' needs the folder of the sets, got None. Name one.")
    if data.download and name in NO_DOWNLOAD:
        raise DataError(
            f"data.download: torchvision cannot download {name}, got true. Put its files below {data.path}."
        )
    if data.download:
        _ensure(name, data.path)
    sets = _open_sets(name, data.path)
    files = {split: _files(Path(data.path), images) for split, images in sets.items()}
    if all(files.values()):
        reader: Reader = Files(data.path)
    else:
        reader = _Arrays(name, data.path)
        files = {split: [f"{split}/{row}" for row in range(len(images))] for split, images in sets.items()}
    grouped = {split: _by_class(images, files[split] or []) for split, images in sets.items()}
    given = {split: by_class for split, by_class in grouped.items() if by_class}
    names = _class_names(sets["train"])
    classes = tuple(name for name in names if name in given["train"]) if names else None
    return Source(given, reader, classes=classes, whole=SETS[name].whole)


def _by_class(images: Any, paths: Sequence[str]) -> dict[str, list[str]]:
    """Return class -> paths of a split; empty if its labels are not public (None or -1)."""
    labels, names = _labels(images), _class_names(images)
    by_class: dict[str, list[str]] = {}
    if any(label is None or label < 0 for label in labels):
        return by_class
    digits = len(str(max(labels, default=0)))
    for path, label in zip(paths, labels, strict=True):
        by_class.setdefault(names[label] if names else f"{label:0{digits}}", []).append(path)
    return by_class


@dataclass(frozen=True)
class _Arrays:
    """Reader of a set without image files, by paths such as `train/17`."""

    name: str
    root: str

    def frames(self, path: str, count: int, at_least: int | None = None) -> list[Image.Image]:
        return [self.open(path, at_least)] * count

    def open(self, path: str, at_least: int | None = None) -> Image.Image:
        split, _, index = path.partition("/")
        try:
            image: Image.Image = _open_sets(self.name, self.root)[split][int(index)][0]
            return image.convert("RGB")
        except Exception as error:  # each set raises errors of its own
            raise DataError(
                f"{self.name} {path}: an image must be readable, got {type(error).__name__}: {error}. "
                f"Replace the set below {self.root}."
            ) from error

    def sample(self, path: str) -> tuple[int, bytes]:
        content = self.content(path)
        return len(content), content

    def content(self, path: str) -> bytes:
        return self.open(path).tobytes()


def _ensure(name: str, root: str) -> None:
    """Download the set if it is missing; one process of a node does, while the others wait for its lock."""
    Path(root).mkdir(parents=True, exist_ok=True)
    with FileLock(Path(root) / f".{name}.lock"):
        try:
            _open_sets(name, root)
        except DataError:
            with steps.growing(f"download {name}", lambda: Path(root).rglob("*"), why="once on each node"):
                for arguments in SETS[name].splits.values():
                    _open_set(name, root, {**arguments, "download": True})


@lru_cache(maxsize=2)
def _open_sets(name: str, root: str) -> dict[str, Any]:
    """Return split -> torchvision's dataset; the last two sets stay open."""
    return {split: _open_set(name, root, arguments) for split, arguments in SETS[name].splits.items()}


def _open_set(name: str, root: str, arguments: Arguments) -> Any:
    from torchvision import datasets  # imports torch, which takes seconds that other kinds need not spend

    if name == "SEMEION":  # the only one that downloads unless told not to
        arguments = {"download": False, **arguments}
    try:
        return getattr(datasets, name)(root, **arguments)
    except Exception as error:  # each set raises errors of its own
        said = ", ".join(f"{key} {value}" for key, value in arguments.items())
        fix = "Check the network, or put its files there."
        if not arguments.get("download"):
            fix = "Correct data.path, or download it."
        if "installed" in str(error):  # PCAM without h5py
            fix = "Install it on every node."
        raise DataError(
            f"{root}: must hold torchvision's {name} ({said}), got {type(error).__name__}: {error}. {fix}"
        ) from error


def _files(root: Path, images: Any) -> list[str] | None:
    """Return the path of every image relative to `root`; None for a set without image files."""
    for field in ("_image_files", "_images", "_samples", "samples", "imgs"):
        entries = getattr(images, field, None)
        if not entries:
            continue
        paths = [entry[0] if isinstance(entry, tuple) else entry for entry in entries]
        if isinstance(paths[0], str | Path):
            return [Path(path).relative_to(root).as_posix() for path in paths]
    return None


def _labels(images: Any) -> Sequence[Any]:
    """Return the label of every image, without decoding images if the set allows it."""
    for field in ("targets", "_labels", "labels", "y"):
        found = getattr(images, field, None)
        if found is not None and getattr(found, "ndim", 1) == 1:
            return found.tolist() if hasattr(found, "tolist") else list(found)
    for field in ("_samples", "samples"):
        pairs = getattr(images, field, None)
        if pairs is not None:
            return [label for _, label in pairs]
    return [images[index][1] for index in range(len(images))]


def _class_names(images: Any) -> list[str] | None:
    """Return a unique class name for each label; None for a set that has only numbers."""
    names = getattr(images, "classes", None) or getattr(images, "categories", None)
    if not names:
        return None
    plain = [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]
    return [
        f"{name} ({label})" if plain.count(name) > 1 else name  # ImageNet has two cranes
        for label, name in enumerate(plain)
    ]
