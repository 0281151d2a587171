"""Groups on a cluster of real processes, of Kafka's own clients and of ours: a member dies, one joins, the coordinator is
killed.

Every record is read, and the commits stand: a member that comes at the end finds nothing left to read.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.integration import group_member
from tests.integration.group_member import TOPIC

confluent_kafka = pytest.importorskip("confluent_kafka", reason="pip install -e .[dev] brings it")
confluent_admin = pytest.importorskip("confluent_kafka.admin")

ClusterFactory = Callable[..., AsyncLocalCluster]
RECORDS = 400
PARTITIONS = 4
GROUP = "billing"
QUICK = {"session_timeout_ms": 1_000, "heartbeat_interval_ms": 200}
WITHIN_S = 40.0


@dataclass
class Members:
    """Processes of one group, and the files that they write."""

    client: str
    bootstrap: str
    folder: Path
    processes: list[subprocess.Popen[bytes]]

    def start(self) -> subprocess.Popen[bytes]:
        number = len(self.processes)
        with (self.folder / f"{number}.out").open("wb") as out, (self.folder / f"{number}.err").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, group_member.__file__, self.client, self.bootstrap, GROUP], stdout=out, stderr=err
            )
        self.processes.append(process)
        return process

    def seen(self, number: int | None = None) -> list[tuple[int, int, str]]:
        """Partition, offset and value of the records that the members, or one of them, have read."""
        numbers = range(len(self.processes)) if number is None else [number]
        lines = [line for each in numbers for line in (self.folder / f"{each}.out").read_text().splitlines()]
        return [tuple(json.loads(line)) for line in lines if line.endswith("]")]


@contextmanager
def members(client: str, bootstrap: str, folder: Path) -> Iterator[Members]:
    """Whatever still runs at the end is killed."""
    folder.mkdir()
    group = Members(client, bootstrap, folder, [])
    try:
        yield group
    finally:
        for process in group.processes:
            process.kill()
            process.wait()


async def produced(bootstrap: str, first: int, last: int) -> None:
    """Values first..last, acknowledged."""
    producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "log_level": 2})
    refused: list[object] = []
    for number in range(first, last):
        producer.produce(TOPIC, key=str(number), value=str(number), on_delivery=lambda error, _: refused.append(error))
    await asyncio.to_thread(producer.flush, WITHIN_S)
    assert refused == [None] * (last - first)


async def coordinator_of(bootstrap: str) -> int:
    admin = confluent_admin.AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
    described = admin.describe_consumer_groups([GROUP], request_timeout=10)[GROUP]
    return int((await asyncio.to_thread(described.result)).coordinator.id)


async def committed(bootstrap: str) -> dict[int, int]:
    wanted = confluent_kafka.ConsumerGroupTopicPartitions(GROUP)
    admin = confluent_admin.AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
    found = admin.list_consumer_group_offsets([wanted], request_timeout=10)[GROUP]
    return {each.partition: each.offset for each in (await asyncio.to_thread(found.result)).topic_partitions}


@pytest.mark.parametrize(
    "client",
    [
        "confluent-kafka",
        pytest.param("confluent-kafka, KIP-848", marks=pytest.mark.long),
        pytest.param("kafka-python", marks=pytest.mark.long),
        pytest.param("aiokafka", marks=pytest.mark.long),
        pytest.param("fencepost", marks=pytest.mark.long),
    ],
)
@asynchronous
async def test_nothing_is_lost_where_members_and_the_coordinator_die(
    client: str, cluster_factory: ClusterFactory, tmp_path: Path
) -> None:
    settings = {"group_consumer_session_timeout_ms": 3_000, "group_consumer_heartbeat_interval_ms": 300}
    async with cluster_factory(brokers=3, controller_overrides=QUICK, broker_overrides=settings) as cluster:
        bootstrap = cluster.kafka_bootstrap
        with members(client, cluster.bootstrap if client == "fencepost" else bootstrap, tmp_path / "members") as group:
            await produced(bootstrap, 0, 100)
            for _ in range(3):
                group.start()
            await _all_read(group, 100)
            group.processes[1].kill()
            await produced(bootstrap, 100, 200)
            group.start()
            await _all_read(group, 200)
            victim = await coordinator_of(bootstrap)
            await cluster.kill(victim)
            await produced(bootstrap, 200, 300)
            await _all_read(group, 300)
            await cluster.restart(victim)
            await produced(bootstrap, 300, RECORDS)
            await _all_read(group, RECORDS)
            for process in group.processes:
                process.terminate()
            for process in group.processes:
                await asyncio.to_thread(process.wait, WITHIN_S)
            offsets = await committed(bootstrap)
            ends = {partition: 1 + max(o for p, o, _ in group.seen() if p == partition) for partition in offsets}
            assert offsets == ends
            assert sum(offsets.values()) == RECORDS
            late = len(group.processes)
            group.start()
            await produced(bootstrap, RECORDS, RECORDS + 1)
            await until(lambda: group.seen(late), "the record after the last commit is read", WITHIN_S)
            assert [value for _, _, value in group.seen(late)] == [str(RECORDS)]


async def _all_read(group: Members, count: int) -> None:
    wanted = {str(number) for number in range(count)}
    await until(
        lambda: wanted <= {value for _, _, value in group.seen()},
        f"all of {count} records are read by members of {group.client}",
        WITHIN_S,
        poll_s=0.1,
    )
