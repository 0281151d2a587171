"""The network namespaces in which chaos cuts links: what a cut does, and what it leaves alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fencepost_testing.chaos.network import Network, NetworkUnavailable
from fencepost_testing.cluster_folder import PLACE_PORT
from fencepost_testing.local_cluster import CONTROLLER, AsyncLocalCluster, Node
from fencepost_testing.processes import NetworkPlace
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.integration.test_chaos import namespaces

PARTIES = ("one", "other", "third")


async def of_namespaces(parties: Sequence[str]) -> Network:
    try:
        return await asyncio.to_thread(Network.make, parties)
    except NetworkUnavailable as unavailable:
        pytest.skip(str(unavailable))


@asynccontextmanager
async def network_of_three() -> AsyncIterator[Network]:
    before = namespaces()
    network = await of_namespaces(PARTIES)
    try:
        yield network
    finally:
        network.close()
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
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
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

    def __init__(self, network: Network, client: str, server: str) -> None:
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


@pytest.mark.parametrize("cut", [("one", "other"), ("other", "one")])
@asynchronous
async def test_a_link_is_cut_in_one_direction_without_a_word_and_mended(cut: tuple[str, str]) -> None:
    async with network_of_three() as network:
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


@asynchronous
async def test_a_death_behind_a_cut_is_not_noticed_before_the_cut_is_mended() -> None:
    async with network_of_three() as network:
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


@asynchronous
async def test_networks_do_not_meet() -> None:
    async with network_of_three() as network:
        other = await of_namespaces(PARTIES[:2])
        assert other.place("one").host != network.place("one").host
        echo = Echo(network, "one", "other")
        try:
            await other.cut([("one", "other")])
            other.close()
            assert await echo.ask(10) == "answered"
        finally:
            echo.close()


@asynchronous
async def test_a_process_that_is_cut_off_does_not_wait_for_tcp(tmp_path: Path) -> None:
    """TCP tries again at intervals that double: once mended, a cut would last for as long again."""
    nodes: dict[Node, str] = {CONTROLLER: "controller", 1: "broker-1"}

    network = await of_namespaces(list(nodes.values()))
    try:
        cluster = AsyncLocalCluster(
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
