"""Chaos runs: exact, reported, harmless to others, and able to find what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Shell
from test_demo import processes_of

from fencepost_cli.chaos.network import Network, NetworkUnavailable

Run = Callable[[Coroutine[Any, Any, None]], None]
DEADLINE_S = 60.0


def can_cut() -> str:
    """Why the network cannot be cut here; empty: it can."""
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
    assert told["network_cuts"] == (can_cut() == ""), told["no_network_cuts_because"]
    if told["network_cuts"]:
        assert {"isolate-leader", "cut-one-way"} <= set(told["faults_by_kind"])
    for name in ("verdict.json", "index.html", "nemesis.jsonl", "history", "logs", "latency.png", "throughput.png"):
        assert (report / name).exists(), name
    assert not (report / "cluster").exists(), "an exact run leaves no data behind"
    shell.ok("check", *map(str, sorted((report / "history").glob("*.jsonl"))))
    assert processes_of(report) == []


@pytest.mark.slow
def test_chaos_finds_brokers_out_that_forget_what_they_have_seen(tmp_path: Path) -> None:
    """A verdict is worth something only if it can be otherwise: these brokers append what they have already."""
    report = tmp_path / "report"
    shell = Shell(tmp_path, timeout_s=110, extra={"PYTHONPATH": str(Path(__file__).parent / "forgetful")})
    result = shell.run("chaos", "--duration", "8s", "--no-cuts", "--json", "--report", str(report))
    assert result.returncode == 1
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


# ---- The network ----

needs_namespaces = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="network namespaces need Linux and root"
)


@pytest.fixture
def network() -> Iterator[Network]:
    try:
        made = Network.make(["one", "other", "third"])
    except NetworkUnavailable as unavailable:
        pytest.skip(str(unavailable))
    yield made
    made.close()
    assert not [name for name in namespaces() if name.startswith(f"{made.name}-")]


class Echo:
    """A server in one namespace and a client in another that asks it again and again over one connection."""

    SERVER = """
import socket, sys
listening = socket.create_server(("0.0.0.0", 7))
print(flush=True)
connection, _ = listening.accept()
while data := connection.recv(100):
    connection.sendall(data)
"""
    CLIENT = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 7))
for line in sys.stdin:
    connection.sendall(b"x")
    connection.settimeout(float(line))
    try:
        print("answered" if connection.recv(100) else "closed", flush=True)
    except TimeoutError:
        print("silence", flush=True)
"""

    def __init__(self, network: Network, client: str, server: str) -> None:
        self._server = self._start(network, server, self.SERVER)
        assert self._server.stdout is not None
        self._server.stdout.readline()
        self._client = self._start(network, client, self.CLIENT, network.place(server).host)

    @staticmethod
    def _start(network: Network, party: str, program: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*network.place(party).prefix, sys.executable, "-I", "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, timeout_s: float) -> str:
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        self._client.stdin.write(f"{timeout_s}\n")
        self._client.stdin.flush()
        return self._client.stdout.readline().strip()

    def close(self) -> None:
        for process in (self._client, self._server):
            process.kill()
            process.communicate()


@needs_namespaces
@pytest.mark.parametrize("cut", [("one", "other"), ("other", "one")])
def test_a_link_is_cut_in_one_direction_without_a_word_and_mended(
    run: Run, network: Network, cut: tuple[str, str]
) -> None:
    async def scenario() -> None:
        echo, beside = Echo(network, "one", "other"), Echo(network, "one", "third")
        try:
            assert echo.ask(10) == "answered"
            await network.cut([cut])
            assert echo.ask(0.3) == "silence"
            assert beside.ask(10) == "answered", "other links work"
            await network.cut([cut])
            await network.mend([cut])
            assert echo.ask(0.3) == "silence", "another cut still holds it"
            await network.mend([cut])
            assert echo.ask(10) == "answered", "the connection itself has survived"
        finally:
            echo.close()
            beside.close()

    run(scenario())


@needs_namespaces
def test_networks_do_not_meet(network: Network) -> None:
    other = Network.make(["one", "other"])
    try:
        assert other.name != network.name
        assert other.place("one").host != network.place("one").host
        assert {name for name in namespaces() if name.startswith(f"{network.name}-")}
    finally:
        other.close()
    assert {name for name in namespaces() if name.startswith(f"{network.name}-")} == {
        f"{network.name}-{party}" for party in ("one", "other", "third")
    }


def test_where_the_network_cannot_be_cut_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NetworkUnavailable, match=r"iproute2|Linux|root"):
        Network.make(["one", "other"])
