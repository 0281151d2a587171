"""The end of a run: all is healed, and everything is looked at.

In this order: every partition takes writes again, none is on its way to other brokers, all replicas are in sync, the
clients end what they have begun, all replicas have come to the same end; then one consumer reads every partition whole,
the cluster is stopped cleanly, and the files of every replica are checked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from fencepost import AdminClient, Consumer, ConsumerRecord
from fencepost.history import History
from fencepost_testing.chaos.measure import FINAL_READER
from fencepost_testing.failover import FailoverFailed
from fencepost_testing.local_cluster import LocalCluster
from fencepost_testing.read_back import STILL_TIMEOUT_S, StandsStill
from fencepost_testing.replica_check import ReplicaSummary, check_same
from fencepost_testing.replica_files import check_replica_files
from fencepost_testing.verdict import Findings

RESUME_TIMEOUT_S = 60.0
MOVE_TIMEOUT_S = 90.0
SETTLE_TIMEOUT_S = 60.0
_POLL_S = 0.1
_POLL_RECORDS = 2_000
_POLL_MS = 200


async def wait_writable(admin: AdminClient, topic: str) -> float:
    """Return once every partition has committed something more than it had at the call; how long that took, in seconds.

    Raises FailoverFailed.
    """
    started = time.monotonic()
    before: dict[int, int] = {}
    late: list[int] = []
    while time.monotonic() - started < RESUME_TIMEOUT_S:
        ends = await _committed(admin, topic)
        partitions = len((await admin.describe_topic(topic)).partitions)
        for partition, end in ends.items():
            before.setdefault(partition, end)
        late = [index for index in range(partitions) if ends.get(index, -1) <= before.get(index, -1)]
        if not late:
            return time.monotonic() - started
        await asyncio.sleep(_POLL_S)
    raise FailoverFailed(f"partitions {late} of {topic} took no writes within {RESUME_TIMEOUT_S:g} s of the last fault")


async def _committed(admin: AdminClient, topic: str) -> dict[int, int]:
    """The high watermark that each partition's leader tells."""
    return {
        replica.partition: replica.high_watermark
        for broker in (await admin.describe_replicas()).values()
        for replica in broker.replicas
        if replica.topic == topic and replica.is_leader
    }


async def wait_moved(admin: AdminClient) -> None:
    """Return once no partition is on its way to other brokers. Raises FailoverFailed."""
    deadline = time.monotonic() + MOVE_TIMEOUT_S
    while moving := await admin.list_reassignments():
        if time.monotonic() > deadline:
            raise FailoverFailed(f"partitions have not moved within {MOVE_TIMEOUT_S:g} s: {moving}")
        await asyncio.sleep(_POLL_S)


async def wait_settled(admin: AdminClient, topic: str) -> dict[int, int]:
    """Return once all replicas of each partition have the same end and know that it is committed: that end, by partition.

    Raises FailoverFailed.
    """
    wanted = {(p.partition, broker) for p in (await admin.describe_topic(topic)).partitions for broker in p.replicas}
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        told: dict[tuple[int, int], tuple[int, int]] = {}
        for broker, replicas in (await admin.describe_replicas()).items():
            for replica in replicas.replicas:
                if replica.topic == topic and (replica.partition, broker) in wanted:
                    told[replica.partition, broker] = replica.log_end_offset, replica.high_watermark
        ends = {partition: set[int]() for partition, _ in wanted}
        for (partition, _), offsets in told.items():
            ends[partition].update(offsets)
        if len(told) == len(wanted) and all(len(offsets) == 1 for offsets in ends.values()):
            return {partition: next(iter(offsets)) for partition, offsets in sorted(ends.items())}
        if time.monotonic() > deadline:
            raise FailoverFailed(f"replicas have not come to the same end within {SETTLE_TIMEOUT_S:g} s: {told}")
        await asyncio.sleep(_POLL_S)


async def read_everything(
    bootstrap: str, topic: str, history_file: Path, on_record: Callable[[ConsumerRecord], None]
) -> int:
    """One consumer reads every partition whole, and its history says so. Returns how many records that were.

    Raises StandsStill where records are missing and none comes.
    """
    history = History(history_file, process=FINAL_READER)
    try:
        async with Consumer(bootstrap, topic, history=history) as consumer:
            return await _read_everything(consumer, topic, history, on_record)
    finally:
        history.close()


async def _read_everything(
    consumer: Consumer, topic: str, history: History, on_record: Callable[[ConsumerRecord], None]
) -> int:
    finals = {tp: history.invoke_final(topic, tp.partition) for tp in consumer.assignment}
    starts = await consumer.beginning_offsets(consumer.assignment)
    ends = await consumer.end_offsets(consumer.assignment)
    records, moved_at = 0, time.monotonic()
    while left := [tp for tp, end in ends.items() if await consumer.position(tp) < end]:
        polled = await consumer.poll(_POLL_RECORDS, _POLL_MS)
        records += len(polled)
        for record in polled:
            on_record(record)
        if polled:
            moved_at = time.monotonic()
        elif time.monotonic() - moved_at > STILL_TIMEOUT_S:
            raise StandsStill(f"nothing to read for {STILL_TIMEOUT_S:g} s, below the ends {[ends[tp] for tp in left]}")
    for tp, final in finals.items():
        history.complete_final(final, topic, tp.partition, starts[tp], ends[tp])
    return records


async def check_files(
    cluster: LocalCluster, topic: str, replicas: dict[int, tuple[int, ...]], ends: dict[int, int]
) -> tuple[Findings, int, int]:
    """Of every replica: the findings, how many were checked, and the records in one replica of each partition."""
    findings, checked, records = Findings(), 0, 0
    for partition, brokers in replicas.items():
        summaries: list[ReplicaSummary] = []
        for broker in brokers:
            summary = await asyncio.to_thread(check_replica_files, cluster, broker, topic, partition)
            findings.merge(summary.findings)
            summaries.append(summary)
        findings.merge(check_same(summaries, ends[partition]))
        checked += len(summaries)
        records += summaries[0].records
    return findings, checked, records
