"""A real server in a process of its own, and clients for it."""

import contextlib
import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any


class Client:
    """Requests on one connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def __del__(self) -> None:
        self.connection.close()

    def send(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, named)
        response = self.connection.getresponse()
        content = response.read()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, content

    def get(self, path: str) -> Any:
        return json.loads(self.send("GET", path)[2])

    def post(self, path: str, content: object) -> tuple[int, Any]:
        status, _, body = self.send("POST", path, json.dumps(content).encode())
        return status, json.loads(body)

    def predict(self, source: object, **fields: object) -> Any:
        status, content = self.post("/v1/predict", {"source": source, **fields})
        assert status == 200, content
        return content


@contextlib.contextmanager
def running_server(
    *words: object, python: object = sys.executable
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start `dragoman serve` and give its process and port."""
    command = [str(python), "-m", "dragoman", "serve", *map(str, words), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            found = re.search(r"http://[\d.]+:(\d+)$", line.strip())
            assert found, line
            yield process, int(found[1])
        finally:
            process.kill()
