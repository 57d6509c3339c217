"""A metadata server on loopback that answers as those of AWS and Google Cloud do. Used by several tests."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "a-session-token"


class Metadata(ThreadingHTTPServer):
    """Tells of no interruption until `left` is set: seconds until the machine is taken back."""

    left: int | None = None
    asked: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        good = self.path == "/latest/api/token" and seconds is not None and 1 <= int(seconds) <= 21600
        self._say(200 if good else 400, TOKEN if good else "")

    def do_GET(self) -> None:
        self.server.asked += 1
        left = self.server.left
        if self.path == "/latest/meta-data/spot/instance-action":
            if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
                self._say(401, "")
            elif left is None:
                self._say(404, "")
            else:
                then = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + left))
                self._say(200, json.dumps({"action": "terminate", "time": then}))
        elif self.path == "/computeMetadata/v1/instance/preempted":
            if self.headers.get("Metadata-Flavor") != "Google":
                self._say(403, "")
            else:
                self._say(200, "FALSE" if left is None else "TRUE")
        else:
            self._say(404, "")

    def _say(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Keep test output quiet."""


@contextmanager
def metadata() -> Iterator[Metadata]:
    """Serve until the block ends."""
    with Metadata(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
