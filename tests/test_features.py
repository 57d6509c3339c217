"""Stored features: the same trial as without them, to the bit, and computed once."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.disk.array_store import Store
from finetune.frozen import execution
from finetune.frozen.execution import BATCH, Pass
from finetune.frozen.features import Inputs
from finetune.images.pixels import normalise
from finetune.messages import Epoch, Keep, Message
from finetune.settings import ALL, DataSettings, FeatureSettings, TrialSettings, WeightsSettings
from finetune.training import building, loop, shared
from finetune.training.run import Run
from finetune.training.workers import World
from search.config import resolve
from search.config.study import StudyConfig
from tests.small import merged

MANY = 10_000
"""Trials, so that storing pays at every cut of a small network on small images."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files with random weights, and running statistics of batch norms that are not the initial ones."""
    import torchvision

    files = {}
    for name in ("shufflenet_v2_x0_5", "squeezenet1_1"):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        files[name] = str(tmp_path_factory.mktemp("weights") / f"{name}.pth")
        torch.save(model.state_dict(), files[name])
    return files


@pytest.fixture
def settings(weights: dict[str, str], tmp_path: Path) -> Any:
    def make(backbone: str = "shufflenet_v2_x0_5", data: dict[str, Any] | None = None, **options: Any) -> Any:
        values: dict[str, Any] = {
            "data": DataSettings(
                kind="digits",
                classes=("5", "6", "7"),
                batch_size=24,
                **({"image_size": 32, "validation_share": 0.4, "test_share": 0.4} | (data or {})),
            ),
            "backbone": backbone,
            "weights": WeightsSettings(file=weights[backbone]),
            "strategy": "replace",
            "learning_rate": 0.01,
            "epochs": 3,
            "precision": "exact",
            "cache_dir": str(tmp_path / "cache"),
        }
        return TrialSettings(**values | options)

    return make


@pytest.fixture
def features(tmp_path: Path) -> FeatureSettings:
    return FeatureSettings(folder=str(tmp_path / "features"), budget_bytes=2**30, trials=MANY)


def train(settings: TrialSettings, folder: Path, features: FeatureSettings | None) -> list[Message]:
    messages: list[Message] = []
    paths = {"best": folder / "best.safetensors", "last": folder / "last.safetensors"}
    keep = Keep(metric="val/accuracy", **paths)
    loop.train(settings, keep=keep, report=messages.append, features=features)
    return messages


def learned(messages: list[Message]) -> list[dict[str, float]]:
    timed = ("seconds", "images_per_second")
    return [{k: v for k, v in m.metrics.items() if k not in timed} for m in messages if isinstance(m, Epoch)]


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "replace", "head_size": 8},
        {"strategy": "load"},
        {"strategy": "fuse", "frozen_layers": 12},
        {"strategy": "fuse", "frozen_layers": ALL},
        {"strategy": "replace", "data": {"horizontal_flip": False}},
        {"strategy": "replace", "data": {"crop_scale": 0.5}},
        {
            "strategy": "fuse",
            "frozen_layers": 12,
            "data": {"crop_scale": 0.5, "augment": "trivial", "views": 2},
        },
        {"backbone": "squeezenet1_1", "strategy": "load"},
        {"backbone": "squeezenet1_1", "strategy": "fuse", "frozen_layers": 5},
        {"strategy": "replace", "imbalance": "balanced_sampling", "ema_decay": 0.9, "accumulate": 2},
    ],
    ids=str,
)
def test_a_trial_on_stored_features_is_the_trial_on_images(
    settings: Any, features: FeatureSettings, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Every metric of every epoch, to the last bit: while they are computed, and when they are read."""
    trial = settings(**options)
    fresh = train(trial, tmp_path / "fresh", None)
    first, second = (train(trial, tmp_path / name, features) for name in ("first", "second"))
    assert fresh[0].facts["stored_cut"] is None
    assert first[0].facts["stored_cut"] == first[0].facts["frozen_blocks"] > 0
    assert learned(first) == learned(fresh)
    assert learned(second) == learned(fresh)


def test_features_that_no_other_trial_reads_are_not_stored_for_them(
    settings: Any, features: FeatureSettings, tmp_path: Path
) -> None:
    """Each epoch crops anew: what a trial stores only others read; where crops are searched, none does."""
    trial = settings(data={"crop_scale": 0.5})
    alone = dataclasses.replace(features, alike_views=0.0)
    assert train(trial, tmp_path / "alone", alone)[0].facts["stored_cut"] is None
    kept = [entry["facts"] for entry in Store(Path(features.folder), 0).entries()]
    assert [fact["split"] for fact in kept if "backbone" in fact] == ["val"]  # these are not cropped
    assert train(trial, tmp_path / "shared", features)[0].facts["stored_cut"] is not None


ALIKE: list[tuple[dict[str, Any], float, float]] = [
    ({}, 1, 1),
    ({"model": {"backbone": ["vgg16", "resnet18"]}}, 1 / 2, 1 / 2),
    ({"data": {"image_size": [64, 128, 224]}}, 1 / 3, 1 / 3),
    ({"data": {"image_size": {"low": 64, "high": 128, "step": 32}}}, 1 / 3, 1 / 3),
    ({"data": {"image_size": {"replace": [64, 128], "load": 64, "fuse": 224}}}, 1 / 3, 1 / 3),
    ({"data": {"crop_scale": {"low": 0.2, "high": 1.0}}}, 1, 0),
    ({"data": {"crop_scale": [0.5, 1.0], "horizontal_flip": [True, False]}}, 1, 1 / 4),
    ({"data": {"augment": ["none", "trivial"]}, "space": {"mix": ["none", "mixup"]}}, 1, 1 / 4),
    ({"space": {"mix": "cutmix"}}, 1, 0),
    ({"model": {"weights": "none"}, "space": {"strategy": ["replace", "fuse"]}}, 0, 0),
]


@pytest.mark.parametrize(("sections", "images", "views"), ALIKE, ids=lambda value: str(value))
def test_how_many_trials_share_features_is_read_off_the_space(
    sections: dict[str, Any], images: float, views: float
) -> None:
    base = {"study": {"name": "s", "trials": 8}, "data": {"path": "/images"}, "model": {"backbone": "vgg16"}}
    found = resolve.feature_settings(StudyConfig.from_dict(merged(base, sections)))
    assert (found.alike, found.alike_views) == (pytest.approx(images), pytest.approx(views))


def test_features_are_computed_once_for_all_trials(
    settings: Any, features: FeatureSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Head, rate, seed and strategy may differ; images and frozen blocks are the same."""
    train(settings(), tmp_path / "first", features)
    train(settings(strategy="load"), tmp_path / "load", features)  # its relation is computed once, too

    def refuse(*_: Any) -> None:
        raise AssertionError("frozen blocks were run again")

    monkeypatch.setattr(Pass, "run", refuse)
    for place, options in enumerate(
        ({"head_size": 16, "seed": 3}, {"learning_rate": 0.1}, {"strategy": "load"}, {"strategy": "fuse"})
    ):
        messages = train(settings(**options), tmp_path / str(place), features)
        assert len(messages) == 1 + 3


def test_a_deeper_cut_goes_on_from_a_stored_one(
    settings: Any, features: FeatureSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images are not decoded, nor the first blocks run, a second time; the result is the same."""
    train(settings(strategy="fuse", frozen_layers=10), tmp_path / "lower", features)
    deeper = settings(strategy="fuse", frozen_layers=14)
    fresh = train(deeper, tmp_path / "fresh", None)
    seen: list[int] = []
    run = Pass.run

    def watched(how: Pass, blocks: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append(len(blocks))
        return run(how, blocks, x)

    monkeypatch.setattr(Pass, "run", watched)
    assert learned(train(deeper, tmp_path / "deeper", features)) == learned(fresh)
    assert set(seen) == {4}


def test_what_decides_the_features_is_in_their_key(settings: Any, features: FeatureSettings) -> None:
    """Another seed or head shares them; other weights, sizes, cuts, precision or images do not."""

    def entries(**options: Any) -> set[str]:
        run = Run(settings(**options), World(), features)
        run.inputs.feed("train", view=0)
        return {entry["key"] for entry in Store(Path(features.folder), 1).entries()}

    known = entries()
    for same in ({"seed": 9}, {"head_size": 64}, {"dropout": 0.5}):
        assert entries(**same) == known
    for other in (
        {"strategy": "fuse", "frozen_layers": 12},
        {"data": {"image_size": 40}},
        {"data": {"validation_share": 0.3}},
        {"data": {"crop_scale": 0.5}},
        {"backbone": "squeezenet1_1"},
        {"weights": WeightsSettings()},
    ):
        more = entries(**other)
        assert more > known, other
        known = more


def test_a_view_is_the_same_image_stored_or_not(settings: Any) -> None:
    """The sheet that features are computed of holds just the pixels that training would see."""
    for changes in ({"horizontal_flip": True}, {"crop_scale": 0.5}, {"augment": "trivial"}, {}):
        data = shared.images(settings(data={"horizontal_flip": False} | changes).data)
        for view in (0, 1, 5):
            sheet, places = data.sheet("train", view), data.places("train", view)
            pixels = torch.cat(list(data.sheet_pixels("train", sheet, 0, sheet.rows, BATCH)))
            everything = torch.arange(data.size("train"))
            seen = data.batch("train", everything, view=view)
            assert torch.equal(pixels if places is None else pixels[places], seen), changes


def test_files_are_looked_at_once_however_trials_see_them(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a range of crops every trial sees the images in its own way."""
    scans: list[DataSettings] = []
    scan = shared.catalog.scan
    monkeypatch.setattr(shared.catalog, "scan", lambda data: scans.append(data) or scan(data))
    seen = {"image_size": 48, "horizontal_flip": False, "crop_scale": 0.5, "augment": "trivial", "views": 2}
    ways = [{}, *({name: value} for name, value in seen.items())]
    found = [shared.images(settings(data=way | {"seed": 77}).data) for way in ways]
    assert len(scans) == 1
    for way, images in zip(ways, found, strict=True):
        given = settings(data=way | {"seed": 77}).data
        assert images.fingerprint == scan(given).fingerprint  # nothing that was left out counts there
        assert images.batch("train", torch.tensor([0]), view=0).shape[-1] == given.image_size
    assert shared.images(settings(data={"seed": 78}).data).fingerprint != found[0].fingerprint


def test_a_frozen_batch_norm_in_training_mode_would_be_caught(
    settings: Any, features: FeatureSettings, tmp_path: Path
) -> None:
    """Features that depend on the batch they were computed in differ from fresh ones."""
    run = Run(settings(strategy="fuse", frozen_layers=12), World(), features)
    feed = run.inputs.feed("val")
    assert feed.rows is not None
    stored = feed.rows[:BATCH].clone()
    pixels = run.data.batch("val", torch.arange(BATCH))
    images = normalise(pixels, run.inputs._mean, run.inputs._std)
    assert torch.equal(run.model.features(images), stored)
    norm = next(m for m in run.model.prefix.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.train()
    try:
        assert not torch.equal(run.model.features(images), stored)
    finally:
        norm.eval()


def test_no_room_and_mode_off_only_cost_time(
    settings: Any, features: FeatureSettings, tmp_path: Path
) -> None:
    trial = settings()
    fresh = train(trial, tmp_path / "fresh", None)
    full = dataclasses.replace(features, folder=str(tmp_path / "full"), budget_bytes=1000)
    off = dataclasses.replace(features, folder=str(tmp_path / "off"), mode="off")
    assert learned(train(trial, tmp_path / "a", full)) == learned(fresh)
    assert learned(train(trial, tmp_path / "b", off)) == learned(fresh)
    assert not (tmp_path / "off").exists()
    (tmp_path / "file").write_text("")
    nowhere = dataclasses.replace(features, folder=str(tmp_path / "file" / "below"))
    assert learned(train(trial, tmp_path / "c", nowhere)) == learned(fresh)


def test_a_full_store_in_the_middle_of_a_trial_changes_nothing(
    settings: Any, features: FeatureSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cut was chosen, but another study has taken the room since."""
    trial = settings()
    fresh = train(trial, tmp_path / "fresh", None)
    monkeypatch.setattr(Store, "get", lambda *_, **__: None)
    assert learned(train(trial, tmp_path / "full", features)) == learned(fresh)


def test_mixed_images_are_not_stored_but_validation_images_are(
    settings: Any, features: FeatureSettings, tmp_path: Path
) -> None:
    """Mixup makes new images in every batch: their features are computed, the others' are read."""
    trial = settings(mix="mixup")
    assert train(trial, tmp_path / "a", features)[0].facts["stored_cut"] is None
    kinds = {entry["facts"].get("split") for entry in Store(Path(features.folder), 1).entries()}
    assert "val" in kinds
    assert learned(train(trial, tmp_path / "b", features)) == learned(train(trial, tmp_path / "c", None))


def test_a_pass_with_padding_gives_a_row_the_same_bits_in_any_company(settings: Any) -> None:
    run = Run(settings(strategy="fuse", frozen_layers=12), World())
    images = torch.randn(BATCH + 5, 3, 32, 32)
    whole = Pass().run_padded(run.model.prefix, images)
    order = torch.randperm(len(images))
    assert torch.equal(Pass().run_padded(run.model.prefix, images[order]), whole[order])
    assert torch.equal(Pass().run_padded(run.model.prefix, images[:3]), whole[:3])


def test_the_batch_that_features_are_computed_in_and_who_fills_the_store_change_no_promise(
    settings: Any, features: FeatureSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: larger batches, threads that fill the store together, one precision around them."""
    seen: list[bool] = []
    rounding = execution.rounding

    @contextlib.contextmanager
    def told(precision: str) -> Iterator[None]:
        with rounding(precision):
            seen.append(torch.backends.cudnn.allow_tf32)
            yield

    monkeypatch.setattr(execution, "rounding", told)
    monkeypatch.setattr(execution, "batch_of", lambda precision, device: 48)
    monkeypatch.setattr(Inputs, "_threads", lambda self, how: 3)
    trial = settings(strategy="fuse", frozen_layers=12)
    assert learned(train(trial, tmp_path / "stored", features)) == learned(
        train(trial, tmp_path / "no", None)
    )
    assert set(seen) == {False}


def test_features_of_another_batch_size_are_another_entry(
    settings: Any, features: FeatureSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(Path(features.folder), 1)
    train(settings(epochs=1), tmp_path / "a", features)
    first = {entry["key"] for entry in store.entries()}
    monkeypatch.setattr(execution, "batch_of", lambda precision, device: 48)
    train(settings(epochs=1), tmp_path / "b", features)
    assert len({entry["key"] for entry in store.entries()} - first) == 2  # training images, others


def test_a_gpu_takes_large_batches_but_not_where_fresh_ones_are_filled_up_to_them() -> None:
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert execution.batch_of("auto", gpu) == execution.GPU_BATCH > BATCH
    assert [execution.batch_of("exact", gpu), execution.batch_of("auto", cpu)] == [BATCH, BATCH]


def test_auto_runs_frozen_blocks_as_fast_as_it_can_in_training_only(
    settings: Any, features: FeatureSettings, tmp_path: Path
) -> None:
    """Validation is measured as the exported model answers: in the usual pass."""
    run = Run(settings(precision="auto"), World(), features)
    assert isinstance(run.inputs, Inputs)
    assert run.inputs._passes[False] == Pass()
    assert run.inputs._passes[True] == run.inputs._costs.fastest
    again = Run(settings(precision="auto", seed=5), World(), features)
    assert again.inputs._costs == run.inputs._costs  # measured once per node, so that it stays the same


@pytest.mark.parametrize("frozen", [12, ALL])
def test_only_a_head_reads_what_the_fastest_pass_rounds(
    settings: Any, features: FeatureSettings, frozen: int
) -> None:
    """Blocks that are trained on frozen ones read the bits that `exact` gives."""
    rows, ways = {}, {}
    for precision in ("auto", "exact"):
        trial = settings(strategy="fuse", frozen_layers=frozen, precision=precision)
        run = Run(trial, World(), features)
        found = run.inputs.feed("train", view=0).rows
        assert found is not None
        rows[precision], ways[precision] = found, run.inputs._passes[True]
    assert torch.equal(rows["auto"], rows["exact"]) == (frozen != ALL)
    assert (ways["auto"] == ways["exact"]) == (frozen != ALL)
    assert ways["auto"].folded == (frozen == ALL)


def test_frozen_blocks_that_see_new_images_in_each_batch_are_folded_once(
    settings: Any, features: FeatureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(settings(precision="auto", mix="mixup"), World(), features)
    images, how = torch.rand(4, 3, 32, 32), run.inputs._passes[True]
    assert how.folded
    seen = []
    ready = Pass.ready
    monkeypatch.setattr(Pass, "ready", lambda how, blocks: seen.append(how) or ready(how, blocks))
    made = [run.inputs.features(images, how) for _ in range(2)]
    assert len(seen) == 1
    torch.testing.assert_close(made[0], run.inputs.features(images, Pass()), rtol=0.05, atol=0.01)


@pytest.mark.thorough
@pytest.mark.slow
def test_much_work_is_compiled_where_that_is_faster(
    settings: Any, features: FeatureSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled blocks give the features of eager ones, up to rounding; whether they win is the machine's."""
    monkeypatch.setattr(execution, "COMPILE_FROM_SECONDS", 0.0)
    monkeypatch.setattr(execution, "FASTER", 1e-9)  # it wins, if there is a compiler
    run = Run(settings("squeezenet1_1", precision="auto"), World(), features)
    assert run.inputs._passes[True].compiled == (shutil.which("g++") is not None)
    assert not run.inputs._passes[False].compiled
    compiled = run.inputs.feed("train", view=0).rows
    plain = FeatureSettings(**{**vars(features), "folder": str(tmp_path / "plain")})
    eager = (
        Run(settings("squeezenet1_1", precision="exact"), World(), plain).inputs.feed("train", view=0).rows
    )
    assert compiled is not None
    assert eager is not None
    assert torch.nn.functional.cosine_similarity(compiled, eager).min() > 0.99


def test_what_cannot_be_compiled_is_run_as_it_is(
    settings: Any, features: FeatureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(execution, "COMPILE_FROM_SECONDS", 0.0)
    monkeypatch.setattr(torch, "compile", fails)
    run = Run(settings(precision="auto"), World(), features)
    assert not run.inputs._passes[True].compiled
    assert run.inputs.feed("train", view=0).rows is not None


# The source FC of a squeezenet reads maps, which `replace` does not store.
@pytest.mark.parametrize(
    ("backbone", "before"), [("shufflenet_v2_x0_5", "replace"), ("squeezenet1_1", "load")]
)
def test_the_relation_of_load_is_read_from_stored_features_and_equals_a_fresh_one(
    settings: Any,
    features: FeatureSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backbone: str,
    before: str,
) -> None:
    load = settings(backbone, strategy="load")
    device = torch.device("cpu")
    images = shared.images(load.data)
    source = shared.pretrained(load.backbone, load.weights, load.cache_dir, "cpu")
    net = shared.pristine(load, device)
    pixels = torch.cat([x for x, _ in images.batches("train", [torch.arange(images.size("train"))])])
    with torch.no_grad():
        answers = net(normalise(pixels, source.mean, source.std)).softmax(dim=1).double()
    labels = images.labels("train")
    expected = torch.stack([answers[labels == c].mean(dim=0) for c in range(3)])

    fresh = building.relationship(load, device)
    torch.testing.assert_close(fresh, expected, rtol=1e-4, atol=1e-7)

    train(settings(backbone, strategy=before), tmp_path, features)
    passed: list[int] = []
    whole = Inputs._activations
    monkeypatch.setattr(Inputs, "_activations", lambda *a: passed.append(len(a[1])) or whole(*a))
    monkeypatch.setattr(Inputs, "_made", lambda *a: passed.append(len(a[1])))
    shutil.rmtree(Path(load.cache_dir) / "relations")
    building._relationship.cache_clear()
    assert torch.equal(building.relationship(load, device, features), fresh)
    assert passed == []
    monkeypatch.undo()
    shutil.rmtree(Path(load.cache_dir) / "relations")
    building._relationship.cache_clear()
    thawed = dataclasses.replace(load, frozen_layers=2)
    assert torch.equal(building.relationship(thawed, device, features), fresh)
