"""Maps point at the evidence for every family of backbones, and `explain` draws them."""

import copy
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from finetune.errors import FinetuneError
from finetune.explain import deletion, overlay
from finetune.explain.maps import METHODS, Whole, maps, noise, scaled
from finetune.model import backbones, strategies
from finetune.model.head import MLPHead, ReplaceHead
from finetune.model.strategies import TransferModel
from tests.here import Here
from tests.test_families import SMALLEST, built
from tests.test_model_folder import trained, written  # noqa: F401

CLASSES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model_of(name: str, strategy: str = "replace", frozen: int = -1) -> TransferModel:
    return strategies.build(
        strategy,
        copy.deepcopy(built(name)),
        classes=CLASSES,
        head_size=0,
        dropout=0.1,
        frozen_layers=frozen,
        relation=torch.softmax(torch.randn(3, 5, generator=torch.Generator().manual_seed(3)), dim=1),
        source_names=None,
        seed=0,
    )


@cache
def images(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SMALLEST)
def test_every_family_has_activations_with_a_place(name: str) -> None:
    side = 224 if name == "maxvit_t" else 128
    with torch.device("meta"):
        backbone = backbones.build(name)
        model = TransferModel(
            backbone, len(backbone.blocks), ReplaceHead(backbone.pool, MLPHead(backbone.features, 0, 3, 0.0))
        )
        whole = Whole(model)
        h = whole.as_map(whole.blocks[: whole.cut](torch.zeros(2, 3, side, side)))
    assert h.shape[:2] == (2, backbone.features)
    assert h.shape[2] == h.shape[3] > 1


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "vit_b_32", "swin_t"])
def test_a_map_depends_on_image_and_class(name: str) -> None:
    model = model_of(name)
    found = torch.stack([maps(model, images(96), torch.tensor([k, k])) for k in range(3)])  # (3, 2, S, S)
    assert found.isfinite().all()
    assert set(found.amax((2, 3)).flatten().tolist()) <= {0.0, 1.0}
    assert float(found.std((2, 3)).amax()) > 0.05  # not flat
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[:, 0], found[:, 1])


@pytest.mark.parametrize("strategy", ["replace", "load", "fuse"])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1"])
def test_a_map_does_not_depend_on_what_is_frozen_and_leaves_the_model_as_it_was(
    name: str, strategy: str
) -> None:
    x, classes = images(64), torch.tensor([0, 1])
    frozen, trained_ = model_of(name, strategy), model_of(name, strategy, frozen=2).train()
    before = {key: tensor.clone() for key, tensor in trained_.state_dict().items()}
    assert torch.equal(maps(frozen, x, classes), maps(trained_, x, classes))
    assert trained_.training
    assert all(torch.equal(before[key], tensor) for key, tensor in trained_.state_dict().items())
    assert all(parameter.grad is None for parameter in trained_.parameters())


@pytest.mark.parametrize("name", ["resnet18", "swin_t"])
def test_grad_cam_is_captums_where_the_last_block_is_a_map(name: str) -> None:
    captum = pytest.importorskip("captum.attr")
    model, x, classes = model_of(name), images(96), torch.tensor([0, 2])
    whole = Whole(model)
    reference = captum.LayerGradCam(whole, whole.blocks[-1]).attribute(x, target=classes)[:, 0]
    assert torch.allclose(maps(model, x, classes), scaled(reference, 96), atol=1e-5)


def test_the_map_of_vit_leaves_out_the_class_token_and_is_not_taken_behind_the_last_attention() -> None:
    whole = Whole(model_of("vit_b_32"))
    assert whole.cut == len(whole.blocks) - 1
    tokens = torch.arange(10.0).view(1, 10, 1)
    assert whole.as_map(tokens)[0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_maps_images(method: Any) -> None:
    found = maps(model_of("shufflenet_v2_x0_5"), images(64), torch.tensor([0, 1]), method)
    assert found.shape == (2, 64, 64)
    assert found.isfinite().all()
    assert float(found.amin()) >= 0
    assert float(found.amax()) <= 1


def test_a_missing_captum_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(FinetuneError, match=r"Run pip install 'transfer-search\[explain\]'\.$"):
        maps(model_of("shufflenet_v2_x0_5"), images(64), torch.tensor([0, 1]), "occlusion")
    maps(model_of("shufflenet_v2_x0_5"), images(64), torch.tensor([0, 1]))  # the usual map needs no extra


# Deletion


def test_cells_go_in_the_order_of_the_map() -> None:
    marked = torch.zeros(1, 64, 64)
    marked[0, :4, :4], marked[0, 60:, 60:] = 1.0, 0.5
    places = deletion.ranks(marked)[0]
    assert places[0, 0] == 0
    assert places[15, 15] == 1
    assert sorted(places.flatten().tolist()) == list(range(256))


def test_deletion_is_low_where_the_map_is_right_high_where_it_is_wrong() -> None:
    x = torch.zeros(1, 3, 64, 64)
    x[:, :, 8:16, 8:16] = 1.0  # the evidence

    def answers(pixels: Tensor) -> Tensor:
        share = pixels[:, 0, 8:16, 8:16].mean((1, 2))
        return torch.stack([share, 1 - share], dim=1)

    right = torch.zeros(1, 64, 64)
    right[:, 8:16, 8:16] = 1.0
    label = torch.tensor([0])
    low, chance, high = (
        float(deletion.area(answers, x, label, right)[0]),
        float(deletion.random_area(answers, x, label, (4, 4))[0]),
        float(deletion.area(answers, x, label, 1 - right)[0]),
    )
    assert low < 0.2 < 0.4 < chance < 0.8 < high


# Pictures and the command


def test_an_overlay_changes_only_what_is_marked() -> None:
    image = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    marked = torch.zeros(8, 8)
    marked[0, 0] = 1.0
    drawn = overlay.over(image, marked)
    assert drawn.getpixel((5, 5)) == (100, 100, 100)
    assert drawn.getpixel((0, 0)) != (100, 100, 100)


def test_a_random_map_is_the_same_each_time() -> None:
    assert torch.equal(noise(2, (4, 4)), noise(2, (4, 4)))


def test_explain_draws_each_image_beside_a_random_map_and_describes_it(
    written: Path,  # noqa: F811
    here: Here,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.linear_gradient("L").save(folder / "a b;c.png")
    (folder / "broken.png").write_bytes(b"no image")
    told = here("explain", written, folder, "--to", tmp_path / "out", "--class", "7")
    assert told.returncode == 1
    first, second = told.stdout.splitlines()
    assert first.split("\t")[1] == "7"
    assert "deletion" in first
    assert "unreadable" in second
    rows = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert [row["picture"] for row in rows] == ["0000-a_b_c.png", None]
    assert rows[0]["class"] == "7"
    assert 0 <= rows[0]["deletion"] <= 1
    with Image.open(tmp_path / "out" / rows[0]["picture"]) as picture:
        assert picture.width >= 3 * overlay.LEAST_SIDE


def test_explain_shows_the_training_images_that_are_most_alike(
    written: Path,  # noqa: F811
    here: Here,
    tmp_path: Path,
) -> None:
    digits = torch.arange(64).reshape(8, 8)
    for name, turn in (("same", 0), ("turned", 1), ("upside", 2)):
        pixels = (digits.rot90(turn) * 4).to(torch.uint8).numpy()
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(pixels).resize((32, 32)).save(tmp_path / "train" / name / "1.png")
    (tmp_path / "train" / "same" / "broken.png").write_bytes(b"no image")
    Image.open(tmp_path / "train/same/1.png").save(tmp_path / "asked.png")
    told = here(
        "explain", written, tmp_path / "asked.png", "--to", tmp_path / "out", "--train", tmp_path / "train"
    )
    assert told.returncode == 0
    (row,) = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert Path(row["nearest"][0]["path"]).parent.name == "same"
    cosines = [one["cosine"] for one in row["nearest"]]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] == pytest.approx(1, abs=1e-5)
    assert len(cosines) == 3
    with Image.open(tmp_path / "out" / row["picture"]) as picture:
        assert picture.width >= 6 * overlay.LEAST_SIDE


def test_explain_says_how_well_classes_can_be_told_apart_behind_each_block_of_the_model(
    written: Path,  # noqa: F811
    here: Here,
    tmp_path: Path,
) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for name in ("6", "7"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i, pixels in enumerate(digits.images[digits.target == int(name)][:20]):
            Image.fromarray((pixels * 15).astype("uint8")).resize((32, 32)).save(
                tmp_path / f"train/{name}/{i}.png"
            )
    words = ("explain", written, tmp_path / "train/6/0.png", "--to", tmp_path / "out", "--probe", "--train")
    told = here(*words, tmp_path / "train")
    assert told.returncode == 0, told.stderr
    assert "classes are as separable as they get from block" in told.stderr
    found = json.loads((tmp_path / "out/blocks.json").read_text())
    assert found["separable"] in found["blocks"]
    assert found["separable"]["accuracy"] > 0.8
    assert 0 <= found["frozen_layers"] <= len(found["blocks"]) > 5
    told = here(*words, tmp_path / "train/6")
    assert told.returncode == 2
    assert "--train must have folders of two classes of the model or more, got 1" in told.stderr


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--train", "no-such-folder"), "no-such-folder"),
        (("--class", "8"), "--class: must be a class of the model, got '8'"),
        (("--method", "gradcam"), "--method: must name a map, got 'gradcam'. Did you mean 'grad-cam'"),
    ],
)
def test_what_is_not_known_is_refused(
    written: Path,  # noqa: F811
    here: Here,
    tmp_path: Path,
    option: tuple[str, str],
    said: str,
) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    told = here("explain", written, tmp_path / "a.png", "--to", tmp_path / "out", *option)
    assert told.returncode == 2
    assert said in told.stderr
    assert not (tmp_path / "out").exists()
