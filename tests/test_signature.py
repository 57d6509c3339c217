"""Signed model folders: each way of tampering is refused, by the name of the file."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.errors import CheckpointError
from finetune.handing_on import signature
from tests.here import Here

pytest.importorskip("model_signing")


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    subprocess.run(make, check=True, capture_output=True)
    show = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(show, check=True, capture_output=True)
    return private, public


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A signed folder, the public key of its signer, and that of somebody else."""
    root = tmp_path_factory.mktemp("signed")
    (private, public), (_, other) = keys(root, "mine"), keys(root, "other")
    folder = root / "model"
    folder.mkdir()
    for name in ("model.safetensors", "model.yaml", "bom.json", "README.md"):
        (folder / name).write_text(f"content of {name}\n" * 20)
    signature.sign(folder, private)
    signature.verify(folder, public)
    return folder, public, other


def test_a_folder_is_signed_and_verified_by_a_relative_path(
    signed: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, public, _ = signed
    monkeypatch.chdir(folder.parent)
    signature.verify(Path(folder.name), public)
    shutil.copytree(folder, tmp_path / "own")
    private, own = keys(tmp_path, "own")
    monkeypatch.chdir(tmp_path)
    signature.sign(Path("own"), private)
    signature.verify(tmp_path / "own", own)
    (tmp_path / "own" / "README.md").write_text("changed")
    with pytest.raises(CheckpointError, match=r"README\.md"):
        signature.verify(Path("own"), own)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(folder: Path) -> None:
    a, b, c = folder / "bom.json", folder / "README.md", folder / "away"
    os.rename(a, c)
    os.rename(b, a)
    os.rename(c, b)


def link(folder: Path) -> None:
    shutil.copy(folder / "README.md", folder.parent / "elsewhere.md")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(folder.parent / "elsewhere.md")


def nested(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "code.py").write_text("print('hello')")


TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte of the weights": (lambda f: flip(f / "model.safetensors"), "model.safetensors"),
    "an edited description": (
        lambda f: (f / "model.yaml").write_text((f / "model.yaml").read_text() + "classes: [a]\n"),
        "model.yaml",
    ),
    "a shortened file": (lambda f: os.truncate(f / "bom.json", 10), "bom.json"),
    "an emptied file": (lambda f: (f / "bom.json").write_text(""), "bom.json"),
    "an added file": (lambda f: (f / "extra.bin").write_bytes(b"x"), "extra.bin"),
    "a hidden file": (lambda f: (f / ".hidden").write_bytes(b"x"), ".hidden"),
    "a file that git would hide": (lambda f: (f / ".gitignore").write_bytes(b"x"), ".gitignore"),
    "a file in a folder": (nested, "code.py"),
    "a removed file": (lambda f: (f / "README.md").unlink(), "README.md"),
    "a renamed file": (lambda f: os.rename(f / "README.md", f / "READ.md"), "READ.md"),
    "two files in each other's place": (swap, "bom.json"),
    "a link to the same content": (link, "README.md"),
    "a byte of the signature": (lambda f: flip(f / "model.sig"), "model.sig"),
    "no signature": (lambda f: (f / "model.sig").unlink(), "model.sig"),
    "an emptied signature": (lambda f: (f / "model.sig").write_text(""), "model.sig"),
}


@pytest.mark.parametrize("way", TAMPERINGS)
def test_a_tampered_folder_is_refused_by_name(
    way: str, signed: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    tamper, name = TAMPERINGS[way]
    folder = Path(shutil.copytree(signed[0], tmp_path / "copy"))
    signature.verify(folder, signed[1])
    tamper(folder)
    with pytest.raises(CheckpointError) as refused:
        signature.verify(folder, signed[1])
    assert name in str(refused.value).replace(str(signed[1]), "").replace(str(folder), "")


def test_another_key_is_refused(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.sig"):
        signature.verify(signed[0], signed[2])
    with pytest.raises(CheckpointError, match="must be those that were signed"):
        signature.verify(signed[0], tmp_path / "missing.pub")
    with pytest.raises(CheckpointError, match="private key of an elliptic curve"):
        signature.sign(Path(shutil.copytree(signed[0], tmp_path / "copy")), signed[1])


def test_the_commands_verify_and_refuse(signed: tuple[Path, Path, Path], tmp_path: Path, here: Here) -> None:
    told = here("verify", signed[0], "--key", signed[1])
    assert (told.returncode, "as it was signed" in told.stdout) == (0, True)
    folder = Path(shutil.copytree(signed[0], tmp_path / "copy"))
    flip(folder / "model.yaml")
    for command in (
        ("verify", folder, "--key", signed[1]),
        ("serve", folder, "--alone", "--require-signature", signed[1]),
        ("serve", folder, "--require-signature", signed[1]),  # refused before Ray starts
    ):
        told = here(*command)
        assert told.returncode == 2
        assert "model.yaml" in told.stderr
