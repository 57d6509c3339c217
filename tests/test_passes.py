"""How frozen blocks are run: folded batch norms answer as the plain ones do, or are left alone."""

from pathlib import Path

import pytest
import torch
from torch import nn

from finetune import passes, weights
from finetune.passes import Costs, Pass
from finetune.settings import WeightsSettings

CPU = torch.device("cpu")


def blocks(name: str) -> nn.Sequential:
    """Return a backbone's blocks, frozen, with batch norms that do something."""
    torch.manual_seed(0)
    built = weights.backbone(name, weights.load(name, WeightsSettings())).requires_grad_(False).eval()
    for module in built.blocks.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
    return built.blocks.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_folded_blocks_have_fewer_batch_norms_and_answer_alike_at_any_cut(name: str) -> None:
    whole = blocks(name)
    images = passes._images(64, CPU)
    assert passes.can_fold(whole, images)
    for begin, end in ((0, len(whole)), (0, 2), (2, len(whole))):
        part, x = whole[begin:end], whole[:begin](images)
        folded = Pass(folded=True).ready(part)
        assert isinstance(folded, nn.Module)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        torch.testing.assert_close(folded(x), part(x), rtol=1e-3, atol=1e-4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in whole.modules())  # it is a copy


@pytest.mark.parametrize("name", ["densenet121", "vgg11"])
def test_blocks_that_cannot_be_traced_or_have_nothing_to_fold_are_left_alone(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not passes.can_fold(blocks(name), passes._images(64, CPU))
    assert capfd.readouterr() == ("", "")


def test_a_fold_that_answers_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fold = passes.fold
    monkeypatch.setattr(passes, "fold", lambda part: nn.Sequential(fold(part), nn.Softplus()))
    assert not passes.can_fold(blocks("shufflenet_v2_x0_5"), passes._images(64, CPU))


@pytest.mark.parametrize(("search", "folded"), [(True, True), (False, False)])
def test_only_a_search_for_the_fastest_pass_folds(tmp_path: Path, search: bool, folded: bool) -> None:
    found = costs(tmp_path, search=search)
    assert found.fastest.folded == folded
    assert costs(tmp_path, search=search) == found  # from the folder
    assert len(found.fast) == len(found.half) == len(found.usual)
    assert (found.fastest == Pass()) != search


def test_compiling_that_fails_leaves_the_pass_that_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler")

    eager = costs(tmp_path, search=True)
    monkeypatch.setattr(passes, "COMPILE_FROM_SECONDS", 0.0)
    monkeypatch.setattr(torch, "compile", broken)
    assert costs(tmp_path, search=True, compiles=True) == eager


def costs(folder: Path, *, search: bool, compiles: bool = False) -> Costs:
    return passes.costs(
        lambda: blocks("shufflenet_v2_x0_5"),
        "shufflenet_v2_x0_5",
        32,
        Pass(),
        search=search,
        compiles=compiles,
        images=100,
        folder=folder,
        device=CPU,
    )
