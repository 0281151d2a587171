"""The client processes of a chaos run: started, killed, paused and replaced by name.

A role ("loader") is played by one process after another, its incarnations ("loader.1", "loader.2"); for a while two may
play it at once, when one takes the name of another that is paused.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fencepost_testing.chaos.client_config import EXIT_FENCED, ClientConfig
from fencepost_testing.chaos.faults import Party
from fencepost_testing.chaos.tail import AckCounter
from fencepost_testing.kafka_clients import FENCEPOST
from fencepost_testing.processes import NetworkPlace, ProcessRef, Watchdog, spawn
from fencepost_testing.waiting import NotInTime, until

_POLL_S = 0.02
_ENDS_WITHIN_S = 5.0  # of a SIGKILL


@dataclass(frozen=True, slots=True)
class Role:
    """One client of the run, whichever process acts as it."""

    party: Party
    kind: str  # producer, consumer, member
    rate: float = 0.0
    keys: int = 0
    rewinds: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    drop_acks: float = 0.0  # producers: the probability that an acknowledgement is lost
    client: str = FENCEPOST  # whose client it is
    group: str = ""  # of a member
    kip_848: bool = False

    @property
    def named(self) -> bool:
        return bool(self.settings.get("name"))


@dataclass(frozen=True, slots=True)
class Target:
    """The topic that all clients are for."""

    bootstrap: str
    topic: str
    partitions: int
    kafka_bootstrap: str = ""
    faults_in: str = ""  # the folder of a cluster whose faults cut the clients' links; empty: they do not


@dataclass(slots=True)
class ClientProcess:
    """One incarnation of a role."""

    role: Role
    name: str
    process: ProcessRef
    child: subprocess.Popen[bytes]
    history_file: Path
    log_file: Path
    acks: AckCounter
    contested: bool = False  # there was another instance of its producer's name; either may be given the higher epoch
    killed: bool = False

    def running(self) -> bool:
        return self.child.poll() is None

    @property
    def begun(self) -> bool:
        """Whether its history has any operation."""
        return self.history_file.exists() and self.history_file.stat().st_size > 0

    def fenced_by_another(self) -> bool:
        return self.child.poll() == EXIT_FENCED and self.contested

    def problem(self) -> str:
        """How it ended, where that is not as it should be; empty where it is."""
        code = self.child.poll()
        if code is None or self.killed or code == 0 or self.fenced_by_another():
            return ""
        return f"client {self.name} ended with exit code {code}: see logs/{self.log_file.name}"


class Fleet:
    """All client processes of a run."""

    def __init__(
        self,
        directory: Path,
        seed: int,
        target: Target,
        *,
        place: Callable[[Party], NetworkPlace | None] = lambda _: None,
    ) -> None:
        self.processes: list[ClientProcess] = []
        self.current: dict[Party, ClientProcess] = {}
        self.resumed_file = directory / "resumed.jsonl"
        self._directory = directory
        self._target = target
        self._seed = seed
        self._place = place
        self._watchdog: Watchdog | None = None
        for folder in ("history", "logs", "clients"):
            (directory / folder).mkdir(exist_ok=True)

    @property
    def topic(self) -> str:
        return self._target.topic

    def start(self, role: Role) -> ClientProcess:
        """The role's next incarnation. Returns at once."""
        if self._watchdog is None:
            self._watchdog = Watchdog()
            self._watchdog.confirm()
        number = 1 + sum(process.role.party == role.party for process in self.processes)
        name = f"{role.party}.{number}"
        config = ClientConfig(
            process=name,
            kind=role.kind,
            bootstrap=self._target.bootstrap,
            topic=self._target.topic,
            partitions=self._target.partitions,
            history_file=str(self._directory / "history" / f"{name}.jsonl"),
            seed=self._seed * 1_000 + len(self.processes),
            rate=role.rate,
            keys=role.keys,
            rewinds=role.rewinds,
            resumed_file=str(self.resumed_file) if role.named else "",
            settings=role.settings,
            drop_acks=role.drop_acks,
            party=role.party,
            cluster=self._target.faults_in,
            client=role.client,
            kafka_bootstrap=self._target.kafka_bootstrap,
            group=role.group,
            kip_848=role.kip_848,
        )
        config_file = self._directory / "clients" / f"{name}.json"
        config.write(config_file)
        log_file = self._directory / "logs" / f"{name}.log"
        process, child = spawn(["-m", "fencepost_testing.chaos.client"], config_file, log_file, self._place(role.party))
        self._watchdog.watch(process)
        client = ClientProcess(
            role, name, process, child, Path(config.history_file), log_file, AckCounter(Path(config.history_file))
        )
        if role.named and role.party in self.current:
            self.current[role.party].contested = client.contested = True
        self.processes.append(client)
        self.current[role.party] = client
        return client

    async def kill(self, client: ClientProcess) -> None:
        """kill -9, to its end."""
        client.killed = client.process.send(signal.SIGKILL) or client.killed
        await asyncio.to_thread(client.child.wait, _ENDS_WITHIN_S)

    def pause(self, client: ClientProcess) -> None:
        client.process.send(signal.SIGSTOP)

    def resume(self, client: ClientProcess) -> None:
        client.process.send(signal.SIGCONT)

    async def wait_begun(self, client: ClientProcess, timeout_s: float) -> bool:
        """Whether it has begun within that time."""
        with contextlib.suppress(NotInTime):
            await until(
                lambda: client.begun or not client.running(), f"{client.name} begins", timeout_s, poll_s=_POLL_S
            )
        return client.begun

    def count_acked(self) -> int:
        """Records acknowledged to all clients so far."""
        return sum(client.acks.count() for client in self.processes)

    async def wait_heard(self, timeout_s: float) -> None:
        """Return once something more is acknowledged to each producer. Raises CommandFailed naming the others."""
        before = [(client, client.acks.count()) for client in self.current.values() if client.role.kind == "producer"]

        def waiting() -> str:
            names = [client.name for client, acked in before if client.acks.count() <= acked]
            return f"nothing is acknowledged to {', '.join(names)}" if names else ""

        what = "something is acknowledged to every producer after the last fault"
        await until(waiting, what, timeout_s, holds=operator.not_, poll_s=_POLL_S)

    async def finish(self, timeout_s: float) -> list[str]:
        """Let every client end what it has begun. What went wrong, in words."""
        problems = []
        for client in self.processes:
            client.process.send(signal.SIGTERM)
            client.process.send(signal.SIGCONT)
        deadline = time.monotonic() + timeout_s
        for client in self.processes:
            try:
                await asyncio.to_thread(client.child.wait, max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                problems.append(f"client {client.name} has not finished within {timeout_s:g} s")
                await self.kill(client)
            if problem := client.problem():
                problems.append(problem)
        return problems

    def close(self) -> None:
        """Kill what is left; all is gone when this returns."""
        for client in self.processes:
            client.process.send(signal.SIGKILL)
            client.child.wait()
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None
