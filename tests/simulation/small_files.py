"""Bytes that change in a log's small files: the indexes and the leader-epoch checkpoint. Nothing may come of it.

At the end of every run logs are searched by time. Bytes change in some runs; index entries stand closer together then, or no
segment would have one.
"""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING
from unittest.mock import patch

from fencepost_node.folders import partition_folders
from fencepost_node.log.config import LogConfig
from fencepost_node.log.names import EPOCH_CHECKPOINT, INDEX_SUFFIX, TIME_INDEX_SUFFIX
from fencepost_node.log.segment import NO_TIMESTAMP
from fencepost_proto.protocol.record_batch import iter_batches
from tests.simulation.cluster import broker_node
from tests.simulation.judged import PartitionRecord

if TYPE_CHECKING:
    from tests.simulation.nemesis import Nemesis

INDEX_INTERVAL_BYTES = 300
LOOK_UPS = 30  # of each replica
SMALL_FILES = (INDEX_SUFFIX, TIME_INDEX_SUFFIX, EPOCH_CHECKPOINT)


def close_entries() -> AbstractContextManager[object]:
    """A world in which every few batches have an entry in the indexes."""
    close = partial(LogConfig, index_interval_bytes=INDEX_INTERVAL_BYTES)
    return patch.object(partition_folders, "LogConfig", close)


class SmallFiles:
    """A kind of fault of a nemesis."""

    def __init__(self, nemesis: Nemesis, chance: random.Random) -> None:
        self._harmed: dict[tuple[int, str], None] = {}  # (broker, path): once each; of two entries nothing is promised
        self._nemesis = nemesis
        self._chance = chance

    async def rot(self) -> None:
        """Under a running process, or between two: the next one reads the files."""
        cluster, chance = self._nemesis.cluster, self._chance
        broker_id = chance.choice(cluster.settings.broker_ids)
        node = broker_node(broker_id)
        disk = cluster.world.machine(node).disk
        logs = tuple(f"/data/{record.name}/" for record in cluster.judge.records.values())
        small = {path: file for path, file in disk.files() if path.startswith(logs) and path.endswith(SMALL_FILES)}
        files = {p: len(f.content) for p, f in small.items() if f.content and (broker_id, p) not in self._harmed}
        if not files:
            return
        restarts = chance.random() < 0.5
        if restarts:
            cluster.world.kill(node)
        for path in chance.sample(sorted(files), min(len(files), chance.choice((1, 3)))):
            position, bits = chance.randrange(files[path]), chance.randrange(1, 256)
            cluster.world.tell("nemesis", f"changes byte {position} of {path} on broker {broker_id} by {bits:#04x}")
            disk.corrupt(path, position, bits)
            self._harmed[broker_id, path] = None
        if restarts:
            await self._nemesis.down(node)

    def judge(self) -> None:
        """Every replica in sync answers by time what its batches say, and knows its newest time, by which retention goes."""
        judge = self._nemesis.cluster.judge
        for record in judge.records.values():
            for broker_id in judge.image.partitions[record.key].isr:
                if not record.tainted:
                    self._judge_log(record, broker_id)

    def _judge_log(self, record: PartitionRecord, broker_id: int) -> None:
        cluster = self._nemesis.cluster
        log = cluster.brokers[broker_id].manager.replicas[record.key].log
        start = log.log_start_offset
        contents = cluster.judge.view(record, broker_id).contents()
        stored = [header for content in contents for _, header in iter_batches(content)]
        batches = [batch for batch in stored if batch.end_offset > start]
        times = sorted({batch.max_timestamp for batch in batches})
        for time_ms in self._chance.sample(times, min(len(times), LOOK_UPS)):
            expected = next((max(b.base_offset, start), b.max_timestamp) for b in batches if b.max_timestamp >= time_ms)
            if (found := log.offset_for_timestamp(time_ms)) != expected:
                where = f"{record.name}: broker {broker_id} at {time_ms}"
                cluster.judge.fail("G10", f"{where} finds {found} by time; it is {expected}")
            cluster.judge.count("look-ups by time")
        newest = max((batch.max_timestamp for batch in stored), default=NO_TIMESTAMP)
        if log.largest_timestamp_ms != newest:  # retention by time goes by it
            told = f"takes {log.largest_timestamp_ms} for the newest time"
            cluster.judge.fail("G1", f"{record.name}: broker {broker_id} {told}; it is {newest}")
