"""Sizes of images: weights made for others than 224 pixels, and sizes that a backbone cannot read."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from finetune import model_folder
from finetune.disk import checkpoint
from finetune.errors import BackboneError, WeightsError
from finetune.images.pixels import normalise
from finetune.messages import Keep
from finetune.model import backbones, weights
from finetune.settings import DataSettings, SourceSettings, TrialSettings, WeightsSettings
from finetune.training import loop
from finetune.training.run import Run
from finetune.training.workers import World

VIT, PATCH, SIDE = "vit_test_8", 8, 24
"""torchvision's own class, but small, with weights for images of 24 pixels: 9 patches and a class token."""


def small_vit(*, weights: None = None, image_size: int = 224, num_classes: int = 1000) -> VisionTransformer:
    return VisionTransformer(image_size, PATCH, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
                             num_classes=num_classes)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    """torchvision knows the small ViT by name, as it knows its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_vit, "__module__", "torchvision.models.vision_transformer")
        patch.setitem(torchvision.models._api.BUILTIN_MODELS, VIT, small_vit)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """torchvision's own model for 24 pixels and 5 classes; every position can be told apart."""
    torch.manual_seed(0)
    model = small_vit(num_classes=5, image_size=SIDE)
    nn.init.normal_(model.heads.head.weight)
    nn.init.normal_(model.encoder.pos_embedding)
    return model.eval()


@pytest.fixture(scope="module")
def file(original: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(original.state_dict(), path)
    return path


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [name for name in backbones.names() if name.startswith("vit")])
def test_every_vit_is_built_in_the_shapes_of_each_of_torchvisions_weights(name: str) -> None:
    """Also `DEFAULT` of vit_h_14, for 518 pixels: as many numbers as torchvision has published."""
    for member in torchvision.models.get_model_weights(name):
        with torch.device("meta"):
            model = backbones.classifier(name, image_size=member.meta["min_size"][0])
        assert sum(p.numel() for p in model.parameters()) == member.meta["num_params"], member
        assert backbones.image_size(name, model.state_dict()) == member.meta["min_size"][0]


def test_weights_for_another_size_load_and_give_the_original_logits(original: nn.Module, file: Path) -> None:
    """At their own size bit for bit; at others with the positions that torchvision interpolates."""
    pretrained = weights.load(VIT, WeightsSettings(file=str(file)))
    assert pretrained.image_size == SIDE
    ours = weights.backbone(VIT, pretrained).eval()
    other = small_vit(num_classes=5, image_size=64).eval()
    other.load_state_dict(interpolate_embeddings(64, PATCH, copy.copy(original.state_dict())))
    with torch.no_grad():
        assert torch.equal(ours(images(SIDE)), original(images(SIDE)))
        assert torch.equal(ours(images(64)), other(images(64)))
        assert not torch.equal(*original(images(SIDE)))


def test_a_named_weight_for_another_size_is_read_like_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SWAG's for 384 pixels, where torchvision's download would put the file; the numbers are all zero."""
    member = torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1
    with torch.device("meta"):
        outline = backbones.classifier("vit_b_16", image_size=384).state_dict()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / Path(member.url).name
    place.parent.mkdir(parents=True)
    torch.save({key: torch.zeros(1).expand(tensor.shape) for key, tensor in outline.items()}, place)
    settings = WeightsSettings(name=member.name)
    built = weights.backbone("vit_b_16", weights.load("vit_b_16", settings))
    assert built.blocks[0].pos_embedding.shape == (1, 1 + 24 * 24, 768)
    assert weights.describe("vit_b_16", settings).endswith("E2E_V1, for images of 384 pixels")


def test_weights_of_another_vit_are_told_by_their_shapes(file: Path) -> None:
    told = r"must hold exactly the weights of torchvision's vit_b_16, got .*conv_proj"
    with pytest.raises(WeightsError, match=told):
        weights.backbone("vit_b_16", weights.load("vit_b_16", WeightsSettings(file=str(file))))


def test_a_vit_is_pretrained_transferred_and_exported_at_the_size_of_its_images(tmp_path: Path) -> None:
    """From 16 patches per image to a model folder that answers as the trial did."""
    data = DataSettings(kind="digits", classes=tuple("67"), image_size=32, horizontal_flip=False,
                        validation_share=0.1, test_share=0.8)  # fmt: skip
    source = SourceSettings(data=dataclasses.replace(data, classes=tuple("01")), epochs=1)
    settings = TrialSettings(
        data=data, backbone=VIT, weights=WeightsSettings(source=source), strategy="replace", epochs=1,
        learning_rate=0.01, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    keep = Keep(metric="val/loss", best=tmp_path / "best", last=tmp_path / "last")
    loop.train(settings, keep=keep, report=lambda _: None)
    facts = model_folder.write(tmp_path / "best", tmp_path / "model", {})
    assert facts["source"]["image_size"] == 32
    loaded = model_folder.load(tmp_path / "model")
    run = Run(settings, World())
    run.model.load_trained_state(checkpoint.read(tmp_path / "best")[0])
    pixels = run.data.batch("val", torch.arange(3))
    steps = facts["preprocessing"]
    logits = run.model.eval()(normalise(pixels, steps["mean"], steps["std"]))
    expected = (logits / facts["calibration"]["temperature"]).softmax(1)
    assert torch.equal(loaded.probabilities(pixels), expected.detach())


def test_a_size_that_a_backbone_cannot_read_ends_a_trial_before_anything_is_read() -> None:
    """In one line, with the size that works; the images and weights are not even there."""
    settings = TrialSettings(
        data=DataSettings(kind="folder", path="/nowhere", image_size=64), backbone="inception_v3",
        weights=WeightsSettings(file="/nowhere.pth"), strategy="replace", epochs=1, learning_rate=0.01,
        cache_dir="/nowhere",
    )  # fmt: skip
    with pytest.raises(BackboneError) as caught:
        Run(settings, World())
    assert str(caught.value) == ("inception_v3: image_size must be at least 75 pixels, got 64. Set it to 75.")
