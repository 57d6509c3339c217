"""Section `data`: the images of the new task, their splits, and how they reach the model."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from finetune.datasets.torchvision_sets import NO_DOWNLOAD, SETS
from finetune.disk.filesystems import is_url
from finetune.errors import did_you_mean
from finetune.settings import OnError
from search.config.domain import AugmentName, Count, Names, Pixels, Scale, Section, Switch, refused
from search.config.sections.paths import FilePathOrUrl
from search.config.setting import Setting

Kind = Literal["folder", "manifest", "torchvision", "digits", "captions", "motion"]
Classes = Annotated[Names, Field(min_length=2)]


class Images(Section):
    """The images of a task."""

    kind: Kind = "folder"
    """`folder`: one folder per class; `manifest`: a CSV, JSON Lines or Parquet file with the columns image,
    label and, optionally, split and weight; `torchvision`: one of torchvision's data sets; `digits`:
    scikit-learn's handwritten digits, which need no download; `captions` and `motion`: generated shapes, with
    a caption or moving, to try text and clips."""
    name: str | None = None
    """For kind `torchvision`: name of the data set's class in torchvision, such as CIFAR10 or Flowers102."""
    path: FilePathOrUrl | None = None
    """The folder with the images, or the manifest, either one also as a URL (s3://...); for kind
    `torchvision` the folder with its data sets. Files behind a URL or on a network file system are copied
    once to each node's own disk."""
    download: bool = False
    """For kind `torchvision`: download the data set if it is not below `path`."""
    classes: Classes | None = None
    """Use only these classes, in this order; null: use all."""
    exclude: FilePathOrUrl | None = None
    """A text file, or its URL, with the paths of images to leave out of every split, one in each line, such
    as `check --suspects FILE` writes; null: leave out none. Every node must be able to read it."""
    on_error: OnError = "fail"
    """Treatment of broken images: `fail` stops the trial that reads one and names the image; `skip` decodes
    all images once at the start, leaves out the broken ones and counts them in the record."""

    @field_validator("name")
    @classmethod
    def _name_fits(cls, name: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        if kind == "torchvision" and name not in SETS:
            got = "nothing" if name is None else repr(name)
            raise refused("must name one of torchvision's sets", got, did_you_mean(name or "", SETS))
        if name is not None and kind not in ("torchvision", None):
            raise refused("goes with kind 'torchvision'", repr(name), "Delete it, or change `kind`.")
        return name

    @field_validator("path")
    @classmethod
    def _path_fits(cls, path: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        if path is None and kind in _PATHS:
            raise refused(f"must be given for kind '{kind}'", "nothing", f"Add {_PATHS[kind]}.")
        if path is not None and is_url(path) and kind == "torchvision":
            fix = "Write a path, or use kind 'folder' or 'manifest'."
            raise refused("must be a folder of this machine for kind 'torchvision'", repr(path), fix)
        return path

    @field_validator("download")
    @classmethod
    def _download_fits(cls, download: bool, info: ValidationInfo) -> bool:
        if download and info.data.get("kind") not in ("torchvision", None):
            raise refused("goes with kind 'torchvision'", "true", "Delete it, or change `kind`.")
        if download and info.data.get("name") in NO_DOWNLOAD:
            fix = "Put its files below `path`."
            raise refused(f"torchvision cannot download {info.data['name']}", "true", fix)
        return download

    @property
    def images(self) -> dict[str, Any]:
        """The fields that select the images, by their names in `DataSettings`."""
        return {field: getattr(self, field) for field in Images.model_fields}


_PATHS = {
    "folder": "the folder of the images",
    "manifest": "the CSV, JSON Lines or Parquet file",
    "torchvision": "the folder of the sets",
}
"""Meaning of `path` for each kind that needs one."""


def _columns(value: object) -> object:
    return (value,) if isinstance(value, str) else value


TextColumns = Annotated[
    Annotated[Names, Field(min_length=1)],
    BeforeValidator(_columns),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
WITH_TEXT = ("manifest", "folder", "captions")
WITH_FRAMES = ("manifest", "folder", "motion")
"""Kinds of data whose samples may have text, or several frames."""


class Data(Images):
    """The images of the new task, their splits, and how they reach the model."""

    text: TextColumns | None = None
    """Column of the manifest whose text belongs to each image, or several, which are joined; for kind
    `folder` of the files metadata.csv in its folders; null: no text is read."""
    frames: Annotated[int, Field(ge=1, le=256)] = 1
    """Frames that are read of each sample, evenly spaced in time. With 2 or more, a sample is a clip: a video
    file, an animated image or, for kind `folder`, a folder of frames."""
    image_size: Annotated[Pixels, Setting()] = 224
    """Side of the square image that the model sees, in pixels."""
    batch_size: Annotated[Count, Setting()] = 32
    """Images per optimiser step, over all workers of a trial together."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training images that is used for validation if there is no `val` split."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images that is used for the test if there is neither a `val` nor a `test`
    split."""
    horizontal_flip: Annotated[Switch, Setting()] = True
    """Mirror half of the training images. Write false for digits, letters and other images that change
    their meaning in a mirror."""
    views: Annotated[int, Field(ge=0)] = 0
    """Number of different augmented views of each training image, which the epochs use in turn; 0: every
    epoch uses a new view."""
    crop_scale: Annotated[Scale, Setting()] = 1.0
    """Smallest share of the image's area that a random crop keeps; 1.0: no random crop."""
    augment: Annotated[AugmentName, Setting(baseline="none", carried=True)] = "none"
    """`trivial`: TrivialAugment, which applies one random operation of random strength to each training
    image."""
    copies_gib: Annotated[float, Field(ge=0)] = 50.0
    """Disk space in GiB, on each node and for all studies together, for copies of images and weights that
    lie behind URLs or on network storage. The copies used longest ago are removed to make room. 0: make no
    copies, and read the files where they are."""

    @field_validator("text")
    @classmethod
    def _kind_has_text(cls, text: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if text is not None and info.data.get("kind") not in (*WITH_TEXT, None):
            raise refused(
                f"goes with kind {', '.join(WITH_TEXT)}", list(text), "Delete it, or change `kind`."
            )
        return text

    @field_validator("frames")
    @classmethod
    def _kind_has_frames(cls, frames: int, info: ValidationInfo) -> int:
        if frames > 1 and info.data.get("kind") not in (*WITH_FRAMES, None):
            raise refused(f"goes with kind {', '.join(WITH_FRAMES)}", frames, "Delete it, or change `kind`.")
        return frames

    @property
    def samples(self) -> dict[str, Any]:
        """The fields that select samples with all their parts, by their names in `SampleSettings`."""
        return {**self.images, "text": self.text, "frames": self.frames}

    @field_validator("test_share")
    @classmethod
    def _training_images_are_left(cls, share: float, info: ValidationInfo) -> float:
        total = share + info.data.get("validation_share", 0.0)
        if total >= 1:
            rule = "validation_share and test_share together must be below 1"
            raise refused(rule, f"{total:g}", "Lower one of them.")
        return share


class Source(Images):
    """A source task on which the backbone is pretrained once; the result is kept in the cache."""

    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over the source images."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Peak learning rate of SGD with momentum 0.9 and a cosine schedule."""
