"""The live page's server over real HTTP, without a cluster: what it serves, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fencepost_cli.main import app
from fencepost_testing.local_http import PortInUse, listen
from fencepost_testing.waiting import until
from fencepost_ui.app import MAX_BODY_BYTES
from fencepost_ui.page import Page
from fencepost_ui.server import serve
from tests.asynchronous import asynchronous


class Site:
    """The page, and a client that sends what it is told to."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.token = ""

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], str]:
        """Status, headers and body. `body`: bytes as they are, or what becomes JSON."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {"host": f"127.0.0.1:{self.port}", "content-length": str(len(data)), "connection": "close"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data)
        answer = (await asyncio.wait_for(reader.read(), 20)).decode()
        writer.close()
        head, _, content = answer.partition("\r\n\r\n")
        status, *rest = head.split("\r\n")
        return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in rest), content

    async def act(self, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        status, _, content = await self.ask("POST", path, body, x_fencepost_token=self.token)
        return status, json.loads(content)


@asynccontextmanager
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    sock = listen(0)
    server = asyncio.create_task(serve(Page(tmp_path / "none"), sock, ready.set_result))
    await until(lambda: ready.done() or server.done(), "the server listens")
    opened = Site(sock.getsockname()[1])
    assert ready.result() == f"http://127.0.0.1:{opened.port}/"
    _, _, page = await opened.ask("GET", "/")
    found = re.search('name="fencepost-token" content="([^"]+)"', page)
    assert found is not None
    opened.token = found[1]
    try:
        yield opened
    finally:
        server.cancel()
        await asyncio.wait([server])


@asynchronous
async def test_the_page_is_whole_without_anything_from_elsewhere(tmp_path: Path) -> None:
    async with site(tmp_path) as it:
        status, headers, page = await it.ask("GET", "/")
        assert status == 200
        assert len(it.token) >= 32
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-frame-options"] == "deny"
        linked = re.findall(r'(?:src|href)="([^"#]+)"', page)
        assert set(linked) == {"/app.js", "/style.css", "data:,"}
        for path, kind in (("/app.js", "text/javascript"), ("/style.css", "text/css")):
            status, headers, text = await it.ask("GET", path)
            assert status == 200
            assert headers["content-type"].startswith(kind)
            assert re.findall(r"https?://[^\s\"']+", text) in ([], ["http://www.w3.org/2000/svg"])
        assert (await it.ask("GET", "/nothing"))[0] == 404


@asynchronous
async def test_another_site_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    async with site(tmp_path) as it:
        for path in ("/", "/events", "/api/do"):
            status, _, text = await it.ask("GET", path, host="evil.example")
            assert (status, "evil.example" in text) == (421, True)
            status, headers, text = await it.ask("GET", path, origin="http://evil.example")
            assert (status, "evil.example" in json.loads(text)["error"]) == (403, True)
            assert "access-control-allow-origin" not in headers
        body = {"action": "kill", "target": "1"}
        status, _, text = await it.ask("POST", "/api/do", body)
        assert (status, "x-fencepost-token" in text) == (403, True)
        status, _, text = await it.ask("POST", "/api/do", body, x_fencepost_token="of another")
        assert (status, "of another start of this page" in text) == (403, True)


@asynchronous
async def test_what_cannot_be_done_is_answered_with_the_value(tmp_path: Path) -> None:
    async with site(tmp_path) as it:
        assert await it.act("/api/do", {"action": "kill", "target": "1"}) == (
            400,
            {"error": f"there is no cluster in {tmp_path / 'none'}: start one first"},
        )
        for path, body, told in (
            ("/api/do", {"action": "explode", "target": "1"}, "no action 'explode'"),
            ("/api/do", {"action": 1, "target": "1"}, "action is 1: a string is needed"),
            ("/api/do", {"target": "1"}, "action is None"),
            ("/api/do", b"{", "no JSON: b'{'"),
            ("/api/do", b"[" * 4_000, "no JSON"),
            ("/api/do", b"[1]", "no JSON object"),
            ("/api/do", b"x" * (MAX_BODY_BYTES + 1), f"more than {MAX_BODY_BYTES} bytes"),
            ("/api/load", {"on": 1}, "on is 1: true or false is needed"),
            ("/api/load", {"on": True}, "there is no cluster"),
            ("/api/story", {"pace_s": "fast"}, "pace_s is 'fast'"),
            ("/api/story", {"pace_s": 0}, "there is no cluster that runs"),
        ):
            status, answer = await it.act(path, body)
            assert status == 400, (path, body)
            assert told in answer["error"], answer
        assert (await it.ask("GET", "/api/do", x_fencepost_token=it.token))[0] == 405


@asynchronous
async def test_events_begin_with_a_snapshot(tmp_path: Path) -> None:
    async with site(tmp_path) as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{it.port}\r\n\r\n".encode())
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
        assert "text/event-stream" in head
        event = (await asyncio.wait_for(reader.readuntil(b"\n\n"), 10)).decode()
        assert "event: snapshot" in event
        snapshot = json.loads(event[event.index("data: ") + 6 : event.rindex("\n\n")])
        assert (snapshot["hasCluster"], snapshot["local"], snapshot["partitions"]) == (False, True, {})
        assert [step["state"] for step in snapshot["story"]["steps"]] == ["waiting"] * 10
        writer.close()


def test_an_occupied_port_is_refused_naming_it() -> None:
    with listen(0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"cannot listen on 127.0.0.1:{port}.*choose another port"):
            listen(port)
        done = CliRunner().invoke(app, ["ui", "--port", str(port), "--no-browser"])
        assert (done.exit_code, f"cannot listen on 127.0.0.1:{port}" in done.output) == (1, True)
