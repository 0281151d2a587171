"""A workload that goes on while a test does harm, and the verdict over everything that it wrote."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fencepost import AdminClient, Consumer, Producer
from fencepost.descriptions import PartitionDescription
from fencepost_testing.exactly_once import judge as judge_log
from fencepost_testing.faults.lossy_wire import lossy_host
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.log_check.ledger import Ledger
from fencepost_testing.read_back import read_to_end
from fencepost_testing.record_check import RecordCheck
from fencepost_testing.topic_waits import wait_in_sync, wait_settled
from fencepost_testing.waiting import until
from fencepost_testing.workload import Acked, Workload, WorkloadSpec

TOPIC = "orders"
PARTITIONS = 3
RATE = 800.0


@dataclass
class Running:
    """A cluster with a topic and a workload on it."""

    cluster: AsyncLocalCluster
    admin: AdminClient
    producer: Producer
    workload: Workload[Producer]
    stop: asyncio.Event
    acked: list[int] = field(default_factory=lambda: [0] * PARTITIONS)  # in each partition, so far

    async def partition(self, index: int) -> PartitionDescription:
        return (await self.admin.describe_topic(TOPIC)).partitions[index]

    async def leader(self, index: int = 0) -> int:
        return (await self.partition(index)).leader

    async def another_leads(self, than: int, index: int = 0) -> None:
        """Return once the partition has another leader, as the admin client sees it."""

        async def holds() -> bool:
            return await self.leader(index) not in (than, -1)

        await until(holds, f"another broker than {than} leads partition {index}")

    async def writes_go_on(self, timeout_s: float = 15.0) -> None:
        """Return once every partition has acknowledged something more. Fails the test where one does not in time."""
        before = list(self.acked)
        await until(
            lambda: all(now > then + 5 for now, then in zip(self.acked, before, strict=True)),
            f"writes go on in all partitions: {before}",
            timeout_s,
        )


@asynccontextmanager
async def running(
    cluster: AsyncLocalCluster, *, topic: dict[str, Any] | None = None, drop_acks: float = 0.0, **producer: Any
) -> AsyncIterator[Running]:
    """Inside, records are sent to all partitions of a new topic. At the end everything is read back and judged: every
    record acknowledged, in the log once and in order, and the same bytes in every replica's files."""
    settings = {"partitions": PARTITIONS, "replication_factor": 3, "min_insync_replicas": 2, **(topic or {})}
    async with AdminClient(cluster.bootstrap) as admin:
        await admin.create_topic(TOPIC, **settings)
        await wait_in_sync(admin, TOPIC)
        async with Producer(cluster.bootstrap, host=lossy_host(drop_acks=drop_acks), **producer) as sender:
            ledger = Ledger("itest")
            stop = asyncio.Event()
            workload = Workload(sender, WorkloadSpec(TOPIC, keys=30, rate=RATE), ledger)
            run = Running(cluster, admin, sender, workload, stop)

            def count(acked: Acked) -> None:
                run.acked[acked.metadata.partition] += 1

            workload.on_acked = count
            async with asyncio.TaskGroup() as group:
                group.create_task(workload.run(stop))
                await run.writes_go_on()
                yield run
                await run.writes_go_on()
                stop.set()
            assert not workload.failed, f"{workload.failed}: {workload.last_error}"
            assert ledger.acked == ledger.sent > 0
        await judge(cluster, admin, [ledger])


async def judge(cluster: AsyncLocalCluster, admin: AdminClient, ledgers: list[Ledger]) -> None:
    """Once all replicas are in sync: what a consumer reads, and what the disks hold, is exactly what was sent."""
    await wait_in_sync(admin, TOPIC)
    check = RecordCheck(TOPIC, ledgers)
    async with Consumer(cluster.bootstrap, TOPIC) as consumer:
        await read_to_end(consumer, check.add_record)
    findings = check.finish()
    findings.merge((await judge_log(cluster, TOPIC, settled=await wait_settled(admin, TOPIC))).findings)
    assert findings.clean, findings.examples
