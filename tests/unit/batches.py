"""Batches for tests: built as a client builds them, stamped with whatever a test wants."""

from __future__ import annotations

import struct

from crc32c import crc32c

from fencepost_proto.protocol.record_batch import BatchHeader, read_header, stamp
from fencepost_proto.protocol.records import BatchBuilder, Compression

NO_PRODUCER = -1


def batch(
    count: int = 1,
    *,
    producer_id: int = NO_PRODUCER,
    epoch: int = -1,
    sequence: int = -1,
    base_offset: int = 0,
    leader_epoch: int = 0,
    timestamp_ms: int = 1_000,
    value: bytes | None = b"value",
    compression: Compression = Compression.NONE,
) -> bytes:
    """One batch of `count` records with the same value. With a producer id, epoch and sequence count from 0."""
    if producer_id != NO_PRODUCER:
        epoch, sequence = max(epoch, 0), max(sequence, 0)
    builder = BatchBuilder(compression, 1 << 30)
    for number in range(count):
        assert builder.append(timestamp_ms, str(number).encode(), value, [])
    return stamp(builder.build(producer_id, epoch, sequence), base_offset, leader_epoch)


def header_of(data: bytes) -> BatchHeader:
    return read_header(data)


def header(
    count: int = 1,
    *,
    producer_id: int = 1,
    epoch: int = 0,
    sequence: int = 0,
    base_offset: int = 0,
    leader_epoch: int = 0,
    timestamp_ms: int = 1_000,
) -> BatchHeader:
    """Only the header, for tests that need no bytes."""
    return BatchHeader(
        base_offset=base_offset,
        batch_length=100,
        leader_epoch=leader_epoch,
        magic=2,
        crc=0,
        attributes=0,
        last_offset_delta=count - 1,
        base_timestamp=timestamp_ms,
        max_timestamp=timestamp_ms,
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
        record_count=count,
    )


def with_field(data: bytes, position: int, layout: str, value: int) -> bytes:
    """The batch with one field of its header overwritten, and the CRC made right again."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, position, value)
    struct.pack_into(">I", changed, 17, crc32c(bytes(changed[21:])))
    return bytes(changed)
