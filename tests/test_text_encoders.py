"""Text encoders that read files: a matrix with its tokenizer, and a tiny transformer written here."""

import csv
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from PIL import Image
from safetensors.torch import save_file

from finetune.datasets import catalog
from finetune.disk.array_store import Store
from finetune.errors import DataError, MissingPackage
from finetune.settings import SampleSettings
from finetune.texts import encoders, hub, static
from finetune.texts.encoders import Texts

WORDS = ["[UNK]", "red", "blue", "wool", "steel"]


def tokenizer() -> Any:
    """Return a tokenizer of whole words."""
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made


def matrix(folder: Path, rows: int = len(WORDS)) -> Path:
    """Write a folder as model2vec does: the vector of word n is n in every place."""
    folder.mkdir()
    tokenizer().save(str(folder / "tokenizer.json"))
    save_file({"embeddings": torch.arange(float(rows))[:, None].repeat(1, 3)}, folder / "model.safetensors")
    return folder


def test_a_static_vector_is_the_mean_of_the_tokens(tmp_path: Path) -> None:
    encoder = static.read(matrix(tmp_path / "m"))
    assert encoder.encode(["red steel", "wool", ""])[:, 0].tolist() == [2.5, 3.0, 0.0]
    again = encoders.rebuilt("static:anywhere", encoder.tensors(), encoder.words())
    assert torch.equal(again.encode(["red steel"]), encoder.encode(["red steel"]))


def test_a_folder_whose_parts_do_not_fit_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"m must hold tokenizer\.json and one matrix .*5 tokens for 3 rows"):
        static.read(matrix(tmp_path / "m", rows=3))
    with pytest.raises(DataError, match=r"nowhere must hold tokenizer\.json"):
        static.read(tmp_path / "nowhere")


def test_vectors_of_texts_are_stored_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "m.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "text"])
        for number in range(8):
            Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
            writer.writerow([f"{number}.png", "ab"[number % 2], WORDS[1 + number % 4]])
    found = catalog.scan(SampleSettings(kind="manifest", path=str(tmp_path / "m.csv"), text=("text",)))
    name, store = f"static:{matrix(tmp_path / 'words')}", Store(tmp_path / "store", 2**20)
    first, there = Texts(found, name, store).vectors("train")
    assert there.all()
    again = Texts(found, name, store)
    monkeypatch.setattr(static.Static, "encode", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(again.vectors("train")[0], first)


def test_a_hub_model_that_is_a_folder_is_read(tmp_path: Path) -> None:
    import transformers  # seconds of import that the other tests do without

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=len(WORDS) + 1, **shape))
    model.save_pretrained(tmp_path / "tiny")
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), unk_token="[UNK]", pad_token="[UNK]"
    )
    wrapped.save_pretrained(tmp_path / "tiny")
    encoder = hub.read(str(tmp_path / "tiny"))
    both = encoder.encode(["red wool", "blue"])
    assert both.shape == (2, 8)
    # Padding changes nothing: the mean is of a text's own tokens.
    assert torch.allclose(both[1], encoder.encode(["blue"])[0], atol=1e-6)
    with pytest.raises(DataError, match=r"hub:.*nothing must be a text model that can be read"):
        hub.read(str(tmp_path / "nothing"))


def test_a_package_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install 'transfer-search\[text-hub\]'"):
        hub.read("any/model")
    with pytest.raises(MissingPackage, match=r"pip install 'transfer-search\[text\]'"):
        static.read(Path("any"))
