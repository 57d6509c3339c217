"""How well classes can be told apart behind each block of a pretrained backbone."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from finetune.explain.probes import Probe, pooled, separable
from finetune.model import backbones
from tests.here import Here


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "densenet121", "mobilenet_v3_small"])
def test_the_last_block_is_pooled_as_the_backbone_pools_it(name: str) -> None:
    torch.manual_seed(0)
    backbone = backbones.build(name, source_classes=2).eval()
    with torch.no_grad():
        h = backbone.blocks(torch.rand(2, 3, 64, 64))
        torch.testing.assert_close(pooled(h, name), backbone.pool(h))


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("swin_t", {96, 192, 384, 768}),
        ("swin_v2_t", {96, 192, 384, 768}),
        ("vit_b_32", {768}),
        ("convnext_tiny", {96, 192, 384, 768}),
        ("resnet18", {64, 128, 256, 512}),
    ],
)
def test_outputs_are_pooled_over_places_and_not_over_channels(name: str, widths: set[int]) -> None:
    with torch.device("meta"):
        backbone = backbones.build(name)
        h = torch.empty(2, 3, 224, 224)
    found = set()
    for block in backbone.blocks:
        h = block(h)
        found.add(pooled(h, name).shape[1])
    assert found == widths


def test_the_first_block_within_a_standard_error_of_the_best_is_told() -> None:
    told = [Probe(str(n), n, accuracy, 0.02) for n, accuracy in enumerate((0.5, 0.79, 0.75, 0.8), start=1)]
    assert separable(told).frozen_layers == 2
    assert separable(told[:1]).frozen_layers == 1


def test_check_probes_every_block_of_every_backbone(here: Here, tmp_path: Path) -> None:
    source = {"kind": "digits", "classes": ["0", "1"], "epochs": 2, "learning_rate": 0.05}
    names = ["shufflenet_v2_x0_5", "squeezenet1_1"]
    values = {
        "study": {"name": "probed", "trials": 2},
        "data": {"kind": "digits", "classes": ["5", "6", "7"], "image_size": 32, "validation_share": 0.4},
        "model": {"backbone": names, "weights": {names[0]: {"source": source}, names[1]: "none"}},
        "space": {"strategy": ["replace", "fuse"]},
        "results": str(tmp_path / "results"),
    }
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(values))
    done = here("check", config, "--probe", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["probes"]
    assert list(told) == names
    for name in names:
        blocks = told[name]["blocks"]
        assert [one["block"] for one in blocks] == list(backbones.build(name).block_names)
        assert told[name]["separable"] in blocks
        # Three classes of digits: chance is a third.
        assert all(0.5 < one["accuracy"] <= 1 and 0 <= one["error"] < 0.1 for one in blocks)
    shown = here("check", config, "--probe")
    assert "as separable as it gets from block" in shown.stdout
    assert json.loads(here("check", config, "--json").stdout)["probes"] is None
