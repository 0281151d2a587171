"""Operators who change topics while everything else goes wrong: other settings, more partitions, deleted records."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from fencepost_proto.protocol.metadata import format_setting
from fencepost_proto.protocol.v1 import broker_pb2, controller_pb2
from tests.simulation.cluster import SimCluster

if TYPE_CHECKING:
    from tests.simulation.workload import ConsumerApp

MAX_PARTITIONS = 5  # of one topic, after all changes
CHOICES: dict[str, tuple[int | bool | str, ...]] = {
    "min_insync_replicas": (1, 2),
    "retention_bytes": (-1, 4_000, 20_000),
    "retention_ms": (-1, 3_000, 10_000),
    "segment_bytes": (1_000, 3_000),
    "flush_always": (False, True),
    "message_timestamp_type": ("create", "append"),
    "message_timestamp_after_max_ms": (-1,),
}


class TopicChanges:
    """Draws from a source of its own, so that a run without these faults is as it was."""

    def __init__(self, cluster: SimCluster, chance: random.Random) -> None:
        self._cluster = cluster
        self._random = chance
        self.readers: list[ConsumerApp] = []
        self.grown = False  # some topic has got more partitions

    async def delete_records(self) -> None:
        """Up to some offset that is committed, or up to the high watermark, of a partition with a leader."""
        led = [p for p in self._cluster.judge.image.partitions.values() if p.leader >= 0]
        if not led:
            return
        partition = self._random.choice(led)
        record = self._cluster.judge.record(partition.id)
        committed = record.committed_end if record is not None else 0
        end_offset = self._random.choice((-1, self._random.randint(0, committed), self._random.randint(0, committed)))
        topic_id, index = partition.id
        request = broker_pb2.DeleteRecordsRequest(
            topic_id=topic_id, partition=index, leader_epoch=partition.leader_epoch, end_offset=end_offset
        )
        await self._cluster.ask_broker(partition.leader, "DeleteRecords", request)

    async def change_settings(self) -> None:
        topics = list(self._cluster.judge.image.topics.values())
        if not topics:
            return
        name = self._random.choice(sorted(CHOICES))
        value = format_setting(self._random.choice(CHOICES[name]))
        request = controller_pb2.AlterTopicConfigRequest(name=self._random.choice(topics).name)
        if self._random.random() < 0.2:
            request.reset.append(name)
        else:
            request.set.add(name=name, value=value)
        await self._cluster.ask_admin("AlterTopicConfig", request)

    async def add_partitions(self) -> None:
        """One or two; readers subscribe again."""
        image = self._cluster.judge.image
        topics = [t for t in image.topics.values() if len(image.partitions_of(t.topic_id)) < MAX_PARTITIONS]
        if not topics:
            return
        topic = self._random.choice(topics)
        count = min(MAX_PARTITIONS, len(image.partitions_of(topic.topic_id)) + self._random.randint(1, 2))
        request = controller_pb2.CreatePartitionsRequest(name=topic.name, partitions=count)
        await self._cluster.ask_admin("CreatePartitions", request)
        self.grown = True
        for reader in self.readers:
            self.subscribe_again(reader)

    def subscribe_again(self, reader: ConsumerApp) -> None:
        self._cluster.world.tell("operator", f"starts {reader.node} again")
        self._cluster.world.kill(reader.node)
        reader.start()
