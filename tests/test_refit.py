"""`study.refit`: the final model is trained on training and validation images together."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune import model_folder
from finetune.messages import Refit
from finetune.training import refit, shared
from finetune.training.run import Run
from finetune.training.workers import World
from search.config import config_file, resolve
from search.config.problems import ConfigErrors
from search.config.study import StudyConfig
from search.record import reader
from search.record.study_folder import StudyFolder
from search.suggest.space import Space
from search.views.table import comparison, to_json
from tests.test_ensemble import finished
from tests.written import call


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[StudyFolder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        folder = tmp_path_factory.mktemp("studies")
        yield finished(folder, [("fuse", 0.02)], kept=1, frozen=16, refit=True)


def settings_of(folder: StudyFolder) -> Any:
    record, space = reader.read_study(folder), Space(config_file.load(folder.config))
    return space.settings_of(record.trials[0], cache_dir=str(resolve.cache_dir()))


def test_a_finished_study_gets_its_final_model_and_keeps_the_best_as_it_was(
    study: StudyFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("resume", study.root, "--json") == 0
    told = capfd.readouterr()
    assert json.loads(told.out)["study"]["refit"] is True
    assert f"{study.root.name}/final (the card is its README.md)" in told.err
    best, final = (model_folder.load(folder) for folder in (study.best, study.final))
    record = reader.read_study(study)
    assert record.best is not None
    scores = record.best.metrics["best"]
    data = shared.images(settings_of(study).data)
    assert final.facts["refit"] == {
        "epochs": int(scores["epoch"]), "images": data.size("train") + data.size("val"),
    }  # fmt: skip
    for model in (best, final):
        assert model.facts["metrics"]["validation"]["accuracy"] == pytest.approx(scores["val/accuracy"])
    assert final.facts["calibration"]["temperature"] == best.facts["calibration"]["temperature"]
    assert final.facts["metrics"]["test"] != best.facts["metrics"]["test"]
    assert final.facts["provenance"]["data_fingerprint"] == best.facts["provenance"]["data_fingerprint"]
    card = (study.final / "README.md").read_text()
    assert (
        f"Trained on training and validation images together, {final.facts['refit']['images']} images" in card
    )
    assert "validation (before it was trained on them; chose this model: reads high)" in card
    assert "together" not in (study.best / "README.md").read_text()
    assert [read["why"] for read in record.test_reads] == ["export", "export"]


def test_an_export_hands_on_the_same_model(study: StudyFolder, tmp_path: Path) -> None:
    if not study.final.exists():
        assert call("resume", study.root) == 0
    assert call("export", study.root, "--to", tmp_path / "m") == 0
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / "m", study.final))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_trains_like_a_study_whose_training_images_are_all_of_them(study: StudyFolder) -> None:
    """Its first epoch is the trial's, on more images: the loss of the whole first epoch says which ones."""
    settings = settings_of(study)
    run = refit.train(settings, 2, Refit(metric="val/accuracy"), world=World(), features=None)
    alone = Run(settings, World())
    every = set(run.data.paths("train"))
    assert every == {*alone.data.paths("train"), *alone.data.paths("val")}
    again = Run(settings, World(), together=True)
    for epoch in (1, 2):
        again.train_epoch(epoch, lambda: False)
    state, other = run.model.trained_state(), again.model.trained_state()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert run.rates.steps == 2 * -(-len(every) // settings.data.batch_size)


def test_an_exact_head_is_solved_for_again_and_an_average_is_what_is_kept(study: StudyFolder) -> None:
    frozen = dataclasses.replace(settings_of(study), frozen_layers=-1, head_size=0)
    exact = dataclasses.replace(frozen, strategy="exact", epochs=1, learning_rate=0.0)
    run = refit.train(exact, 1, Refit(metric="val/accuracy"), world=World(), features=None)
    assert run.data.size("train") > shared.images(exact.data).size("train")
    assert run.evaluate("val")["accuracy"] > 0.9, "it has seen these images"
    averaged = dataclasses.replace(frozen, strategy="replace", ema_decay=0.5)
    run = refit.train(averaged, 1, Refit(metric="val/accuracy"), world=World(), features=None)
    assert run.average is not None
    state = run.model.trained_state()
    assert all(torch.equal(state[name], tensor) for name, tensor in run.average.state.items())


def test_the_result_says_so_and_text_clips_and_privacy_refuse_it(study: StudyFolder) -> None:
    record = reader.read_study(study)
    assert any(
        line.startswith("final model: 'final' has the settings of trial-0000") for line in comparison(record)
    )
    plain = dataclasses.replace(record, refit=False)
    assert not any("final model" in line for line in comparison(plain))
    assert "refit" not in to_json(plain)["study"]
    for wrong in ({"frames": 4}, {"epsilon": 1.0}):
        with pytest.raises(ConfigErrors, match=r"study\.refit"):
            StudyConfig.from_folder(".", refit=True, **wrong)


def test_a_limited_rate_stays_limited(study: StudyFolder) -> None:
    settings = settings_of(study)
    how = Refit(metric="val/accuracy", limit=settings.learning_rate / 10)
    run = refit.train(settings, 1, how, world=World(), features=None)
    assert run.effective()["learning_rate_limit"] == settings.learning_rate / 10
