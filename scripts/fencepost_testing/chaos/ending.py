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

from fencepost import Consumer, ConsumerRecord
from fencepost.history import History
from fencepost_testing.chaos.measure import FINAL_READER
from fencepost_testing.local_cluster import LocalCluster
from fencepost_testing.read_back import STILL_TIMEOUT_S, StandsStill
from fencepost_testing.replica_check import ReplicaSummary, check_same
from fencepost_testing.replica_files import check_replica_files
from fencepost_testing.verdict import Findings

_POLL_RECORDS = 2_000
_POLL_MS = 200


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
