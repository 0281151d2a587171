"""What the probe takes for certain, on real sockets and a real process: a refusal, or another process on the port."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc
import pytest

from fencepost_controller.probe import ProbeVerdict, probe
from fencepost_proto.transport.carriers.carrier_wire import Carrier, CarrierWire
from fencepost_proto.transport.wire import GrpcWire, connection_refused
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.controller_cluster import FakeBroker, run

LIFE = "life 1"
BROKER = """
import asyncio, sys
from grpc_health.v1.health_pb2 import HealthCheckResponse
from fencepost_proto.transport.carriers.carrier_wire import CarrierWire
from fencepost_proto.transport.wire import incarnation_service, serve

async def broker():
    server = await serve(CarrierWire(sys.argv[2]), "127.0.0.1:0", [], lambda server: None)
    await server.health.set(incarnation_service(sys.argv[1]), HealthCheckResponse.SERVING)
    print(server.address, flush=True)
    await asyncio.Event().wait()

asyncio.run(broker())
"""


carrier: Carrier = "grpc"  # that the test runs on


@pytest.fixture(params=["grpc", "lean"], autouse=True)
def on_each_carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "carrier", request.param)


async def asked(address: str) -> ProbeVerdict:
    return await probe(CarrierWire(carrier), address, LIFE)


@contextmanager
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that answers the probe, and its address."""
    with subprocess.Popen([sys.executable, "-c", BROKER, LIFE, carrier], stdout=subprocess.PIPE, text=True) as popen:
        try:
            assert popen.stdout is not None
            yield popen, popen.stdout.readline().strip()
        finally:
            popen.kill()


@contextmanager
def listener() -> Iterator[tuple[socket.socket, str]]:
    """The kernel takes connections, and no one ever answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening, "127.0.0.1:{1}".format(*listening.getsockname())


Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def peer(answer: Peer) -> AsyncIterator[str]:
    """The address of a server of another kind."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield "127.0.0.1:{1}".format(*server.sockets[0].getsockname())


async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


async def speaks_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    writer.close()


def test_a_port_without_a_process_is_certain() -> None:
    with listener() as (listening, address):
        listening.close()
        assert run(asked(address)) is ProbeVerdict.DEAD


@asynchronous
async def test_another_broker_process_on_the_port_is_certain() -> None:
    stranger = await FakeBroker(2, "another life").start()
    assert await asked(stranger.address) is ProbeVerdict.DEAD
    await stranger.stop_listening()
    assert await asked(stranger.address) is ProbeVerdict.DEAD


def test_a_connection_that_is_taken_and_never_answered_proves_nothing() -> None:
    with listener() as (_, address):
        assert run(asked(address)) is ProbeVerdict.UNKNOWN


def test_a_paused_process_is_not_dead_a_woken_one_is_alive_and_a_killed_one_dead() -> None:
    with process() as (popen, address):
        assert run(asked(address)) is ProbeVerdict.ALIVE
        popen.send_signal(signal.SIGSTOP)
        for _ in range(3):
            assert run(asked(address)) is ProbeVerdict.UNKNOWN
        popen.send_signal(signal.SIGCONT)
        assert run(asked(address)) is ProbeVerdict.ALIVE
        popen.kill()
        popen.wait()
        assert run(asked(address)) is ProbeVerdict.DEAD


@asynchronous
async def test_a_process_that_ends_under_the_probe_is_found_dead_by_the_next() -> None:
    """Its kernel took the connection and resets it, which something on the way could do too."""

    with listener() as (listening, address):
        asking = asyncio.create_task(asked(address))
        await until(lambda: select.select([listening], [], [], 0)[0], "the probe's connection")
        listening.close()
        assert await asking is ProbeVerdict.UNKNOWN
        assert await asked(address) is ProbeVerdict.DEAD


@pytest.mark.parametrize("answer", [hangs_up, resets, speaks_http])
@asynchronous
async def test_what_breaks_the_connection_or_has_another_protocol_proves_nothing(answer: Peer) -> None:
    async with peer(answer) as address:
        assert await asked(address) is ProbeVerdict.UNKNOWN


@asynchronous
async def test_a_server_that_knows_nothing_of_health_proves_nothing() -> None:
    """gRPC gives UNIMPLEMENTED for any HTTP 404 on the way, so it need not be from that port at all."""

    server = GrpcWire().server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    assert await asked(f"127.0.0.1:{port}") is ProbeVerdict.UNKNOWN
    await server.stop(0)


def test_a_name_that_does_not_resolve_proves_nothing() -> None:
    assert run(asked("no-such-host.invalid:9092")) is ProbeVerdict.UNKNOWN


def test_only_a_refusal_in_the_systems_own_words_is_a_refusal() -> None:
    def unavailable(details: str) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details)

    prefix = "failed to connect to all addresses; last error: UNKNOWN: ipv4:192.0.2.1:9092: "
    assert connection_refused(
        unavailable(f"{prefix}Failed to connect to remote host: {os.strerror(errno.ECONNREFUSED)}")
    )
    for number in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ECONNRESET):
        assert not connection_refused(unavailable(f"{prefix}Failed to connect to remote host: {os.strerror(number)}"))
    assert not connection_refused(unavailable(""))
