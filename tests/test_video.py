"""Backbones that read clips: cut into blocks, and studied like any other, from files to a model folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune.datasets import catalog
from finetune.errors import BackboneError
from finetune.handing_on import formats
from finetune.model import backbones, weights
from finetune.model.known_backbones import OUTLINES, reads_clips
from finetune.model_folder import load, write
from finetune.model_folder.samples import find, predict
from finetune.settings import DataSettings, WeightsSettings
from search.config.problems import ConfigErrors
from search.config.study import StudyConfig
from search.suggest.space import Space
from search.views import blocks as lister
from search.views import explanations
from tests.test_samples import SEEN, accuracy, moving, trial, used

VIDEO = {
    "r3d_18": (3, 33),
    "mc3_18": (3, 33),
    "r2plus1d_18": (3, 33),
    "s3d": (13, 209),
    "swin3d_t": (3, 33),
    "mvit_v1_b": (16, 224),
    "mvit_v2_s": (16, 224),
}
"""The smallest of each family, with frames and side of small clips that it can read."""
EVERYDAY = ("r3d_18", "swin3d_t")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def original(name: str) -> nn.Module:
    """Return torchvision's own model with random weights for five classes."""
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, num_classes=5).eval()


def clips(name: str, count: int = 2) -> Tensor:
    frames, side = VIDEO[name]
    return torch.randn(count, 3, frames, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.thorough(but=EVERYDAY)
@pytest.mark.parametrize("name", VIDEO)
def test_torchvisions_weights_load_strictly_and_give_its_logits_bit_for_bit(
    name: str, tmp_path: Path
) -> None:
    model = original(name)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    pretrained = weights.load(name, WeightsSettings(file=str(tmp_path / "weights.safetensors")))
    backbone = weights.backbone(name, pretrained).eval()
    with torch.no_grad():
        expected = model(clips(name))
        h = backbone.blocks(clips(name))
        assert torch.equal(backbone.source_fc(h), expected)
        assert backbone.pool(h).shape == (2, backbone.features)
    assert not torch.equal(expected[0], expected[1])
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    assert (pretrained.mean, pretrained.std) == (tuple(preset.mean), tuple(preset.std))


@pytest.mark.thorough(but=EVERYDAY)
@pytest.mark.parametrize("name", [name for name in backbones.names() if reads_clips(name)])
def test_every_model_has_named_blocks_and_all_its_parameters_once(name: str) -> None:
    with torch.device("meta"):
        model = backbones.classifier(name, source_classes=400)
    backbone = backbones.split(name, model)
    assert len(set(backbone.block_names)) == len(backbone.blocks) == OUTLINES[name].blocks
    for kind in ("named_parameters", "named_buffers"):
        ours = [id(tensor) for _, tensor in getattr(backbone, kind)(remove_duplicate=False)]
        assert sorted(ours) == sorted(id(tensor) for _, tensor in getattr(model, kind)())
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert sum(p.numel() for p in backbone.parameters()) == published


@pytest.mark.parametrize("name", ["s3d", "mvit_v2_s", "r3d_18"])
def test_the_least_clip_works_and_a_smaller_one_is_refused_by_name(name: str) -> None:
    with torch.device("meta"):
        backbone = backbones.build(name)
    least, side = backbone.frames.least, backbone.sides.least  # type: ignore[union-attr]
    side = max(side, 8)
    assert backbone(torch.empty(2, 3, least, side, side, device="meta")).shape == (2, 1000)
    with pytest.raises(BackboneError, match=rf"{name}: must be given clips \(B, 3, T, S, S\), got \(2, 3, "):
        backbone(torch.empty(2, 3, side, side, device="meta"))
    if least > 1:
        with pytest.raises(
            BackboneError, match=rf"{name}: frames must be .*{least}, got {least - 1}\. Set it"
        ):
            backbone(torch.empty(2, 3, least - 1, side, side, device="meta"))
    if name == "s3d":  # the rule is no stricter than torchvision
        backbone.blocks[0]._forward_pre_hooks.clear()
        for frames, width in ((least - 1, side), (least, side - 1)):
            with pytest.raises(RuntimeError):
                backbone(torch.empty(2, 3, frames, width, width, device="meta"))


def test_an_image_backbone_refuses_clips() -> None:
    with torch.device("meta"):
        backbone = backbones.build("resnet18")
    with pytest.raises(BackboneError, match=r"resnet18: must be given images \(B, 3, S, S\)"):
        backbone(torch.empty(2, 3, 4, 32, 32, device="meta"))


def test_the_listing_shows_times_and_positions() -> None:
    listed = lister.listing("r3d_18", 112)
    assert (listed["frames"], listed["blocks"][0]["output"]) == (16, [64, 16, 56, 56])
    assert listed["blocks"][-1]["output"] == [512, 2, 7, 7]


def config(model: dict[str, Any], **sections: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "study": {"name": "s"},
        "data": {"kind": "motion", "frames": 8, "image_size": 32},
    }
    return StudyConfig.from_dict({**values, "model": model, **sections})


@pytest.mark.parametrize(
    ("model", "sections", "told"),
    [
        (
            {"backbone": "r3d_18"},
            {"data": {"path": "x"}},
            "data.frames: must be at least 2 for r3d_18, which",
        ),
        ({"backbone": "mvit_v2_s"}, {}, "data.frames: must be 16 for mvit_v2_s, which reads clips, got 8"),
        ({"backbone": "s3d"}, {"data": {"kind": "motion", "frames": 20}}, "DEFAULT"),
        (
            {"backbone": "r3d_18"},
            {"space": {"pooling": "max"}},
            "space.pooling: r3d_18 reads all frames at once",
        ),
        (
            {"backbone": "r3d_18", "weights": {"source": {"kind": "digits"}}},
            {},
            "model.weights: a source task has images, and r3d_18 reads clips",
        ),
        ({"backbone": "r3d_18", "weights": "IMAGENET1K_V1"}, {}, "torchvision's weights for r3d_18"),
    ],
)
def test_what_does_not_go_with_clips_is_said(
    model: dict[str, Any], sections: dict[str, Any], told: str
) -> None:
    if told == "DEFAULT":
        assert config(model, **sections).model.weights == told
        return
    with pytest.raises(ConfigErrors, match=told):
        config(model, **sections)


def test_poolings_are_asked_for_only_where_frames_are_read_one_by_one() -> None:
    space = Space(config({"backbone": ["r3d_18", "resnet18"]}))
    assert "pooling" not in space.baseline("recipe", "r3d_18")
    assert space.baseline("recipe", "resnet18")["pooling"] == "mean"


def test_clips_are_trained_on_exported_predicted_and_explained(tmp_path: Path) -> None:
    data = DataSettings(kind="folder", path=str(moving(tmp_path / "clips", 6)), frames=4, **SEEN)
    choices: dict[str, Any] = {"backbone": "r3d_18", "epochs": 3}
    checkpoint, heard = trial(tmp_path, data, **choices)
    assert used(heard)["frames"] == 4
    assert "pooling" not in used(heard)
    facts = write(checkpoint, tmp_path / "model", {})
    assert facts["samples"] == {"frames": 4}
    assert facts["metrics"]["validation"]["accuracy"] == accuracy(heard)
    model = load(tmp_path / "model", parts=True)
    found = catalog.scan(data)
    answers = {
        Path(row["path"]).relative_to(tmp_path / "clips").as_posix(): row
        for row in predict(model, find(model, [tmp_path / "clips"]))
    }
    right = [answers[one.path]["class"] == found.classes[one.label] for one in found.splits["val"]]
    assert sum(right) / len(right) == facts["metrics"]["validation"]["accuracy"]
    clip = tmp_path / "clips" / "left" / "1.gif"
    (row,) = explanations.explain(tmp_path / "model", [clip], tmp_path / "explained")
    assert list(row["frames"]) == [0, 1, 2, 3]
    assert (tmp_path / "explained" / row["picture"]).stat().st_size > 0
    facts = formats.add(tmp_path / "model", ["torch"], place={"path": str(tmp_path / "clips")})
    made = facts["formats"]["torch"]
    assert made["input"] == "images: uint8 (batch, 4, 32, 32, 3), RGB"
    assert made["parity"]["changed_answers"] == 0
