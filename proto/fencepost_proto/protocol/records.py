"""Records inside a batch: built and read by clients, with the compiled code of aiokafka.record."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple, cast

from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from fencepost_proto.protocol.decompression import Compression, decompress
from fencepost_proto.protocol.errors import CorruptMessage
from fencepost_proto.protocol.record_batch import (
    COMPRESSION_MASK,
    HEADER_BYTES,
    MAGIC,
    MIN_RECORD_BYTES,
    BatchHeader,
    iter_batches,
    without_compression,
)

__all__ = ["MAX_DECOMPRESSED_BYTES", "BatchBuilder", "Compression", "Headers", "Record", "read_records"]

Headers = list[tuple[str, bytes | None]]

MAX_DECOMPRESSED_BYTES = 64 * 1024 * 1024  # of one batch: eight times the largest that this project's producers make

# What the compiled reader raises for bytes that are not records.
_UNREADABLE = (
    CorruptRecordException, ValueError, IndexError, TypeError, RuntimeError, AssertionError, OverflowError, MemoryError,
    struct.error,
)  # fmt: skip


class Record(NamedTuple):
    """One record as a reader sees it."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class BatchBuilder:
    """Builds one batch of at most `size_bytes`; the first record is always taken, whatever its size."""

    def __init__(self, compression: Compression, size_bytes: int) -> None:
        self._builder = DefaultRecordBatchBuilder(
            magic=MAGIC,
            compression_type=int(compression),
            is_transactional=0,
            producer_id=-1,
            producer_epoch=-1,
            base_sequence=-1,
            batch_size=size_bytes,
        )
        self.record_count = 0

    def append(self, timestamp_ms: int, key: bytes | None, value: bytes | None, headers: Headers) -> bool:
        """False where the record does not fit any more."""
        if self._builder.append(self.record_count, timestamp_ms, key, value, headers) is None:
            return False
        self.record_count += 1
        return True

    def size_bytes(self) -> int:
        return int(self._builder.size())

    def build(self, producer_id: int, producer_epoch: int, base_sequence: int) -> bytes:
        """The finished batch with its stamp; the builder is used up."""
        self._builder.set_producer_state(producer_id, producer_epoch, base_sequence)
        return bytes(self._builder.build())


def read_records(batches: bytes, max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES) -> Iterator[Record]:
    """Every record of the whole batches in `batches`, in offset order.

    A batch may open to `max_decompressed_bytes`; the rest of it is not opened. Raises CorruptMessage
    (DecompressedTooLarge) where a batch's length, CRC, count or content is wrong, and nothing else for any bytes.
    """
    for position, header in iter_batches(batches):
        whole = memoryview(batches)[position : position + header.size_bytes]
        try:
            for record in _open(whole, header, max_decompressed_bytes):
                yield Record(record.offset, record.timestamp, record.key, record.value, cast(Headers, record.headers))
        except _UNREADABLE as error:
            raise CorruptMessage(f"batch at offset {header.base_offset} cannot be read: {error}") from error


def _open(batch: memoryview, header: BatchHeader, max_decompressed_bytes: int) -> DefaultRecordBatch:
    """The reader of one batch, decompressed. Raises CorruptMessage where its records cannot be as many as it says."""
    number = header.attributes & COMPRESSION_MASK
    if number > max(Compression):
        raise CorruptMessage(f"batch at offset {header.base_offset}: compression {number} is not known")
    codec = Compression(number)
    content: bytes | bytearray
    if codec is Compression.NONE:
        content = bytes(batch)
    else:
        opened_header = without_compression(bytes(batch[:HEADER_BYTES]))
        content = decompress(codec, batch[HEADER_BYTES:], max_decompressed_bytes, behind=opened_header)
    records_bytes = len(content) - HEADER_BYTES
    if header.record_count * MIN_RECORD_BYTES > records_bytes:
        raise CorruptMessage(
            f"batch at offset {header.base_offset} says it holds {header.record_count} records, in {records_bytes} bytes"
        )
    return DefaultRecordBatch(content)
