"""The two ways in which chaos cuts links: what a cut does, and what it leaves alone."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import uvloop

from fencepost_testing.chaos.cuts import CuttableNetwork
from fencepost_testing.chaos.network import Network, NetworkUnavailable
from fencepost_testing.chaos.switches import SwitchedNetwork
from fencepost_testing.cluster_folder import PLACE_PORT
from fencepost_testing.faulty_wire import FAULT_PORT
from fencepost_testing.local_cluster import CONTROLLER, AsyncLocalCluster, Node
from fencepost_testing.processes import NetworkPlace
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.integration.test_chaos import DEADLINE_S, namespaces

Networks = Callable[[Sequence[str]], Coroutine[Any, Any, CuttableNetwork]]
PARTIES = ("one", "other", "third")


async def of_namespaces(parties: Sequence[str]) -> Network:
    try:
        return await asyncio.to_thread(Network.make, parties)
    except NetworkUnavailable as unavailable:
        pytest.skip(str(unavailable))


async def of_switches(parties: Sequence[str]) -> SwitchedNetwork:
    try:
        return await SwitchedNetwork.make(parties, parties)
    except NetworkUnavailable as unavailable:
        pytest.skip(str(unavailable))


@asynccontextmanager
async def network_of_three(make: Networks) -> AsyncIterator[CuttableNetwork]:
    before = namespaces()
    network = await make(PARTIES)
    try:
        yield network
    finally:
        network.close()
    if isinstance(network, Network):
        assert not [name for name in namespaces() - before if name.startswith(f"{network.name}-")]


class Echo:
    """A server at one place and a client at another that asks it again and again over one connection."""

    SERVER = """
import socket, sys
listening = socket.create_server((sys.argv[1], int(sys.argv[2])))
print(flush=True)
connection, _ = listening.accept()
while data := connection.recv(100):
    connection.sendall(data)
"""
    CLIENT = """
import os, socket, sys
port = os.environ.get("FENCEPOST_FAULT_PORT", sys.argv[2])
connection = socket.create_connection((sys.argv[1], int(port)))
for line in sys.stdin:
    connection.settimeout(float(line))
    try:
        connection.sendall(b"x")
        print("answered" if connection.recv(100) else "closed", flush=True)
    except TimeoutError:
        print("silence", flush=True)
    except OSError:
        print("broken", flush=True)
"""

    def __init__(self, network: CuttableNetwork, client: str, server: str) -> None:
        at = (network.place(server).host, str(PLACE_PORT))
        self.server = self._start(network.place(server), self.SERVER, *at)
        assert self.server.stdout is not None
        self.server.stdout.readline()
        self._client = self._start(network.place(client), self.CLIENT, *at)

    @staticmethod
    def _start(place: NetworkPlace, program: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*place.prefix, sys.executable, "-I", "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **place.environment},
        )

    async def ask(self, timeout_s: float) -> str:
        client = self._client

        def answer() -> str:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(f"{timeout_s}\n")
            client.stdin.flush()
            return client.stdout.readline().strip()

        return await asyncio.to_thread(answer)

    def close(self) -> None:
        for process in (self._client, self.server):
            process.kill()
            process.communicate()


each_network = pytest.mark.parametrize("make", [of_namespaces, of_switches])


@each_network
@pytest.mark.parametrize("cut", [("one", "other"), ("other", "one")])
@asynchronous
async def test_a_link_is_cut_in_one_direction_without_a_word_and_mended(make: Networks, cut: tuple[str, str]) -> None:
    async with network_of_three(make) as network:
        echo, beside = Echo(network, "one", "other"), Echo(network, "one", "third")
        try:
            assert await echo.ask(10) == "answered"
            await network.cut([cut])
            assert await echo.ask(0.3) == "silence"
            assert await beside.ask(10) == "answered", "other links work"
            await network.cut([cut])
            await network.mend([cut])
            assert await echo.ask(0.3) == "silence", "another cut still holds it"
            await network.mend([cut])
            assert await echo.ask(10) == "answered", "the connection itself has survived"
        finally:
            echo.close()
            beside.close()


@each_network
@asynchronous
async def test_a_death_behind_a_cut_is_not_noticed_before_the_cut_is_mended(make: Networks) -> None:
    async with network_of_three(make) as network:
        echo = Echo(network, "one", "other")
        try:
            assert await echo.ask(10) == "answered"
            await network.cut([("other", "one")])
            echo.server.kill()
            echo.server.wait()
            assert await echo.ask(0.3) == "silence"
            await network.mend([("other", "one")])
            assert await echo.ask(10) in ("answered", "closed", "broken")
            assert await echo.ask(10) in ("closed", "broken")
        finally:
            echo.close()


@each_network
@asynchronous
async def test_networks_do_not_meet(make: Networks) -> None:
    async with network_of_three(make) as network:
        other = await make(PARTIES[:2])
        assert other.place("one").host != network.place("one").host
        echo = Echo(network, "one", "other")
        try:
            await other.cut([("one", "other")])
            other.close()
            assert await echo.ask(10) == "answered"
        finally:
            echo.close()


class Connection:
    """Through a network's fault switch, with both of its ends here."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self._server = server

    @classmethod
    async def make(cls, network: SwitchedNetwork, client: str, server: str) -> Self:
        host, port = network.place(server).host, int(network.place(client).environment[FAULT_PORT])
        with socket.create_server((host, PLACE_PORT)) as listening:
            listening.settimeout(DEADLINE_S)
            calling = await asyncio.to_thread(socket.create_connection, (host, port), DEADLINE_S)
            called, _ = await asyncio.to_thread(listening.accept)
        called.settimeout(DEADLINE_S)
        return cls(calling, called)

    async def send_through(self) -> None:
        """Whatever reached the relays before this is sent has been read by them once this has arrived."""
        self.client.sendall(b"x")
        assert await asyncio.to_thread(self._server.recv, 100) == b"x"

    def reset(self) -> None:
        """The server's end is gone, as a process is that was killed before it had read everything."""
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._server.close()

    def close(self) -> None:
        self.client.close()
        self._server.close()


def test_what_was_held_back_for_a_process_that_has_gone_is_dropped() -> None:
    """On uvloop, as in a run: a transport of its that is closed refuses what is written, where asyncio's drops it."""
    unforeseen: list[dict[str, Any]] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unforeseen.append(context))
        network = await of_switches(PARTIES)
        connections: list[Connection] = []
        try:
            for server in ("other", "third"):
                connections.append(await Connection.make(network, "one", server))
            held, beside = connections
            await network.cut([("one", "other")])
            held.client.sendall(b"held back")
            await beside.send_through()
            held.reset()
            assert await asyncio.to_thread(held.client.recv, 100) == b"", "the direction back is whole"
            await network.mend([("one", "other")])
            await beside.send_through()
        finally:
            for connection in connections:
                connection.close()
            network.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(scenario(), DEADLINE_S))
        gc.collect()  # a task that failed tells so when it is collected
    assert not unforeseen


@asynchronous
async def test_a_process_that_is_cut_off_does_not_wait_for_tcp(tmp_path: Path) -> None:
    """TCP tries again at intervals that double: once mended, a cut would last for as long again."""
    nodes: dict[Node, str] = {CONTROLLER: "controller", 1: "broker-1"}

    network = await of_namespaces(list(nodes.values()))
    try:
        cluster = AsyncLocalCluster.create(
            tmp_path / "cluster",
            brokers=1,
            controller_overrides={"heartbeat_interval_ms": 100},
            places={node: network.place(party) for node, party in nodes.items()},
        )
        async with cluster:
            assert "no session" not in cluster.log(1).partition("registered")[2]
            await network.cut([("broker-1", "controller"), ("controller", "broker-1")])
            what = "the broker no longer waits for an answer to what it sent"
            await until(lambda: "no session" in cluster.log(1).partition("registered")[2], what, 4.0)
            await network.mend([("broker-1", "controller"), ("controller", "broker-1")])
    finally:
        network.close()


def test_where_the_network_cannot_be_cut_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NetworkUnavailable, match=r"iproute2|Linux|root"):
        Network.make(["one", "other"])
