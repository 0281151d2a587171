"""The port for metrics, against clients that mean no good: what is refused, and what is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from fencepost_proto.runtime.metrics import listener as listener_module
from fencepost_proto.runtime.metrics.listener import MAX_CONNECTIONS, MAX_HEAD_BYTES, MetricsListener
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous

BODY = b"fencepost_x 1\n"
GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def body() -> bytes:
    return BODY


@asynccontextmanager
async def listening(make: Callable[[], Awaitable[bytes]] = body) -> AsyncIterator[MetricsListener]:
    listener = MetricsListener("127.0.0.1:0", make)
    await listener.start()
    try:
        yield listener
    finally:
        await listener.stop()


async def connect(listener: MetricsListener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = listener.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends without an answer."""
    try:
        return not await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return True


async def ask(listener: MetricsListener, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to these bytes."""
    reader, writer = await connect(listener)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), content


@asynchronous
async def test_the_metrics_are_got_and_each_connection_ends() -> None:
    async with listening() as listener:
        status, headers, content = await ask(listener, GET)
        assert (status, content) == (200, BODY)
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert headers["Connection"] == "close"
        assert (await ask(listener, GET.replace(b"/metrics", b"/metrics?name=x")))[0] == 200
        status, headers, content = await ask(listener, GET.replace(b"GET", b"HEAD"))
        assert (status, headers["Content-Length"], content) == (200, str(len(BODY)), b"")
        assert (await ask(listener, b"GET /metrics HTTP/1.0\r\n\r\n"))[0] == 200


HOST = b"Host: localhost\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status", "told"),
    [
        (b"GET / HTTP/1.1\r\n" + HOST, 404, b"'/' is not here: /metrics is"),
        (b"POST /metrics HTTP/1.1\r\n" + HOST, 405, b"'POST'"),
        (b"GET /metrics HTTP/2.0\r\n" + HOST, 400, b"'GET /metrics HTTP/2.0'"),
        (b"GET  /metrics HTTP/1.1\r\n" + HOST, 400, b"no request"),
        (b"\x16\x03\x01\x02\x00\xff\r\n" + HOST, 400, b"not ASCII"),
        (b"GET /metrics HTTP/1.1\r\n", 400, b"0 Host headers"),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + HOST, 400, b"2 Host headers"),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example:9100\r\n", 421, b"'evil.example:9100'"),
        (b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n", 421, b"evil.example"),
        (b"GET /metrics HTTP/1.1\r\nno header\r\n" + HOST, 400, b"'no header'"),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b" folded: x\r\n", 400, b"' folded: x'"),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n", 400, b"no body"),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n", 400, b"no body"),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"X: " + b"x" * MAX_HEAD_BYTES, 431, b"8192"),
    ],
)
@asynchronous
async def test_any_other_request_is_refused_with_the_reason(request_bytes: bytes, status: int, told: bytes) -> None:
    async with listening() as listener:
        answered, _, content = await ask(listener, request_bytes + b"\r\n")
        assert answered == status
        assert told in content
        assert listener.scrapes == 0


@pytest.mark.parametrize("host", ["localhost:9100", "127.0.0.1:9100", "127.5.0.1", "[::1]:9100", "LOCALHOST"])
@asynchronous
async def test_every_name_of_this_machine_is_taken(host: str) -> None:
    async with listening() as listener:
        assert (await ask(listener, GET.replace(b"localhost", host.encode())))[0] == 200


@asynchronous
async def test_a_connection_too_many_is_closed_and_the_others_are_served() -> None:
    async with listening() as listener:
        idle = [await connect(listener) for _ in range(MAX_CONNECTIONS)]
        reader, writer = await connect(listener)
        writer.write(GET)
        assert await is_closed(reader)
        writer.close()
        reader, writer = idle[0]
        writer.write(GET)
        assert BODY in await reader.read()
        for _, writer in idle:
            writer.close()


@asynchronous
async def test_a_request_that_does_not_come_to_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "REQUEST_WITHIN_S", 0.05)
    async with listening() as listener:
        reader, writer = await connect(listener)
        writer.write(b"GET /metrics HTTP/1.1\r\n")
        assert await is_closed(reader)
        writer.close()


@asynchronous
async def test_an_answer_that_is_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "ANSWER_WITHIN_S", 0.2)

    async def much() -> bytes:
        return b"x" * 64_000_000

    async with listening(much) as listener:
        _, writer = await connect(listener)
        writer.write(GET)
        await until(lambda: listener.scrapes == 1, "the scrape")
        await until(lambda: not listener._connections, "the connection is given up")
        writer.close()


@asynchronous
async def test_scrapes_that_come_while_one_is_made_share_the_next_one() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> bytes:
        begun.set()
        await go_on.wait()
        return BODY

    async with listening(slow) as listener:
        first = asyncio.create_task(ask(listener, GET))
        await begun.wait()
        others = [asyncio.create_task(ask(listener, GET)) for _ in range(8)]
        await until(lambda: listener._next is not None, "the others wait")
        assert listener.scrapes == 1
        go_on.set()
        assert [status for status, _, _ in await asyncio.gather(first, *others)] == [200] * 9
        assert listener.scrapes == 2


@asynchronous
async def test_a_scrape_that_fails_is_answered_so_and_the_next_one_is_made(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[bytes | Exception] = [BODY, KeyError("gone")]

    async def failing() -> bytes:
        answer = answers.pop()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with listening(failing) as listener:
        assert (await ask(listener, GET))[0] == 500
        assert "metrics could not be made" in caplog.text
        assert (await ask(listener, GET))[2] == BODY
