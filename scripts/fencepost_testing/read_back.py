"""Reading a topic to its end, with a check of every record on the way."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable

from fencepost import Consumer, ConsumerRecord, TopicPartition
from fencepost_testing.failures import CommandFailed
from fencepost_testing.ledger import Ledger
from fencepost_testing.verdict import RecordCheck

STILL_TIMEOUT_S = 60.0
_POLL_RECORDS = 2_000
_POLL_MS = 200


class StandsStill(CommandFailed):
    """There is more to read, and nothing comes."""


class ReadBack:
    """What one consumer reads: checked against the ledgers, and a digest of each partition's records."""

    def __init__(self, ledgers: Iterable[Ledger]) -> None:
        self.check = RecordCheck(ledgers)
        self.next_offset: dict[int, int] = {}
        self.digests: dict[int, hashlib.blake2b] = {}

    @property
    def records(self) -> int:
        return self.check.records

    def add(self, record: ConsumerRecord) -> None:
        self.check.add(record.partition, record.offset, record.key, record.value)
        self.next_offset[record.partition] = record.offset + 1
        digest = self.digests.setdefault(record.partition, hashlib.blake2b(digest_size=16))
        digest.update(repr((record.offset, record.timestamp_ms, record.key, record.value)).encode())

    def digest(self, partition: int) -> bytes:
        return self.digests[partition].digest() if partition in self.digests else b""


async def read_to_end(consumer: Consumer, read: ReadBack, written: asyncio.Event | None = None) -> None:
    """Read all that is in the assigned partitions once `written` is set (now, where there is none).

    Raises StandsStill where records are missing and none comes for a while.
    """
    ends: dict[TopicPartition, int] | None = None
    moved_at = time.monotonic()
    while True:
        records = await consumer.poll(_POLL_RECORDS, _POLL_MS)
        for record in records:
            read.add(record)
        if ends is None and (written is None or written.is_set()):
            ends = await consumer.end_offsets(consumer.assignment)
        if ends is not None:
            left = {tp: end for tp, end in ends.items() if await consumer.position(tp) < end}
            if not left:
                return
        if records or ends is None:
            moved_at = time.monotonic()
        elif time.monotonic() - moved_at > STILL_TIMEOUT_S:
            raise StandsStill(f"nothing to read for {STILL_TIMEOUT_S:g} s, below the ends {left}")
