"""Byte streams of the simulated world: asyncio protocols over its network, with kills, pauses, cuts and bounds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.streams import connect, listen
from tests.simulation.disk import MountedDisk
from tests.simulation.loop import collector_off
from tests.simulation.world import World

ADDRESS = "server:9000"


@pytest.fixture
def world() -> Any:
    with collector_off(), World(7) as world:
        yield world
        assert world.failures() == []


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Client(asyncio.Protocol):
    """Notes what happens to it."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.paused = 0
        self.resumed = 0
        self.lost: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self.received += data

    def pause_writing(self) -> None:
        self.paused += 1

    def resume_writing(self) -> None:
        self.resumed += 1

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.append(error)


async def echo_server(host: Host, disk: MountedDisk) -> None:
    await listen(ADDRESS, Echo)
    await asyncio.sleep(1e6)


class Talker:
    """A process with one connection, which says what it is told to."""

    def __init__(self) -> None:
        self.client = Client()
        self.transport: Any = None
        self.refused = 0

    async def run(self, host: Host, disk: MountedDisk) -> None:
        while self.transport is None:
            try:
                self.transport, _ = await connect(ADDRESS, lambda: self.client)
            except ConnectionRefusedError:
                self.refused += 1
                await asyncio.sleep(0.1)
        await asyncio.sleep(1e6)

    def say(self, world: World, data: bytes) -> None:
        process = world.machine("client").process
        assert process is not None
        world.loop.call_soon(self.transport.write, data, context=process.context())


def test_bytes_come_back_in_order_however_they_are_cut(world: World) -> None:
    talker = Talker()
    sent = bytes(range(256)) * 40

    async def story() -> None:
        world.start("client", talker.run)
        await asyncio.sleep(0.35)
        assert talker.refused >= 2  # nobody listens yet
        world.start("server", echo_server)
        await asyncio.sleep(1)
        for start in range(0, len(sent), 100):
            talker.say(world, sent[start : start + 100])
        await asyncio.sleep(1)
        assert bytes(talker.client.received) == sent

    world.run(story())


def test_a_killed_peer_is_noticed_and_a_paused_one_holds_its_bytes(world: World) -> None:
    talker = Talker()

    async def story() -> None:
        world.start("server", echo_server)
        world.start("client", talker.run)
        await asyncio.sleep(1)
        world.pause("server")
        talker.say(world, b"abc")
        await asyncio.sleep(1)
        assert not talker.client.received
        assert not talker.client.lost
        world.resume("server")
        await asyncio.sleep(1)
        assert bytes(talker.client.received) == b"abc"
        world.kill("server")
        await asyncio.sleep(1)
        assert len(talker.client.lost) == 1
        assert isinstance(talker.client.lost[0], ConnectionResetError)

    world.run(story())


def test_a_cut_link_holds_bytes_until_it_heals_and_a_close_is_read_as_the_end(world: World) -> None:
    talker = Talker()

    async def story() -> None:
        world.start("server", echo_server)
        world.start("client", talker.run)
        await asyncio.sleep(1)
        world.network.cut("client", "server")
        talker.say(world, b"abc")
        await asyncio.sleep(2)
        assert not talker.client.received
        world.network.heal("client", "server")
        await asyncio.sleep(3)
        assert bytes(talker.client.received) == b"abc"
        process = world.machine("client").process
        assert process is not None
        world.loop.call_soon(talker.transport.close, context=process.context())
        await asyncio.sleep(1)
        assert talker.client.lost == [None]
        assert not world.network.connections

    world.run(story())


def test_a_peer_that_does_not_read_pauses_the_writer(world: World) -> None:
    talker = Talker()
    accepted: list[Any] = []

    class Deaf(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.pause_reading()
            accepted.append(transport)

    async def deaf_server(host: Host, disk: MountedDisk) -> None:
        await listen(ADDRESS, Deaf)
        await asyncio.sleep(1e6)

    async def story() -> None:
        world.start("server", deaf_server)
        world.start("client", talker.run)
        await asyncio.sleep(1)
        talker.say(world, bytes(4_000_000))
        await asyncio.sleep(1)
        assert (talker.client.paused, talker.client.resumed) == (1, 0)
        accepted[0].resume_reading()
        await asyncio.sleep(1)
        assert (talker.client.paused, talker.client.resumed) == (1, 1)

    world.run(story())


def test_a_connection_that_breaks_before_its_protocol_is_there_is_told_to_it(world: World) -> None:
    talker = Talker()

    async def story() -> None:
        world.start("server", echo_server)
        await asyncio.sleep(0.1)
        world.start("client", talker.run)
        while not world.network.connections:  # noqa: ASYNC110 - the network has no event for it
            await asyncio.sleep(0.000_01)
        world.kill("server")
        world.network.reset("client", "server")
        await asyncio.sleep(1)
        assert len(talker.client.lost) == 1

    world.run(story())
