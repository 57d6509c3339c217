"""Ensembles of heads: how they are chosen and judged, and an ensemble as a model folder."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune import model_folder
from finetune.messages import Epoch, Keep
from finetune.model.ensemble import mean_logits
from finetune.training import loop
from search.config import resolve
from search.config.study import StudyConfig
from search.handing_on import ensemble
from search.record.ledger import Ledger
from search.record.study_folder import StudyFolder, write_text
from search.suggest.models import samplers
from search.suggest.space import Space
from search.verdict.ensemble import Judged, Pool
from tests import small
from tests.written import call

METRIC = "val/accuracy"


def pool(models: int, images: int, *, shared: float, seed: int, metric: str = METRIC) -> Pool:
    """Return models that are right in 7 of 10 images; `shared` is the share of a mistake that all make."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, images)
    common = rng.normal(size=(images, 4))
    own = rng.normal(size=(models, images, 4))
    logits = 1.6 * np.eye(4)[labels] + np.sqrt(shared) * common + np.sqrt(1 - shared) * own
    logits = np.exp(2 * logits)
    return Pool(logits / logits.sum(axis=2, keepdims=True), labels, list("abcd"), metric)


@pytest.mark.parametrize("metric", [METRIC, "val/loss", "val/macro_f1", "val/recall/b"])
def test_models_with_mistakes_of_their_own_win_together(metric: str) -> None:
    found = pool(6, 160, shared=0.0, seed=0, metric=metric)
    counts = found.choose()
    assert sum(count > 0 for count in counts) > 3
    judged = found.judge()
    assert judged.wins
    assert judged.gain > 0.03


def test_models_with_the_same_mistakes_do_not() -> None:
    wins = [pool(8, 200, shared=1.0, seed=seed).judge().wins for seed in range(10)]
    assert sum(wins) == 0


def test_an_ensemble_reads_higher_where_it_was_chosen_than_where_it_was_not() -> None:
    """What a judgement on the choosing images would say of models that differ by noise alone."""
    flattered, judged = [], []
    for seed in range(6):
        found = pool(16, 100, shared=0.9, seed=seed)
        right = found.mean(found.choose()).argmax(axis=1) == found.labels
        flattered.append(right.mean())
        judged.append(found.judge().ensemble)
    assert np.mean(flattered) > np.mean(judged) + 0.02


def test_a_model_that_may_not_join_can_only_be_the_best_single_one() -> None:
    found = pool(4, 200, shared=0.0, seed=1)
    best = np.eye(4)[found.labels][None] * 0.9 + 0.025
    with_best = Pool(
        np.concatenate([found.probabilities, best]), found.labels, found.classes, METRIC, joined=4
    )
    assert with_best.choose()[4] == 0
    assert with_best.single() == 4
    assert not with_best.judge().wins


def test_twenty_images_are_the_least() -> None:
    with pytest.raises(ValueError, match="at least 20 validation images"):
        pool(3, 19, shared=0.0, seed=0).judge()
    pool(3, 20, shared=0.0, seed=0).judge()


HEADS = (("replace", 0.05), ("replace", 0.01), ("fuse", 0.05), ("load", 0.05))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[StudyFolder]:
    """A finished study of four heads on one backbone, two of which have weights; nothing of it ran on Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield finished(tmp_path_factory.mktemp("studies"), HEADS, kept=2)


def finished(
    root: Path, heads: Sequence[tuple[str, float]], kept: int, frozen: int = -1, **keys: Any
) -> StudyFolder:
    """Write a finished study whose trials were trained here.

    Args:
        root: folder of all studies.
        heads: strategy and learning rate of each trial.
        kept: trials that have weights, the first ones.
        frozen: frozen blocks of each trial; -1: all.
        keys: further keys of the config's section `study`.
    """
    values = small.merged(small.STUDY, {"study": {"trials": len(heads), **keys}})
    config = StudyConfig.from_dict(values | {"results": str(root)})
    folder = StudyFolder.create(root, config.study.name)
    write_text(folder.config, config.to_yaml())
    book = Ledger(folder.database, metric=METRIC, sampler=samplers.make("random", seed=0))
    space = Space(config)
    for number, (strategy, rate) in enumerate(heads):
        params = space.baseline("recipe", config.backbones[0]) | {
            "strategy": strategy, "learning_rate": rate, "head_size": 0, "optimizer": "sgd",
            "frozen_layers": "all" if frozen < 0 else frozen,
        }  # fmt: skip
        if strategy == "load":
            del params["head_size"]
        params |= {"backbone_rate": 0.1} if frozen >= 0 else {}
        params |= {"head_init": "random"} if strategy == "fuse" else {}
        book.ask()
        book.suggested(number, {"params": params})
        told: list[Any] = []
        name = f"trial-{number:04}"
        keep = Keep(metric=METRIC, best=folder.best_weights(name), last=folder.last_weights(name))
        keep.best.parent.mkdir(parents=True)
        settings = space.settings(params, number=number, cache_dir=str(resolve.cache_dir()))
        loop.train(settings, keep=keep, report=told.append)
        epochs = [message.metrics for message in told if isinstance(message, Epoch)]
        best = max(epochs, key=lambda epoch: epoch[METRIC])
        if number >= kept:
            keep.best.unlink()
        metrics = {"best": best, "last": epochs[-1]}
        book.end(number, "COMPLETE", best[METRIC], {"metrics": metrics, "epochs": 3, "history": epochs})
    book.set_fact("state", "finished")
    book.set_fact("provenance", {"images": {"train": 1, "val": 1, "test": 1}})
    book.close()
    return folder


def test_an_ensemble_that_is_not_worth_it_is_one_line_and_reads_no_test_image(
    study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Judged, "wins", property(lambda judged: False))
    assert call("export", study.root, "--to", tmp_path / "m", "--ensemble") == 1
    said = capfd.readouterr().err
    assert "no ensemble: " in said
    assert "which noise explains; val/accuracy on images that did not choose" in said
    assert not (tmp_path / "m").exists()
    assert not study.test_reads.exists()


def test_an_ensemble_predicts_like_any_model(
    study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Judged, "wins", property(lambda judged: True))
    monkeypatch.setattr(Pool, "choose", lambda pool, images=None: [2, 0, 1, 1])
    to = tmp_path / "m"
    assert call("export", study.root, "--to", to, "--ensemble", "--json") == 0
    told = json.loads(capfd.readouterr().out)
    assert [one["share"] for one in told["head"]["members"]] == [0.5, 0.25, 0.25]
    assert len({one["trial"] for one in told["head"]["members"]}) == 3
    assert len({one["strategy"] for one in told["head"]["members"]}) > 1
    model = model_folder.load(to)
    assert model.facts["strategy"] == "ensemble"
    assert study.test_reads.exists()
    assert "An ensemble of 3 heads on one frozen backbone" in (to / "README.md").read_text()
    passes: list[int] = []
    model.net.prefix[0].register_forward_hook(lambda *_: passes.append(1))
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    answers = model.probabilities(images)
    assert len(passes) == 1, "one pass of the backbone for all heads"
    assert torch.allclose(answers.sum(1), torch.ones(5), atol=1e-5)
    pixels = torch.randn(5, 3, 32, 32)
    heads = [head(model.net.prefix(pixels)) for head in model.net.head.new]
    shares = [one["share"] for one in told["head"]["members"]]
    mean = sum(share * head.softmax(1) for share, head in zip(shares, heads, strict=True))
    assert torch.allclose(model.net(pixels).softmax(1), mean, atol=1e-5)
    assert torch.allclose(mean_logits(heads, shares).exp(), mean, atol=1e-5)


def test_a_damaged_ensemble_is_one_line(
    study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judged, "wins", property(lambda judged: True))
    monkeypatch.setattr(Pool, "choose", lambda pool, images=None: [1, 1, 0, 0])
    to = tmp_path / "m"
    ensemble.export(study, to)
    text = (to / "model.yaml").read_text()
    for wrong in ("share: 0.9", "share: .nan", "share: -1.0", "share: x"):
        (to / "model.yaml").write_text(text.replace("share: 0.5", wrong))
        with pytest.raises(model_folder.reading.CheckpointError, match="whole and fit together"):
            model_folder.load(to)
