"""Samples with text or several frames: from their files to a model folder that answers without one part."""

import asyncio
import csv
import io
import json
import math
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import av
import httpx
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from finetune.datasets import catalog, clips
from finetune.datasets.clips import at_times
from finetune.datasets.clips import frames as read_clip
from finetune.errors import CheckpointError, DataError
from finetune.frozen.samples import chosen
from finetune.handing_on import formats
from finetune.messages import Effective, Epoch, Keep
from finetune.model.sample_head import GAIN, SampleHead, SampleShape
from finetune.model_folder import load, write
from finetune.model_folder.samples import Sample, find, frames_of, predict, probabilities
from finetune.serving import app as serving_app
from finetune.serving.limits import Limits
from finetune.settings import (
    ALL,
    DataSettings,
    FeatureSettings,
    Imbalance,
    SampleSettings,
    TrialSettings,
    WeightsSettings,
)
from finetune.texts.tfidf import Tfidf
from finetune.training import loop, shared
from search.config.problems import ConfigErrors
from search.config.study import StudyConfig
from search.errors import StudyError
from search.suggest.space import Space
from search.views import explanations, predictions
from tests.here import Here

SEEN: dict[str, Any] = {"image_size": 32, "horizontal_flip": False, "batch_size": 16}


def trial(folder: Path, data: DataSettings, **changes: Any) -> tuple[Path, list[Any]]:
    """Train a head on a small backbone; return its best checkpoint and the worker's messages."""
    values: dict[str, Any] = {
        "data": data,
        "backbone": "shufflenet_v2_x0_5",
        "weights": WeightsSettings(),
        "strategy": "replace",
        "epochs": 4,
        "learning_rate": 0.01,
        "cache_dir": str(folder / "cache"),
    }
    keep = Keep(metric="val/accuracy", best=folder / "best", last=folder / "last")
    heard: list[Any] = []
    stored = FeatureSettings(folder=str(folder.parent / "features"), budget_bytes=2**28)
    loop.train(TrialSettings(**values | changes), keep=keep, report=heard.append, features=stored)
    return keep.best, heard


def accuracy(heard: Sequence[Any]) -> float:
    return max(one.metrics["val/accuracy"] for one in heard if isinstance(one, Epoch))


def used(heard: Sequence[Any]) -> dict[str, Any]:
    return dict(next(one.facts for one in heard if isinstance(one, Effective)))


def colours(folder: Path, rows: int = 60) -> Path:
    """Write a manifest whose class is a colour, in the image, and a material, in the text."""
    folder.mkdir(exist_ok=True)
    table = []
    for number in range(rows):
        colour, material = ("red", "blue")[number % 2], ("wool", "steel")[number // 2 % 2]
        Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")
        words = {"wool": "soft warm", "steel": "hard shiny"}[material]
        table.append([f"{number}.png", f"{colour} {material}", f"a {words} one", f"g{number // 4}"])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "text", "group"], *table])
    return folder / "manifest.csv"


def of_colours(folder: Path, **changes: Any) -> DataSettings:
    return of_colours_at(colours(folder / "colours"), **changes)


def of_colours_at(table: Path, **changes: Any) -> DataSettings:
    return DataSettings(**{"kind": "manifest", "path": str(table), "text": ("text",), **SEEN} | changes)


class TestSources:
    def test_a_manifest_may_have_path_text_and_group(self, tmp_path: Path) -> None:
        found = catalog.scan(of_colours(tmp_path))
        assert found.classes == ("blue steel", "blue wool", "red steel", "red wool")
        assert {one.text for one in found.splits["train"]} == {"a soft warm one", "a hard shiny one"}

    def test_groups_stay_together_in_splits_that_are_made(self, tmp_path: Path) -> None:
        found = catalog.scan(of_colours(tmp_path))
        places: dict[int, set[str]] = {}
        for split, examples in found.splits.items():
            for one in examples:
                places.setdefault(int(Path(one.path).stem) // 4, set()).add(split)
        assert all(len(splits) == 1 for splits in places.values())
        sizes = {split: len(examples) for split, examples in found.splits.items()}
        assert sizes == {"train": 40, "val": 12, "test": 8}

    def test_given_splits_that_divide_a_group_are_refused(self, tmp_path: Path) -> None:
        for name in "abcd":
            Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        rows = "path,label,split,group\na.png,x,train,1\nb.png,y,train,2\nc.png,x,val,1\nd.png,y,val,3\n"
        (tmp_path / "m.csv").write_text(rows)
        with pytest.raises(DataError, match="a group must lie in one split, got '1' in train and val"):
            catalog.scan(SampleSettings(kind="manifest", path=str(tmp_path / "m.csv")))

    def test_a_text_column_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"data.text: must name columns of .*, got 'txt'"):
            catalog.scan(of_colours(tmp_path, text=("txt",)))

    def test_texts_are_part_of_the_fingerprint(self, tmp_path: Path) -> None:
        with_text = catalog.scan(of_colours(tmp_path)).fingerprint
        without = catalog.scan(of_colours(tmp_path, text=None)).fingerprint
        assert with_text != without

    def test_metadata_csv_gives_texts_and_groups_of_a_folder(self, tmp_path: Path) -> None:
        rows = ["file_name,caption,group"]
        for name in ("x", "y"):
            (tmp_path / name).mkdir()
            for number in range(4):
                Image.new("RGB", (8, 8)).save(tmp_path / name / f"{number}.png")
                rows.append(f"{name}/{number}.png,text {number},g{number // 2}")
        (tmp_path / "metadata.csv").write_text("\n".join(rows))
        settings = SampleSettings(
            kind="folder", path=str(tmp_path), text=("caption",), validation_share=0.4, test_share=0
        )
        found = catalog.scan(settings)
        assert {one.text for one in found.splits["train"]} in ({"text 0", "text 1"}, {"text 2", "text 3"})
        (tmp_path / "metadata.csv").unlink()
        with pytest.raises(DataError, match=r"must hold metadata.csv with the columns file_name and caption"):
            catalog.scan(settings)

    def test_texts_that_are_empty_or_shared_by_splits_are_told(self, tmp_path: Path) -> None:
        table = colours(tmp_path / "colours")
        table.write_text(table.read_text().replace(",a soft warm one", ","))
        found = {one.check: one for one in catalog.scan(of_colours_at(table)).findings}
        assert found["empty_text"].count == 30
        assert "30 of 60 without (50%)" in found["empty_text"].text
        assert found["text_in_two_splits"].grade == "note"


class TestTexts:
    def test_tfidf_knows_only_words_of_training_texts(self) -> None:
        encoder = Tfidf.fit(["red wool", "blue steel", "red steel"])
        assert "steel" in encoder.vocabulary
        assert encoder.encode(["unheard", ""]).abs().sum() == 0

    def test_tfidf_is_rebuilt_from_what_a_model_folder_holds(self) -> None:
        encoder = Tfidf.fit(["red wool", "blue steel", "red steel", "a b cd"])
        again = Tfidf.rebuilt(encoder.tensors(), encoder.words())
        texts = ["red steel", "wool"]
        assert torch.equal(again.encode(texts), encoder.encode(texts))

    @pytest.mark.parametrize("words", ["[]", '["a", "a", "b", "c"]', '{"red": 0}', "[1, 2, 3, 4]"])
    def test_a_vocabulary_that_does_not_fit_is_refused(self, words: str) -> None:
        encoder = Tfidf.fit(["red wool", "blue steel", "red steel"])
        with pytest.raises(ValueError, match="vocabulary"):
            Tfidf.rebuilt(encoder.tensors(), words)

    def test_training_without_any_word_is_no_error(self) -> None:
        assert Tfidf.fit([]).encode(["x"]).shape == (1, 1)


def head(**changes: Any) -> SampleHead:
    values: dict[str, Any] = {"fusion": "concat", "pooling": "mean", "frames": 3, "features": 5, "text": 4}
    shape = SampleShape(**values | changes)
    return SampleHead(nn.Identity(), shape, head_size=0, classes=2, dropout=0.0)


def rows_of(head: SampleHead, count: int = 64, marks: float = 1.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(count, head.shape.row, generator=draw) * 3 + 7
    rows[:, -2:] = marks
    return rows


class TestHead:
    @pytest.mark.parametrize("pooling", ["mean", "max", "mean_std", "mean_diff", "attention", "ordered"])
    def test_the_image_varies_by_the_gain_under_each_pooling(self, pooling: str) -> None:
        made = head(pooling=pooling, fusion="image", text=0)
        rows = rows_of(made)
        made.fit(rows.split(10))
        seen: list[torch.Tensor] = []
        made.new.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        made(rows)
        assert seen[0].var(0, correction=0).sum().sqrt().item() == pytest.approx(GAIN, rel=1e-3)

    @pytest.mark.parametrize("pooling", ["mean", "max", "mean_std", "mean_diff", "attention", "ordered"])
    def test_only_ordered_tells_a_clip_from_its_reverse(self, pooling: str) -> None:
        made = head(pooling=pooling, fusion="image", text=0).eval()
        rows = rows_of(made)
        back = rows.clone()
        back[:, :15] = rows[:, :15].view(-1, 3, 5).flip(1).flatten(1)
        same = torch.allclose(made(rows), made(back), atol=1e-4)
        assert same == (pooling != "ordered")

    @pytest.mark.parametrize("fusion", ["concat", "sum", "gated"])
    def test_a_part_that_is_missing_is_not_read(self, fusion: str) -> None:
        made = head(fusion=fusion).eval()
        rows = rows_of(made)
        made.fit([rows])
        rows[:, -1] = 0
        other = rows.clone()
        other[:, 15:-2] = 99.0
        assert torch.equal(made(rows), made(other))
        assert made(rows).isfinite().all()

    def test_without_text_a_sum_answers_as_its_image_head(self) -> None:
        made = head(fusion="sum").eval()
        rows = rows_of(made)
        made.fit([rows])
        rows[:, -1] = 0
        image = (made._pooled(rows[:, :15].view(-1, 3, 5)) - made.image_mean) * made.image_scale
        wanted = made.new["image"](image).softmax(1)  # type: ignore[index]
        assert torch.allclose(made(rows).softmax(1), wanted, atol=1e-5)

    @pytest.mark.parametrize("fusion", ["concat", "sum", "gated"])
    def test_with_neither_part_the_answer_is_finite(self, fusion: str) -> None:
        made = head(fusion=fusion).eval()
        assert made(rows_of(made, marks=0.0)).isfinite().all()

    def test_each_head_of_a_sum_is_trained_alone(self) -> None:
        made = head(fusion="sum").train()
        rows = rows_of(made)
        made.fit([rows])
        said = made(rows)
        assert torch.allclose(said.exp().sum(1), torch.ones(len(rows)))  # one part's probabilities
        assert not torch.allclose(made.eval()(rows).exp().sum(1), torch.ones(len(rows)))

    def test_a_gate_begins_as_concat(self) -> None:
        gated, plain = head(fusion="gated").eval(), head(fusion="concat").eval()
        gated.load_state_dict(plain.state_dict(), strict=False)
        rows = rows_of(plain)
        assert torch.allclose(gated(rows), plain(rows), rtol=1e-5)

    def test_dropout_of_a_part_is_of_training_only_and_never_of_both(self) -> None:
        made = head(modality_dropout=0.9)
        marks = torch.ones(400, 2)
        seen = made.train()._seen(marks)
        assert seen.sum(1).min() == 1
        assert 0.8 < (seen.sum(1) == 1).float().mean() < 1
        assert torch.equal(made.eval()._seen(marks), marks)
        alone = torch.tensor([[1.0, 0.0]] * 50)
        assert torch.equal(made.train()._seen(alone), alone)

    def test_a_shape_that_no_export_writes_is_refused(self) -> None:
        shape = head().shape.to_dict()
        assert SampleShape.from_dict(shape) == head().shape
        for wrong in (
            {"fusion": "x"},
            {"frames": -1},
            {"features": "5"},
            {"image_scale": float("nan")},
            {"z": 1},
        ):
            with pytest.raises(ValueError, match="a head for samples"):
                SampleShape.from_dict(shape | wrong)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], dict[str, Any]]:
    """Return a folder with `colours` and a trained `model`, its messages and its facts."""
    folder = tmp_path_factory.mktemp("exported") / "study"
    folder.mkdir()
    checkpoint, heard = trial(folder, of_colours(folder), modality_dropout=0.2)
    return folder, heard, write(checkpoint, folder / "model", {})


Exported = tuple[Path, list[Any], dict[str, Any]]


class TestTextBesideImages:
    def test_both_parts_tell_what_neither_tells_alone(self, tmp_path: Path) -> None:
        data = of_colours(tmp_path)
        scores = {
            fusion: accuracy(trial(tmp_path / fusion, data, fusion=fusion)[1])
            for fusion in ("image", "text", "concat", "gated", "sum")
        }
        assert scores["image"] <= 0.5
        assert scores["text"] <= 0.5
        assert (scores["concat"], scores["gated"], scores["sum"]) == (1.0, 1.0, 1.0)

    def test_a_model_folder_answers_and_says_which_part_was_missing(self, exported: Exported) -> None:
        where, heard, facts = exported
        assert used(heard)["fusion"] == "concat"
        folder = where / "model"
        assert facts["metrics"]["validation"]["accuracy"] == accuracy(heard)
        assert sorted(path.name for path in folder.iterdir()) == [
            *("README.md", "bom.json", "model.safetensors", "model.yaml", "text.json")
        ]
        model = load(folder, parts=True)
        image = str(where / "colours" / "0.png")
        both, no_text, no_image = predict(
            model, [Sample(image, "a soft warm one"), Sample(image), Sample("", "a hard shiny one")]
        )
        assert (both["class"], both["missing"]) == ("red wool", [])
        assert no_text["class"].startswith("red")
        assert no_text["missing"] == ["text"]
        assert no_image["class"].endswith("steel")
        assert no_image["missing"] == ["image"]
        assert predictions.line(no_text).endswith("\twithout text")

    def test_the_folder_answers_as_the_trial_did(self, tmp_path: Path) -> None:
        data = of_colours(tmp_path)
        checkpoint, _ = trial(tmp_path, data, fusion="gated", head_size=8)
        facts = write(checkpoint, tmp_path / "model", {})
        model = load(tmp_path / "model", parts=True)
        found = catalog.scan(data)
        asked = [Sample(f"{tmp_path}/colours/{one.path}", one.text) for one in found.splits["val"]]
        right = [
            row["class"] == found.classes[one.label]
            for row, one in zip(predict(model, asked), found.splits["val"], strict=True)
        ]
        assert sum(right) / len(right) == facts["metrics"]["validation"]["accuracy"]

    @pytest.mark.parametrize(("strategy", "frozen"), [("replace", 12), ("fuse", 12), ("fuse", ALL)])
    def test_blocks_and_source_are_trained_with_the_text_and_the_folder_answers_the_same(
        self, tmp_path: Path, strategy: str, frozen: int
    ) -> None:
        data = of_colours(tmp_path)
        choices: dict[str, Any] = {"strategy": strategy, "frozen_layers": frozen, "epochs": 2}
        checkpoint, heard = trial(tmp_path, data, **choices)
        assert (used(heard)["strategy"], used(heard)["frozen_blocks"]) == (strategy, 12 if frozen > 0 else 18)
        groups = set(used(heard)["learning_rates"])
        assert ("source_fc" in groups, "blocks.conv5" in groups) == (strategy == "fuse", frozen > 0)
        facts = write(checkpoint, tmp_path / "model", {})
        model = load(tmp_path / "model", parts=True)
        found = catalog.scan(data)
        asked = [Sample(f"{tmp_path}/colours/{one.path}", one.text) for one in found.splits["val"]]
        labels = torch.tensor([one.label for one in found.splits["val"]])
        logs = probabilities(model, asked, [frames_of(model, one) for one in asked]).log()
        assert (
            facts["metrics"]["validation"]["loss"]
            == pytest.approx(nn.functional.nll_loss(logs, labels).item(), abs=1e-4)
            or model.calibration.temperature != 1.0
        )
        right = (logs.argmax(1) == labels).float().mean().item()
        assert right == pytest.approx(facts["metrics"]["validation"]["accuracy"])

    def test_a_table_of_samples_and_a_broken_image(self, exported: Exported, tmp_path: Path) -> None:
        where = exported[0]
        (where / "colours" / "broken.png").write_bytes(b"no image")
        table = where / "colours" / "new.csv"
        table.write_text("path,text\n0.png,soft\nbroken.png,soft\n,hard\n1.png,\n")
        rows = list(predictions.predict(where / "model", [table]))
        assert [row["missing"] for row in rows] == [[], [], ["image"], ["text"]]
        assert [row["error"] is None for row in rows] == [True, False, True, True]
        predictions.write_csv(rows, tmp_path / "out.csv")
        with (tmp_path / "out.csv").open() as file:
            written = list(csv.DictReader(file))
        assert [row["missing"] for row in written] == ["", "", "image", "text"]

    def test_asking_for_nothing_is_an_error(self, exported: Exported) -> None:
        with pytest.raises(StudyError, match="needs an image or a text, got neither"):
            list(predictions.predict(exported[0] / "model", []))

    def test_a_caller_that_reads_images_alone_refuses_the_folder(
        self, exported: Exported, tmp_path: Path
    ) -> None:
        shutil.copytree(exported[0] / "model", tmp_path / "model")
        with pytest.raises(CheckpointError, match="its samples have text or several frames"):
            load(tmp_path / "model")
        (tmp_path / "model" / "text.json").write_text(json.dumps(["other"]))
        with pytest.raises(CheckpointError, match=r"another text\.json"):
            load(tmp_path / "model", parts=True)

    def test_an_exact_head_reads_both_parts_and_answers_from_its_folder(self, tmp_path: Path) -> None:
        data = of_colours(tmp_path)
        checkpoint, heard = trial(tmp_path, data, strategy="exact", epochs=1, learning_rate=0.0)
        facts = used(heard)
        assert (facts["strategy"], facts["fusion"], accuracy(heard)) == ("exact", "concat", 1.0)
        assert any("x image and text" in name for name in facts["exact"]["candidates"])
        assert {"text", "image"} <= {
            name.split(" on ")[1].split(",")[0] for name in facts["exact"]["candidates"]
        }
        told = write(checkpoint, tmp_path / "model", {})
        assert told["metrics"]["validation"]["accuracy"] == 1.0
        model = load(tmp_path / "model", parts=True)
        found = catalog.scan(data)
        asked = [Sample(f"{tmp_path}/colours/{one.path}", one.text) for one in found.splits["val"]]
        answers = [row["class"] for row in predict(model, asked)]
        assert answers == [found.classes[one.label] for one in found.splits["val"]]

    def test_a_trial_continues_after_an_interruption(self, tmp_path: Path) -> None:
        data = of_colours(tmp_path)
        whole = [one for one in trial(tmp_path / "whole", data)[1] if isinstance(one, Epoch)]
        settings: dict[str, Any] = {"learning_rate": 0.01}
        first, _ = trial(tmp_path / "parts", data, **settings)
        again = [one for one in trial(tmp_path / "parts", data, **settings)[1] if isinstance(one, Epoch)]
        assert first.exists()
        assert [one.metrics["val/loss"] for one in again] == [one.metrics["val/loss"] for one in whole]


WAYS: list[dict[str, Any]] = [
    *({"imbalance": name} for name in get_args(Imbalance)),
    {"optimizer": "adamw", "schedule": "constant", "warmup_epochs": 0.5, "label_smoothing": 0.1},
    {"head_size": 8, "dropout": 0.2, "ema_decay": 0.5, "clip_norm": 1.0, "accumulate": 2},
    {"frozen_layers": 15, "layer_decay": 0.5, "unfreeze_epochs": 1, "l2_sp": 0.1, "backbone_rate": 0.1},
]


class TestWays:
    """Every way to train works with several parts, but blending samples, which `check` refuses."""

    @pytest.mark.parametrize("ways", WAYS, ids=lambda ways: "-".join(map(str, ways.values())))
    def test_a_trial_uses_what_it_was_given(self, exported: Exported, ways: dict[str, Any]) -> None:
        data = of_colours_at(exported[0] / "colours" / "manifest.csv")
        folder = exported[0] / "ways" / "-".join(map(str, ways.values()))
        _, heard = trial(folder, data, epochs=2, fusion="gated", modality_dropout=0.2, **ways)
        told = used(heard)
        asked = {name: value for name, value in ways.items() if name in told and name != "l2_sp"}
        assert {name: told[name] for name in asked} == asked
        assert all(math.isfinite(one.metrics["train/loss"]) for one in heard if isinstance(one, Epoch))

    def test_views_are_drawn_alike_for_all_frames(self, tmp_path: Path) -> None:
        seen: dict[str, Any] = {**SEEN, "crop_scale": 0.5, "augment": "trivial", "horizontal_flip": True}
        data = DataSettings(kind="folder", path=str(moving(tmp_path / "clips", 5)), frames=3, **seen)
        frames = shared.frames(data).batch("train", torch.tensor([0, 1, 2]), view=1)
        whole = shared.read(
            TrialSettings(
                data=data,
                backbone="r3d_18",
                weights=WeightsSettings(),
                strategy="replace",
                epochs=1,
                learning_rate=0.1,
                cache_dir="",
            )
        )
        assert torch.equal(whole.batch("train", torch.tensor([0]), view=1)[0], frames.transpose(0, 1))
        assert accuracy(trial(tmp_path / "trial", data, epochs=1, frozen_layers=15)[1]) >= 0


class TestHandingOn:
    def test_another_format_answers_as_predict_with_and_without_parts(
        self, exported: Exported, tmp_path: Path
    ) -> None:
        name = "torch"  # clips go into the other one
        shutil.copytree(exported[0] / "model", tmp_path / "model")
        told = formats.add(tmp_path / "model", [name], place={"path": f"{exported[0]}/colours/manifest.csv"})
        made = told["formats"][name]
        assert made["parity"]["images"] == 12
        assert made["parity"]["changed_answers"] == 0
        assert made["input"].startswith("images: uint8 (batch, 32, 32, 3), RGB; text: float32 (batch, ")
        run = formats.FORMATS[name][0].runner(tmp_path / "model" / made["file"])
        model = load(tmp_path / "model", parts=True)
        assert model.encoder is not None
        vector = model.encoder.encode(["a soft warm one"])
        image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
        image[..., 0] = 255
        found = run(image, vector, torch.ones(1, 2))
        assert model.classes[int(found.argmax())] == "red wool"
        alone = run(image, vector, torch.tensor([[1.0, 0.0]]))
        (expected,) = predict(model, [Sample(f"{exported[0]}/colours/0.png")])
        assert alone.max().item() == pytest.approx(expected["probability"], abs=1e-4)

    def test_explain_tells_which_part_carries_the_answer(self, exported: Exported, here: Here) -> None:
        where = exported[0]
        told = here(
            *("explain", where / "model", where / "colours" / "0.png", "--text", "a soft warm one"),
            *("--to", where / "explained"),
        )
        assert told.returncode == 0, told.stderr
        (row,) = json.loads((where / "explained" / "explain.json").read_text())
        assert (row["class"], row["missing"], row["error"]) == ("red wool", [], None)
        model = load(where / "model", parts=True)
        place = model.classes.index("red wool")
        alone = probabilities(model, [Sample("", "a soft warm one")], [None])[0, place].item()
        assert row["parts"]["image"] == pytest.approx(row["probability"] - alone, abs=1e-5)
        assert min(row["parts"].values()) > 0.1  # neither part alone tells the class
        assert (where / "explained" / row["picture"]).stat().st_size > 0
        assert "without image -0." in told.stdout

    def test_explain_of_a_text_alone_has_no_picture(self, exported: Exported, here: Here) -> None:
        where = exported[0]
        told = here("explain", where / "model", "--text", "a soft warm one", "--to", where / "none", "--json")
        (row,) = json.loads(told.stdout)
        assert (row["picture"], row["missing"], row["parts"]) == (None, ["image"], {})

    def test_explain_refuses_what_needs_images_alone(self, exported: Exported, here: Here) -> None:
        where = exported[0]
        told = here("explain", where / "model", where / "colours", "--train", where / "colours")
        assert (told.returncode, "--train: the most alike are found among images" in told.stderr) == (2, True)

    def test_a_server_takes_a_file_a_text_or_both(self, exported: Exported) -> None:
        where = exported[0]
        app = serving_app.build(load(where / "model", parts=True), Limits(body_bytes=50_000, pixels=2_000))
        content = (where / "colours" / "0.png").read_bytes()
        text = {"text": "a soft warm one"}
        large = io.BytesIO()
        Image.new("RGB", (64, 64)).save(large, "PNG")

        async def ask(one: httpx.AsyncClient) -> list[httpx.Response]:
            return [
                await one.post("/predict", files={"image": content}, data=text),
                await one.post("/predict", content=content),
                await one.post("/predict", files={"text": (None, "a hard shiny one")}),
                await one.post("/predict", files={"image": b"no image"}, data=text),
                await one.post("/predict", files={"picture": content}),
                await one.post("/predict", files={"image": large.getvalue()}),
                await one.post(
                    "/predict",
                    content=b"--x\r\n",
                    headers={"content-type": "multipart/form-data; boundary=y"},
                ),
                await one.get("/openapi.json"),
                await one.get("/metadata"),
            ]

        both, image, said, broken, strange, big, torn, openapi, facts = served(app, ask)
        assert (both.json()["class"], both.json()["missing"]) == ("red wool", [])
        assert (image.json()["class"][:3], image.json()["missing"]) == ("red", ["text"])
        assert (said.json()["class"][-5:], said.json()["missing"]) == ("steel", ["image"])
        assert [one.status_code for one in (broken, strange, big, torn)] == [422] * 4
        assert "tmp" not in broken.text
        assert "got 'picture'" in strange.json()["error"]
        assert "64 x 64 pixels, limit 2000" in big.json()["error"]
        body = openapi.json()["paths"]["/predict"]["post"]["requestBody"]["content"]
        assert set(body) == {"application/octet-stream", "multipart/form-data"}
        assert facts.json()["samples"] == {"frames": 1, "text": ["text"]}


def served(app: Any, ask: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    """Return what `ask` returns, which gets a client of an application in this process."""

    async def run() -> Any:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as one,
        ):
            return await asyncio.wait_for(ask(one), 60)

    return asyncio.run(run())


Config = Callable[..., StudyConfig]


def config(**sections: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "study": {"name": "s"},
        "data": {"kind": "manifest", "path": "m.csv", "text": "text"},
    }
    return StudyConfig.from_dict({**values, **sections})


class TestConfig:
    def test_text_has_defaults_and_baselines_of_its_own(self) -> None:
        made = config()
        assert made.study.baselines == ("exact", "image_only", "text_only", "recipe")
        assert made.strategies == ("replace",)
        assert made.parts == {"image", "text"}
        assert StudyConfig.from_dict(made.model_dump(mode="json", exclude_none=True)) == made

    def test_only_the_settings_of_parts_that_are_there_are_asked_for(self) -> None:
        space = Space(config())
        alone = space.baseline("text_only")
        assert alone["fusion"] == "text"
        assert "image_scale" not in alone
        assert "pooling" not in alone
        both = space.baseline("recipe")
        assert (both["fusion"], both["image_scale"]) == ("concat", 1.0)
        images = Space(config(data={"path": "x"})).baseline("recipe")
        assert not {"fusion", "text_encoder", "pooling"} & images.keys()

    @pytest.mark.parametrize(
        ("sections", "told"),
        [
            ({"space": {"strategy": ["replace", "load"]}}, "must be replace or fuse for samples with text"),
            (
                {"space": {"strategy": "fuse", "head_init": "exact"}},
                "samples with text or .* begin at random",
            ),
            ({"space": {"frozen_layers": 0.5, "fusion": ["sum", "text"]}}, "the text alone trains no blocks"),
            ({"space": {"mix": "mixup"}}, "samples with several parts are not blended"),
            ({"data": {"path": "x"}, "space": {"fusion": "sum"}}, "space.fusion: needs data.text"),
            (
                {"data": {"path": "x"}, "space": {"pooling": "max"}},
                "space.pooling: needs data.frames above 1",
            ),
            ({"data": {"path": "x"}, "study": {"name": "s", "baselines": ["text_only"]}}, "needs data.text"),
            ({"data": {"kind": "digits", "text": "t"}}, "data.text: goes with kind"),
            ({"data": {"kind": "digits", "frames": 4}}, "data.frames: goes with kind"),
            ({"model": {"text_encoder": "bert"}}, "must be `tfidf`, `static:FOLDER` or `hub:NAME`"),
        ],
    )
    def test_what_is_not_supported_is_said(self, sections: dict[str, Any], told: str) -> None:
        with pytest.raises(ConfigErrors, match=told):
            config(**sections)

    def test_blocks_may_be_trained_and_the_source_may_be_fused(self) -> None:
        made = config(space={"strategy": ["replace", "fuse"], "frozen_layers": {"low": 0, "high": "all"}})
        assert made.strategies == ("replace", "fuse")
        assert Space(made).baseline("recipe")["fusion"] == "concat"

    def test_exact_takes_the_first_encoder_where_there_is_text(self) -> None:
        assert Space(config()).baseline("exact")["text_encoder"] == "tfidf"
        assert "text_encoder" not in Space(config(data={"path": "x"})).baseline("exact")


def moving(folder: Path, clips: int = 24) -> Path:
    """Write animated GIFs of a dot that moves to the left or to the right: the same frames in two orders."""
    for name in ("left", "right"):
        (folder / name).mkdir(parents=True)
    for number in range(clips):
        frames = []
        for step in range(6):
            frame = Image.new("RGB", (32, 32), (number * 5, 0, 0))
            ImageDraw.Draw(frame).rectangle(
                (step * 5, 8 + number % 12, step * 5 + 6, 16 + number % 12), "white"
            )
            frames.append(frame)
        for name, order in (("left", frames[::-1]), ("right", frames)):
            file = folder / name / f"{number}.gif"
            order[0].save(file, save_all=True, append_images=order[1:], duration=100)
    return folder


def encoded(clip: Path, to: Path) -> Path:
    """Write the frames of a clip as another kind of file."""
    frames = read_clip(str(clip), 6)
    if to.suffix != ".mp4":
        frames[0].save(to, save_all=True, append_images=frames[1:], duration=100, lossless=True)
        return to
    with av.open(str(to), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return to


class TestClips:
    def test_the_frames_that_are_used_are_chosen_alike_from_both_ends(self) -> None:
        assert chosen(4, 8).tolist() == [1, 3, 4, 6]
        for of in range(1, 20):
            for frames in range(1, of + 1):
                picks = chosen(frames, of)
                assert (picks.diff() > 0).all()
                if frames % 2 == 0 or of % 2:  # an even number of frames has no middle one
                    assert picks.tolist() == (of - 1 - picks).flip(0).tolist()

    def test_frames_are_chosen_by_time_and_not_by_number(self) -> None:
        assert at_times([0, 1, 2, 3], 4, 4) == [0, 1, 2, 3]
        assert at_times([0, 1, 2, 3], 4, 2) == [1, 3]
        assert at_times([0, 1, 2, 30], 60, 3) == [2, 3, 3]
        assert at_times([5], 6, 3) == [0, 0, 0]

    def test_a_pooling_that_sees_order_tells_a_motion_that_others_cannot(self, tmp_path: Path) -> None:
        settings = DataSettings(kind="motion", frames=6, **SEEN)
        scores = {
            pooling: accuracy(
                trial(tmp_path / pooling, settings, pooling=pooling, epochs=8, learning_rate=rate)[1]
            )
            for pooling, rate in (("mean", 0.01), ("ordered", 0.03))
        }
        assert scores["mean"] <= 0.55
        assert scores["ordered"] >= 0.95

    def test_an_exact_head_chooses_the_pooling_that_sees_order(self, tmp_path: Path) -> None:
        settings = DataSettings(kind="motion", frames=6, **SEEN)
        checkpoint, heard = trial(tmp_path, settings, strategy="exact", epochs=1, learning_rate=0.0)
        assert used(heard)["pooling"] == "ordered"
        assert accuracy(heard) >= 0.95
        assert write(checkpoint, tmp_path / "model", {})["head"]["sample"]["pooling"] == "ordered"

    def test_clips_of_files_are_trained_on_exported_and_predicted(self, tmp_path: Path) -> None:
        data = DataSettings(kind="folder", path=str(moving(tmp_path / "clips")), frames=6, **SEEN)
        checkpoint, heard = trial(tmp_path, data, pooling="ordered", frames_used=3, epochs=6)
        assert (used(heard)["pooling"], used(heard)["frames_used"]) == ("ordered", 3)
        facts = write(checkpoint, tmp_path / "model", {})
        assert facts["samples"] == {"frames": 6}
        model = load(tmp_path / "model", parts=True)
        asked = find(model, [tmp_path / "clips"])
        assert len(asked) == 48
        right = [Path(row["path"]).parent.name == row["class"] for row in predict(model, asked)]
        assert sum(right) / len(right) > 0.9
        made = formats.add(tmp_path / "model", ["onnx"], place={"path": str(tmp_path / "clips")})
        assert made["formats"]["onnx"]["input"] == "images: uint8 (batch, 6, 32, 32, 3), RGB"
        self._explained(tmp_path)
        self._served(tmp_path)

    def test_a_second_study_of_the_same_clips_decodes_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = DataSettings(kind="folder", path=str(moving(tmp_path / "clips", 5)), frames=4, **SEEN)
        trial(tmp_path / "first", data, pooling="mean", epochs=1)
        for kept in (shared._images, shared._scanned, shared._frames):
            kept.cache_clear()  # as in another process
        monkeypatch.setattr(clips, "frames", lambda *_: pytest.fail("decoded again"))
        _, heard = trial(tmp_path / "second", data, pooling="ordered", frames_used=3, epochs=1)
        assert used(heard)["pooling"] == "ordered"

    def _explained(self, folder: Path) -> None:
        clip = folder / "clips" / "left" / "1.gif"
        (row,) = explanations.explain(folder / "model", [clip], folder / "explained")
        assert row["parts"] == {}
        assert list(row["frames"]) == chosen(3, 6).tolist()
        assert max(row["frames"].values()) > 0.05
        with pytest.raises(StudyError, match="must be grad-cam or random for clips, got occlusion"):
            list(explanations.explain(folder / "model", [clip], folder / "none", method="occlusion"))

    def _served(self, folder: Path) -> None:
        app = serving_app.build(load(folder / "model", parts=True), Limits())
        clips = [folder / "clips" / name / "1.gif" for name in ("left", "right")]
        clips += [encoded(clips[0], folder / f"1.{suffix}") for suffix in ("webp", "png", "mp4")]
        expected = list(predict(load(folder / "model", parts=True), [Sample(str(clip)) for clip in clips]))

        async def ask(one: httpx.AsyncClient) -> list[httpx.Response]:
            found = [await one.post("/predict", content=clip.read_bytes()) for clip in clips]
            return [*found, await one.post("/predict", files={"text": (None, "x")})]

        *found, refused = served(app, ask)
        for answer, row in zip(found, expected, strict=True):
            assert answer.json()["probability"] == pytest.approx(row["probability"], abs=1e-5)
            assert (answer.json()["class"], answer.json()["missing"]) == (row["class"], [])
        assert (refused.status_code, "as the model reads none" in refused.text) == (422, True)
