"""Audits: an attack that finds members, finds nothing where there is nothing, and catches a lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from finetune import model_folder
from finetune.private import attack, mechanisms, shadow_sgd
from finetune.private.accounting import Noise, Steps
from finetune.private.attack import Shadows
from finetune.private.mechanisms import Choices, Private
from finetune.private.noise import Draws
from finetune.settings import DataSettings
from tests import models
from tests.here import Here

IMAGES, CLASSES, SIZE = 300, 3, 200


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """Features in many directions, which a head learns by heart, and labels."""
    draw = np.random.default_rng(0)
    labels = np.arange(IMAGES) % CLASSES
    rows = draw.normal(size=(IMAGES, SIZE)) + 2 * np.eye(SIZE)[labels]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels


class Silent(Draws):
    def normal(self, *shape: int) -> np.ndarray:
        return np.zeros(shape)


def means(images: tuple[np.ndarray, np.ndarray], noise: float, draws: Any = Draws) -> attack.Fit:
    rows, labels = images

    def fit(members: np.ndarray) -> np.ndarray:
        found = []
        for number, used in enumerate(members):
            own = Private(rows[used], labels[used], np.arange(used.sum()), CLASSES)
            loud = Noise(noise, {}, 1.0, 1.0, 1.0)
            head = mechanisms.fit(own, Choices("means", True), loud, draws(b"key", str(number)))
            found.append(rows @ head.weight.T + head.bias)
        return np.stack(found)

    return fit


def test_members_of_a_head_that_learns_by_heart_are_found(images: tuple[np.ndarray, np.ndarray]) -> None:
    rows, labels = images
    fit = attack.softmax_regression(rows, labels, CLASSES, loss=0.02)
    shadows = attack.train(fit, labels, 32)
    found, scores = attack.of_recipe(shadows)
    assert found.auc > 0.9
    assert found.rates[0.01][0] > 0.2
    assert found.rates[0.01][1] <= found.rates[0.01][0] <= found.rates[0.01][2]
    assert attack.epsilon_below(shadows, scores) > 2
    loose = attack.train(attack.softmax_regression(rows, labels, CLASSES, loss=0.9), labels, 32)
    assert attack.of_recipe(loose)[0].auc < found.auc - 0.02


def test_there_is_no_alarm_for_images_that_no_head_saw(images: tuple[np.ndarray, np.ndarray]) -> None:
    """Heads are trained on one half of the images; the other half is claimed to be members by a coin."""
    rows, labels = images
    fit = attack.softmax_regression(rows, labels, CLASSES, loss=0.02)
    half = np.arange(IMAGES) < IMAGES // 2
    drawn = np.random.default_rng(1).random((48, IMAGES)) < 0.5
    said = attack.confidences(fit(drawn & half), labels)[:, ~half]
    claimed = Shadows(drawn[:, ~half], said)
    found, scores = attack.of_recipe(claimed)
    assert found.auc == pytest.approx(0.5, abs=0.02)
    assert attack.epsilon_below(claimed, scores) < 0.15
    one = attack.of_model(claimed, said[0], drawn[0, ~half])
    assert one.auc_between[0] < 0.5 < one.auc_between[1]


def test_a_trial_without_its_noise_is_caught(images: tuple[np.ndarray, np.ndarray]) -> None:
    """The noise of epsilon .5 keeps the bound below it; without noise the bound is far above."""
    labels = images[1]
    honest = attack.train(means(images, 7.0), labels, 48)  # epsilon .49 at delta 1e-4
    assert attack.epsilon_below(honest, attack.of_recipe(honest)[1]) < 0.49
    planted = attack.train(means(images, 7.0, Silent), labels, 48)
    assert attack.epsilon_below(planted, attack.of_recipe(planted)[1]) > 1.0


@pytest.mark.parametrize("centre", [False, True])
def test_shadow_heads_trained_at_once_are_those_trained_one_by_one(
    images: tuple[np.ndarray, np.ndarray], centre: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise and with samples of all images nothing is random; heads are trained in two parts."""
    rows, labels = images
    monkeypatch.setattr(shadow_sgd, "MOST_NUMBERS", 4 * IMAGES * CLASSES)
    choices = Choices("sgd", centre, steps=Steps(1.0, 30), rate=3.0, clip=0.3)
    quiet = Noise(1e-9, {Steps(1.0, 30): 1e-9}, 1.0, 1.0, 1.0)
    members = np.random.default_rng(3).random((6, IMAGES)) < 0.5
    at_once = shadow_sgd.logits(rows, labels, members, CLASSES, choices, quiet, 0)
    for used, found in zip(members, at_once, strict=True):
        own = Private(rows[used], labels[used], np.arange(used.sum()), CLASSES)
        head = mechanisms.fit(own, choices, quiet, Silent(b"", ""))
        assert np.allclose(found, rows @ head.weight.T + head.bias, atol=1e-3)
        assert np.abs(found).max() > 0.5


def test_the_noise_of_shadow_heads_is_that_of_the_mechanism() -> None:
    """On empty rows a head is its noise: the mean of steps that add up."""
    steps = Steps(0.25, 8)
    choices, noise = Choices("sgd", False, steps=steps, rate=2.0, clip=0.5), Noise(5.0, {steps: 7.0}, 1, 1, 1)
    empty, labels, probe = np.zeros((40, 50)), np.arange(40) % 3, np.eye(50)
    heads = [
        mechanisms.fit(Private(empty, labels, np.arange(40), 3), choices, noise, Draws(b"k", str(one))).weight
        for one in range(20)
    ]
    rows, padded = np.concatenate([empty, probe]), np.concatenate([labels, np.zeros(50, int)])
    members = np.tile(np.arange(90) < 40, (20, 1))
    found = shadow_sgd.logits(rows, padded, members, 3, choices, noise, 1)[:, 40:]
    assert found.std() == pytest.approx(np.std(heads), rel=0.1)


def test_rates_and_areas_are_those_of_a_small_example() -> None:
    scores, members = np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False])
    assert attack.auc(scores, members) == 0.75
    assert attack.true_positives(scores, members, 0.0) == 0.5
    assert attack.true_positives(scores, members, 0.5) == 1.0
    logits = np.array([[[0.0, np.log(3.0)]]])
    assert attack.confidences(logits, np.array([1]))[0, 0] == pytest.approx(np.log(3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model folder and the images that it was trained on."""
    folder = tmp_path_factory.mktemp("audited")
    digits = load_digits()
    for label in (6, 7):
        own = digits.images[digits.target == label]
        for split, (begin, end) in {"train": (0, 40), "val": (40, 80)}.items():
            place = folder / "photos" / split / str(label)
            place.mkdir(parents=True)
            for number in range(begin, end):
                Image.fromarray((own[number] * 15).astype(np.uint8)).save(place / f"secret-{number}.png")
    data = DataSettings(kind="folder", path=str(folder / "photos"), image_size=32)
    model_folder.write(models.train(folder, data=data, epochs=3), folder / "model", {})
    return folder / "model", folder / "photos"


def test_an_audit_stands_on_the_card_without_names(trained: tuple[Path, Path], here: Here) -> None:
    model, photos = trained
    told = here("audit", model, "--data", photos, "--shadows", 16)
    assert told.returncode == 0, told.stderr
    assert "this model: AUC" in told.stdout
    assert told.stdout.count("secret-") == 10
    card = (model / "README.md").read_text()
    assert "## Audit" in card
    assert "at 0.1 %" in card
    written = [path.read_bytes() for path in model.iterdir()]
    assert not any(b"secret-" in content for content in written)
    assert model_folder.load(model).facts["audit"]["shadows"] == 16
