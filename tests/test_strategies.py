import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.profiler import profile

from finetune.errors import BackboneError, CheckpointError
from finetune.model import backbones, source_rows, strategies, weights
from finetune.model.backbones import Backbone
from finetune.model.strategies import TransferModel
from finetune.settings import ALL, WeightsSettings
from finetune.strategy import STRATEGIES as BY_NAME

CLASSES = ("a", "b", "c", "d")
STRATEGIES = tuple(BY_NAME)


def backbone(name: str = "resnet18", source_classes: int = 10) -> Backbone:
    """A small source task; its weights are random."""
    torch.manual_seed(1)
    return backbones.build(name, source_classes=source_classes)


def relation(source_classes: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(len(CLASSES), source_classes, generator=generator).double().softmax(dim=1)


def build(strategy: str, of: Backbone | None = None, **changes: object) -> TransferModel:
    of = of or backbone()
    arguments: dict[str, object] = {
        "classes": CLASSES,
        "head_size": 16,
        "dropout": 0.0,
        "frozen_layers": ALL,
        "relation": relation(of.source_classes),
        "source_names": None,
        "seed": 0,
    }
    return strategies.build(strategy, of, **{**arguments, **changes})  # type: ignore[arg-type]


def batch(images: int = 16, side: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(images, 3, side, side, generator=generator), torch.arange(images) % len(CLASSES)


def train(model: TransferModel, steps: int) -> float:
    """Return the accuracy on one batch in evaluation mode after `steps` of Adam on it."""
    images, labels = batch()
    optimizer = torch.optim.Adam([p for _, group in model.parameter_groups() for p in group], lr=0.001)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        return (model(images).argmax(dim=1) == labels).float().mean().item()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("frozen", [ALL, 5])
def test_frozen_blocks_stay_bit_equal_while_all_else_trains(strategy: str, frozen: int) -> None:
    model = build(strategy, frozen_layers=frozen)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    train(model, steps=2)
    prefix = {key for key in before if key.startswith("prefix.")}
    assert any(key.endswith("running_mean") for key in prefix)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]) == (key in prefix), key


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_reach_trunk_and_head_and_nothing_else(strategy: str) -> None:
    model = build(strategy, frozen_layers=5)
    images, labels = batch()
    F.cross_entropy(model(images), labels).backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad) == key.startswith("prefix."), key


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"])
def test_trained_activations_are_not_copied_for_their_gradient(name: str) -> None:
    """Not one clone in a step, and the gradients that torch's own model has, to the bit."""
    images, labels = batch(4, 32)
    gradients = []
    for frozen in (False, True):  # so the second one's blocks are as torchvision has them
        of = backbone(name)
        blocks = of.blocks if frozen else build("load", of, frozen_layers=0).trunk
        blocks.train().requires_grad_(True)
        with profile() as seen:
            torch.manual_seed(0)
            F.cross_entropy(blocks(images).mean((2, 3)), labels).backward()
        clones = sum(event.count for event in seen.key_averages() if event.key == "aten::clone")
        gradients.append([p.grad for p in blocks.parameters()])
        inner = [m for m in blocks.modules() if isinstance(m, nn.Hardtanh | nn.SiLU | nn.Hardswish)]
        assert inner
        assert (clones >= len(inner)) == frozen
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def test_the_prefix_stays_in_evaluation_mode_and_the_rest_follows() -> None:
    model = build("fuse", frozen_layers=5).train()
    assert not any(m.training for m in model.prefix.modules())
    assert all(m.training for part in (model.trunk, model.head) for m in part.modules())
    assert not any(m.training for m in model.eval().modules())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("frozen", [ALL, 5, 0])
def test_every_trained_parameter_is_in_one_group(strategy: str, frozen: int) -> None:
    model = build(strategy, frozen_layers=frozen)
    groups = model.parameter_groups()
    grouped = [id(parameter) for _, group in groups for parameter in group]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    names = [name for name, _ in groups]
    blocks = [f"blocks.{name}" for name in model.block_names[len(model.prefix) :]]
    assert names == ["head", *(["source_fc"] if strategy == "fuse" else []), *blocks]


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v2"])
def test_features_then_head_equal_the_whole_at_every_cut_and_leave_the_features_alone(name: str) -> None:
    images, _ = batch(2)
    original = backbone(name)
    for frozen in range(len(original.blocks) + 1):
        model = build("fuse", copy.deepcopy(original), frozen_layers=frozen).eval()
        h = model.features(images)
        kept = h.clone()
        assert torch.equal(model.from_features(h), model(images))
        assert torch.equal(h, kept)
        assert not h.requires_grad


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_overfits_one_batch_with_all_blocks_frozen(strategy: str) -> None:
    assert train(build(strategy, head_size=64), steps=40) == 1.0


@pytest.mark.thorough(but=(7,))
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("frozen", [0, 7])
def test_each_strategy_overfits_one_batch_with_trained_blocks(strategy: str, frozen: int) -> None:
    assert train(build(strategy, frozen_layers=frozen), steps=12) == 1.0


def test_fuse_reads_the_features_and_the_source_classes_probabilities() -> None:
    model = build("fuse").eval()
    read: list[torch.Tensor] = []
    model.head.new.register_forward_pre_hook(lambda _, inputs: read.extend(inputs))
    images, _ = batch(2)
    with torch.no_grad():
        model(images)
        h = model.prefix(images)
        pooled = model.head.pool(h)
        source = model.head.source_fc(h)
    assert torch.equal(read[0][:, : pooled.shape[1]], pooled)
    assert torch.equal(read[0][:, pooled.shape[1] :], source.softmax(dim=1))


# Shapes of the new layers: D = pooled features, K = 1000 source classes, C = 4.
HEADS = {
    ("vgg16", "replace"): [[512, 16], [16, 4]],
    ("vgg16", "load"): [[25088, 4096], [4096, 4096], [4096, 4]],
    ("vgg16", "fuse"): [[1512, 16], [16, 4]],
    ("resnet18", "replace"): [[512, 16], [16, 4]],
    ("resnet18", "load"): [[512, 4]],
    ("resnet18", "fuse"): [[1512, 16], [16, 4]],
    ("mobilenet_v2", "replace"): [[1280, 16], [16, 4]],
    ("mobilenet_v2", "load"): [[1280, 4]],
    ("mobilenet_v2", "fuse"): [[2280, 16], [16, 4]],
    ("squeezenet1_0", "replace"): [[512, 16], [16, 4]],
    ("squeezenet1_0", "load"): [[512, 4]],
    ("squeezenet1_0", "fuse"): [[1512, 16], [16, 4]],
}


@pytest.mark.parametrize(("name", "strategy"), HEADS)
def test_head_shapes_and_outputs(name: str, strategy: str) -> None:
    with torch.device("meta"):
        model = build(strategy, backbones.build(name), relation=relation(1000))
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, len(CLASSES))
    facts = model.describe()
    assert facts["head"] == HEADS[name, strategy]
    assert facts["strategy"] == strategy
    assert facts["head_size"] == (None if strategy == "load" else 16)
    assert facts["frozen_blocks"] == len(model.prefix)


def test_describe_is_read_from_the_modules() -> None:
    model = build("replace", head_size=0, dropout=0.3, frozen_layers=7)
    facts = model.describe()
    assert (facts["head"], facts["head_size"], facts["dropout"]) == ([[512, 4]], 0, 0.3)
    assert facts["total_parameters"] - facts["trainable_parameters"] == sum(
        p.numel() for p in model.prefix.parameters()
    )
    assert build("load").describe()["dropout"] is None
    assert build("load", backbone("squeezenet1_1")).describe()["dropout"] == 0.5


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_load_mixes_the_source_rows_by_the_relation(name: str) -> None:
    source = backbone(name)
    last = copy.deepcopy(backbones.last_layer(source.source_fc))
    assert last.bias is not None
    new = backbones.last_layer(build("load", source).head)
    share = relation().float()
    torch.testing.assert_close(new.weight, torch.einsum("ck,k...->c...", share, last.weight))
    torch.testing.assert_close(new.bias, share @ last.bias - (share * share.log()).sum(dim=1))
    assert new.weight.shape == (4, *last.weight.shape[1:])


def test_load_answers_with_the_class_whose_relation_is_nearest_to_the_source_softmax() -> None:
    source = backbone()
    images, _ = batch(8)
    answers = source.eval()(images).log_softmax(dim=1)  # (B, K)
    share = relation().float()
    divergence = (share * share.log()).sum(dim=1) - answers @ share.T  # KL(relation || answer), (B, C)
    logits = build("load", source).eval()(images)
    torch.testing.assert_close(logits.softmax(dim=1), (-divergence).softmax(dim=1))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_load_takes_rows_as_they_are_where_the_names_are_the_sources(name: str) -> None:
    source = backbone(name, source_classes=4)
    images, _ = batch(2)
    logits, rows = source.eval()(images), source.source_fc.state_dict()
    model = build("load", source, relation=None, source_names=("c", "a", "d", "b")).eval()
    for key, tensor in rows.items():
        assert torch.equal(model.state_dict()[f"head.new.{key}"], tensor[[1, 3, 0, 2]])
    # One thread of a convolution sums in another order than two.
    torch.testing.assert_close(model(images), logits[:, [1, 3, 0, 2]])


def test_load_keeps_the_order_where_a_source_name_occurs_twice() -> None:
    source = backbone(source_classes=4)
    images, _ = batch(2)
    logits = source.eval()(images)
    names = ("crane", "a", "crane", "b")  # as in ImageNet: the bird and the machine
    model = build("load", source, classes=names, relation=None, source_names=names).eval()
    assert torch.equal(model(images), logits)


@pytest.mark.parametrize("given", [None, torch.ones(3, 10)])
def test_load_without_a_fitting_relation_says_what_to_pass(given: Tensor | None) -> None:
    with pytest.raises(BackboneError, match=r"shape \(4, 10\), got .*category_relationship"):
        build("load", relation=given)


@pytest.mark.parametrize("frozen", [-2, 10])
def test_a_cut_outside_the_backbone_names_the_number_of_blocks(frozen: int) -> None:
    with pytest.raises(BackboneError, match=rf"resnet18: frozen_layers must be 0 to 9, .* got {frozen}\."):
        build("fuse", frozen_layers=frozen)


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(BackboneError, match=r"got 'fused'. Did you mean 'fuse'"):
        build("fused")


def test_the_seed_alone_decides_the_new_head() -> None:
    source = backbone()
    states = []
    for seed, noise in ((0, 10), (0, 20), (1, 10)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        states.append(build("replace", copy.deepcopy(source), seed=seed).head.state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    first, second, other = (state["new.0.weight"] for state in states)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trained_state_carries_the_training_into_a_fresh_model(strategy: str) -> None:
    trained = build(strategy, frozen_layers=5)
    train(trained, steps=2)
    fresh = build(strategy, frozen_layers=5, seed=1)
    state = trained.trained_state()
    assert not any(key.startswith("prefix.") for key in state)
    fresh.load_trained_state(state)
    images, _ = batch(2)
    assert torch.equal(fresh.eval()(images), trained.eval()(images))


def wider(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "head.new.3.bias": torch.zeros(9)}


def shorter(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != "head.new.3.bias"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (wider, r"head\.new\.3\.bias \(9,\) instead of \(4,\)"),
        (shorter, r"1 missing keys \(head\.new\.3\.bias"),
    ],
)
def test_a_trained_state_of_another_model_is_refused_with_the_keys(
    spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
) -> None:
    model = build("replace")
    with pytest.raises(CheckpointError, match=said):
        model.load_trained_state(spoil(model.trained_state()))
    with pytest.raises(CheckpointError, match=r"unexpected keys \(trunk\.8\."):
        model.load_trained_state(build("replace", frozen_layers=8).trained_state())


def test_category_relationship_is_the_mean_softmax_of_each_class() -> None:
    _, labels = batch(12)
    answers = torch.randn(12, 7).softmax(dim=1)
    found = source_rows.category_relationship(
        zip(answers.split(5), labels.split(5), strict=True), len(CLASSES)
    )
    expected = torch.stack([answers[labels == c].double().mean(dim=0) for c in range(len(CLASSES))])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(BackboneError, match=r"got none for labels \[4\]"):
        source_rows.category_relationship([(answers, labels)], len(CLASSES) + 1)


def flowers(folder: Path, per_class: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first images of each class at 128 px, normalised, one batch per class."""
    for label, name in enumerate(sorted(path.name for path in folder.iterdir())):
        files = sorted((folder / name).iterdir())[:per_class]
        pixels = np.stack([np.asarray(Image.open(f).convert("RGB").resize((128, 128))) for f in files])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        mean, std = torch.tensor(weights.IMAGENET_MEAN), torch.tensor(weights.IMAGENET_STD)
        yield (images - mean[:, None, None]) / std[:, None, None], torch.full((len(files),), label)


@pytest.mark.material
@pytest.mark.parametrize(("name", "least"), [("mobilenet_v2", 0.5), ("squeezenet1_0", 0.3)])
def test_load_starts_above_chance_on_real_flowers(name: str, least: float, material: Path) -> None:
    file = material / "weights" / f"{name}.pth"
    pretrained = weights.load(name, WeightsSettings(file=str(file)))
    source = weights.backbone(name, pretrained)
    data = material / "data" / "flowers5"
    with torch.no_grad():
        answers = [(source.eval()(x).softmax(dim=1), y) for x, y in flowers(data / "train", 30)]
    mixed = source_rows.category_relationship(answers, 5)
    model = build(
        "load", source, classes=tuple("abcde"), relation=mixed, source_names=pretrained.classes
    ).eval()
    with torch.no_grad():
        hits = [model(x).argmax(dim=1) == y for x, y in flowers(data / "val", 40)]
    accuracy = torch.cat(hits).float().mean().item()
    print(f"{name}: load starts at {accuracy:.3f}")
    assert accuracy > least  # chance: 0.2, standard error 0.03


@pytest.mark.material
def test_real_weights_know_a_daisy(material: Path) -> None:
    file = material / "weights" / "mobilenet_v2.pth"
    pretrained = weights.load("mobilenet_v2", WeightsSettings(file=str(file)))
    assert pretrained.classes is not None
    source = weights.backbone("mobilenet_v2", pretrained).eval()
    daisies, _ = next(flowers(material / "data" / "flowers5" / "val", 10))
    with torch.no_grad():
        answers = [pretrained.classes[i] for i in source(daisies).argmax(dim=1)]
    assert answers.count("daisy") >= 6
    assert isinstance(backbones.last_layer(source.source_fc), nn.Linear)


NAMED_IN = {
    "src/finetune/strategy.py": "what each is",
    "src/finetune/model/head.py": "the head of each",
    "src/finetune/model/strategies.py": "how each is built",
    "src/finetune/model/timing.py": "`replace` has the cheapest head",
    "src/finetune/training/fused_heads.py": "heads of `replace` can be trained together",
    "src/finetune/model/sample_head.py": "heads of samples with texts or frames are of these two",
    "src/finetune/model_folder/__init__.py": "their folders are read as such",
    "search/config/parts.py": "other strategies are refused for them",
    "search/config/sections/space.py": "the recipe is a trial of `replace`",
}
"""Files that name a strategy. A further one changes the first three; its keys in the schema are generated."""


def test_few_files_name_a_strategy() -> None:
    """All others ask `finetune.strategy.Strategy` for what they need to know."""
    named = re.compile(r"""["'](?:replace|load|fuse)["']|\b(?:REPLACE|LOAD|FUSE)\b""")
    not_strategies = re.compile(r"""errors="replace"|__all__ = .*""")
    root = Path(__file__).parents[1]
    files = [path for folder in ("search", "src") for path in (root / folder).rglob("*.py")]
    texts = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in files}
    found = {name for name, text in texts.items() if named.search(not_strategies.sub("", text))}
    assert found == set(NAMED_IN)
