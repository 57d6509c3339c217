"""Read kind `folder`: one folder of images per class, on a disk or behind a URL. Imports no torch.

    ROOT/daisy/1.jpg                        classes alone, or
    ROOT/train/daisy/1.jpg  ROOT/val/...    splits with classes in them

Files and folders that are not used are reported by a finding, never left out silently.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.datasets import clips, metadata
from finetune.datasets.findings import SHOWN, Finding, Grade, listed
from finetune.datasets.sources import EXTENSIONS, SPLIT_NAMES, Files, Source
from finetune.disk.filesystems import is_url
from finetune.errors import DataError
from finetune.settings import SampleSettings

JUNK_FOLDERS = frozenset(
    {*("__macosx", "@eadir", "@tmp", "@recycle", "#recycle", "$recycle.bin"), *("lost+found", "__pycache__")}
    | {"system volume information"}
)
"""Folders that archivers, network storage and systems leave behind, in lower case. They are not classes, and
are not searched."""
JUNK_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
"""Files that systems leave in folders of images, in lower case."""
PHOTOS = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".nef", ".arw", ".svg", ".psd"}
)
"""Suffixes of picture formats that are not supported."""


def folder(data: SampleSettings) -> Source:
    """Return the images of one folder per class, below `train`, `val` and `test` or without splits.

    A folder named like a split counts as one if it has folders inside. Folders inside a class folder are
    searched as well, but links to folders there are not; hidden files and folders are ignored.

    The folder may be a URL that fsspec lists (s3://bucket/flowers); the same rules then apply below it.

    Raises:
        DataError: there is no such folder, it cannot be read, or splits lack `train`.
    """
    if data.path is None:
        raise DataError("data.path: kind 'folder' needs the folder of the images, got None. Name one.")
    where = data.path.rstrip("/") if is_url(data.path) else str(Path(data.path))
    tree = _far_tree(where) if is_url(where) else _tree(Path(where))
    splits, findings = _splits(where, tree)
    given: dict[str, dict[str, list[str]]] = {}
    taken = set()  # files inside class folders, images or not
    folders_of_frames: dict[str, tuple[str, str]] = {}
    for split, top in splits.items():
        prefix = f"{top}/" if top else ""
        given[split] = {name: [] for name in _children(tree.folders, prefix)}
        for path in tree.files:
            name, _, rest = path.removeprefix(prefix).partition("/")
            if path.startswith(prefix) and rest:
                taken.add(path)
                if data.frames > 1 and "/" in rest and clips.is_frame(path):
                    folders_of_frames.setdefault(os.path.dirname(path), (split, name))
                elif _is_image(path) or (data.frames > 1 and clips.is_clip(path)):
                    given[split][name].append(path)
    if folders_of_frames and is_url(where):
        raise DataError(
            f"{where}: folders of frames must lie on a disk or a network file system, got a URL. Copy "
            "them, or use video files."
        )
    for path, (split, name) in folders_of_frames.items():
        given[split][name].append(path)
    tops = set(splits.values())
    loose = [path for path in tree.files if path not in taken and _is_image(path)]
    findings += _loose([path for path in loose if path.count("/") < 1 or path.split("/")[0] in tops])
    passed = {path for path in taken if os.path.basename(path) != metadata.NAME}
    if data.frames > 1:
        passed = {path for path in passed if not clips.is_clip(path)}
    files = Files(where, clips=data.frames > 1)
    texts, groups = metadata.read(files, tree.files, data.text)
    remarks = (*findings, *tree.findings(), *_passed_over(passed))
    return Source(given, files, findings=remarks, texts=texts, groups=groups)


@dataclass
class _Tree:
    """Files and folders below a folder, by paths relative to it, without hidden ones and junk."""

    files: list[str]
    folders: set[str]
    links: list[str] = field(default_factory=list)
    """Links to folders inside classes, which are not searched."""
    junk: list[str] = field(default_factory=list)
    """Folders that contain only junk."""

    def findings(self) -> Iterator[Finding]:
        """Yield findings about links and folders of junk."""
        if self.links:
            text = (
                f"a class folder should hold no links to folders, got {listed(self.links)}. They are not "
                "searched: put the images there, or link each of them."
            )
            yield Finding("warning", "linked", text, count=len(self.links))
        if self.junk:
            text = (
                f"folders should hold images, got only hidden or system files in {listed(self.junk)}. "
                "They are not taken for classes."
            )
            yield Finding("note", "no_class", text, count=len(self.junk))


def _tree(root: Path) -> _Tree:
    """Return the tree below a local folder; links to folders are followed at the level of splits and classes.

    Raises:
        DataError: the path is no folder, or cannot be read.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise DataError(f"{root}: data.path must be an existing folder, got {got}. Correct data.path.")
    found = _Tree([], set())
    try:
        for base, folders, files in os.walk(root, onerror=_raise, followlinks=True):
            place = os.path.relpath(base, root)
            prefix = "" if place == "." else f"{place}/"
            inside = [name for name in sorted(folders) if not _is_junk_folder(name)]
            links = [name for name in inside if _is_inner_link(root, prefix + name)]
            folders[:] = [name for name in inside if name not in links]
            kept = [name for name in sorted(files) if name[0] != "."]
            if prefix and files and not inside and all(name.lower() in JUNK_FILES for name in kept):
                found.junk.append(place)
                continue
            found.folders.update([place] * bool(prefix))
            found.links += [prefix + name for name in links]
            found.files += [prefix + name for name in kept]
    except OSError as error:
        raise DataError(
            f"{root}: the folder must be readable, got {error}. Correct its permissions."
        ) from error
    return found


def _raise(error: OSError) -> None:
    raise error


def _is_junk_folder(name: str) -> bool:
    return name[0] == "." or name.lower() in JUNK_FOLDERS


def _is_inner_link(root: Path, place: str) -> bool:
    """True for a link below a class folder."""
    top, _, rest = place.partition("/")
    outer = not rest or ("/" not in rest and top.lower() in SPLIT_NAMES)
    return not outer and os.path.islink(root / place)


def _far_tree(url: str) -> _Tree:
    """Return the tree below a URL, where there are no empty folders.

    Raises:
        DataError: the URL cannot be listed, or nothing is there.
    """
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(url)
        found = [str(path) for path in filesystem.find(root)]
    except Exception as error:  # each of fsspec's filesystems raises errors of its own
        raise DataError(
            f"{url}: the folder must be readable, got {type(error).__name__}: {error}. Correct data.path."
        ) from error
    if not found:
        raise DataError(f"{url}: data.path must hold files, got none. Correct data.path.")
    paths = [path.removeprefix(root.rstrip("/") + "/") for path in found]
    files = [path for path in paths if not _is_junk(path)]
    known = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
    rest = {path.rpartition("/")[0] for path in paths} - known - {""}
    junk = [place for place in sorted(rest) if not any(_is_junk_folder(part) for part in place.split("/"))]
    return _Tree(files, known, junk=junk)


def _is_junk(path: str) -> bool:
    *folders, name = path.split("/")
    return name[0] == "." or name.lower() in JUNK_FILES or any(map(_is_junk_folder, folders))


def _children(folders: Iterable[str], prefix: str) -> list[str]:
    """Return the names of the folders directly below the folder `prefix`, which ends in `/` or is empty."""
    inside = (place.removeprefix(prefix) for place in folders if place.startswith(prefix))
    return sorted(name for name in inside if "/" not in name)


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def _splits(where: str, tree: _Tree) -> tuple[dict[str, str], list[Finding]]:
    """Return the folder of each split, and findings on unused ones; without splits `train` is the root.

    Raises:
        DataError: `train` is missing among the splits, or may be a class.
    """
    tops = _children(tree.folders, "")
    order = list(SPLIT_NAMES)
    like_splits = [top for top in tops if top.lower() in SPLIT_NAMES]
    found: dict[str, str] = {}
    for top in sorted(like_splits, key=lambda top: order.index(top.lower())):
        if _children(tree.folders, f"{top}/"):
            found.setdefault(SPLIT_NAMES[top.lower()], top)
    if not found:
        return {"train": ""}, list(_classes_like_splits(like_splits))
    if "train" not in found:
        raise DataError(
            f"{where}: folders of splits need 'train' among them, got {', '.join(sorted(found.values()))}. "
            "Add 'train', or put the class folders straight into the root; rename them if they are classes."
        )
    images = Counter(path.split("/")[0] for path in tree.files if _is_image(path) and "/" in path)
    unused = [top for top in tops if top not in found.values() and images[top]]
    classes = [top for top in unused if top not in like_splits and not _children(tree.folders, f"{top}/")]
    if len(found) == 1 and len(classes) > 1:
        inside = _children(tree.folders, f"{found['train']}/")
        raise DataError(
            f"{where}: '{found['train']}' must be a split or a class, got class folders inside it "
            f"({listed(inside)}) and folders of images beside it ({listed(classes)}). Rename it if it is a "
            f"class; if it is the training split, set data.path to {where}/{found['train']}."
        )
    return found, list(_unused(found, {top: images[top] for top in unused}))


def _classes_like_splits(tops: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding if classes are named like splits."""
    if tops:
        text = (
            f"folders named like a split should have class folders inside, got none in {listed(tops)}. "
            "They are taken for classes: move them away if they are not."
        )
        yield Finding("warning", "split_as_class", text, count=len(tops))


def _unused(splits: dict[str, str], images: dict[str, int]) -> Iterator[Finding]:
    """Yield a finding if folders next to the splits contain images."""
    if not images:
        return
    told = []
    for top, count in images.items():
        split = SPLIT_NAMES.get(top.lower())
        why = ""
        if split is not None:
            why = f", '{split}' is '{splits[split]}'" if split in splits else ", no class folders inside"
        told.append(f"'{top}' ({count} image{'s'[: count != 1]}{why})")
    text = (
        f"folders beside '{splits['train']}' should be splits, got {listed(told)}. They are not used: "
        f"name them val or test and sort the images into class folders, or move them away."
    )
    yield Finding("warning", "not_used", text, count=sum(images.values()))


def _loose(paths: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding if there are images outside the class folders."""
    if paths:
        text = (
            f"images should lie in a class folder, got {len(paths)} outside. They are not used: "
            "move them into the folder of their class."
        )
        yield Finding("warning", "not_used", text, tuple(paths[:SHOWN]), len(paths))


def _passed_over(paths: Iterable[str]) -> Iterator[Finding]:
    """Yield a finding if files are not taken for images; phones often write such formats (HEIC)."""
    others = Counter(
        os.path.splitext(path)[1].lower() or "no suffix" for path in paths if not _is_image(path)
    )
    if not others:
        return
    found = listed([f"{suffix} ({n})" for suffix, n in sorted(others.items())])
    text = (
        f"files in class folders should be images in a known format, got {others.total()} passed over: "
        f"{found}. Convert them to JPEG or PNG if they belong to the data."
    )
    grade: Grade = "warning" if PHOTOS & others.keys() else "note"
    yield Finding(grade, "passed_over", text, count=others.total())
