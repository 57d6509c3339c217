"""What an export says about its model: source classes, maps and neighbours of mistakes, doubtful labels."""

import base64
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from finetune import model_folder
from finetune.disk import checkpoint
from finetune.explain import kept, sources
from finetune.explain.neighbours import nearest
from finetune.messages import Keep
from finetune.model.backbones.parts import GlobalAveragePool
from finetune.model.head import FuseHead, MLPHead
from finetune.settings import ALL, DataSettings, SourceSettings, TrialSettings, WeightsSettings
from finetune.training import loop
from tests.files import changed, contents
from tests.processes import finish

Export = Callable[..., Path]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return a function that trains and exports a small model, and returns its folder."""
    root = tmp_path_factory.mktemp("exports")
    digits = DataSettings(kind="digits", image_size=64, horizontal_flip=False, validation_share=0.4)
    made: dict[Any, Path] = {}

    def make(strategy: str, frozen: int = ALL) -> Path:
        if (strategy, frozen) in made:
            return made[strategy, frozen]
        folder = root / f"{strategy}-{frozen}"
        source = SourceSettings(data=_of(digits, "0", "1", "2"), epochs=2)
        settings = TrialSettings(
            data=_of(digits, "3", "5", "8"),
            backbone="shufflenet_v2_x0_5",
            weights=WeightsSettings(source=source),
            strategy=strategy,
            epochs=1,
            learning_rate=0.003,
            frozen_layers=frozen,
            cache_dir=str(root / "cache"),
        )
        keep = Keep(metric="val/loss", best=folder / "best", last=folder / "last")
        folder.mkdir()
        loop.train(settings, keep=keep, report=lambda _: None)
        model_folder.write(folder / "best", folder / "model", {}, answers=folder / "record")
        made[strategy, frozen] = folder
        return folder

    return make


def _of(data: DataSettings, *classes: str) -> DataSettings:
    import dataclasses

    return dataclasses.replace(data, classes=classes)


def test_a_second_export_leaves_what_the_record_has_of_the_first(export: Export, tmp_path: Path) -> None:
    """Even if this machine's answers are others, as without the features that the first was measured on."""
    folder, kept = export("replace"), tmp_path / "record"
    shutil.copytree(folder / "record", kept)
    for file in kept.iterdir():
        file.write_bytes(file.read_bytes() + b" ")
    before = contents(kept)
    (kept / "batch.json").unlink()
    model_folder.write(folder / "best", tmp_path / "model", {}, answers=kept)
    assert set(changed(before, contents(kept))) == {"batch.json"}  # written anew, without our space
    assert contents(tmp_path / "model").keys() == contents(folder / "model").keys()


def said(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "model/model.yaml").read_text())["source_classes"]
    return found


@pytest.mark.parametrize(("strategy", "how"), [("replace", "projection"), ("load", "mixture"), ("fuse", "")])
def test_every_strategy_names_source_classes(export: Export, strategy: str, how: str) -> None:
    told = said(export(strategy))
    assert told["how"] == (how or ("contribution" if told["answers"] >= sources.HEARD else "projection"))
    assert ("answers" in told) == (strategy == "fuse")
    assert list(told["classes"]) == ["3", "5", "8"]
    for one in told["classes"].values():
        assert set(one["leans_on"]) <= {"0", "1", "2"}
        assert all(share > 0 for share in one["leans_on"].values())
        assert 0 <= one["explained"] <= 1


def test_the_shares_of_load_are_the_mixture_and_sum_to_1(export: Export) -> None:
    for one in said(export("load"))["classes"].values():
        assert sum(one["leans_on"].values()) == pytest.approx(1.0, abs=2e-4)  # three rounded numbers


def test_mistakes_are_explained_by_a_map_and_the_nearest_training_images(export: Export) -> None:
    folder = export("replace")
    mistakes = json.loads((folder / "record/mistakes.json").read_text())
    told = json.loads((folder / "record/explained.json").read_text())
    assert [one["image"] for one in told["mistakes"]] == [one["image"] for one in mistakes] != []
    for one, mistake in zip(told["mistakes"], mistakes, strict=True):
        cosines = [near["cosine"] for near in one["neighbours"]]
        assert len(cosines) == 3
        assert cosines == sorted(cosines, reverse=True)
        assert -1 <= cosines[-1] <= cosines[0] <= 1.0001
        assert one["map"] != mistake["picture"]
        assert Image.open(io.BytesIO(base64.b64decode(one["map"]))).size == (64, 64)


def test_a_map_of_one_value_is_not_shown() -> None:
    """As of images of 32 pixels, of which most networks have one position left."""
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert kept.marked(image, torch.ones(8, 8)) is None
    assert kept.marked(image, torch.linspace(0, 1, 64).view(8, 8)) is not None


def test_labels_are_doubted_only_by_features_that_have_not_learned_them(export: Export) -> None:
    frozen, trained = (
        json.loads((export("replace", count) / "record/explained.json").read_text()) for count in (ALL, 4)
    )
    given = [one["given"] for one in frozen["suspects"]]
    assert given == sorted(given)
    assert all(one["label"] != one["likely"] for one in frozen["suspects"])
    # The trained blocks have learned the labels, so the doubts are those of the pretrained backbone.
    assert given != []
    assert [one["path"] for one in trained["suspects"]] == [one["path"] for one in frozen["suspects"]]
    assert [one["given"] for one in trained["suspects"]] == pytest.approx(given, abs=1e-4)


@pytest.mark.thorough
def test_two_workers_export_what_explains_their_model(export: Export, tmp_path: Path) -> None:
    """One of them explains while the other waits: nothing that it calls may wait for the other one."""
    _, stored = checkpoint.read(export("load", 4) / "best")
    script = Path(__file__).parent / "two_workers.py"
    done = finish(sys.executable, script, tmp_path / "two", "export", given=repr([stored["settings"]]))
    assert done.returncode == 0, done.stderr
    facts = yaml.safe_load((tmp_path / "two/model/model.yaml").read_text())
    assert facts["source_classes"]["how"] == "mixture"
    told = json.loads((tmp_path / "two/record/explained.json").read_text())
    assert told["mistakes"] != []
    assert told["suspects"] != []


def test_explain_tells_the_source_classes_of_the_answer(export: Export, tmp_path: Path) -> None:
    from search.views import explanations

    folder = export("load")
    Image.linear_gradient("L").save(tmp_path / "a.png")
    (row,) = explanations.explain(folder / "model", [tmp_path / "a.png"], tmp_path / "out")
    assert row["leans_on"] == said(folder)["classes"][row["class"]]["leans_on"]


# The parts


def test_a_projection_finds_the_columns_that_make_up_a_logit_and_nothing_in_noise() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 30))
    shares, explained = sources.project(x, 3 * x[:, 4] + x[:, 9])
    assert explained == pytest.approx(1, abs=1e-6)
    assert shares[4] == pytest.approx(0.75, abs=0.05)
    assert shares[9] == pytest.approx(0.25, abs=0.05)
    shares, explained = sources.project(x, draw.normal(size=200))
    assert explained < 0.1
    assert shares.sum() == pytest.approx(explained)


def test_what_speaks_against_a_class_is_not_what_it_leans_on() -> None:
    x = np.random.default_rng(0).normal(size=(2000, 5))
    shares, _ = sources.project(x, x[:, 1] - 2 * x[:, 3])
    assert shares[3] == 0
    assert shares[1] > 0.1


def test_contributions_of_a_linear_head_are_weight_times_softmax() -> None:
    torch.manual_seed(0)
    source_fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))
    head = FuseHead(GlobalAveragePool(), source_fc, MLPHead(4 + 6, 0, 3, 0.0)).eval()
    pooled = torch.randn(5, 4)
    added, margins = sources.contributions(head, pooled)
    softmax = source_fc[2](pooled).softmax(1)
    last = head.new[-1]
    assert isinstance(last, nn.Linear)
    weight = last.weight - last.weight.mean(0)
    assert torch.allclose(added, weight[:, 4:] * softmax[:, None], atol=1e-6)
    rest = pooled @ weight[:, :4].T + last.bias - last.bias.mean()
    assert torch.allclose(added.sum(2) + rest, margins, atol=1e-6)


def test_the_nearest_images_are_those_with_the_highest_cosine() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    cosines, places = nearest(torch.tensor([[5.0, 4.0]]), features, 2)
    assert places.tolist() == [[2, 0]]
    assert cosines[0, 0] > cosines[0, 1]
