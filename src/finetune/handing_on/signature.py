"""Sign a model folder and verify it, by OpenSSF Model Signing with a key pair of elliptic curves, offline.

A signature covers every file of the folder, hidden ones too: one that is changed, added, removed or renamed,
or that is a link, is refused by its name.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune import extras
from finetune.errors import CheckpointError
from finetune.model_folder.files import SIGNATURE

MODULES = ("model_signing", "OpenSSL")


def check(where: str) -> None:
    """Check that this machine can sign and verify.

    Raises:
        MissingPackage: the extra `sign` is not installed.
    """
    extras.require("sign", where, MODULES)


def sign(folder: Path, key: Path) -> Path:
    """Sign all files of a model folder and return the signature's file.

    Args:
        folder: the model folder.
        key: private key, PEM, of an elliptic curve such as prime256v1.

    Raises:
        CheckpointError: the key or the folder cannot be read.
        MissingPackage: the extra `sign` is not installed.
    """
    check("export --sign")
    from model_signing import signing

    to = folder / SIGNATURE
    to.unlink(missing_ok=True)
    try:
        with _quiet():
            config = signing.Config().use_elliptic_key_signer(private_key=key)
            config.set_hashing_config(_hashing(folder)).sign(folder.absolute(), to.absolute())
    except Exception as error:  # the library and its own libraries raise anything
        raise CheckpointError(
            f"{key}: a signature needs the private key of an elliptic curve, as a PEM file, got "
            f"{_why(error)}. Make one with `openssl ecparam -name prime256v1 -genkey -noout -out key.pem`."
        ) from error
    return to


def verify(folder: Path, key: Path) -> None:
    """Check that a model folder is the one that was signed.

    Args:
        folder: the model folder.
        key: public key, PEM, of whoever signed it.

    Raises:
        CheckpointError: it is not signed, not by this key, or a file is not as it was.
        MissingPackage: the extra `sign` is not installed.
    """
    check("verify")
    from model_signing import verifying

    signature = folder / SIGNATURE
    if not signature.is_file():
        raise CheckpointError(
            f"{folder}: a signed model folder must hold {SIGNATURE}, got none. "
            "Sign it with `export DIR --to MODEL_DIR --sign KEY`."
        )
    try:
        if signature.is_symlink():
            raise ValueError("a link")
        with _quiet():
            config = verifying.Config().use_elliptic_key_verifier(public_key=key)
            config.set_hashing_config(_hashing(folder)).verify(folder.absolute(), signature.absolute())
    except Exception as error:
        what = _why(error)
        about = "" if "mismatch" in what.lower() and "file" in what.lower() else f" by {SIGNATURE}"
        raise CheckpointError(
            f"{folder}: the files must be those that were signed with the key of {key}, got{about} {what}. "
            "Do not use this model; get it again."
        ) from error


def _hashing(folder: Path) -> Any:
    from model_signing import hashing

    # The library takes a relative path for one below the folder, and so would not ignore this file.
    ignored = folder.absolute() / SIGNATURE
    return hashing.Config().set_ignored_paths(paths=[ignored], ignore_git_paths=False)


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}".rstrip(": .")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's own log lines off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
