"""Records inside a batch: built and read by clients, with the compiled code of aiokafka.record."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple, cast

from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from fencepost_proto.errors import CorruptMessage
from fencepost_proto.record_batch import MAGIC, iter_batches

Headers = list[tuple[str, bytes | None]]

# What the compiled reader and the codecs raise for bytes that are not records.
_UNREADABLE = (CorruptRecordException, ValueError, IndexError, TypeError, RuntimeError, AssertionError)


class Compression(IntEnum):
    """Codec numbers of the batch's attributes."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


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


def read_records(batches: bytes) -> Iterator[Record]:
    """Every record of the whole batches in `batches`, in offset order.

    Raises CorruptMessage where a batch's length, CRC or content is wrong.
    """
    for position, header in iter_batches(batches):
        batch = DefaultRecordBatch(batches[position : position + header.size_bytes])
        try:
            for record in batch:
                yield Record(record.offset, record.timestamp, record.key, record.value, cast(Headers, record.headers))
        except _UNREADABLE as error:
            raise CorruptMessage(f"batch at offset {header.base_offset} cannot be read: {error}") from error
