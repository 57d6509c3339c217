import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops.misc import Permute

from finetune.errors import BackboneError
from finetune.model import backbones
from finetune.model.known_backbones import OUTLINES

# The members that differ in kind from the one of their family in test_families.
MODELS = {"vgg11_bn": 32, "resnet50": 33, "squeezenet1_0": 64, "mobilenet_v3_large": 33, "mnasnet0_75": 33}


def on_meta(name: str) -> backbones.Backbone:
    with torch.device("meta"):
        return backbones.build(name)


@pytest.mark.parametrize(("name", "side"), MODELS.items())
def test_blocks_and_source_fc_give_the_original_logits_bit_for_bit(name: str, side: int) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = model(images)
        backbone = backbones.split(name, model)
        assert torch.equal(backbone(images), expected)
        assert backbone.pool(backbone.blocks(images)).shape == (2, backbone.features)
    assert backbone.source_classes == 7


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("vgg16", 13, ("conv1_1", "conv3_3", "conv5_3")),
        ("vgg19_bn", 16, ("conv1_1", "conv5_4")),
        ("resnet18", 9, ("stem", "layer1.0", "layer4.1")),
        ("mobilenet_v2", 19, ("features.0", "features.18")),
        ("squeezenet1_0", 9, ("stem", "fire2", "fire9")),
        ("shufflenet_v2_x1_0", 18, ("stem", "stage2.0", "conv5")),
        ("alexnet", 5, ("conv1", "conv5")),
        ("regnet_y_400mf", 17, ("stem", "stage1.0", "stage4.5")),
        ("convnext_tiny", 22, ("stem", "stage1.0", "downsample1", "stage4.2")),
        ("densenet121", 62, ("stem", "denseblock1.denselayer1", "transition3", "denseblock4.denselayer16")),
        ("mobilenet_v3_small", 13, ("features.0", "features.12")),
        ("mnasnet0_5", 19, ("stem", "separable", "stack1.0", "conv_last")),
        ("efficientnet_b0", 18, ("stem", "stage1.0", "stage7.0", "conv_last")),
        ("googlenet", 12, ("conv1", "inception3a", "inception5b")),
        ("inception_v3", 16, ("Conv2d_1a_3x3", "Mixed_5b", "Mixed_7c")),
        ("vit_b_16", 13, ("stem", "layer0", "layer11")),
        ("swin_t", 16, ("stem", "stage1.0", "downsample1", "stage4.1")),
        ("maxvit_t", 12, ("stem", "stage1.0", "stage4.1")),
    ],
)
def test_blocks_carry_the_names_people_know(name: str, count: int, some: tuple[str, ...]) -> None:
    backbone = on_meta(name)
    assert len(backbone.blocks) == OUTLINES[name].blocks == count
    assert set(some) <= set(backbone.block_names)
    assert backbone.block_names[0] == some[0]
    assert backbone.block_names[-1] == some[-1]


def test_pooling_belongs_to_the_block_before_it() -> None:
    vgg, squeezenet = on_meta("vgg16_bn"), on_meta("squeezenet1_1")
    kinds = [type(layer) for layer in vgg.blocks[1]]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    ends = {n: type(b[-1]) for n, b in zip(squeezenet.block_names, squeezenet.blocks, strict=True)}
    assert [n for n, end in ends.items() if end is nn.MaxPool2d] == ["stem", "fire3", "fire5"]


def test_a_norm_before_the_pooling_is_in_the_last_block_and_one_behind_it_in_the_source_fc() -> None:
    for name, last in [("densenet121", nn.ReLU), ("vit_b_32", nn.LayerNorm), ("swin_t", Permute)]:
        backbone = on_meta(name)
        assert isinstance(backbone.blocks[-1][-1], last)
        assert not [m for m in backbone.source_fc.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]
    for name in ("convnext_tiny", "maxvit_t"):
        assert [m for m in on_meta(name).source_fc.modules() if isinstance(m, nn.LayerNorm)]


def test_vgg16_source_fc_is_its_three_linear_layers() -> None:
    backbone = on_meta("vgg16")
    linears = [m for m in backbone.source_fc.modules() if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in linears] == [(4096, 25088), (4096, 4096), (1000, 4096)]
    assert backbones.last_layer(backbone.source_fc) is linears[-1]
    assert backbone.features == 512


@pytest.mark.thorough
def test_the_table_that_configs_are_checked_against_is_what_torchvision_builds() -> None:
    assert sorted(OUTLINES) == sorted(backbones.names())
    for name, outline in OUTLINES.items():
        backbone = on_meta(name)
        weights = torchvision.models.get_model_weights(name).__members__
        found = (len(backbone.blocks), backbone.sides, backbone.frames)
        assert (outline.blocks, outline.sides, outline.frames) == found, name
        assert {"DEFAULT", *outline.weights} == set(weights), name


def test_names_cover_the_families() -> None:
    names = backbones.names()
    assert {"vgg16", "resnet152", "resnext101_64x4d", "wide_resnet101_2", "squeezenet1_1"} <= set(names)
    assert len([name for name in names if name.startswith("vgg")]) == 8


@pytest.mark.parametrize("name", ["resnet81", "fasterrcnn_resnet50_fpn", ""])
def test_an_unknown_backbone_is_named_with_near_ones(name: str) -> None:
    with pytest.raises(BackboneError, match=f"got {name!r}") as caught:
        backbones.build(name)
    assert "resnet18" in str(caught.value)
