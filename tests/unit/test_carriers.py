"""Two carriers on one port: who is served by which, and what a peer of an older version is to a newer one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fencepost_proto.protocol.errors import InvalidConfig
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc
from fencepost_proto.transport.carriers import carrier_wire, shared_port
from fencepost_proto.transport.carriers.carrier_wire import CARRIER_VARIABLE, CarrierWire, wire_of_environment
from fencepost_proto.transport.wire import GrpcWire, RunningServer, Wire, connection_refused, serve
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous


class Broker(broker_pb2_grpc.BrokerServicer):
    """Answers with how it was reached."""

    def __init__(self) -> None:
        self.peers: list[str] = []

    async def Metadata(self, request: Any, context: Any) -> Any:
        self.peers.append(context.peer())
        return broker_pb2.MetadataResponse(unknown_topics=[context.peer().partition(":")[0]])


@asynccontextmanager
async def serving(wire: Wire, listen: str = "127.0.0.1:0") -> AsyncIterator[tuple[RunningServer, Broker]]:
    broker = Broker()  # type: ignore[abstract]
    add = broker_pb2_grpc.add_BrokerServicer_to_server
    running = await serve(wire, listen, ["fencepost.v1.Broker"], lambda server: add(broker, server))
    try:
        yield running, broker
    finally:
        await running.stop(0)


async def carrier_of(channel: grpc.aio.Channel) -> str:
    """By which carrier a call goes: `lean`, or as gRPC names an address."""
    stub: Any = broker_pb2_grpc.BrokerStub
    answer = await stub(channel).Metadata(broker_pb2.MetadataRequest(), timeout=5)
    return str(answer.unknown_topics[0])


@asynchronous
async def test_one_port_serves_both_and_a_channel_takes_lean_where_it_may() -> None:
    async with serving(CarrierWire()) as (running, _):
        for wire, expected in (
            (CarrierWire(), "lean"),
            (CarrierWire("lean"), "lean"),
            (CarrierWire("grpc"), "ipv4"),
            (GrpcWire(), "ipv4"),
        ):
            async with wire.connect(running.address) as channel:
                assert await carrier_of(channel) == expected


@asynchronous
async def test_grpc_has_health_reflection_and_a_peers_real_name_through_the_port() -> None:
    async with serving(CarrierWire()) as (running, broker), GrpcWire().connect(running.address) as channel:
        health: Any = health_pb2_grpc.HealthStub
        answer = await health(channel).Check(health_pb2.HealthCheckRequest(service="fencepost.v1.Broker"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub: Any = reflection_pb2_grpc.ServerReflectionStub
        async for listed in stub(channel).ServerReflectionInfo(iter([request])):
            assert "fencepost.v1.Broker" in [service.name for service in listed.list_services_response.service]
        assert await carrier_of(channel) == "ipv4"
        real: Any = running.server
        assert real.real_peer(broker.peers[0]) != broker.peers[0]
        assert real.real_peer(broker.peers[0]).startswith("ipv4:127.0.0.1:")


@asynchronous
async def test_a_peer_that_speaks_grpc_only_is_called_by_grpc() -> None:
    async with serving(GrpcWire()) as (running, _):
        wire = CarrierWire()
        async with wire.connect(running.address) as channel, wire.connect(running.address) as other:
            assert await carrier_of(channel) == "ipv4"
            assert await carrier_of(other) == "ipv4"  # what is known of the address
        async with CarrierWire().connect(running.address) as channel:
            stream: Any = broker_pb2_grpc.BrokerStub
            with pytest.raises(grpc.aio.AioRpcError, match="does not speak the lean protocol") as raised:
                await stream(channel).Fetch().read()
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not connection_refused(raised.value)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stream(channel).Fetch().read()
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED  # by gRPC
        async with CarrierWire("lean").connect(running.address) as lean:
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                    await carrier_of(lean)


@asynchronous
async def test_a_peer_that_was_upgraded_is_called_by_lean_and_one_that_went_back_by_grpc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carrier_wire, "ASK_AGAIN_S", 0.0)

    async def settles(expected: str) -> None:
        async def by() -> str:
            try:
                return await carrier_of(channel)
            except grpc.aio.AioRpcError as error:
                return error.code().name

        await until(by, f"calls go by {expected}", holds=lambda carrier: carrier == expected)

    async with serving(GrpcWire()) as (running, _):
        address = running.address
        channel = CarrierWire().connect(address)
        await settles("ipv4")
    async with serving(CarrierWire(), address):
        await settles("lean")
    async with serving(GrpcWire(), address):
        await settles("ipv4")
    await channel.close()


@asynchronous
async def test_bytes_of_neither_carrier_are_grpcs_to_judge_and_silence_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_port, "FIRST_BYTE_WITHIN_S", 0.1)
    async with serving(CarrierWire()) as (running, _):
        host, _, port = running.address.rpartition(":")
        for said in (b"GET / HTTP/1.1\r\n\r\n" + bytes(100), bytes(100), b""):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            with suppress(ConnectionError):
                await reader.read()
            writer.close()
        async with CarrierWire().connect(running.address) as channel:
            assert await carrier_of(channel) == "lean"


@asynchronous
async def test_connections_that_say_nothing_keep_no_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_port, "MAX_UNDECIDED", 3)
    async with serving(CarrierWire()) as (running, _):
        host, _, port = running.address.rpartition(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(5)]
        for wire in (CarrierWire("lean"), GrpcWire()):
            async with wire.connect(running.address) as channel:
                await carrier_of(channel)
        assert await silent[0][0].read() == b""  # the oldest has made room
        for _, writer in silent:
            writer.close()


@asynchronous
async def test_an_occupied_port_is_named() -> None:
    async with serving(CarrierWire()) as (running, _):
        with pytest.raises(OSError, match=f"cannot listen on {running.address}"):
            await serve(CarrierWire(), running.address, [], lambda server: None)


def test_a_carrier_that_there_is_not_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CARRIER_VARIABLE, "pigeon")
    with pytest.raises(InvalidConfig, match="FENCEPOST_CARRIER='pigeon' is not one of auto, grpc, lean"):
        wire_of_environment()
