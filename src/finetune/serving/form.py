"""Read the parts of a sample from the body of a request."""

from collections.abc import AsyncGenerator

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from finetune.errors import DataError

KIND = "multipart/form-data"
IMAGE, TEXT = "image", "text"
"""Fields of a form."""
MOST_TEXT = 2**20
"""Largest text in bytes."""


async def parts(headers: Headers, body: bytes) -> tuple[bytes, str]:
    """Return the file and the text of a request; each is empty if it is missing, but never both.

    Args:
        headers: headers of the request. If they name no form, the body is the file.
        body: the whole body.

    Raises:
        DataError: it is a form that cannot be read, or that has neither part, or others.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() != KIND:
        return body, ""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        found = await MultiPartParser(
            headers, stream(), max_files=1, max_fields=1, max_part_size=MOST_TEXT
        ).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        why = str(error).rstrip(".") or type(error).__name__
        raise DataError(
            f"form: must have a file {IMAGE!r} and a field {TEXT!r}, got {why}. Correct it."
        ) from error
    try:
        return await _read(found)
    finally:
        await found.close()


async def _read(found: FormData) -> tuple[bytes, str]:
    """Return the file and the text of a form.

    Raises:
        DataError: it has neither, or others.
    """
    file, text = found.get(IMAGE), found.get(TEXT)
    strange = sorted(set(found) - {IMAGE, TEXT})
    if strange or isinstance(file, str) or isinstance(text, UploadFile) or not (file or text):
        got = ", ".join(map(repr, strange)) or "a text for a file, a file for a text, or neither"
        raise DataError(
            f"form: must have a file {IMAGE!r}, a field {TEXT!r} or both, got {got:.100}. Correct it."
        )
    content = b"" if file is None else await file.read()
    if file is not None and not content:
        raise DataError(f"form: the file {IMAGE!r} must hold an image, got an empty one. Leave it out.")
    return content, text or ""
