"""Every family of torchvision's classifiers: blocks, exact logits, and a training step of each strategy."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from finetune.errors import BackboneError
from finetune.model import backbones, strategies, weights
from finetune.model.backbones import Backbone
from finetune.model.known_backbones import reads_clips
from finetune.model.strategies import TransferModel
from finetune.settings import ALL, WeightsSettings
from search.views import blocks as lister

# The smallest of each family, with small images that it can read.
SMALLEST = {
    "alexnet": 64,
    "vgg11": 32,
    "squeezenet1_1": 33,
    "resnet18": 33,
    "wide_resnet50_2": 33,
    "resnext50_32x4d": 33,
    "regnet_x_400mf": 33,
    "regnet_y_400mf": 33,
    "convnext_tiny": 32,
    "densenet121": 33,
    "mobilenet_v2": 33,
    "mobilenet_v3_small": 33,
    "mnasnet0_5": 33,
    "shufflenet_v2_x0_5": 33,
    "efficientnet_b0": 33,
    "efficientnet_v2_s": 33,
    "googlenet": 33,
    "inception_v3": 75,
    "vit_b_32": 64,
    "swin_t": 33,
    "swin_v2_t": 33,
    "maxvit_t": 224,
}
EVERYDAY = ("resnet18", "squeezenet1_1", "vit_b_32", "swin_t", "convnext_tiny")
"""Families whose blocks differ most; the others are tried by --thorough."""
STRATEGIES: tuple[str, ...] = ("replace", "load", "fuse")
CLASSES = ("a", "b", "c")
OF_IMAGES = [name for name in backbones.names() if not reads_clips(name)]  # test_video.py has the others
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Keys of the auxiliary classifiers begin like this."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def filled(model: nn.Module) -> nn.Module:
    """Give every parameter that starts at zero, such as ViT's last layer, values that can be told apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.std() == 0 and not parameter.any():
                parameter.normal_(std=0.02)
    return model


def on_meta(name: str) -> Backbone:
    with torch.device("meta"):
        return backbones.build(name).eval()


@cache
def built(name: str) -> Backbone:
    """A backbone for a source of 5 classes with random weights; to be copied before it is changed."""
    torch.manual_seed(0)
    return backbones.split(name, filled(backbones.classifier(name, source_classes=5)))


def original(name: str) -> nn.Module:
    """torchvision's own model, as it is with pretrained weights, but random ones."""
    inceptions = {"transform_input": True, "init_weights": False}
    arguments: dict[str, Any] = inceptions if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    size = {"image_size": SMALLEST[name]} if name.startswith("vit") else {}
    return filled(torchvision.models.get_model(name, weights=None, num_classes=5, **arguments, **size)).eval()


def images(name: str, count: int = 2) -> Tensor:
    side = SMALLEST[name]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_every_classifier_of_torchvision_is_there() -> None:
    known = [
        torchvision.models.list_models(module=one) for one in (torchvision.models, torchvision.models.video)
    ]
    assert backbones.names() == [*known[0], *known[1]]


@pytest.mark.thorough(but=EVERYDAY)
@pytest.mark.parametrize("name", OF_IMAGES)
def test_every_model_has_named_blocks_and_all_its_parameters_once(name: str) -> None:
    with torch.device("meta"):
        model = backbones.classifier(name)
    backbone = backbones.split(name, model)
    assert len(set(backbone.block_names)) == len(backbone.blocks) == len(backbone.block_names) > 1
    assert backbone.source_classes == 1000
    for kind in ("named_parameters", "named_buffers"):
        ours = [id(tensor) for _, tensor in getattr(backbone, kind)(remove_duplicate=False)]
        theirs = [id(t) for key, t in getattr(model, kind)() if not key.startswith(AUXILIARY)]
        assert sorted(ours) == sorted(theirs)
    assert not [key for key, tensor in model.state_dict().items() if not tensor.is_meta]
    # torchvision counts GoogLeNet without its auxiliary classifiers, Inception v3 with its one.
    aux = sum(p.numel() for key, p in model.named_parameters() if key.startswith("AuxLogits."))
    # Some ViTs have weights for larger images, too, with more position embeddings.
    published = min(member.meta["num_params"] for member in torchvision.models.get_model_weights(name))
    assert sum(p.numel() for p in backbone.parameters()) + aux == published


@pytest.mark.thorough(but=EVERYDAY)
@pytest.mark.parametrize("name", OF_IMAGES)
def test_what_every_model_pools_has_its_width(name: str) -> None:
    backbone = on_meta(name)
    side = backbone.sides.nearest(64)
    h = backbone.blocks(torch.empty(1, 3, side, side, device="meta"))
    assert backbone.pool(h).shape == (1, backbone.features)
    assert backbone.source_fc(h).shape == (1, 1000)


@pytest.mark.thorough(but=EVERYDAY)
@pytest.mark.parametrize("name", SMALLEST)
def test_blocks_and_source_fc_give_the_original_logits_bit_for_bit(name: str) -> None:
    model = original(name)
    with torch.no_grad():
        expected = model(images(name))
        assert torch.equal(backbones.split(name, model)(images(name)), expected)
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.thorough(but=EVERYDAY)
@pytest.mark.parametrize(
    "name", sorted(SMALLEST.keys() - {"vit_b_32"})
)  # its original is built for 64 pixels
def test_torchvision_weights_load_strictly_and_give_the_original_logits(name: str, tmp_path: Path) -> None:
    """The file has torchvision's keys, those of auxiliary classifiers too, and no metadata."""
    model = original(name)
    file = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), file)
    loaded = weights.backbone(name, weights.load(name, WeightsSettings(file=str(file)))).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images(name)), model(images(name)))
    assert not [key for key in loaded.state_dict() if "aux" in key.lower()]


def transfer(name: str, strategy: str, frozen: int) -> TransferModel:
    backbone = copy.deepcopy(built(name))
    relation = torch.full((len(CLASSES), 5), 0.2, dtype=torch.float64)
    return strategies.build(
        strategy,
        backbone,
        classes=CLASSES,
        head_size=8,
        dropout=0.0,
        frozen_layers=frozen,
        relation=relation,
        source_names=None,
        seed=0,
    )


def check_step(model: TransferModel, name: str) -> None:
    """One step of SGD leaves the prefix bit-equal, reaches every other part and stays finite."""
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for _, group in model.parameter_groups() for p in group], lr=0.01)
    model.train()
    F.cross_entropy(model(images(name)), torch.tensor([0, 1])).backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == key.startswith("prefix."), key
    optimizer.step()
    after = model.state_dict()
    assert all(tensor.isfinite().all() for tensor in after.values())
    changed = {key for key, tensor in after.items() if not torch.equal(tensor, before[key])}
    assert not [key for key in changed if key.startswith("prefix.")]
    assert [key for key in changed if key.startswith("head.")]
    assert bool([key for key in changed if key.startswith("trunk.")]) == (len(model.trunk) > 0)


@pytest.mark.thorough(but=EVERYDAY)
@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", SMALLEST)
def test_one_training_step_at_no_half_and_every_frozen_layer(name: str, strategy: str) -> None:
    """`fuse` has the heads of both others, so these two are tried at every depth only with a few families."""
    half = len(built(name).blocks) // 2
    for frozen in (0, half, ALL) if strategy == "fuse" or name in EVERYDAY else (half,):
        check_step(transfer(name, strategy, frozen), name)


@pytest.mark.thorough(but=EVERYDAY)
@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_features_then_head_equal_the_whole_and_leave_the_features_alone(name: str) -> None:
    count = len(built(name).blocks)
    for frozen in sorted({0, 1, count // 3, 2 * count // 3, count - 1, count}):
        model = transfer(name, "fuse", frozen).eval()
        h = model.features(images(name))
        kept = h.clone()
        with torch.no_grad():
            assert torch.equal(model.from_features(h), model(images(name)))
        assert torch.equal(h, kept)
        assert not h.requires_grad


@pytest.mark.thorough(but=EVERYDAY)
@pytest.mark.parametrize("name", SMALLEST)
def test_every_number_of_frozen_layers_can_be_built(name: str) -> None:
    backbone = on_meta(name)
    with torch.device("meta"):
        for frozen in range(len(backbone.blocks) + 1):
            model = strategies.build(
                "replace",
                backbone,
                classes=CLASSES,
                head_size=0,
                dropout=0.0,
                frozen_layers=frozen,
                relation=None,
                source_names=None,
                seed=0,
            )
            assert (len(model.prefix), len(model.prefix) + len(model.trunk)) == (
                frozen,
                len(model.block_names),
            )


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_classifier_with_idle_auxiliaries_trains_on_its_logits_alone(name: str) -> None:
    model = backbones.classifier(name, source_classes=5).train()
    logits = model(images(name))
    assert logits.shape == (2, 5)
    expected = torchvision.models.get_model(name, weights=None, num_classes=5, init_weights=False)
    assert {k: t.shape for k, t in model.state_dict().items()} == {
        k: t.shape for k, t in expected.state_dict().items()
    }


def test_position_embeddings_are_those_of_torchvision_at_another_size() -> None:
    torch.manual_seed(0)
    published = filled(torchvision.models.vit_b_32(weights=None, num_classes=5))  # 224 pixels
    state = interpolate_embeddings(64, 32, copy.copy(published.state_dict()))
    expected = torchvision.models.vit_b_32(weights=None, num_classes=5, image_size=64).eval()
    expected.load_state_dict(state)
    with torch.no_grad():
        ours = backbones.split("vit_b_32", published).eval()(images("vit_b_32"))
        assert torch.equal(ours, expected(images("vit_b_32")))


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "squeezenet1_0", "squeezenet1_1", "convnext_tiny",
                                  "densenet121", "googlenet", "inception_v3", "vit_b_32", "swin_t",
                                  "swin_v2_t", "maxvit_t"])  # fmt: skip
def test_the_least_image_works_and_a_smaller_one_is_refused_by_name(name: str) -> None:
    backbone = on_meta(name)
    least, step = backbone.sides.least, backbone.sides.step
    assert backbone(torch.empty(2, 3, least, least, device="meta")).shape == (2, 1000)
    smaller = torch.empty(2, 3, least - 1, least - 1, device="meta")
    with pytest.raises(BackboneError, match=rf"{name}: image_size .*, got {least - 1}\. Set it to {least}\."):
        backbone(smaller)
    backbone.blocks[0]._forward_pre_hooks.clear()
    if step == 1:  # the rule is no stricter than torchvision
        with pytest.raises(RuntimeError):
            backbone(smaller)


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("maxvit_t", 448, r"must be 224 pixels, got 448\. Set it to 224"),
        ("vit_b_16", 100, r"must be a multiple of 16 pixels, got 100\. Set it to 96"),
        ("inception_v3", 64, r"must be at least 75 pixels, got 64\. Set it to 75"),
    ],
)
def test_an_image_size_can_be_checked_before_anything_is_built(name: str, size: int, said: str) -> None:
    backbones.check_image_size(name, backbones.build("alexnet").sides.nearest(224))
    with pytest.raises(BackboneError, match=said):
        backbones.check_image_size(name, size)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("densenet121", "features.denseblock1.denselayer1.norm.1.weight",
         "features.denseblock1.denselayer1.norm1.weight"),
        ("vit_b_32", "encoder.layers.encoder_layer_0.mlp.linear_1.bias",
         "encoder.layers.encoder_layer_0.mlp.0.bias"),
        ("vit_b_32", "encoder.layers.encoder_layer_0.mlp.linear_2.bias",
         "encoder.layers.encoder_layer_0.mlp.3.bias"),
    ],
)  # fmt: skip
def test_keys_of_older_files_become_those_of_the_model(name: str, old: str, new: str) -> None:
    with torch.device("meta"):
        state = dict(backbones.classifier(name).state_dict())
    older = {old if key == new else key: tensor for key, tensor in state.items()}
    assert old in older
    assert list(backbones.current_keys(name, older)) == list(state)
    assert backbones.current_keys(name, state) == state


def test_building_on_meta_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    on_meta("regnet_y_400mf")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.thorough
def test_the_docs_table_is_what_the_command_writes() -> None:
    page = Path(__file__).parents[1] / "docs" / "models.md"
    assert page.read_text() == lister.document(), "run: python -m search.views.blocks > docs/models.md"


def test_the_listing_names_blocks_with_counts_and_shapes() -> None:
    listed = lister.listing("swin_t", 224)
    assert [block["name"] for block in listed["blocks"]][:4] == [
        "stem",
        "stage1.0",
        "stage1.1",
        "downsample1",
    ]
    assert listed["blocks"][0]["output"] == [56, 56, 96]
    assert listed["blocks"][-1]["output"] == [768, 7, 7]
    assert listed["source_fc"] == {"parameters": 769_000, "output": [1000]}
    counted = sum(block["parameters"] for block in listed["blocks"]) + listed["source_fc"]["parameters"]
    assert counted == listed["parameters"] == 28_288_354
