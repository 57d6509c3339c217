"""A served model answers as `predict` does, refuses what it must, and goes on."""

import asyncio
import contextlib
import http.client
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from finetune import extras, model_folder
from finetune.handing_on import signature
from finetune.serving import app as serving_app
from finetune.serving.batching import Batcher
from finetune.serving.limits import Limits
from search.handing_on import serving
from tests.here import Here
from tests.models import train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; not to be changed."""
    folder = tmp_path_factory.mktemp("served")
    model_folder.write(train(folder), folder / "model", {})
    return folder / "model"


def coded(size: tuple[int, int] = (40, 30), kind: str = "PNG", shade: int = 90) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).point(lambda x: (x + shade) % 256).save(file, kind)
    return file.getvalue()


@contextlib.asynccontextmanager
async def client(model: Path, **limits: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the application in this process; an exception in it is raised here, not a 500."""
    built = serving_app.build(model_folder.load(model), Limits(**limits))
    async with (
        built.router.lifespan_context(built),
        httpx.AsyncClient(transport=httpx.ASGITransport(built), base_url="http://here") as found,
    ):
        yield found


def asked(model: Path, ask: Callable[[httpx.AsyncClient], Awaitable[Any]], **limits: Any) -> Any:
    async def run() -> Any:
        async with client(model, **limits) as one:
            return await asyncio.wait_for(ask(one), 60)

    return asyncio.run(run())


def test_answers_are_those_of_predict(model: Path, tmp_path: Path) -> None:
    paths = []
    for number in range(7):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(coded((30 + 9 * number, 40), shade=30 * number))
    expected = model_folder.predict(model_folder.load(model), paths)

    async def ask(one: httpx.AsyncClient) -> Any:
        return await asyncio.gather(*(one.post("/predict", content=path.read_bytes()) for path in paths))

    for response, row in zip(asked(model, ask), expected, strict=True):
        assert response.status_code == 200
        found = response.json()
        assert found["class"] == row["class"]
        assert found["probability"] == pytest.approx(row["probability"], abs=1e-6)
        assert [one["class"] for one in found["top"]] == [one["class"] for one in row["top"]]


@pytest.mark.parametrize(
    ("content", "status", "why"),
    [
        (b"", 422, "image: must be the body of the request, got an empty body"),
        (b"broken", 422, "image: an image must be readable, got UnidentifiedImageError: cannot identify"),
        (coded()[:60], 422, "image: an image must be readable"),
        (coded((1200, 1000)), 422, "1200 x 1000 pixels, limit 1000000"),
        (bytes(70_000), 413, "image: must have at most 65536 bytes"),
    ],
    ids=["empty", "no image", "torn", "pixels", "bytes"],
)
def test_what_cannot_be_answered_says_why_and_costs_only_itself(
    model: Path, content: bytes, status: int, why: str
) -> None:
    async def ask(one: httpx.AsyncClient) -> Any:
        return await asyncio.gather(*(one.post("/predict", content=c) for c in (coded(), content, coded())))

    good, bad, other = asked(model, ask, pixels=10**6, body_bytes=2**16)
    assert (good.status_code, bad.status_code, other.status_code) == (200, status, 200)
    assert why in bad.json()["error"]
    assert "0x" not in bad.json()["error"]


def test_a_long_body_of_unknown_length_is_read_only_to_the_limit(model: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 2**30:
            sent += 2**12
            yield bytes(2**12)

    async def ask(one: httpx.AsyncClient) -> Any:
        return await one.post("/predict", content=endless())

    assert asked(model, ask, body_bytes=2**16).status_code == 413
    assert sent <= 2**16 + 2**13


def test_a_client_that_sends_nothing_more_is_let_go(model: Path) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"GIF8"
        await asyncio.sleep(30)

    async def ask(one: httpx.AsyncClient) -> Any:
        return await one.post("/predict", content=slow())

    assert asked(model, ask, seconds=0.05).status_code == 408


def test_a_busy_server_turns_others_away_at_once_and_takes_them_again(model: Path) -> None:
    async def ask(one: httpx.AsyncClient) -> Any:
        go_on = asyncio.Event()

        async def held() -> AsyncIterator[bytes]:
            yield coded()
            await go_on.wait()

        first = [asyncio.create_task(one.post("/predict", content=held())) for _ in range(2)]
        while (await one.get("/healthz")).json()["in_work"] < 2:
            await asyncio.sleep(0.01)
        turned_away = await one.post("/predict", content=coded())
        go_on.set()
        answered = await asyncio.gather(*first)
        return turned_away, [*answered, await one.post("/predict", content=coded())]

    turned_away, answered = asked(model, ask, queue=2)
    assert (turned_away.status_code, turned_away.headers["retry-after"]) == (503, "1")
    assert [response.status_code for response in answered] == [200, 200, 200]


def test_the_server_says_what_it_is_without_paths(model: Path) -> None:
    async def ask(one: httpx.AsyncClient) -> Any:
        return [await one.get(path) for path in ("/healthz", "/metadata", "/openapi.json", "/docs")]

    health, about, schema, docs = asked(model, ask)
    assert health.json() == {"status": "ok", "in_work": 0}
    assert about.json()["classes"] == ["6", "7"]
    assert str(model.parent) not in about.text + schema.text
    body = schema.json()["paths"]["/predict"]["post"]
    assert "application/octet-stream" in body["requestBody"]["content"]
    assert {"200", "413", "422", "503"} <= body["responses"].keys()
    assert docs.status_code == 404


def test_names_of_classes_cannot_steer_a_terminal() -> None:
    assert serving_app.Json({"class": "\x1b[2J\u202e\x9b"}).body == rb'{"class": "\u001b[2J\u202e\u009b"}'


def test_requests_that_come_together_go_through_the_model_together() -> None:
    async def run() -> tuple[list[int], list[int]]:
        sizes: list[int] = []
        begun, go_on = threading.Event(), threading.Event()

        def work(items: Any) -> Any:
            sizes.append(len(items))
            begun.set()
            assert go_on.wait(30)
            return [10 * item for item in items]

        batcher: Batcher[int, int] = Batcher(work, most=4)
        async with batcher.running():
            tasks = [asyncio.create_task(batcher(0))]
            await asyncio.to_thread(begun.wait, 30)
            tasks += [asyncio.create_task(batcher(number)) for number in range(1, 7)]
            await asyncio.sleep(0)
            go_on.set()
            return await asyncio.gather(*tasks), sizes

    assert asyncio.run(run()) == ([0, 10, 20, 30, 40, 50, 60], [1, 4, 2])


def test_a_batch_that_fails_does_not_end_the_next_one() -> None:
    async def run() -> list[Any]:
        def work(items: Any) -> Any:
            if 13 in items:
                raise RuntimeError("unlucky")
            return items

        batcher: Batcher[int, int] = Batcher(work, most=1)
        async with batcher.running():
            return await asyncio.gather(*map(batcher, (1, 13, 2)), return_exceptions=True)

    one, error, two = asyncio.run(run())
    assert (one, str(error), two) == (1, "unlucky", 2)


def test_a_place_that_is_taken_and_a_folder_that_is_none_are_one_line(
    model: Path, tmp_path: Path, here: Here
) -> None:
    with serving._listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        told = here("serve", model, "--alone", "--port", port)
    assert told.returncode == 2
    assert (
        f"must be an address that is free, got http://127.0.0.1:{port}: Address already in use" in told.stderr
    )
    told = here("serve", tmp_path, "--alone", "--port", 0)
    assert told.returncode == 2
    assert "a model folder must hold model.yaml and model.safetensors" in told.stderr


def test_a_missing_extra_is_one_line_that_installs_it(
    model: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = extras.importlib.util.find_spec
    monkeypatch.setattr(
        extras.importlib.util, "find_spec", lambda name: None if name == "fastapi" else find(name)
    )
    told = here("serve", model, "--alone", "--port", 0)
    assert told.returncode == 2
    (line,) = [line for line in told.stderr.splitlines() if "fastapi" in line]
    assert "got no fastapi. Install with `pip install 'transfer-search[serve]'`." in line


@contextlib.contextmanager
def served(model: Path, *words: str) -> Iterator[str]:
    """Serve in a process of its own; yield its address, then interrupt it."""
    words = (sys.executable, "-m", "search", "serve", str(model), "--port", "0", *words)
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGINT)
            try:
                _, err = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
    assert process.returncode == 0, err
    assert "stopped" in err


def _answers_over_http(model: Path, tmp_path: Path, url: str) -> None:
    (tmp_path / "one.png").write_bytes(coded())
    (row,) = model_folder.predict(model_folder.load(model), [tmp_path / "one.png"])
    with httpx.Client(base_url=url, timeout=30) as one:
        found = one.post("/predict", content=coded()).json()
        assert found["class"] == row["class"]
        assert found["probability"] == pytest.approx(row["probability"], abs=1e-6)
        assert one.post("/predict", content=b"broken").status_code == 422
        assert one.get("/healthz").json()["status"] == "ok"


@pytest.mark.slow
def test_serve_alone_answers_on_loopback_until_it_is_interrupted(model: Path, tmp_path: Path) -> None:
    with served(model, "--alone") as url:
        assert url.startswith("http://127.0.0.1:")
        _answers_over_http(model, tmp_path, url)


@pytest.mark.thorough
def test_a_connection_outlives_the_pause_after_which_clients_drop_it(model: Path) -> None:
    """httpx drops an idle connection after 5 seconds; a server that does so, too, cuts one that is used."""
    with served(model, "--alone") as url:
        host, port = url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        ports = []
        for pause in (0.0, 5.5):
            time.sleep(pause)
            connection.request("POST", "/predict", body=coded())
            assert connection.getresponse().read().startswith(b"{")
            ports.append(connection.sock.getsockname()[1])
        connection.close()
    assert ports[0] == ports[1]


@pytest.mark.thorough
@pytest.mark.ray
def test_serve_by_ray_answers_on_loopback_until_it_is_interrupted(model: Path, tmp_path: Path) -> None:
    """Its replicas verify the signature too, with a key that is named from another folder."""
    from tests.test_signature import keys  # skips this test where nothing can sign

    private, public = keys(tmp_path, "mine")
    signed = Path(shutil.copytree(model, tmp_path / "signed"))
    signature.sign(signed, private)
    with served(signed, "--require-signature", str(public)) as url:
        assert url.startswith("http://127.0.0.1:")
        _answers_over_http(model, tmp_path, url)
