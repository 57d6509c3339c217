import hashlib
import os
import random
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from finetune import steps
from finetune.errors import BackboneError, WeightsError
from finetune.model import weights
from finetune.settings import DataSettings, SourceSettings, WeightsSettings
from finetune.steps import Step

NAME = "squeezenet1_1"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Weights of a source task with 7 classes."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(NAME, weights=None, num_classes=7)
    return dict(model.state_dict())


def from_file(file: Path, name: str = NAME) -> weights.Pretrained:
    return weights.load(name, WeightsSettings(file=str(file)))


def saved(content: object, file: Path) -> Path:
    torch.save(content, file)
    return file


class Unsafe:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def test_no_weights_mean_random_ones_from_the_global_generator() -> None:
    pretrained = weights.load(NAME, WeightsSettings())
    assert (pretrained.state, pretrained.sha256, pretrained.classes) == (None, None, None)
    torch.manual_seed(3)
    first = weights.backbone(NAME, pretrained).state_dict()
    torch.manual_seed(3)
    second = weights.backbone(NAME, pretrained).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert pretrained.source_classes == 1000


def test_safetensors_and_pth_give_the_same_model(state: dict[str, Tensor], tmp_path: Path) -> None:
    pth = saved(state, tmp_path / "w.pth")
    safe = tmp_path / "w.safetensors"
    save_file(state, safe)
    images = torch.randn(2, 3, 64, 64)
    model = torchvision.models.get_model(NAME, weights=None, num_classes=7).eval()
    model.load_state_dict(state)
    for file in (pth, safe):
        pretrained = from_file(file)
        assert pretrained.source_classes == 7
        assert pretrained.classes is None
        assert torch.equal(weights.backbone(NAME, pretrained).eval()(images), model(images))
    assert from_file(pth).sha256 != from_file(safe).sha256 == from_file(safe).sha256


def wrapped_in_state_dict(state: dict[str, Tensor]) -> object:
    return {"state_dict": state, "epoch": 3}


def wrapped_in_model(state: dict[str, Tensor]) -> object:
    return {"model": OrderedDict(state), "optimizer": {"lr": 0.1}}


def wrapped_in_data_parallel(state: dict[str, Tensor]) -> object:
    return {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}


@pytest.mark.parametrize("wrap", [wrapped_in_state_dict, wrapped_in_model, wrapped_in_data_parallel])
def test_what_training_scripts_wrap_around_weights_is_taken_off(
    wrap: object, state: dict[str, Tensor], tmp_path: Path
) -> None:
    assert callable(wrap)
    read = from_file(saved(wrap(state), tmp_path / "w.pth")).state
    assert read is not None
    assert list(read) == list(state)
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_a_backbone_is_a_copy_so_that_training_it_leaves_the_weights_alone(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    pretrained = from_file(saved(state, tmp_path / "w.pth"))
    backbone = weights.backbone(NAME, pretrained)
    for parameter in backbone.parameters():
        parameter.data.add_(1)
    assert pretrained.state is not None
    assert all(torch.equal(pretrained.state[key], state[key]) for key in state)


def test_half_precision_files_give_single_precision_models(state: dict[str, Tensor], tmp_path: Path) -> None:
    half = {key: tensor.half() for key, tensor in state.items()}
    backbone = weights.backbone(NAME, from_file(saved(half, tmp_path / "w.pth")))
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


def test_files_from_before_batch_norm_counters_still_load(tmp_path: Path) -> None:
    state = dict(torchvision.models.resnet18(num_classes=3).state_dict())
    old = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    backbone = weights.backbone("resnet18", from_file(saved(old, tmp_path / "w.pth"), "resnet18"))
    counters = [t for key, t in backbone.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counters
    assert not any(counters)


def test_an_unsafe_pickle_is_refused_and_does_not_run(state: dict[str, Tensor], tmp_path: Path) -> None:
    file = saved({**state, "extra": Unsafe(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"plain tensors.*got a pickle that calls posix\.system"):
        from_file(file)
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    file = saved(torchvision.models.get_model(NAME, weights=None), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"torchvision\.models\.squeezenet\..*Save model\.state_dict"):
        from_file(file)


@pytest.mark.parametrize("content", [[1, 2], {"best": 0.5}, {}, torch.zeros(2)], ids=type)
def test_a_file_of_something_else_says_what_it_holds(content: object, tmp_path: Path) -> None:
    kind = "float" if content == {"best": 0.5} else type(content).__name__
    with pytest.raises(WeightsError, match=rf"tensors by name, got {kind}"):
        from_file(saved(content, tmp_path / "w.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04torn"])
def test_damaged_files_are_weights_errors(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"w{suffix}"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=str(file)):
        from_file(file)


def test_a_torn_file_is_a_weights_error(state: dict[str, Tensor], tmp_path: Path) -> None:
    file = saved(state, tmp_path / "w.pth")
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="readable weights file"):
        from_file(file)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(WeightsError, match=r"must exist on every node, got '/nowhere/w\.pth'"):
        from_file(Path("/nowhere/w.pth"))


def test_wrong_shapes_and_keys_are_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    wrong = dict(state)
    wrong["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    del wrong["features.3.squeeze.bias"]
    wrong["classifer.0"] = torch.zeros(1)
    pretrained = from_file(saved(wrong, tmp_path / "w.pth"))
    with pytest.raises(WeightsError) as caught:
        weights.backbone(NAME, pretrained)
    for part in (
        str(tmp_path / "w.pth"),
        "1 missing keys (features.3.squeeze.bias)",
        "1 unexpected keys (classifer.0)",
        "features.0.weight (64, 1, 3, 3) instead of (64, 3, 3, 3)",
        f"Give weights of {NAME}",
    ):
        assert part in str(caught.value)


def test_weights_of_another_backbone_are_refused_on_loading(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"weights of torchvision's resnet18, got 122 missing keys \(conv1"
    ):
        from_file(saved(state, tmp_path / "w.pth"), "resnet18")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match=r"got 'IMAGENET1K_V3'. Did you mean .*'IMAGENET1K_V1'"):
        weights.load("resnet50", WeightsSettings(name="IMAGENET1K_V3"))


@pytest.mark.parametrize("settings", [WeightsSettings(name="DEFAULT"), WeightsSettings(file="/w.pth")])
def test_an_unknown_backbone_is_a_backbone_error(settings: WeightsSettings) -> None:
    with pytest.raises(BackboneError, match="got 'resnet81'"):
        weights.load("resnet81", settings)


def test_a_source_is_not_for_this_function() -> None:
    source = SourceSettings(data=DataSettings(kind="digits"))
    with pytest.raises(WeightsError, match=r"got source\. .*finetune\.model\.pretrain"):
        weights.load(NAME, WeightsSettings(source=source))


def test_two_origins_at_once_are_refused() -> None:
    with pytest.raises(WeightsError, match="got name and file"):
        weights.load(NAME, WeightsSettings(name="DEFAULT", file="/w.pth"))


def test_a_failed_download_says_to_give_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens on the discard port
    with pytest.raises(WeightsError, match=r"squeezenet1_1-\w+\.pth.*give a local file"):
        weights.load(NAME, WeightsSettings(name="DEFAULT"))
    assert not list(tmp_path.rglob("*.pth"))


def test_a_download_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    content = bytes(2**20)
    there = tmp_path / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    there.write_bytes(content)
    member = SimpleNamespace(url=there.as_uri(), meta={"_file_size": 1.0})
    told: list[Step] = []
    with steps.listening(told.append):
        assert weights._download(member).read_bytes() == content
    assert {step.name for step in told} == {f"download weights {there.name}"}
    assert (told[0].done, told[-1].done, told[-1].total, told[-1].over) == (0, 2**20, 2**20, True)
    with steps.listening(lambda step: pytest.fail("it is there already")):
        weights._download(member)


@pytest.mark.material
@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_0"])
def test_a_file_already_on_the_node_is_not_downloaded(
    name: str, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    member = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    place = tmp_path / "hub" / "checkpoints" / Path(member.url).name
    place.parent.mkdir(parents=True)
    place.symlink_to(material / "weights" / f"{name}.pth")
    named = weights.load(name, WeightsSettings(name="IMAGENET1K_V1"))
    local = from_file(material / "weights" / f"{name}.pth", name)
    assert named.sha256 == local.sha256
    assert named.classes == local.classes == tuple(member.meta["categories"])
    assert (named.mean, named.std) == (local.mean, local.std)
    assert "IMAGENET1K_V1" in named.origin
    weights.backbone(name, named)


def compiled(state: dict[str, Tensor]) -> object:
    return {f"_orig_mod.{key}": tensor for key, tensor in state.items()}


def lightning(state: dict[str, Tensor]) -> object:
    content = {f"model.{key}": tensor for key, tensor in state.items()}
    return {"state_dict": content, "epoch": 3, "pytorch-lightning_version": "2.5.0"}


def both(state: dict[str, Tensor]) -> object:
    return {"model": {f"module._orig_mod.{key}": tensor for key, tensor in state.items()}}


@pytest.mark.parametrize("wrap", [compiled, lightning, both], ids=lambda wrap: wrap.__name__)
def test_prefixes_of_compiled_parallel_and_lightning_models_are_taken_off(
    wrap: Callable[[dict[str, Tensor]], object], state: dict[str, Tensor], tmp_path: Path
) -> None:
    pretrained = from_file(saved(wrap(state), tmp_path / "w.pth"))
    assert pretrained.state is not None
    assert list(pretrained.state) == list(state)
    weights.backbone(NAME, pretrained)


def a_tar(file: Path, state: dict[str, Tensor]) -> None:
    with tarfile.open(file, "w") as archive:
        archive.add(__file__)


def a_zip(file: Path, state: dict[str, Tensor]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text")


def numbers_for_names(file: Path, state: dict[str, Tensor]) -> None:
    torch.save(dict(enumerate(state.values())), file)


def bytes_for_names(file: Path, state: dict[str, Tensor]) -> None:
    torch.save({key.encode(): tensor for key, tensor in state.items()}, file)


def a_pipe(file: Path, state: dict[str, Tensor]) -> None:
    os.mkfifo(file)


def a_folder(file: Path, state: dict[str, Tensor]) -> None:
    file.mkdir()


def no_numbers(file: Path, state: dict[str, Tensor]) -> None:
    torch.save({key: tensor * float("nan") for key, tensor in state.items()}, file)


def too_large_numbers(file: Path, state: dict[str, Tensor]) -> None:
    torch.save({key: tensor + float("inf") for key, tensor in state.items()}, file)


def complex_numbers(file: Path, state: dict[str, Tensor]) -> None:
    torch.save({key: tensor + 1j for key, tensor in state.items()}, file)


def sparse(file: Path, state: dict[str, Tensor]) -> None:
    torch.save({key: tensor.to_sparse() for key, tensor in state.items()}, file)


def on_no_device(file: Path, state: dict[str, Tensor]) -> None:
    torch.save({key: tensor.to("meta") for key, tensor in state.items()}, file)


def no_classes(file: Path, state: dict[str, Tensor]) -> None:
    torch.save(state | {"classifier.1.weight": torch.zeros(0, 512, 1, 1)}, file)


ODD = (
    *(a_tar, a_zip, numbers_for_names, bytes_for_names, a_pipe, a_folder, no_numbers, too_large_numbers),
    *(complex_numbers, sparse, on_no_device, no_classes),
)


@pytest.mark.parametrize("write", ODD, ids=lambda write: write.__name__)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_holds_no_weights_is_one_line(
    write: Callable[[Path, dict[str, Tensor]], None], suffix: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / f"w{suffix}"
    write(file, state)
    with pytest.raises(WeightsError, match=rf"^{file}: must ") as caught:
        from_file(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(40))
def test_random_bytes_are_no_weights(seed: int, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    beginning = (b"", b"\x80\x02", b"PK\x03\x04", b"ustar")[seed % 4]
    file.write_bytes(beginning + random.Random(seed).randbytes(500))
    with pytest.raises(WeightsError, match=r"must be a readable weights file, got|plain tensors"):
        from_file(file)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_turned_bit_gives_weights_or_one_line(tmp_path: Path, zipped: bool) -> None:
    small = {"classifier.1.weight": torch.ones(2, 512, 1, 1), "a": torch.ones(3)}
    file = tmp_path / "w.pth"
    torch.save(small, file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    generator = random.Random(0)
    told = []
    for _ in range(200):
        place, bit = generator.randrange(len(content)), 1 << generator.randrange(8)
        file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        try:
            weights.backbone(NAME, from_file(file))
        except WeightsError as error:
            told.append(str(error))
    assert told
    assert not [text for text in told if "\n" in text]


def test_names_of_tensors_are_cut(state: dict[str, Tensor], tmp_path: Path) -> None:
    """A file from a stranger may have a name of a megabyte."""
    pretrained = from_file(saved(state | {"x" * 10**6: torch.zeros(1)}, tmp_path / "w.pth"))
    with pytest.raises(WeightsError, match="1 unexpected keys") as caught:
        weights.backbone(NAME, pretrained)
    assert len(str(caught.value)) < 1000
