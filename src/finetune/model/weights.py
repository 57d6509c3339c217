"""Load pretrained weights from torchvision's servers, from a file or URL, or none.

Reading a file never runs code from it. `pretrain.py` turns a source task (`WeightsSettings.source`) into
weights.
"""

import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import ResNet50_Weights

from finetune import steps
from finetune.disk import file_cache, filesystems
from finetune.errors import WeightsError, did_you_mean
from finetune.model import backbones
from finetune.model.backbones import Backbone
from finetune.model.known_backbones import reads_clips
from finetune.settings import WeightsSettings

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and deviation per channel (red, green, blue) of pixels in [0, 1], from torchvision's presets."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes of all keys in files saved from DataParallel, torch.compile and Lightning modules."""
IMAGENET_CLASSES: tuple[str, ...] = tuple(ResNet50_Weights.DEFAULT.meta["categories"])
"""Class names of torchvision's ImageNet-1k classifiers, in the order of their outputs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pretrained:
    """Weights for one backbone, with facts about them."""

    state: dict[str, Tensor] | None
    """Tensors by torchvision's keys, on the CPU; None for random weights."""
    classes: tuple[str, ...] | None
    """Names of the source classes in the order of the source FC's outputs, if known."""
    source_classes: int
    """Number of outputs of the source FC."""
    image_size: int | None = None
    """Side in pixels of the images that the weights were made for, if their shapes depend on it (ViT)."""
    sha256: str | None
    """SHA-256 of the file; None for random weights."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean per channel, which is subtracted from pixels in [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Deviation per channel, by which pixels are then divided."""
    origin: str
    """Origin of the weights in words, for messages and model cards."""


def load(backbone_name: str, weights: WeightsSettings) -> Pretrained:
    """Return the weights that the settings name, downloading them if they are not on this node yet.

    Raises:
        BackboneError: there is no such backbone.
        WeightsError: the weights are missing, unsafe to load or unknown to torchvision.
    """
    given = [key for key in ("name", "file", "source") if getattr(weights, key) is not None]
    if len(given) > 1 or given == ["source"]:
        raise WeightsError(
            f"weights: must be a name or a file here, got {' and '.join(given)}. "
            "Give one of them; finetune.model.pretrain turns a source into weights first."
        )
    if weights.name is not None:
        return _from_name(backbone_name, weights.name)
    if weights.file is not None:
        return _from_file(backbone_name, weights.file)
    return Pretrained(
        state=None, classes=None, source_classes=len(IMAGENET_CLASSES), sha256=None, origin="random weights"
    )


def backbone(name: str, pretrained: Pretrained) -> Backbone:
    """Return backbone `name` with a copy of the pretrained weights, or with random ones if there are none.

    Raises:
        BackboneError: there is no such backbone.
        WeightsError: keys or shapes differ from the model's.
    """
    if pretrained.state is None:
        return backbones.build(name, source_classes=pretrained.source_classes)
    with torch.device("meta"):  # no memory, no drawing of weights: 2.6 s for VGG16 (measured on 2 cores)
        model = backbones.classifier(
            name, source_classes=pretrained.source_classes, image_size=pretrained.image_size
        )
    expected = model.state_dict()
    # Files from before torch 0.4.1 lack these counters; torch starts them at zero, too.
    optional = {key for key in expected if key.endswith("num_batches_tracked")} - pretrained.state.keys()
    wrong = differences({k: v for k, v in expected.items() if k not in optional}, pretrained.state)
    if wrong:
        raise _misfit(pretrained.origin, name, wrong)
    # Copies, since the pretrained tensors are shared by trials and training changes a model in place.
    copies = {key: t.to(expected[key].dtype, copy=True) for key, t in pretrained.state.items()}
    model.load_state_dict(copies, assign=True)
    return backbones.split(name, model)


def differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], show: int = 3) -> list[str]:
    """Describe how `given` differs from `expected` in keys and shapes: the first `show` of each kind."""
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    shapes = [
        f"{key:.100} {tuple(given[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in given and given[key].shape != tensor.shape
    ]
    kinds = {"missing keys": missing, "unexpected keys": unexpected, "shapes": shapes}
    return [
        f"{len(found)} {kind} ({', '.join(one[:140] for one in found[:show])}{', ...' * (len(found) > show)})"
        for kind, found in kinds.items()
        if found
    ]


def _member(backbone_name: str, name: str) -> Any:
    backbones.check(backbone_name)
    members = torchvision.models.get_model_weights(backbone_name).__members__
    if name not in members:
        raise WeightsError(
            f"weights: name must be one of torchvision's for {backbone_name}, got {name!r}. "
            + did_you_mean(name, members)
        )
    return members[name]


def _from_name(backbone_name: str, name: str) -> Pretrained:
    member = _member(backbone_name, name)
    file = _download(member)
    preset = member.transforms()
    state = backbones.current_keys(backbone_name, _read(file))
    return Pretrained(
        state=state,
        classes=tuple(member.meta["categories"]),
        source_classes=len(member.meta["categories"]),
        image_size=backbones.image_size(backbone_name, state),
        sha256=_sha256(file),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        origin=f"torchvision's {member}",
    )


def _download(member: Any) -> Path:
    """Return the file of a torchvision weights enum member; it is downloaded once per node."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file: Path = folder / member.url.rpartition("/")[2]
    digest = file.stem.rpartition("-")[2]  # torchvision's names end in the first digits of their SHA-256
    if file.exists():
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.exists():
                size = round(2**20 * member.meta["_file_size"])
                parts = partial(folder.glob, f"{file.name}*")  # torch writes beside it, and then renames
                with steps.growing(f"download weights {file.name}", parts, size, "once on each node"):
                    torch.hub.download_url_to_file(member.url, str(file), digest, progress=False)
    except (OSError, RuntimeError) as error:  # no network or no such page; RuntimeError is a wrong digest
        raise WeightsError(
            f"weights: {member} must be downloadable from {member.url}, got {error}. "
            f"Put the file at {file} on every node, or give a local file instead of a name."
        ) from error
    return file


def _fetch(location: str) -> Path:
    """Return the path of a weights file; a remote file is copied to this node once."""
    if not filesystems.is_far(location):
        return Path(location)
    try:
        copy = file_cache.here().local(location)
    except Exception as error:  # each of fsspec's file systems raises errors of its own
        raise WeightsError(
            f"weights: {location} must be readable, got {type(error).__name__}: {error}. Check the address."
        ) from error
    if copy is None and filesystems.is_url(location):
        raise WeightsError(
            f"weights: {location} must fit into this node's cache, got no room. "
            "Raise data.copies_gib, or copy the file to every node."
        )
    return copy or Path(location)


def _from_file(backbone_name: str, location: str) -> Pretrained:
    file = _fetch(location)
    # The number of source classes is not in the settings: it is the number of rows of the last layer.
    with torch.device("meta"):
        outline = backbones.classifier(backbone_name)
    rows = backbones.last_layer(backbones.split(backbone_name, outline).source_fc).weight
    key = next(name for name, parameter in outline.named_parameters() if parameter is rows)
    state = backbones.current_keys(backbone_name, _read(file))
    if key not in state or state[key].dim() != rows.dim() or not len(state[key]):
        raise _misfit(location, backbone_name, differences(outline.state_dict(), state))
    source_classes = len(state[key])
    classes, mean, std = _usual(backbone_name)
    return Pretrained(
        state=state,
        classes=classes if source_classes == len(classes) else None,
        source_classes=source_classes,
        mean=mean,
        std=std,
        image_size=backbones.image_size(backbone_name, state),
        sha256=_sha256(file),
        origin=location,
    )


def _usual(backbone_name: str) -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
    """Return classes, mean and deviation of the source that published weights of a backbone are made for."""
    if not reads_clips(backbone_name):
        return IMAGENET_CLASSES, IMAGENET_MEAN, IMAGENET_STD
    member = torchvision.models.get_model_weights(backbone_name).DEFAULT
    preset = member.transforms()
    return tuple(member.meta["categories"]), tuple(preset.mean), tuple(preset.std)


def _misfit(origin: str, backbone_name: str, wrong: list[str]) -> WeightsError:
    return WeightsError(
        f"{origin}: must hold exactly the weights of torchvision's {backbone_name}, got {'; '.join(wrong)}. "
        f"Give weights of {backbone_name}, or the backbone that these belong to."
    )


def _read(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by torchvision's keys, without the wrappers that training scripts add."""
    content = _content(file)
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(
            f"{file}: must hold tensors by name, got {type(content).__name__} {content!r:.60}. "
            "Save model.state_dict()."
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"{file}: must hold nothing but tensors by name, got {type(value).__name__} under "
                f"{key!r:.100}. Save model.state_dict()."
            )
    _check_tensors(file, content)
    return _without_prefixes(content)


def _check_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that all tensors are plain, on the CPU and finite.

    Raises:
        WeightsError: one is not.
    """
    for key, tensor in tensors.items():
        kinds = {"quantized": tensor.is_quantized, "complex": tensor.is_complex(), "sparse": tensor.is_sparse}
        odd = [kind for kind, it_is in kinds.items() if it_is]
        if odd or tensor.layout != torch.strided or tensor.device.type != "cpu":
            what = odd[0] if odd else f"{tensor.layout} on {tensor.device.type}"
            raise WeightsError(
                f"{file}: must hold plain tensors, got one that is {what} under {key!r:.100}. "
                "Save model.state_dict() of a model on the CPU."
            )
    floats = {key: tensor for key, tensor in tensors.items() if tensor.is_floating_point()}
    broken = [key for key, tensor in floats.items() if not torch.isfinite(tensor.float()).all()]
    if broken:
        raise WeightsError(
            f"{file}: must hold finite numbers, got NaN or infinite ones in {len(broken)} tensors, the first "
            f"{broken[0]!r:.100}. Give weights of a training that went well, or copy the file again."
        )


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers add to all keys, such as `module._orig_mod.`."""
    found = dict(tensors)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in found)), None):
        found = {key.removeprefix(prefix): tensor for key, tensor in found.items()}
    return found


def _content(file: Path) -> Any:
    try:
        filesystems.no_pipe(file)
        if file.suffix == ".safetensors":
            return load_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats, which are either read or refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(
            f"weights: file must exist on every node, got {str(file)!r}. Check the path."
        ) from None
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a pickle that calls {unsafe[1]}" if unsafe else "no readable pickle of tensors"
        raise WeightsError(
            f"{file}: must hold nothing but plain tensors, since a pickle can run any code, got {what}. "
            "Save model.state_dict(), or convert the file to safetensors where you trust it."
        ) from error
    except Exception as error:  # torch's readers raise almost any error on a broken file
        what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}"
        raise WeightsError(
            f"{file}: must be a readable weights file, got {what}. Copy or download it again."
        ) from error


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def describe(backbone_name: str, weights: WeightsSettings) -> str:
    """Return the origin of the weights in words, after all checks that need no download of torchvision's.

    Raises:
        BackboneError: there is no such backbone.
        WeightsError: a file does not fit the backbone, or torchvision knows no such name.
    """
    if weights.name is not None:
        member = _member(backbone_name, weights.name)
        return f"torchvision's {member}, for images of {member.transforms().crop_size[0]} pixels"
    found = load(backbone_name, weights)
    backbone(backbone_name, found)
    return found.origin + (f", for images of {found.image_size} pixels" if found.image_size else "")
