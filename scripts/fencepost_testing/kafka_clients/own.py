"""Fencepost's own consumer, with the calls of the others: so that it can be a member where they are."""

from __future__ import annotations

from fencepost import Consumer, TopicPartition
from fencepost.errors import PartitionLost
from fencepost_proto.protocol.errors import FencepostError
from fencepost_testing.failures import CommandFailed
from fencepost_testing.kafka_clients.reader import (
    COMMIT_INTERVAL_MS,
    MAX_POLL_RECORDS,
    POLL_MS,
    CommitFailed,
    KafkaReader,
    KafkaRecord,
)


class OwnReader(KafkaReader):
    """Its bootstrap is that for gRPC."""

    async def _start(self) -> None:
        self._consumer = Consumer(
            self._bootstrap,
            self._topic,
            group=self._group,
            start="latest" if self._offset_reset == "latest" else "earliest",
            auto_commit_ms=None if self._commits else COMMIT_INTERVAL_MS,
            on_assigned=lambda tps: self.assigned(tp.partition for tp in tps),
            on_revoked=lambda tps: self.revoked(tp.partition for tp in tps),
        )
        try:
            await self._consumer.start()
        except FencepostError as error:
            await self._consumer.close()
            raise CommandFailed(f"fencepost cannot start: {error}") from error

    async def _poll(self) -> list[KafkaRecord]:
        polled = await self._consumer.poll(MAX_POLL_RECORDS, POLL_MS)
        return [KafkaRecord(self._topic, each.partition, each.offset, each.key, each.value) for each in polled]

    async def _commit(self, offsets: dict[int, int]) -> None:
        try:
            await self._consumer.commit({TopicPartition(self._topic, p): offset for p, offset in offsets.items()})
        except FencepostError as error:
            raise CommitFailed(str(error), certain=isinstance(error, PartitionLost)) from error

    async def _stop(self) -> None:
        await self._consumer.close()
