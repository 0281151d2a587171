"""Real processes of etcd, controllers and brokers, each on a free port and in a temporary folder, ended by their ids."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fencepost_testing.ports import PortReservation, reserve_ports
from fencepost_testing.waiting import until_sync

ETCD = shutil.which("etcd")
ETCDCTL = shutil.which("etcdctl")
NO_ETCD = "etcd is not installed (apt-get install etcd-server)"
NO_ETCDCTL = "etcd or etcdctl is not installed (apt-get install etcd-server etcd-client)"
WAIT_S = 30.0


@dataclass
class Process:
    """One process, its log in its folder."""

    name: str
    folder: Path
    command: list[str]
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True, parents=True)
        with open(self.log, "ab") as log:
            self.popen = subprocess.Popen(self.command, stdout=log, stderr=log)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def lines(self, containing: str) -> list[str]:
        if not self.log.exists():
            return []
        return [line for line in self.log.read_text(errors="replace").splitlines() if containing in line]

    def signal(self, number: int) -> None:
        assert self.popen is not None
        os.kill(self.popen.pid, number)

    def kill(self) -> float:
        """SIGKILL; when, by the wall clock."""
        now = time.time()
        self.signal(signal.SIGKILL)
        assert self.popen is not None
        self.popen.wait(WAIT_S)
        return now

    @property
    def runs(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def end(self) -> None:
        if self.runs:
            self.signal(signal.SIGCONT)
            self.kill()


def wait_serves(process: Process, times: int = 1) -> None:
    """`times`: that it has been started."""
    until_sync(lambda: len(process.lines("ready to serve")) >= times, f"{process.name} serves", WAIT_S)


def logged_at(line: str) -> float:
    """When a line of a controller's or broker's log was written, in seconds of the wall clock."""
    return time.mktime(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")) + int(line[20:23]) / 1000


@dataclass
class Processes:
    """All of one test."""

    folder: Path
    all: list[Process] = field(default_factory=list)
    etcd: list[Process] = field(default_factory=list)
    controllers: list[Process] = field(default_factory=list)
    brokers: list[Process] = field(default_factory=list)
    endpoints: list[str] = field(default_factory=list)
    peers: str = ""  # etcd's initial cluster
    controller_addresses: list[str] = field(default_factory=list)
    broker_addresses: list[str] = field(default_factory=list)
    _ports: list[PortReservation] = field(default_factory=list)

    def port(self) -> int:
        """A free one, which is this test's until its end."""
        (reservation,) = reserve_ports(1, None)
        self._ports.append(reservation)
        return reservation.port

    def start_etcd(self, members: int, *options: str, scheme: str = "http") -> None:
        """With `options` of etcd; `scheme`: for its clients."""
        ports = [(self.port(), self.port()) for _ in range(members)]
        peers = ",".join(f"n{i}=http://127.0.0.1:{peer}" for i, (_, peer) in enumerate(ports))
        for client, peer in ports:
            self._add_etcd(f"{scheme}://127.0.0.1:{client}", peer, peers, *options)
        for process in self.etcd:
            wait_serves(process)

    def start_new_member(self, peers: str, peer: int) -> None:
        """One more, which `etcdctl member add` has announced; `peers`: the initial cluster that it printed."""
        self._add_etcd(f"http://127.0.0.1:{self.port()}", peer, peers, "--initial-cluster-state", "existing")
        wait_serves(self.etcd[-1])

    def _add_etcd(self, url: str, peer: int, peers: str, *options: str) -> None:
        """`url`: for its clients; `peers`: the initial cluster."""
        assert ETCD is not None
        name = f"n{len(self.etcd)}"
        folder = self.folder / f"etcd-{name}"
        command = [
            ETCD, "--name", name, "--data-dir", str(folder / "data"),
            "--listen-client-urls", url, "--advertise-client-urls", url,
            "--listen-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-cluster", peers, *options,
        ]  # fmt: skip
        process = self._add(Process(f"etcd-{name}", folder, command))
        self.etcd.append(process)
        self.endpoints.append(url.partition("://")[2])
        self.peers = peers

    def start_controllers(self, count: int, **settings: int | str) -> None:
        for number in range(1, count + 1):
            address = f"127.0.0.1:{self.port()}"
            config = {
                "listen": address, "store": "etcd", "controller_id": number,
                "etcd_endpoints": ",".join(self.endpoints), **settings,
            }  # fmt: skip
            self.controllers.append(self._component("fencepost_controller", f"controller-{number}", config))
            self.controller_addresses.append(address)
        self.active()

    def start_brokers(self, count: int) -> None:
        for broker_id in range(1, count + 1):
            address = f"127.0.0.1:{self.port()}"
            config = {"broker_id": broker_id, "listen": address, "controller": ",".join(self.controller_addresses)}
            self.brokers.append(self._component("fencepost_node", f"broker-{broker_id}", config))
            self.broker_addresses.append(address)
        for broker in self.brokers:
            until_sync(lambda broker=broker: broker.lines(" registered "), f"{broker.name} is registered", WAIT_S)  # type: ignore[misc]

    def _component(self, package: str, name: str, config: dict[str, Any]) -> Process:
        folder = self.folder / name
        folder.mkdir()
        lines = {"data_dir": str(folder / "data"), **config}
        (folder / "config.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
        return self._add(Process(name, folder, [sys.executable, "-m", package, str(folder / "config.toml")]))

    def _add(self, process: Process) -> Process:
        self.all.append(process)
        process.start()
        return process

    def active(self, since: float = 0.0) -> Process:
        """The controller that became active last, after `since` (wall clock), and has not stepped down."""

        def look() -> Process | None:
            for process in self.controllers:
                lines = process.lines("became the active") + process.lines("stepped down")
                last = max(lines, key=logged_at, default="")
                if process.runs and "became the active" in last and logged_at(last) >= since - 0.002:
                    return process
            return None

        found = until_sync(look, "an active controller", WAIT_S)
        assert found is not None
        return found


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    group = Processes(folder)
    try:
        yield group
    finally:
        for process in group.all:
            process.end()
        for port in group._ports:
            port.release()
