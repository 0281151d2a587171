"""A client of the HTTP server that controls a cluster, as a test in another language is one."""

from __future__ import annotations

import http.client
import json
from typing import Any

TIMEOUT_S = 60.0


class Served:
    """A running server."""

    def __init__(self, said: dict[str, str]) -> None:
        """`said`: what the command that runs it printed with --json."""
        self.token = said["token"]
        self.bootstrap = said["bootstrap"]
        self.host = said["url"].removeprefix("http://")

    def ask(
        self, method: str, path: str, body: object = None, *, headers: dict[str, str | None] | None = None
    ) -> tuple[int, Any]:
        """Status and answer. A header that is None is not sent."""
        sent: dict[str, str | None] = {"Host": self.host, "Authorization": f"Bearer {self.token}"}
        if body is not None:
            sent["Content-Type"] = "application/json"
        sent |= headers or {}
        connection = http.client.HTTPConnection(self.host, timeout=TIMEOUT_S)
        try:
            connection.putrequest(method, path, skip_host=True)
            content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
            for name, value in {**sent, "Content-Length": str(len(content))}.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(content)
            answer = connection.getresponse()
            text = answer.read().decode()
            return answer.status, json.loads(text) if "json" in answer.headers["Content-Type"] else text
        finally:
            connection.close()

    def do(self, method: str, path: str, body: object = None) -> Any:
        """The answer of what is to succeed."""
        status, answer = self.ask(method, path, body)
        assert status == 200, answer
        return answer
