"""Chaos runs: exact, reported, harmless to others, and able to find what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import Shell
from test_demo import processes_of

from fencepost_cli.chaos.cuts import CuttableNetwork
from fencepost_cli.chaos.network import Network, NetworkUnavailable
from fencepost_cli.chaos.switches import SwitchedNetwork
from fencepost_cli.local_cluster import CONTROLLER, PLACE_PORT, LocalCluster, Node
from fencepost_cli.processes import Place

Run = Callable[[Coroutine[Any, Any, None]], None]
DEADLINE_S = 60.0


def cannot_make_namespaces() -> str:
    """Why not; empty: they can be made here."""
    try:
        Network.make(["one", "other"]).close()
    except NetworkUnavailable as unavailable:
        return str(unavailable)
    return ""


def namespaces() -> set[str]:
    try:
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return set()
    return {line.split()[0] for line in listed.splitlines() if line.startswith("fp")}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_minute_of_chaos_is_exact(tmp_path: Path) -> None:
    report = tmp_path / "report"
    shell = Shell(tmp_path, timeout_s=220)
    told = json.loads(
        shell.ok("chaos", "--duration", "60s", "--seed", "1", "--json", "--report", str(report)).splitlines()[-1]
    )
    assert told["exact"] is True
    assert (told["lost"], told["duplicated"], told["reordered"], told["problems"]) == (0, 0, 0, [])
    assert told["acknowledged"] > 3_000
    assert told["records_in_log"] >= told["acknowledged"]
    assert told["replicas_checked"] == 3 * told["partitions"]
    assert told["faults"] > 15
    assert {"kill-leader", "kill-all", "pause-leader", "kill-controller", "take-over"} <= set(told["faults_by_kind"])
    assert told["named_producers_resumed"] > 0
    assert told["network_cuts"] is (sys.platform == "linux"), told["no_network_cuts_because"]
    if told["network_cuts"]:
        assert told["network_cuts_by"].startswith(
            "fault switches" if cannot_make_namespaces() else "network namespaces"
        )
        assert {"isolate-leader", "cut-one-way"} <= set(told["faults_by_kind"])
    for name in ("verdict.json", "index.html", "nemesis.jsonl", "history", "logs", "latency.png", "throughput.png"):
        assert (report / name).exists(), name
    assert not (report / "cluster").exists(), "an exact run leaves no data behind"
    checked = json.loads(
        shell.ok("check", "--json", *map(str, sorted((report / "history").glob("*.jsonl")))).splitlines()[-1]
    )
    assert checked["stamped"] >= checked["acked"] == told["acknowledged"]
    assert processes_of(report) == []


@pytest.mark.slow
def test_chaos_finds_brokers_out_that_forget_what_they_have_seen(tmp_path: Path) -> None:
    """A verdict is worth something only if it can be otherwise: these brokers append what they have already."""
    report = tmp_path / "report"
    shell = Shell(tmp_path, timeout_s=110, extra={"PYTHONPATH": str(Path(__file__).parent / "forgetful")})
    result = shell.run("chaos", "--duration", "8s", "--no-cuts", "--json", "--report", str(report))
    assert result.returncode == 1
    assert f"To look at it: {report / 'index.html'}" in result.stderr
    assert "fencepost chaos --duration 8s --seed 0 --brokers 3 --partitions 4 --rate 300 --no-cuts" in result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["exact"] is False
    assert told["duplicated"] > 0
    assert told["wrong"]["duplicate"] > 0
    assert told["wrong"]["replica files: duplicated"] > 0
    assert (report / "wrong.png").exists()
    assert (report / "cluster" / "broker-1").exists(), "the data stay for a closer look"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_broken_off_leaves_no_process_and_no_namespace(tmp_path: Path, number: signal.Signals) -> None:
    report = tmp_path / "report"
    before = namespaces()
    child = Shell(tmp_path).start("chaos", "--duration", "60s", "--report", str(report))
    try:
        wait_for(lambda: (report / "nemesis.jsonl").exists() and "began" in (report / "nemesis.jsonl").read_text())
        assert len(processes_of(report)) > 5
        child.send_signal(number)
        _, errors = child.communicate(timeout=DEADLINE_S)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert "Traceback" not in errors
    if number != signal.SIGKILL:
        assert f"broken off; what its processes recorded and logged is in {report}" in errors
    wait_for(lambda: processes_of(report) == [])
    wait_for(lambda: not ours(namespaces() - before, report))


def ours(left: set[str], report: Path) -> set[str]:
    """Other tests may make namespaces at the same time."""
    return {name for name in left if name.split("-")[0] == network_of(report)}


def network_of(report: Path) -> str:
    """Its number is in the addresses that its clients were told: 198.18.N.i belongs to fpN in hexadecimal."""
    told = json.loads(next((report / "clients").glob("*.json")).read_text())["bootstrap"]
    first, second, third, _ = told.split(":")[0].split(".")
    return f"fp{(int(second) - 18) * 256 + int(third):03x}" if first == "198" else ""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_report_wants_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("of somebody's")
    shell = Shell(tmp_path)
    assert "is not empty" in shell.fails("chaos", "--report", str(tmp_path), code=2)
    assert "not a time" in shell.fails("chaos", "--duration", "soon", code=2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="fault switches need Linux's loopback addresses")
def test_without_namespaces_links_are_cut_by_fault_switches(tmp_path: Path) -> None:
    report = tmp_path / "report"
    shell = Shell(tmp_path, timeout_s=110, extra={"PATH": str(tmp_path)})  # where there is no command ip
    told = json.loads(
        shell.ok("chaos", "--duration", "10s", "--seed", "3", "--json", "--report", str(report)).splitlines()[-1]
    )
    assert told["exact"] is True, told["problems"]
    assert told["network_cuts_by"] == "fault switches (network namespaces need the command ip (iproute2))"
    assert {kind for kind in told["faults_by_kind"] if "cut" in kind or "isolate" in kind or kind == "split"}
    assert "fault switch on" in (report / "logs" / "broker-1.log").read_text()


# ---- The network ----

Networks = Callable[[Sequence[str]], Coroutine[Any, Any, CuttableNetwork]]
PARTIES = ("one", "other", "third")


async def of_namespaces(parties: Sequence[str]) -> CuttableNetwork:
    try:
        return await asyncio.to_thread(Network.make, parties)
    except NetworkUnavailable as unavailable:
        pytest.skip(str(unavailable))


async def of_switches(parties: Sequence[str]) -> CuttableNetwork:
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
    def _start(place: Place, program: str, *arguments: str) -> subprocess.Popen[str]:
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
def test_a_link_is_cut_in_one_direction_without_a_word_and_mended(
    run: Run, make: Networks, cut: tuple[str, str]
) -> None:
    async def scenario() -> None:
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

    run(scenario())


@each_network
def test_a_death_behind_a_cut_is_not_heard_of_before_it_is_mended(run: Run, make: Networks) -> None:
    async def scenario() -> None:
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

    run(scenario())


@each_network
def test_networks_do_not_meet(run: Run, make: Networks) -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_a_process_that_is_cut_off_does_not_wait_for_tcp(run: Run, tmp_path: Path) -> None:
    """TCP tries again at intervals that double: once mended, a cut would last for as long again."""
    nodes: dict[Node, str] = {CONTROLLER: "controller", 1: "broker-1"}

    async def scenario() -> None:
        network = await of_namespaces(list(nodes.values()))
        try:
            cluster = LocalCluster.create(
                tmp_path / "cluster",
                brokers=1,
                controller_overrides={"heartbeat_interval_ms": 100},
                places={node: network.place(party) for node, party in nodes.items()},
            )
            async with cluster:
                assert "no session" not in cluster.log(1).partition("registered")[2]
                await network.cut([("broker-1", "controller"), ("controller", "broker-1")])
                noticed_by = time.monotonic() + 4.0
                while "no session" not in cluster.log(1).partition("registered")[2]:
                    assert time.monotonic() < noticed_by, "the broker still waits for an answer to what it sent"
                    await asyncio.sleep(0.05)
                await network.mend([("broker-1", "controller"), ("controller", "broker-1")])
        finally:
            network.close()

    run(scenario())


def test_where_the_network_cannot_be_cut_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NetworkUnavailable, match=r"iproute2|Linux|root"):
        Network.make(["one", "other"])
