"""How frozen blocks are run: folded ones answer as the plain ones do, or are left alone."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from finetune.frozen import execution, folding
from finetune.frozen.execution import Costs, Pass
from finetune.frozen.folding import FoldedConvolution
from finetune.model import weights
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


FOLDED = ("mobilenet_v2", "resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small", "efficientnet_b0")
"""Traced as a whole, with every activation that a convolution can take in, and with sums."""
IN_PARTS = ("googlenet", "inception_v3")


@pytest.mark.thorough(
    but=(
        "resnet18",
        "squeezenet1_0",
    )
)
@pytest.mark.parametrize("name", [*FOLDED, *IN_PARTS, "squeezenet1_0"])
def test_folded_blocks_do_less_and_answer_alike_at_any_cut(name: str) -> None:
    whole = blocks(name)
    images = execution._images(96 if name == "inception_v3" else 64, CPU)[:2]
    assert execution.can_fold(whole, images)
    for begin, end in ((0, len(whole)), (0, 2), (2, len(whole))):
        part, x = whole[begin:end], whole[:begin](images)
        folded = Pass(folded=True).ready(part)
        assert isinstance(folded, nn.Module)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        assert calls(folded, x) < calls(part, x)
        assert execution._distance(folded(x), part(x)) < 1e-4
    assert not any(isinstance(module, FoldedConvolution) for module in whole.modules())  # it is a copy


def test_folded_blocks_take_images_of_another_size_and_number() -> None:
    """Their weights lie in memory as suits the first images best."""
    whole = blocks("mobilenet_v2")
    folded = Pass(folded=True).ready(whole)
    for count, side in ((2, 64), (5, 64), (3, 96), (1, 33)):
        images = execution._images(side, CPU)[:count]
        assert execution._distance(folded(images), whole(images)) < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_half_precision_rounds_folded_blocks_as_plain_ones(name: str) -> None:
    whole, images = blocks(name), execution._images(64, CPU)[:4]
    half, expected = Pass("bfloat16"), whole(images)
    folded = dataclasses.replace(half, folded=True)
    made = folded.run(folded.ready(whole), images)
    assert made.dtype == torch.bfloat16
    assert execution._distance(made, expected) < 2 * execution._distance(half.run(whole, images), expected)


def test_sums_and_activations_are_taken_in() -> None:
    """A residual block of resnet18 is two convolutions, and a third where it is narrowed."""
    x = torch.rand(2, 64, 8, 8)
    assert calls(folding.fold(blocks("resnet18")[2], torch.float32), x) == 2
    assert calls(folding.fold(blocks("resnet18")[3], torch.float32), x) == 3


@pytest.mark.parametrize("name", ["densenet121", "vit_b_16"])
def test_blocks_that_cannot_be_traced_or_have_nothing_to_fold_are_left_alone(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not execution.can_fold(blocks(name), execution._images(64, CPU))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("lacks", "dtype"),
    [(torch.backends.mkldnn, torch.float32), (torch.ops.mkldnn, torch.bfloat16)],
    ids=["oneDNN", "its bfloat16"],
)
def test_without_kernels_batch_norms_alone_are_folded(
    monkeypatch: pytest.MonkeyPatch, lacks: Any, dtype: torch.dtype
) -> None:
    name = "is_available" if lacks is torch.backends.mkldnn else "_is_mkldnn_bf16_supported"
    monkeypatch.setattr(lacks, name, lambda: False)
    whole, images = blocks("resnet18"), execution._images(64, CPU)[:2]
    assert execution.can_fold(whole, images)
    how = Pass("bfloat16" if dtype == torch.bfloat16 else "float32", folded=True)
    ready = how.ready(whole)
    assert isinstance(ready, nn.Module)
    assert {type(module) for module in ready.modules()}.isdisjoint({FoldedConvolution, nn.BatchNorm2d})
    assert execution._distance(how.run(ready, images), whole(images)) < 0.1


def test_a_fold_that_answers_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fold = folding.fold
    wrong = lambda part, dtype: nn.Sequential(fold(part, dtype), nn.Softplus())  # noqa: E731
    monkeypatch.setattr(folding, "fold", wrong)
    assert not execution.can_fold(blocks("shufflenet_v2_x0_5"), execution._images(64, CPU))


def test_bfloat16_is_taken_only_where_it_rounds_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "FASTER", 1e-9)  # it would win by its speed
    assert costs(tmp_path / "little").fastest == Pass("bfloat16", folded=True)
    monkeypatch.setattr(execution, "HALF_ROUNDING", 1e-9)
    assert costs(tmp_path / "much").fastest == Pass(folded=True)
    asked = costs(tmp_path / "asked", precision="bfloat16")
    assert asked.fastest == Pass("bfloat16", folded=True)
    assert any(asked.half)


def calls(module: nn.Module, x: torch.Tensor) -> int:
    """Return how many kernels that compute something a pass starts."""
    with profile(activities=[ProfilerActivity.CPU]) as watched, torch.no_grad():
        module(x)
    names = (
        "aten::convolution",
        "aten::batch_norm",
        "aten::relu",
        "aten::hardtanh",
        "aten::add",
        "aten::silu",
    )
    own = (
        "mkldnn::_convolution_pointwise",
        "aten::hardswish",
        "aten::relu_",
        "aten::add_",
        "aten::hardtanh_",
    )
    return sum(event.count for event in watched.key_averages() if event.key in (*names, *own))


@pytest.mark.parametrize("precision", ["auto", "float32", "exact"])
def test_exact_answers_come_from_the_usual_pass(tmp_path: Path, precision: str) -> None:
    found = costs(tmp_path, precision=precision)
    assert found.fastest.folded == (precision != "exact")
    assert costs(tmp_path, precision=precision) == found  # from the folder
    assert len(found.fast) == len(found.half) == len(found.usual)
    assert (found.fastest == Pass()) == (precision == "exact")
    assert found.fastest.dtype == "float32" or precision == "auto"


def test_compiling_that_fails_leaves_the_pass_that_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler")

    eager = costs(tmp_path)
    monkeypatch.setattr(execution, "COMPILE_FROM_SECONDS", 0.0)
    monkeypatch.setattr(torch, "compile", broken)
    assert costs(tmp_path) == eager


def costs(folder: Path, *, precision: str = "auto") -> Costs:
    return execution.costs(
        lambda: blocks("shufflenet_v2_x0_5"),
        "shufflenet_v2_x0_5",
        "random",
        32,
        precision,
        images=100,
        folder=folder,
        device=CPU,
    )
