"""The ASGI application: POST /predict, GET /healthz, /metadata and /openapi.json.

A request holds one image file as its body. Where a sample has text or several frames, it may be a form with a
file `image` (an image, an animated image or a video) and a field `text`; either may be left out. What cannot
be answered gets a status of 4xx with its reason; a server that is busy says 503 at once, before it reads the
body.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from torch import Tensor

from finetune import model_folder, safe_text
from finetune.datasets import clips
from finetune.datasets.decode import decode_bytes
from finetune.errors import DataError, MissingPackage
from finetune.images.pixels import evaluation, evaluation_needs
from finetune.model_folder import Model, samples
from finetune.model_folder.predicting import ranked
from finetune.model_folder.samples import Sample
from finetune.serving import form
from finetune.serving.batching import Batcher
from finetune.serving.limits import Limits

_ADDRESS = re.compile(r" <_io\.BytesIO object at 0x\w+>")
"""Pillow's name for an image that has no file."""
RETRY_SECONDS = 1
"""Time after which a client that was turned away may ask again."""


class Ranked(BaseModel):
    """A class and its calibrated probability."""

    name: str = Field(alias="class")
    probability: float


class Answer(Ranked):
    """The most probable class, and `top`, the five most probable ones."""

    top: list[Ranked]


class SampleAnswer(Answer):
    """The answer on a sample with text or several frames."""

    missing: list[str]
    """Parts that the sample lacks: `image`, `text`."""


class Problem(BaseModel):
    """Reason why a request has no answer."""

    error: str


class Json(JSONResponse):
    """JSON in which names of classes cannot steer a terminal."""

    def render(self, content: Any) -> bytes:
        """Return the bytes of the response."""
        return safe_text.json_text(json.dumps(content, ensure_ascii=False, allow_nan=False)).encode()


class Refused(Exception):
    """A request without an answer, and its status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Asked:
    """A sample of a request."""

    sample: Sample
    frames: Tensor | None
    """Its frames, uint8 (T, 3, S, S); None if it has no image."""


class Service:
    """A loaded model that answers requests within limits."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.in_work = 0
        """Number of requests that have been taken and not answered yet."""
        self._decoders = ThreadPoolExecutor(2, "decode")
        self._batcher: Batcher[Tensor | Asked, dict[str, Any]] = Batcher(self._work, limits.batch)

    @contextlib.asynccontextmanager
    async def running(self, _: object = None) -> AsyncIterator[None]:
        """Answer while the context lasts."""
        async with self._batcher.running():
            yield
        self._decoders.shutdown(cancel_futures=True)

    async def predict(self, request: Request) -> Json:
        """Classify one image file, which is the body of the request."""
        if self.in_work >= self.limits.queue:
            told = f"server: takes {self.limits.queue} requests at a time, and is busy. Ask again."
            return Json({"error": told}, 503, {"Retry-After": str(RETRY_SECONDS)})
        self.in_work += 1
        try:
            return Json(await self._answer(request))
        except Refused as refused:
            return Json({"error": str(refused)}, refused.status)
        finally:
            self.in_work -= 1

    async def _answer(self, request: Request) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            Refused: there is none.
        """
        limits, loop = self.limits, asyncio.get_running_loop()
        try:
            content = await asyncio.wait_for(_body(request, limits.body_bytes), limits.seconds)
            asked: Tensor | Asked
            if "samples" in self.model.facts:
                file, text = await form.parts(request.headers, content)
                asked = await loop.run_in_executor(self._decoders, _asked, self.model, file, text, limits)
            else:
                asked = await loop.run_in_executor(self._decoders, _pixels, self.model, content, limits)
        except (DataError, MissingPackage) as error:
            raise Refused(422, _ADDRESS.sub("", str(error))) from error
        except asyncio.TimeoutError:
            told = f"image: must be sent within {limits.seconds:g} seconds, got a part. Send it again."
            raise Refused(408, told) from None
        except ClientDisconnect:
            raise Refused(400, "image: must be sent whole, got a part. Send it again.") from None
        return await self._batcher(asked)

    def _work(self, asked: Sequence[Tensor | Asked]) -> list[dict[str, Any]]:
        images = [one for one in asked if isinstance(one, Tensor)]
        if images:
            return model_folder.answers(self.model, torch.stack(images))
        given = [one for one in asked if not isinstance(one, Tensor)]
        frames = [one.frames for one in given]
        found = samples.probabilities(self.model, [one.sample for one in given], frames)
        return [
            answer | {"missing": samples.lacking(self.model, one.sample, one.frames)}
            for answer, one in zip(ranked(self.model, found), given, strict=True)
        ]


def build(model: Model, limits: Limits) -> FastAPI:
    """Return the application that answers with a loaded model."""
    service = Service(model, limits)
    # Without /docs: its page loads scripts from elsewhere.
    app = FastAPI(
        title="Transfer search", version="1", lifespan=service.running, docs_url=None, redoc_url=None
    )
    binary = {"type": "string", "format": "binary"}
    image: dict[str, Any] = {"application/octet-stream": {"schema": binary}}
    has_parts = "samples" in model.facts
    if has_parts:
        fields = {"type": "object", "properties": {form.IMAGE: binary, form.TEXT: {"type": "string"}}}
        image[form.KIND] = {"schema": fields}
    told: dict[int | str, dict[str, Any]] = {n: {"model": Problem} for n in (400, 408, 413, 422, 503)}

    @app.post(
        "/predict",
        response_class=Json,
        responses=told | {200: {"model": SampleAnswer if has_parts else Answer}},
        openapi_extra={"requestBody": {"required": True, "content": image}},
    )
    async def predict(request: Request) -> Json:
        """Classify one image file, which is the body, or one sample, whose parts are a form."""
        return await service.predict(request)

    @app.get("/healthz", response_class=Json)
    async def healthz() -> Json:
        """Say that the model is loaded, and how many requests are in work."""
        return Json({"status": "ok", "in_work": service.in_work})

    @app.get("/metadata", response_class=Json)
    async def metadata() -> Json:
        """Describe the model: classes, input, origin. Paths are left out."""
        return Json(described(model, limits))

    return app


def described(model: Model, limits: Limits) -> dict[str, Any]:
    """Return what a client may know about the model and the limits."""
    facts = model.facts
    samples_told = {
        key: value for key, value in facts.get("samples", {}).items() if key in ("frames", "text")
    }
    return {
        **({"samples": samples_told} if samples_told else {}),
        "classes": model.classes,
        "backbone": facts["backbone"],
        "strategy": facts["strategy"],
        "image_size": facts["preprocessing"]["image_size"],
        "temperature": model.calibration.temperature,
        "sha256": facts["provenance"].get("model_sha256"),
        "limits": {"bytes": limits.body_bytes, "pixels": limits.pixels, "requests": limits.queue},
    }


async def _body(request: Request, most: int) -> bytes:
    """Return the body of a request, of which no more than `most` bytes are ever held.

    Raises:
        Refused: it is longer, or empty.
    """
    too_long = Refused(413, f"image: must have at most {most} bytes. Send a smaller one.")
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > most:
        raise too_long
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise too_long
    if not content:
        raise Refused(422, "image: must be the body of the request, got an empty body. Send a file.")
    return bytes(content)


def _asked(model: Model, file: bytes, text: str, limits: Limits) -> Asked:
    """Return the sample of a request as the model's input.

    Raises:
        DataError: a file cannot be read, or has too many pixels, or a text is given that no head reads.
    """
    if text and model.encoder is None:
        raise DataError("text: must be left out, as the model reads none, got one. Send the file alone.")
    frames = None
    if file:
        frames = samples.prepared(
            model, lambda count, needs: clips.of_bytes(file, count, needs, limits.pixels)
        )
    return Asked(Sample("", " ".join(text.split())), frames)


def _pixels(model: Model, content: bytes, limits: Limits) -> Tensor:
    """Return an image file as the model's input, uint8 (3, S, S).

    Raises:
        DataError: it cannot be read, or has too many pixels.
    """
    asked = model.facts["preprocessing"]
    side, whole = asked["image_size"], asked["whole_image"]
    image = decode_bytes(content, "image", evaluation_needs(side, whole), limits.pixels)
    return torch.from_numpy(evaluation(image, side, whole))
