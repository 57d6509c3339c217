"""An exact trial: its head is solved on stored features, chosen by folds of train, and exported like any."""

import ast
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from sklearn.datasets import load_digits

from finetune import model_folder
from finetune.disk import checkpoint
from finetune.errors import CheckpointError
from finetune.exact import dual, few, many, scores, solve
from finetune.exact.rows import FOLDS, Preparation, Rows, class_weights, folds
from finetune.messages import Epoch, Keep, Message, Note
from finetune.model.exact_head import ExactHead, ExactShape, powered
from finetune.settings import DataSettings, SourceSettings, TrialSettings, WeightsSettings
from finetune.training import exact, loop
from finetune.training.run import Run
from finetune.training.workers import World
from search.verdict import contest
from tests.processes import finish


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels (901, 64) and labels of the digits 5 to 9 as 0 to 4, writers mixed."""
    pixels, labels = load_digits(return_X_y=True)
    later = labels > 4
    x, y = torch.from_numpy(pixels[later] / 16).float(), torch.from_numpy(labels[later]).long() - 5
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return x[order], y[order]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Pixels of digits as features of 200 images and their copies, five of them as the source's answers."""
    pixels, labels = digits()
    x = pixels[:200]
    noisy = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return Rows(
        torch.cat([x, noisy]),
        torch.cat([x, noisy])[:, 20:25].softmax(1),
        torch.arange(200).repeat(2),
        labels[:200],
        torch.ones(200),
        torch.arange(400) >= 200,
        5,
    )


def outputs(solved: solve.Solved, pooled: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Return the outputs of a solved head."""
    identity = torch.nn.Identity()
    sizes = {"features": pooled.shape[1], "answers": answers.shape[1], "classes": 5}
    head = ExactHead(identity, identity, solved.shape, **sizes)
    head.new.load_state_dict(dict(solved.state))
    z = powered(pooled, root=solved.shape.root, unit=solved.shape.unit)
    with torch.no_grad():
        made: torch.Tensor = head.new(torch.cat([z, answers], 1) if solved.shape.answers else z)
    return made


def test_the_source_answers_are_read_without_its_dropout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = torchvision.models.mobilenet_v2()
    assert source.classifier[0].p > 0
    file = tmp_path / "mobilenet_v2.pth"
    torch.save(source.state_dict(), file)
    settings = TrialSettings(
        data=DataSettings(kind="digits", classes=("5", "6"), image_size=32, horizontal_flip=False),
        backbone="mobilenet_v2",
        weights=WeightsSettings(file=str(file)),
        strategy="exact",
        epochs=1,
        learning_rate=0.0,
        cache_dir=str(tmp_path),
    )
    read = exact.read(Run(settings, World()))
    with torch.no_grad():
        expected = source.eval().classifier(read.pooled).softmax(dim=1)
    assert read.answers is not None
    torch.testing.assert_close(read.answers, expected, rtol=1e-4, atol=1e-7)


def test_a_group_lies_in_one_fold_and_classes_stay_even() -> None:
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (400,), generator=draw)
    groups = torch.randint(0, 40, (400,), generator=draw)
    found = folds(labels, groups)
    assert all(len(found[groups == group].unique()) == 1 for group in groups.unique())
    assert found.bincount(minlength=5).min() > 60
    for label in range(3):
        sizes = found[labels == label].bincount(minlength=5)
        assert sizes.max() < 2 * sizes.min()


def test_a_single_group_is_none() -> None:
    labels = torch.tensor([0, 1] * 10)
    assert torch.equal(folds(labels, torch.zeros(20, dtype=torch.int64)), folds(labels))


def test_groups_are_respected_when_a_head_is_judged() -> None:
    """Images of a group look alike: only a fold without their group shows that nothing tells the class."""
    draw = torch.Generator().manual_seed(2)
    groups = torch.arange(40).repeat_interleave(3)
    labels = torch.randint(0, 2, (40,), generator=draw)[groups]
    looks = torch.randn(40, 30, generator=draw)[groups] + 0.1 * torch.randn(120, 30, generator=draw)
    flat = torch.zeros(120, dtype=torch.bool)
    without = Rows(looks, None, torch.arange(120), labels, torch.ones(120), flat, 2)
    assert solve.solve(without).best.score.accuracy > 0.95
    assert solve.solve(replace(without, groups=groups)).best.score.accuracy < 0.7


def test_classes_are_spread_evenly_over_the_folds() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 3)
    found = folds(labels)
    for label in range(3):
        counts = found[labels == label].bincount(minlength=FOLDS)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("weighted", [False, True])
def test_outputs_without_a_fold_are_those_of_a_regression_without_it(rows: Rows, weighted: bool) -> None:
    x, labels = rows.pooled[:200], rows.labels
    y = 2.0 * torch.nn.functional.one_hot(labels, 5).float() - 1
    weights = torch.linspace(0.5, 2, 200) if weighted else torch.ones(200)
    gram, fold = x @ x.T + 1, folds(labels)
    one = dual.Dual(gram, y, fold, weights)
    found = one.held_out(0.1, gram)
    root = weights.sqrt()
    scaled = gram * root[:, None] * root
    penalty = 0.1 * torch.linalg.eigvalsh(scaled).mean()
    for number in range(FOLDS):
        rest = fold != number
        inner = scaled[rest][:, rest] + penalty * torch.eye(int(rest.sum()))
        solved = torch.linalg.solve(inner, y[rest] * root[rest][:, None]) * root[rest][:, None]
        torch.testing.assert_close(found[~rest], gram[~rest][:, rest] @ solved, rtol=1e-3, atol=1e-3)


def test_normal_equations_give_the_ridge_of_the_inner_products(rows: Rows) -> None:
    plain = replace(rows, pooled=rows.pooled[:200], answers=None, images=torch.arange(200))
    plain = replace(plain, mirrored=torch.zeros(200, dtype=torch.bool))
    made, fold, weights = Preparation(standard=True), folds(plain.labels), torch.ones(200)
    # Penalties are multiples of the mean eigenvalue, of 64 products of features here, of 200 of images there.
    one = few.Few(plain, fold, made, 0.0, weights)
    two = many.Many(plain, fold, made, 0.0, weights)
    small, large = one.solution(1e-3), two.solution(1e-3)
    agree = (small[1].argmax(1) == large[1].argmax(1)).float().mean()
    assert agree > 0.97
    assert scores.score(large[1], plain.labels).accuracy > 0.8


def test_random_features_come_close_to_the_gaussian_kernel(rows: Rows) -> None:
    made, fold, weights = Preparation(unit=True), folds(rows.labels), torch.ones(200)
    found = [kind(rows, fold, made, 1.0, weights).solution(0.1)[1] for kind in (few.Few, many.Many)]
    kinds = [scores.score(one, rows.labels).accuracy for one in found]
    assert min(kinds) > 0.8
    assert abs(kinds[0] - kinds[1]) < 0.06


def test_the_head_is_the_best_of_its_candidates_and_computes_what_was_solved(rows: Rows) -> None:
    choice = solve.solve(rows)
    assert choice.best.score.loss == min(one.score.loss for one in choice.others)
    assert {one.name.split()[0] for one in choice.others} >= {"ridge", "Gaussian", "logistic"}
    x, wanted = (part[200:] for part in digits())
    for one in choice.others:
        right = (outputs(one, x, x[:, 20:25].softmax(1)).argmax(1) == wanted).double().mean().item()
        assert abs(right - one.score.accuracy) < 4 * one.score.accuracy_error + 0.03, one.name


def test_rare_classes_are_heard_where_classes_count_alike(rows: Rows) -> None:
    few_of_one = torch.cat(
        [(rows.labels != 1).nonzero().flatten(), (rows.labels == 1).nonzero().flatten()[:4]]
    )
    order = torch.cat([few_of_one, few_of_one + 200])
    assert rows.answers is not None
    count = len(few_of_one)
    rare = Rows(
        rows.pooled[order],
        rows.answers[order],
        torch.arange(count).repeat(2),
        rows.labels[few_of_one],
        torch.ones(count),
        torch.arange(2 * count) >= count,
        5,
    )
    assert "classes weighted" in solve.solve(rare, shares=torch.ones(5)).best.name
    weights = class_weights(rare.labels, 5)
    assert weights[1] > 5 * weights[0]


def test_a_pull_to_good_rows_keeps_them_and_the_path_tells_them_apart(rows: Rows) -> None:
    """With few images, rows that are right already win against a start from zero."""
    best = solve.solve(rows, linear=True).best
    weight, bias = best.state["1.weight"].T[:64] * 1.0, best.state["1.bias"]
    # Solved with answers: drop those, and center nothing else.
    choice = solve.solve(rows, loaded=lambda used: (weight, bias))
    names = [one.name for one in choice.others]
    loaded = next(one for one in choice.others if "loaded rows" in one.name)
    zero = next(one for one in choice.others if one.name == "logistic regression on centred features")
    assert loaded.name in names
    assert loaded.score.loss < zero.score.loss + 0.05


SOURCE = SourceSettings(
    data=DataSettings(kind="digits", classes=("0", "1"), image_size=32, horizontal_flip=False), epochs=1
)


def settings(folder: Path, **options: Any) -> TrialSettings:
    data = DataSettings(
        kind="digits", classes=("5", "6", "7"), image_size=32, validation_share=0.4, test_share=0.3
    )
    return TrialSettings(
        data=data,
        backbone="shufflenet_v2_x0_5",
        weights=WeightsSettings(source=SOURCE),
        strategy="exact",
        epochs=1,
        learning_rate=0.0,
        cache_dir=str(folder / "cache"),
        **options,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Message]]:
    """A finished exact trial: its folder and messages."""
    folder = tmp_path_factory.mktemp("exact")
    messages: list[Message] = []
    keep = Keep(metric="val/accuracy", best=folder / "best", last=folder / "last")
    outcome = loop.train(settings(folder), keep=keep, report=messages.append)
    assert (outcome.state, outcome.epochs) == ("complete", 1)
    return folder, messages


def test_an_exact_trial_tells_what_was_chosen_and_how_sure_that_is(done: tuple[Path, list[Message]]) -> None:
    _, messages = done
    (epoch,) = [message.metrics for message in messages if isinstance(message, Epoch)]
    (note,) = [message.text for message in messages if isinstance(message, Note)]
    assert epoch["val/accuracy"] > 0.7
    assert 0 < epoch["train/held_out_error"] < 0.1
    assert abs(epoch["train/held_out_accuracy"] - epoch["val/accuracy"]) < 5 * epoch["train/held_out_error"]
    assert f"{100 * epoch['train/held_out_accuracy']:.1f} %" in note


def test_an_exact_model_is_exported_loaded_and_answers_as_it_was_measured(
    done: tuple[Path, list[Message]], tmp_path: Path
) -> None:
    folder, messages = done
    (epoch,) = [message.metrics for message in messages if isinstance(message, Epoch)]
    facts = model_folder.write(folder / "best", tmp_path / "model", {})
    assert facts["metrics"]["validation"]["accuracy"] == epoch["val/accuracy"]
    model = model_folder.load(tmp_path / "model")
    shape = model.facts["head"]["exact"]
    assert ExactShape.from_dict(shape).to_dict() == shape
    run = Run(settings(folder), World())
    images, labels = next(run.data.batches("val", [torch.arange(run.data.size("val"))]))
    right = (model.probabilities(images).argmax(1) == labels).double().mean().item()
    assert right == pytest.approx(epoch["val/accuracy"], abs=1e-9)


def test_an_exact_model_is_measured_for_the_verdict(done: tuple[Path, list[Message]], tmp_path: Path) -> None:
    folder, messages = done
    (epoch,) = [message.metrics for message in messages if isinstance(message, Epoch)]
    model_folder.measure(folder / "best", tmp_path, world=World())
    found = contest.load_answers(tmp_path / "answers.npz", "val")
    assert (found.predicted == found.labels).mean() == pytest.approx(epoch["val/accuracy"], abs=1e-9)


@pytest.mark.parametrize(
    "wrong", [{"kind": "deep"}, {"version": 9}, {"size": -1}, {"unit": "yes"}, {"more": 1}]
)
def test_a_head_that_nobody_writes_is_refused(
    done: tuple[Path, list[Message]], tmp_path: Path, wrong: dict[str, Any]
) -> None:
    folder, _ = done
    _, stored = checkpoint.read(folder / "best")
    with pytest.raises(ValueError, match="exact head"):
        ExactShape.from_dict(stored["exact"] | wrong)
    model_folder.write(folder / "best", tmp_path / "model", {})
    path = tmp_path / "model" / "model.yaml"
    text = path.read_text()
    path.write_text(text.replace("kind: ", "kind: x"))
    with pytest.raises(CheckpointError, match="exact head"):
        model_folder.load(tmp_path / "model")


@pytest.mark.thorough
def test_two_workers_solve_the_head_together(done: tuple[Path, list[Message]], tmp_path: Path) -> None:
    folder, messages = done
    (alone,) = [message.metrics for message in messages if isinstance(message, Epoch)]
    script = Path(__file__).parent / "two_workers.py"
    two = finish(sys.executable, script, tmp_path / "two", given=repr([settings(folder).to_dict()]))
    assert two.returncode == 0, two.stderr
    ((together,),) = ast.literal_eval(two.stdout)
    # Two workers approximate the kernel and leave logistic regressions out, so it is not the same head.
    assert together["val/accuracy"] > alone["val/accuracy"] - 0.1
