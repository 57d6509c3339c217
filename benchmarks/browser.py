"""Drive the Chromium of the machine over its debugging protocol: to test pages, and to take screenshots.

    with browser.opened() as chromium:
        page = chromium.page(path, width=360, height=800)
        page.evaluate("document.title")

Nothing is downloaded: Debian's package `chromium` is enough.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
START_SECONDS = 60.0
ANSWER_SECONDS = 120.0
"""Longest wait for an answer of the browser, on a busy machine."""


def program() -> str | None:
    """Return the path of a Chromium, or None if the machine has none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Page:
    """A page in a tab of its own, with everything that it asked for and complained about."""

    def __init__(self, chromium: "Chromium", session: str) -> None:
        self._chromium, self._session = chromium, session
        self.requests: list[str] = []
        """Addresses that the page asked for, its own file left out."""
        self.errors: list[str] = []
        """Errors of scripts, and what the page's policy refused."""

    def evaluate(self, script: str) -> Any:
        """Return the JSON value of a JavaScript expression; a promise is awaited."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(str(told["exceptionDetails"]))
        return told["result"].get("value")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol in this tab."""
        return self._chromium.call(method, self._session, **params)

    def screenshot(self, path: Path, *, clip: tuple[float, float, float, float] | None = None) -> None:
        """Write a picture of the page, or of a part of it (x, y, width, height in CSS pixels), as PNG."""
        part: dict[str, Any] = {}
        if clip is not None:
            part["clip"] = dict(zip(("x", "y", "width", "height"), clip, strict=True)) | {"scale": 1}
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, **part)
        path.write_bytes(base64.b64decode(told["data"]))

    def hear(self, method: str, params: dict[str, Any]) -> None:
        """Take an event of the tab."""
        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith("data:") and params.get("type") != "Document":
                self.requests.append(url)
        elif method == "Runtime.exceptionThrown":
            self.errors.append(
                params["exceptionDetails"].get("exception", {}).get("description", str(params))
            )
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])


class Chromium:
    """A running browser without a window."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket = loop, socket
        self._numbers = itertools.count(1)
        self._pages: dict[str, Page] = {}

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        return self._loop.run_until_complete(
            asyncio.wait_for(self._call(method, session, params), ANSWER_SECONDS)
        )

    def page(
        self,
        where: Path | str,
        *,
        width: int = 1100,
        height: int = 900,
        dark: bool = False,
        scripts: bool = True,
        scale: float = 1.0,
    ) -> Page:
        """Open a file in a new tab and wait until it has loaded.

        An address (of a server on this machine) in place of a file is opened with a network.
        """
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Network", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        page.call(
            "Network.emulateNetworkConditions",
            offline=isinstance(where, Path),
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )
        page.call("Page.navigate", url=where.absolute().as_uri() if isinstance(where, Path) else where)
        deadline = time.monotonic() + ANSWER_SECONDS
        while page.evaluate("document.readyState") != "complete":
            if time.monotonic() > deadline:
                raise TimeoutError(f"{where}: it did not load")
            time.sleep(0.05)
        return page

    async def _call(self, method: str, session: str | None, params: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        await self._socket.send_str(json.dumps(message))
        while True:
            told = json.loads(await self._socket.receive_str())
            if told.get("id") == number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                result: dict[str, Any] = told["result"]
                return result
            if (page := self._pages.get(told.get("sessionId", ""))) is not None:
                page.hear(told.get("method", ""), told.get("params", {}))


@contextlib.contextmanager
def opened() -> Iterator[Chromium]:
    """Start a Chromium without a window and without a network, and end it."""
    found = program()
    if found is None:
        raise FileNotFoundError(f"a Chromium must be installed, got none of {', '.join(PROGRAMS)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
            *("--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={profile}"),
            "--disable-background-networking",
        ]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([found, *flags, "about:blank"], start_new_session=True, **quiet)
        loop = asyncio.new_event_loop()
        client = None
        try:
            client, socket = loop.run_until_complete(_connect(Path(profile) / "DevToolsActivePort", process))
            yield Chromium(loop, socket)
        finally:
            if client is not None:
                loop.run_until_complete(client.close())
            loop.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)  # the group that it leads: its own helpers
            process.wait()


async def _connect(
    port_file: Path, process: subprocess.Popen[bytes]
) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    deadline = time.monotonic() + START_SECONDS
    while not port_file.exists() or port_file.read_text().count("\n") < 1:
        if process.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError("Chromium did not start")
        await asyncio.sleep(0.05)
    port, path = port_file.read_text().splitlines()[:2]
    client = aiohttp.ClientSession(trust_env=False)
    socket = await client.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0)
    return client, socket
