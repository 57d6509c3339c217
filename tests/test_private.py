"""Private studies: what they promise, what they refuse, and what they leave behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

import search
from finetune.datasets import catalog
from finetune.errors import DataError
from finetune.private import accounting, mechanisms
from finetune.private.accounting import Steps
from finetune.private.mechanisms import Choices, Private
from finetune.private.noise import Draws
from finetune.private.rows import groups
from finetune.settings import DataSettings
from search.config.problems import ConfigErrors
from search.config.study import StudyConfig
from search.errors import StudyError
from search.private import draws as secret
from search.private import spending
from search.record.study_folder import StudyFolder
from tests.here import Here


def test_random_numbers_follow_from_key_and_purpose_alone() -> None:
    again, other = Draws(b"k", "head"), Draws(b"k", "score")
    drawn = Draws(b"k", "head").normal(4000)
    assert (again.normal(4000) == drawn).all()
    assert (again.normal(4000) != drawn).all()
    assert abs(np.corrcoef(other.normal(4000), drawn)[0, 1]) < 0.05
    assert drawn.mean() == pytest.approx(0, abs=0.06)
    assert drawn.std() == pytest.approx(1, abs=0.05)


class Silent(Draws):
    """Draws without noise, whose samples take every unit."""

    def uniform(self, count: int) -> np.ndarray:
        return np.full(count, 1e-9)

    def normal(self, *shape: int) -> np.ndarray:
        return np.zeros(shape)


def rows(seed: int = 0, *, units: np.ndarray | None = None) -> Private:
    draw = np.random.default_rng(seed)
    labels = np.arange(60) % 3
    features = draw.normal(size=(60, 12)) + 3 * np.eye(12)[labels]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Private(features, labels, np.arange(60) if units is None else units, 3)


def without(whole: Private, unit: int) -> Private:
    """The neighbour: a unit's rows contribute nothing, and the number of units stays."""
    features = np.where((whole.units == unit)[:, None], 0.0, whole.features)
    return Private(features, whole.labels, whole.units, whole.classes)


@pytest.mark.parametrize("unit", [0, 7, 19])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_unit_moves_what_is_asked_by_at_most_one(unit: int, grouped: bool) -> None:
    whole = rows(units=np.arange(60) // 3 if grouped else None)

    def questions(data: Private) -> list[np.ndarray]:
        weights, members = data.weights, np.eye(3)[data.labels]
        present = np.linalg.norm(data.features, axis=1) > 0
        wanted = mechanisms._targets(data) * present[:, None]
        weighted = data.features * weights[:, None]
        return [
            weights @ data.features,
            (members * weights[:, None]).T @ data.features,
            data.features.T @ weighted,
            weighted.T @ wanted,
        ]

    asked = [a - b for a, b in zip(questions(whole), questions(without(whole, unit)), strict=True)]
    assert all(0 < np.linalg.norm(moved) <= 1 + 1e-12 for moved in asked)
    for clip in (0.1, 0.5):
        off = mechanisms._targets(whole) * whole.weights[:, None] * 5
        parts = [
            mechanisms._clipped(off, data.features, data.units, data.count, clip, not grouped)
            for data in (whole, without(whole, unit))
        ]
        assert np.linalg.norm(parts[0] - parts[1]) <= clip + 1e-12


@pytest.mark.parametrize("mechanism", mechanisms.MECHANISMS)
def test_a_mechanism_without_noise_learns_and_with_much_noise_does_not(mechanism: Any) -> None:
    steps = Steps(1.0, 40)
    noise = accounting.Noise(1.0, {steps: 1.0}, 1.0, 1.0, 1.0)
    choices = Choices(mechanism, True, ridge=0.05, steps=steps, rate=4.0)
    whole = rows()
    head = mechanisms.fit(whole, choices, noise, Silent(b"", ""))
    assert (head.answers(whole.features) == whole.labels).mean() > 0.8
    loud = accounting.Noise(1e4, {steps: 1e4}, 1.0, 1.0, 1.0)
    right = [
        (
            mechanisms.fit(whole, choices, loud, Draws(b"", str(s))).answers(whole.features) == whole.labels
        ).mean()
        for s in range(5)
    ]
    assert np.mean(right) < 0.6


def test_noise_has_the_size_that_was_paid_for() -> None:
    noise = accounting.Noise(3.0, {}, 1.0, 1.0, 1.0)
    empty = Private(np.zeros((60, 400)), np.arange(60) % 3, np.arange(60), 3)
    sums = mechanisms._means(empty, noise.one_shot, Draws(b"", "x"))
    plain = Draws(b"", "x").normal(3, 400)
    assert np.allclose(
        sums / np.linalg.norm(sums, axis=1, keepdims=True),
        plain / np.linalg.norm(plain, axis=1, keepdims=True),
    )
    head = mechanisms.fit(empty, Choices("means", True), noise, Draws(b"", "y"))
    centre = -np.linalg.lstsq(head.weight, head.bias, rcond=None)[0]
    assert centre.shape == (400,)
    drawn = Draws(b"", "y").normal(400)
    assert np.allclose(head.bias, -head.weight @ (drawn * 3.0 / np.sqrt(accounting.CENTRE_SHARE) / 60))


def test_groups_come_from_paths_and_stay_in_one_split() -> None:
    paths = {"train": ["a/p1-x.png", "a/p1-y.png", "b/p2.png"], "val": ["a/p3.png"]}
    found = groups(paths, r"(p\d)")
    assert found["train"].tolist() == [0, 0, 1]
    with pytest.raises(DataError, match="in one split, got some of 'p2' in train and in val"):
        groups({"train": ["p2.png"], "val": ["p2.png"]}, r"(p\d)")
    with pytest.raises(DataError, match="every image needs a group"):
        groups({"train": ["nobody.png"]}, r"(p\d)")


@pytest.mark.parametrize(
    ("sections", "rule"),
    [
        ({"space": {"strategy": "fuse"}}, "train no blocks"),
        ({"space": {"imbalance": "class_weights"}}, "train no blocks"),
        ({"study": {"metric": "val/loss"}}, "compares trials by val/accuracy"),
        ({"study": {"sampler": "tpe"}}, "independent random draws"),
        ({"study": {"budget": "10m"}}, "must not depend on anything else"),
        ({"study": {"patience": 5}}, "must not end a private study"),
        ({"study": {"baselines": ["scratch"]}}, "without noise"),
        ({"data": {"augment": "trivial"}}, "as it is"),
        ({"data": {"exclude": "list.txt"}}, "not paid for"),
        ({"data": {"image_size": [32, 64]}}, "one size"),
        ({"privacy": {"unit": "group"}}, "goes with unit"),
        ({"privacy": {"epsilon": -1.0}}, "must be above 0"),
    ],
)
def test_what_would_read_the_images_unpaid_is_refused(sections: dict[str, Any], rule: str) -> None:
    values: dict[str, Any] = {
        "study": {"name": "p", "trials": 4},
        "data": {"path": "x"},
        "privacy": {"epsilon": 2.0},
    }
    for name, keys in sections.items():
        values[name] = values.get(name, {}) | keys
    with pytest.raises(ConfigErrors, match=rule):
        StudyConfig.from_dict(values)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 5 to 7 as files, with their own splits."""
    folder = tmp_path_factory.mktemp("photos")
    digits = load_digits()
    shares = {"train": (0, 60), "val": (60, 90), "test": (90, 110)}
    for label in (5, 6, 7):
        own = digits.images[digits.target == label]
        for split, (begin, end) in shares.items():
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for number in range(begin, end):
                Image.fromarray((own[number] * 15).astype(np.uint8)).save(place / f"who-{number}.png")
    return folder


def config(photos: Path, results: Path, **privacy: Any) -> StudyConfig:
    return StudyConfig.from_dict(
        {
            "study": {"name": "private", "trials": 3},
            "data": {"path": str(photos), "image_size": 32},
            "model": {
                "backbone": "shufflenet_v2_x0_5",
                "weights": {"source": {"kind": "digits", "classes": ["0", "1"], "epochs": 2}},
            },
            "privacy": {"epsilon": 20.0, "delta": 0.001} | privacy,
            "results": str(results),
        }
    )


@pytest.fixture
def at_home(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def finished(photos: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A private study that has ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        record = search.run(config(photos, tmp_path_factory.mktemp("results")))
    return StudyFolder(Path(record.folder))


def test_a_study_releases_one_model_with_its_promise(
    finished: StudyFolder, photos: Path, here: Here, no_ray: None
) -> None:
    facts = yaml.safe_load((finished.best / "model.yaml").read_text())
    assert 19 < facts["privacy"]["epsilon"] <= 20
    assert facts["privacy"]["epsilon_if_all_were_released"] > facts["privacy"]["epsilon"]
    assert set(facts["metrics"]["validation"]) == {"accuracy", "images", "epoch"}
    assert "data_fingerprint" not in facts["provenance"]
    assert "differential privacy: epsilon" in (finished.best / "README.md").read_text()
    told = here("predict", finished.best, photos / "test" / "5", "--json")
    assert told.returncode == 0
    answers = json.loads(told.stdout)
    # How often it is right depends on the noise, whose key is secret: tests of mechanisms see to that.
    assert len(answers) == 20
    assert {row["class"] for row in answers} <= {"5", "6", "7"}
    shown = here("results", finished.root)
    assert "1 of 1 trials" in shown.stdout
    assert "the search included" in shown.stdout


def test_the_record_has_the_released_trial_alone_and_the_key_is_gone(finished: StudyFolder) -> None:
    kept = secret.Draws(finished.root / "private")
    assert json.loads(kept.file.read_text())["state"] == "spent"
    assert kept.trials.stat().st_mode & 0o077 == 0
    rows = [json.loads(line) for line in kept.trials.read_text().splitlines()]
    assert rows[0]["notice"].startswith("PRIVATE")
    assert len(rows) >= 2
    assert sorted(path.name for path in finished.root.iterdir() if path.name[0] != ".") == [
        "best",
        "optuna.db",
        "private",
        "study.yaml",
        "trials.csv",
    ]


def test_a_finished_study_does_not_draw_again(finished: StudyFolder, at_home: None, here: Here) -> None:
    before = (finished.best / "model.safetensors").read_bytes()
    assert here("resume", finished.root).returncode == 0
    assert (finished.best / "model.safetensors").read_bytes() == before
    more = here("resume", finished.root, "--extend", "5")
    assert (more.returncode, "cannot be extended" in more.stderr) == (2, True)
    again = here("export", finished.root, "--to", finished.root / "again")
    assert (again.returncode, "measure it again" in again.stderr) == (2, True)
    alone = here("run", finished.config, "--only-trial", "0")
    assert (alone.returncode, "second draw" in alone.stderr) == (2, True)


def test_a_study_that_is_interrupted_goes_on_with_the_same_draws(
    photos: Path, tmp_path: Path, at_home: None, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    from finetune import model_folder
    from finetune.private import trial

    seen: list[float] = []
    plain = trial.run

    def once(number: int, *rest: Any) -> Any:
        outcome = plain(number, *rest)
        seen.append(outcome.score)
        return outcome

    def refuse(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "run", once)
    with monkeypatch.context() as patch:
        patch.setattr(model_folder, "release", refuse)
        with pytest.raises(KeyboardInterrupt):
            search.run(config(photos, tmp_path))
    first, folder = list(seen), StudyFolder(tmp_path / "private")
    # Another budget for the same draws is refused, and so are other images.
    text = folder.config.read_text()
    folder.config.write_text(text.replace("epsilon: 20.0", "epsilon: 30.0"))
    told = here("resume", folder.root)
    assert (told.returncode, "must go on with the config and images" in told.stderr) == (2, True)
    folder.config.write_text(text)
    seen.clear()
    assert here("resume", folder.root).returncode == 0
    assert seen == first
    scores = [
        json.loads(line) for line in (folder.root / "private" / "trials.jsonl").read_text().splitlines()
    ]
    assert [row["noisy_accuracy"] for row in scores[1:]] == first
    assert len(first) == len({*first})
    assert len((tmp_path / spending.FILE).read_text().splitlines()) == 1, "it spends once"


def test_studies_on_the_same_images_add_up(
    finished: StudyFolder, photos: Path, tmp_path: Path, here: Here
) -> None:
    results = finished.root.parent
    spent = [json.loads(line) for line in (results / spending.FILE).read_text().splitlines()]
    assert [(one["study"], 19 < one["epsilon"] <= 20) for one in spent] == [("private", True)]
    planned_twice = 2 * spent[0]["epsilon"]

    path = tmp_path / "again.yaml"
    path.write_text(config(photos, results).to_yaml().replace("name: private", "name: again"))
    told = here("check", path).stdout
    whole = f"{planned_twice:.3g}"
    assert f"whoever gets all of their models knows up to epsilon {whole} at delta 0.002" in told
    assert f"  private: epsilon {planned_twice / 2:.3g} for each image" in told

    def counted(images: Path, place: Path) -> int:
        data = DataSettings(kind="folder", path=str(images), image_size=32)
        return len(spending.earlier(config(images, place), catalog.scan(data)))

    # A copy is counted wherever it is, and so are changed images in the same place; other images are not.
    copy = Path(shutil.copytree(photos, tmp_path / "copy"))
    assert counted(copy, results) == 1
    next((copy / "train" / "5").iterdir()).unlink()
    assert counted(copy, results) == 0
    row = (results / spending.FILE).read_text()
    (tmp_path / spending.FILE).write_text(row.replace(str(photos), str(copy)))
    assert counted(copy, tmp_path) == 1
    (tmp_path / spending.FILE).write_text(row[:-20])
    with pytest.raises(StudyError, match="must be readable"):
        counted(copy, tmp_path)


def test_splits_must_be_given(tmp_path: Path, photos: Path, at_home: None) -> None:
    shutil.copytree(photos / "train", tmp_path / "photos")
    with pytest.raises(DataError, match="given with their validation split"):
        search.run(config(tmp_path / "photos", tmp_path / "results"))
    assert not (tmp_path / "results").exists()


def test_check_says_what_is_promised_and_what_is_paid_for(photos: Path, tmp_path: Path, here: Here) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(config(photos, tmp_path / "results").to_yaml())
    told = here("check", path)
    assert told.returncode == 0
    for line in ("the whole study", "released naively", "paid for  the search", "refused   early stopping"):
        assert line in told.stdout
    suspects = here("check", path, "--suspects", tmp_path / "list.txt")
    assert (suspects.returncode, "not paid for" in suspects.stderr) == (2, True)


def test_groups_are_protected_as_a_whole(photos: Path, tmp_path: Path, at_home: None) -> None:
    by_split = config(photos, tmp_path, unit="group", group=r"([a-z]+/\d)/who", epsilon=1e4)
    record = search.run(by_split)
    assert record.privacy is not None
    assert record.privacy["unit"] == "group"
    scores = [trial.metrics["best"]["val/accuracy"] for trial in record.trials]
    assert len(scores) == 1


def test_a_draw_file_that_is_torn_ends_the_study(tmp_path: Path, photos: Path) -> None:
    kept = secret.Draws(tmp_path / "private")
    key = kept.key(config(photos, tmp_path), "print")
    assert kept.key(config(photos, tmp_path), "print") == key
    with pytest.raises(StudyError, match="must go on with"):
        kept.key(config(photos, tmp_path), "other images")
    kept.file.write_text(kept.file.read_text()[:-20])
    with pytest.raises(StudyError, match="must be whole"):
        kept.key(config(photos, tmp_path), "print")
