import pytest
import torch
import torchvision
from torch import nn

from finetune import backbones
from finetune.errors import BackboneError

# Two of a family where its models differ in kind; the others differ in widths and depths only.
MODELS = {
    "alexnet": 64,
    "vgg11": 32,
    "vgg11_bn": 32,
    "resnet18": 33,
    "resnet50": 33,
    "wide_resnet50_2": 33,
    "resnext50_32x4d": 33,
    "mobilenet_v2": 33,
    "squeezenet1_0": 64,
    "squeezenet1_1": 64,
    "shufflenet_v2_x0_5": 64,
}


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


@pytest.mark.parametrize("name", backbones.names())
def test_every_parameter_and_buffer_of_the_model_is_in_the_backbone_once(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    backbone = backbones.split(name, model)
    for kind in ("named_parameters", "named_buffers"):
        ours = [id(tensor) for _, tensor in getattr(backbone, kind)(remove_duplicate=False)]
        theirs = [id(tensor) for _, tensor in getattr(model, kind)()]
        assert sorted(ours) == sorted(theirs)


@pytest.mark.parametrize("name", backbones.names())
def test_every_backbone_has_named_blocks_a_width_and_a_last_layer(name: str) -> None:
    backbone = on_meta(name)
    assert len(set(backbone.block_names)) == len(backbone.blocks) == len(backbone.block_names) > 1
    assert backbone.source_classes == 1000
    assert (
        backbone.pool(backbone.blocks(torch.empty(1, 3, 64, 64, device="meta"))).shape[1] == backbone.features
    )


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
    ],
)
def test_blocks_carry_the_names_people_know(name: str, count: int, some: tuple[str, ...]) -> None:
    backbone = on_meta(name)
    assert len(backbone.blocks) == backbones.count_blocks(name) == count
    assert set(some) <= set(backbone.block_names)
    assert backbone.block_names[0] == some[0]
    assert backbone.block_names[-1] == some[-1]


def test_pooling_belongs_to_the_block_before_it() -> None:
    vgg, squeezenet = on_meta("vgg16_bn"), on_meta("squeezenet1_1")
    kinds = [type(layer) for layer in vgg.blocks[1]]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    ends = {n: type(b[-1]) for n, b in zip(squeezenet.block_names, squeezenet.blocks, strict=True)}
    assert [n for n, end in ends.items() if end is nn.MaxPool2d] == ["stem", "fire3", "fire5"]


def test_vgg16_source_fc_is_its_three_linear_layers() -> None:
    backbone = on_meta("vgg16")
    linears = [m for m in backbone.source_fc.modules() if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in linears] == [(4096, 25088), (4096, 4096), (1000, 4096)]
    assert backbones.last_layer(backbone.source_fc) is linears[-1]
    assert backbone.features == 512


def test_names_cover_the_families() -> None:
    names = backbones.names()
    assert {"vgg16", "resnet152", "resnext101_64x4d", "wide_resnet101_2", "squeezenet1_1"} <= set(names)
    assert len([name for name in names if name.startswith("vgg")]) == 8


@pytest.mark.parametrize("name", ["resnet81", "fasterrcnn_resnet50_fpn", ""])
def test_an_unknown_backbone_is_named_with_near_ones(name: str) -> None:
    with pytest.raises(BackboneError, match=f"got {name!r}") as caught:
        backbones.build(name)
    assert "resnet18" in str(caught.value)
