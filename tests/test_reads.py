"""Reads of the test split: each is counted where the study is, and told wherever its scores are shown."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from finetune.messages import Keep
from finetune.training import loop
from search.config.study import StudyConfig
from search.record import reader, reads
from search.record.ledger import Ledger
from search.record.study_folder import StudyFolder, write_text
from search.suggest import sampler
from search.suggest.space import Space
from tests import mounts
from tests.written import call, everything


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A finished study of two trials, one of which was trained in this process."""
    root = tmp_path_factory.mktemp("results")
    folder = StudyFolder.create(root, "tiny")
    config = StudyConfig.from_dict(
        {
            "study": {"name": "tiny", "trials": 2, "epochs": 1, "baselines": []},
            "data": {"kind": "digits", "classes": ["0", "1"], "image_size": 32, "test_share": 0.3,
                     "horizontal_flip": False},
            "model": {"backbone": "shufflenet_v2_x0_5", "weights": "none"},
            "space": {"strategy": "replace"},
            "results": str(root),
        }
    )  # fmt: skip
    write_text(folder.config, config.to_yaml())
    space = Space(config)
    params = space.baseline("scratch")
    book = Ledger(folder.database, metric="val/accuracy", sampler=sampler.make("random", seed=0))
    for number, state, value in ((0, "COMPLETE", 0.5), (1, "PRUNED", 0.25)):
        book.ask()
        book.suggested(number, {"params": params})
        best = {"val/accuracy": value, "epoch": 1}
        book.end(number, state, value, {"metrics": {"best": best, "last": best}, "epochs": 1})
    book.set_fact("state", "finished")
    book.set_fact("provenance", {"images": {"train": 100, "val": 50, "test": 50}})
    book.close()
    place = folder.best_weights("trial-0000")
    place.parent.mkdir(parents=True)
    keep = Keep(metric="val/accuracy", best=place, last=folder.last_weights("trial-0000"))
    settings = space.settings(params, number=0, cache_dir=str(root / "cache"))
    loop.train(settings, keep=keep, report=lambda _: None)
    return folder


@pytest.fixture
def folder(model: StudyFolder, tmp_path: Path) -> StudyFolder:
    return StudyFolder(Path(shutil.copytree(model.root, tmp_path / "tiny")))


def export(folder: StudyFolder, to: Path, *words: str) -> int:
    return call("export", folder.root, "--to", to, *words)


def told(model: Path) -> tuple[object, str]:
    """Return what model.yaml and the card say of the test split."""
    facts = yaml.safe_load((model / "model.yaml").read_text())
    (row,) = [line for line in (model / "README.md").read_text().splitlines() if line.startswith("| test")]
    return facts["provenance"]["test_reads"], row


def test_every_export_is_counted_and_told_with_its_trial(
    folder: StudyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(folder, tmp_path / "one") == 0
    assert export(folder, tmp_path / "two", "--trial", "0") == 0
    count, row = told(tmp_path / "one")
    assert (count, "by then 1 time in all" in row) == (1, True)
    count, row = told(tmp_path / "two")
    assert (count, "by then 2 times in all" in row) == (2, True)
    capsys.readouterr()
    assert call("results", folder.root) == 0
    assert "the test split was read 2 times, for trial-0000\n" in capsys.readouterr().out
    assert call("results", folder.root, "--json") == 0
    study = json.loads(capsys.readouterr().out)["study"]
    assert [read["trial"] for read in study["test_reads"]] == ["trial-0000"] * 2


def test_an_export_that_failed_before_it_told_a_score_does_not_count(
    folder: StudyFolder, tmp_path: Path
) -> None:
    assert export(folder, tmp_path / "model", "--trial", "1") == 2  # its weights were not kept
    assert reader.read_study(folder).test_reads == ()


def test_a_line_that_was_cut_or_damaged_counts_as_a_read_and_harms_no_other(folder: StudyFolder) -> None:
    record = reader.read_study(folder)
    for damage in (b'\n{"read": "ab', b"\n\xff\xfe", b"\n[1]", b'\n{"read": {}}'):
        with folder.test_reads.open("ab") as file:
            file.write(damage)
    entered = reads.enter(folder, record, "trial-0000")
    assert entered["test_reads"] == 5
    assert [read["trial"] for read in reads.of(folder)] == [None] * 4 + ["trial-0000"]
    reads.withdraw(folder, entered)
    assert len(reader.read_study(folder).test_reads) == 4


def test_a_study_that_cannot_be_written_is_exported_and_the_model_says_that_its_read_is_not_counted(
    folder: StudyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounts.read_only(folder.root, tmp_path / "mounted") as place:
        assert export(StudyFolder(place), tmp_path / "model") == 0
    assert "this read of the test split is not counted" in capsys.readouterr().err
    count, row = told(tmp_path / "model")
    assert (count, "not counted" in row) == (None, True)
    assert reader.read_study(folder).test_reads == ()


def test_predicting_needs_nothing_from_the_model_folder_but_to_read_it(
    folder: StudyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(folder, tmp_path / "model") == 0
    Image.new("RGB", (40, 30), "white").save(tmp_path / "a.png")
    before = everything(tmp_path / "model")
    capsys.readouterr()
    with mounts.read_only(tmp_path / "model", tmp_path / "mounted") as place:
        assert call("predict", place, tmp_path / "a.png") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.png'}\t")
    assert everything(tmp_path / "model") == before
