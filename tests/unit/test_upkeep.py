"""Upkeep of logs: those with something due are looked at, and no others."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any, cast

import pytest

from fencepost_node.maintenance import log_maintenance as upkeep_module
from fencepost_node.maintenance.log_maintenance import LogMaintenance
from fencepost_node.producers.expiry import ProducerExpiry
from fencepost_node.replication.replica import Replica
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.tasks import Tasks
from fencepost_testing.waiting import until
from tests.unit.replicas import open_replica


class Looked(dict[PartitionKey, Replica]):
    """Replicas, and how often one was looked up."""

    lookups = 0

    def get(self, key: Any, default: Any = None) -> Any:
        self.lookups += 1
        return super().get(key, default)


class Disk:
    def __init__(self) -> None:
        self.crowding: list[str] = []

    def crowding_folders(self) -> list[str]:
        return self.crowding


class LogOf:
    """As much of a log as upkeep needs."""

    failure = ""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.maintenance_due = False
        self.maintained = 0
        self.synced = 0

    def maintain(self) -> None:
        self.maintained += 1
        self.maintenance_due = False

    def sync(self) -> int:
        self.synced += 1
        return 0


def with_upkeep(test: Callable[[LogMaintenance, Looked, Disk], Any]) -> None:
    async def run() -> None:
        failures: list[BaseException] = []
        tasks = Tasks(failures.append)
        replicas, disk = Looked(), Disk()
        for index in range(3):
            replica = open_replica(leader=2)
            replica.key = ("T", index)
            replica.log = cast(Any, LogOf(f"/data/orders-{index}"))
            replicas["T", index] = replica
        upkeep = LogMaintenance(
            Host(), cast(Any, disk), replicas, tasks, 3_600_000, expiry=ProducerExpiry(1, 1, lambda _: True)
        )
        for replica in replicas.values():
            replica._calls = dataclasses.replace(replica._calls, snapshot_due=upkeep.maintain_soon)
        upkeep.start()
        try:
            await test(upkeep, replicas, disk)
        finally:
            await tasks.close()
        assert not failures

    asyncio.run(run())


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep_module, "MAINTENANCE_INTERVAL_S", 0.001)


def test_a_log_that_says_so_is_maintained_and_logs_at_rest_cost_nothing() -> None:
    async def test(upkeep: LogMaintenance, replicas: Looked, _: Disk) -> None:
        log = cast(LogOf, replicas["T", 1].log)
        for _again in range(2):
            log.maintenance_due = True
            replicas["T", 1].look_at_log()
            await until(lambda: not upkeep._due, "nothing due")
        looked = replicas.lookups
        for _round in range(20):
            await asyncio.sleep(0.001)
        assert replicas.lookups == looked
        assert [cast(LogOf, replica.log).maintained for replica in replicas.values()] == [0, 2, 0]

    with_upkeep(test)


def test_a_replica_that_left_meanwhile_is_forgotten() -> None:
    async def test(upkeep: LogMaintenance, replicas: Looked, _: Disk) -> None:
        upkeep.maintain_soon(replicas.pop(("T", 0)))
        await until(lambda: not upkeep._due, "forgotten")

    with_upkeep(test)


def test_files_that_crowd_others_out_are_synced_though_nothing_is_due() -> None:
    async def test(_: LogMaintenance, replicas: Looked, disk: Disk) -> None:
        disk.crowding = ["/data/orders-2"]
        await until(lambda: cast(LogOf, replicas["T", 2].log).synced, "synced")
        assert not cast(LogOf, replicas["T", 0].log).synced

    with_upkeep(test)
