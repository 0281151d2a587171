"""Fencepost's own consumers as a group, on real processes: a member is killed, one joins, the coordinator is killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fencepost import AdminClient, Consumer, ConsumerRecord, Producer, TopicPartition
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.integration import group_member
from tests.integration.group_member import TOPIC

GROUP = "billing"
WITHIN_S = 40.0
SETTINGS = {"group_consumer_session_timeout_ms": 2_000, "group_consumer_heartbeat_interval_ms": 200}


class Application:
    """Reads as a member until it is stopped, and notes what it has got."""

    def __init__(self, bootstrap: str) -> None:
        self.consumer = Consumer(bootstrap, TOPIC, group=GROUP, auto_commit_ms=200)
        self.values: Counter[bytes] = Counter()
        self.stopped = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.consumer:
            while not self.stopped.is_set():
                self.values.update(record.value or b"" for record in await self.consumer.poll(timeout_ms=100))

    async def stop(self) -> None:
        self.stopped.set()
        await self.task


def start_member(bootstrap: str, out: Path) -> subprocess.Popen[bytes]:
    """In a process of its own, which can be killed."""
    with out.open("wb") as stream:
        return subprocess.Popen([sys.executable, group_member.__file__, "fencepost", bootstrap, GROUP], stdout=stream)


@asynchronous
async def test_members_and_the_coordinator_die_and_every_record_is_read_and_committed(
    cluster_factory: Callable[..., AsyncLocalCluster], tmp_path: Path
) -> None:
    async with cluster_factory(brokers=3, broker_overrides=SETTINGS) as cluster:
        bootstrap = cluster.bootstrap
        async with AdminClient(bootstrap) as admin, Producer(bootstrap) as producer:
            await admin.create_topic(TOPIC, partitions=4, replication_factor=3, min_insync_replicas=2)

            async def produce(first: int, last: int) -> None:
                sent = [await producer.send(TOPIC, str(n).encode(), key=str(n).encode()) for n in range(first, last)]
                await asyncio.gather(*sent)

            a = Application(bootstrap)
            await produce(0, 50)
            out = tmp_path / "other.out"
            other = start_member(bootstrap, out)
            try:
                await until(lambda: len(a.consumer.assignment) == 2, "the other member has its share", WITHIN_S)
                await produce(50, 100)
                await until(out.read_text, "the other member has read", WITHIN_S)
            finally:
                other.kill()
                other.wait()
            b = Application(bootstrap)
            victim = (await admin.describe_group(GROUP)).coordinator
            await cluster.kill(victim)
            await produce(100, 150)

            def all_read() -> bool:
                # What the killed member has read last is not committed, and what it has committed nobody reads again.
                lines = out.read_text().splitlines()
                theirs = {line.rpartition('"')[0].rpartition('"')[2].encode() for line in lines}
                return {str(n).encode() for n in range(150)} <= theirs | a.values.keys() | b.values.keys()

            await until(all_read, "every record is read", WITHIN_S)
            await until(lambda: len(b.consumer.assignment) == 2, "the partitions are shared", WITHIN_S)
            assert a.consumer.assignment + b.consumer.assignment != []
            assert not set(a.consumer.assignment) & set(b.consumer.assignment)
            await b.stop()
            await a.stop()
            group = await admin.describe_group(GROUP)
            assert (group.state, group.coordinator == victim) == ("Empty", False)
            partitions = await admin.describe_group_partitions(group)
            assert [(p.partition, p.lag) for p in partitions] == [(n, 0) for n in range(4)]
            assert sum(p.committed for p in partitions) == 150
            async with Consumer(bootstrap, TOPIC, group=GROUP) as late:
                await produce(150, 151)
                async with asyncio.timeout(WITHIN_S):
                    records: list[ConsumerRecord] = []
                    while not records:
                        records = await late.poll()
                assert [record.value for record in records] == [b"150"]
                tp = TopicPartition(TOPIC, records[0].partition)
                await late.commit({tp: records[0].offset + 1})
                assert (await late.committed())[tp] == records[0].offset + 1
