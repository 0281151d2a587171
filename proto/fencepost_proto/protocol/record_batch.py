"""The Kafka v2 record batch, from outside: its header, and the two fields that a leader stamps.

Layout (big-endian; https://kafka.apache.org/documentation/#recordbatch)::

    0  base offset          int64   stamped by the leader, outside the CRC
    8  batch length         int32   bytes after this field
   12  leader epoch         int32   stamped by the leader, outside the CRC
   16  magic                int8    2
   17  CRC-32C              uint32  of everything from 21 to the end
   21  attributes           int16   compression (bits 0-2), timestamp type (3), transactional (4), control (5)
   23  last offset delta    int32   record count - 1
   27  base timestamp       int64   ms
   35  max timestamp        int64   ms
   43  producer id          int64   -1: not idempotent
   51  producer epoch       int16
   53  base sequence        int32
   57  record count         int32
   61  records

Nothing here reads a record: brokers touch batches only.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from crc32c import crc32c

from fencepost_proto.protocol.errors import CorruptMessage, InvalidRecord, UnsupportedForMessageFormat

HEADER_BYTES = 61
LENGTH_END = 12  # base offset and batch length: enough to find the next batch
MAGIC = 2
NO_PRODUCER_ID = -1
MAX_SEQUENCE = 2**31 - 1
MAX_EPOCH = 2**15 - 1
MIN_RECORD_BYTES = 7  # length, attributes, two deltas, key and value lengths, header count: a byte each at least
MAX_RECORDS_RATIO = 1_024  # bytes of records that a byte of compressed content may stand for: more than they can
COMPRESSION_MASK = 0x07  # of the attributes

_HEADER = struct.Struct(">qiibIhiqqqhii")
_OFFSET_LENGTH = struct.Struct(">qi")
_STAMP = struct.Struct(">qii")
_PRODUCER = struct.Struct(">qhi")
_CRC = struct.Struct(">I")
_TIMESTAMP = struct.Struct(">q")
_TIMESTAMP_BITS = struct.Struct(">Q")
_LAST_OFFSET_DELTA = struct.Struct(">i")
_LAST_OFFSET_DELTA_AT = 23
_BASE_TIMESTAMP_AT = 27
_MAX_TIMESTAMP_AT = 35
_CRC_AT = 17
_PRODUCER_AT = 43
_CRC_START = 21
_ATTRIBUTES_LOW = 22  # the low byte of the attributes
_STAMP_END = 16
_MAGIC_AT = 16
_TRANSACTIONAL = 0x10
_CONTROL = 0x20
APPEND_TIME_ATTRIBUTE = 0x08
_KNOWN_ATTRIBUTES = 0x07  # of clients, compression only: create-time stamps, no transactions, no control batches
_MAX_COMPRESSION = 4

Buffer = bytes | bytearray | memoryview


class BatchHeader(NamedTuple):
    """Every field of the header, in wire order. `size_bytes` is the whole batch's length."""

    base_offset: int
    batch_length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size_bytes(self) -> int:
        return LENGTH_END + self.batch_length

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_offset_delta

    @property
    def end_offset(self) -> int:
        """One past the last offset."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def last_sequence(self) -> int:
        return (self.base_sequence + self.record_count - 1) & MAX_SEQUENCE

    def stamped(self, base_offset: int, leader_epoch: int) -> BatchHeader:
        """As `stamp` leaves it."""
        return BatchHeader(base_offset, self.batch_length, leader_epoch, *self[3:])

    @property
    def idempotent(self) -> bool:
        return self.producer_id != NO_PRODUCER_ID


_AS_HEADER: Callable[[Iterable[int]], BatchHeader] = partial(tuple.__new__, BatchHeader)  # of 13 numbers, unchecked


def add_sequence(sequence: int, count: int) -> int:
    """`sequence` moved on by `count`, wrapping from 2^31-1 to 0."""
    return (sequence + count) & MAX_SEQUENCE


def read_header(buffer: Buffer, position: int = 0) -> BatchHeader:
    """The header at `position`, unchecked but for its presence.

    Raises CorruptMessage where fewer than 61 bytes are left, UnsupportedForMessageFormat for another magic.
    """
    left = len(buffer) - position
    if left < HEADER_BYTES:
        raise CorruptMessage(f"{left} bytes where a record batch's header of {HEADER_BYTES} is expected")
    magic = buffer[position + _MAGIC_AT]
    if magic != MAGIC:
        if magic in (0, 1):
            raise UnsupportedForMessageFormat(f"magic {magic}: only record batches of magic {MAGIC} are stored")
        raise CorruptMessage(f"magic {magic} is not {MAGIC}")
    return _AS_HEADER(_HEADER.unpack_from(buffer, position))


def check_batch(buffer: Buffer, position: int = 0) -> BatchHeader:
    """The header at `position`, with the batch's length, CRC and count checked against its bytes.

    Raises CorruptMessage (length, CRC), InvalidRecord (count, delta), UnsupportedForMessageFormat (magic).
    """
    header = read_header(buffer, position)
    size = LENGTH_END + header.batch_length
    if size < HEADER_BYTES or position + size > len(buffer):
        raise CorruptMessage(
            f"batch length {header.batch_length} at byte {position}: only {len(buffer) - position} bytes are there"
        )
    crc = crc32c(memoryview(buffer)[position + _CRC_START : position + size])
    if crc != header.crc:
        raise CorruptMessage(f"CRC {crc:#010x} of the batch is not {header.crc:#010x} as its header says")
    if header.record_count < 1 or header.last_offset_delta != header.record_count - 1:
        raise InvalidRecord(
            f"record count {header.record_count} with last offset delta {header.last_offset_delta}: "
            "a batch holds one record or more, and its delta is one less"
        )
    return header


def check_produced(buffer: Buffer) -> BatchHeader:
    """`check_batch`, and what a leader asks beyond it of a batch from a client: exactly one, of possible values."""
    header = check_batch(buffer)
    if header.size_bytes != len(buffer):
        raise InvalidRecord(f"{len(buffer)} bytes hold more than the one batch of {header.size_bytes}")
    unknown = header.attributes & ~_KNOWN_ATTRIBUTES
    if unknown or header.attributes & _KNOWN_ATTRIBUTES > _MAX_COMPRESSION:
        raise InvalidRecord(f"attributes {header.attributes:#06x} are not supported: compression 0 to 4 is")
    _check_count(header)
    if header.idempotent:
        if header.producer_id < 0:
            raise InvalidRecord(f"producer id {header.producer_id} is negative")
        if header.producer_epoch < 0:
            raise InvalidRecord(f"producer epoch {header.producer_epoch} of producer {header.producer_id} is negative")
        if header.base_sequence < 0:
            raise InvalidRecord(f"base sequence {header.base_sequence} of producer {header.producer_id} is negative")
    elif header.base_sequence >= 0 or header.producer_epoch >= 0:
        raise InvalidRecord(
            f"base sequence {header.base_sequence} and producer epoch {header.producer_epoch} without a producer id"
        )
    return header


def _check_count(header: BatchHeader) -> None:
    """Raises InvalidRecord for more records than the batch's bytes can hold, compressed as well as may be.

    Each record has an offset of its own, so that no two are the same bytes: the codecs' own greatest ratios (1,032 and
    far more) are not reached by records.
    """
    content_bytes = header.size_bytes - HEADER_BYTES
    ratio = MAX_RECORDS_RATIO if header.attributes & COMPRESSION_MASK else 1
    if header.record_count * MIN_RECORD_BYTES > content_bytes * ratio:
        raise InvalidRecord(f"record count {header.record_count}: more than {content_bytes} bytes of records can hold")


def iter_batches(buffer: Buffer) -> Iterator[tuple[int, BatchHeader]]:
    """(position, checked header) of each of the whole batches that `buffer` is made of. Raises as check_batch."""
    position = 0
    while position < len(buffer):
        header = check_batch(buffer, position)
        yield position, header
        position += LENGTH_END + header.batch_length


def last_end_offset(batches: Buffer, offset: int) -> int:
    """One past the last offset of the whole batches in `batches`, the first of which holds `offset`; without one, that.

    Looks at where each begins and at the last one's delta only: they were checked before. But bytes on a disk change: raises
    CorruptMessage where these cannot be right.
    """
    position, size, before = 0, len(batches), -1
    while position < size:
        if size - position < HEADER_BYTES:
            raise CorruptMessage(f"{size - position} bytes where a record batch's header of {HEADER_BYTES} is expected")
        base_offset, length = _OFFSET_LENGTH.unpack_from(batches, position)
        following = position + LENGTH_END + length
        if not before < base_offset or not position + HEADER_BYTES <= following <= size:
            raise CorruptMessage(f"a batch of base offset {base_offset} and length {length} stands at byte {position}")
        if following == size:
            (last_offset_delta,) = _LAST_OFFSET_DELTA.unpack_from(batches, position + _LAST_OFFSET_DELTA_AT)
            end_offset = int(base_offset + last_offset_delta + 1)
            if end_offset <= max(base_offset, offset):
                raise CorruptMessage(f"batches from offset {offset} on that end at {end_offset}")
            return end_offset
        position, before = following, base_offset
    return offset


def stamp(batch: Buffer, base_offset: int, leader_epoch: int) -> bytes:
    """A copy of the batch with its two leader's fields set; the CRC does not cover them."""
    _, length = _OFFSET_LENGTH.unpack_from(batch)
    return b"".join((_STAMP.pack(base_offset, length, leader_epoch), memoryview(batch)[_STAMP_END:]))


def at_append_time(batch: Buffer, now_ms: int) -> tuple[BatchHeader, bytes]:
    """The header and a copy of a batch whose records all have the leader's time, with its CRC.

    As in Kafka, the attribute says so and the header's max timestamp is that time; the records are as they were sent.
    """
    copy = bytearray(batch)
    copy[_ATTRIBUTES_LOW] |= APPEND_TIME_ATTRIBUTE
    _TIMESTAMP.pack_into(copy, _MAX_TIMESTAMP_AT, now_ms)
    _CRC.pack_into(copy, _CRC_AT, crc32c(memoryview(copy)[_CRC_START:]))
    return read_header(copy), bytes(copy)


def crcs_at(batch: Buffer, time_ms: int) -> tuple[int, int]:
    """The CRCs that the batch would have in two cases in which `time_ms` is its newest timestamp.

    - Its leader gave it this append time.
    - Its client encoded the same records at another time: kafkajs does so before every retry, and both timestamps of the
      header differ by as much, while the records' own (deltas) stay.
    """
    appended, _ = at_append_time(batch, time_ms)
    copy = bytearray(batch)
    header = read_header(copy)
    moved = header.base_timestamp + time_ms - header.max_timestamp
    _TIMESTAMP_BITS.pack_into(copy, _BASE_TIMESTAMP_AT, moved % 2**64)
    _TIMESTAMP.pack_into(copy, _MAX_TIMESTAMP_AT, time_ms)
    return appended.crc, crc32c(memoryview(copy)[_CRC_START:])


def without_compression(header: bytes) -> bytes:
    """A header for the same batch's records once they are decompressed. Its length and CRC are still the old ones."""
    copy = bytearray(header)
    copy[_ATTRIBUTES_LOW] &= ~COMPRESSION_MASK & 0xFF
    return bytes(copy)


def restamp(batch: Buffer, producer_id: int, producer_epoch: int, base_sequence: int) -> bytes:
    """A copy of the batch under another producer's stamp, with its CRC.

    Only for a batch that is certainly in no log: two stamps are two batches to every broker.
    """
    copy = bytearray(batch)
    _PRODUCER.pack_into(copy, _PRODUCER_AT, producer_id, producer_epoch, base_sequence)
    _CRC.pack_into(copy, _CRC_AT, crc32c(memoryview(copy)[_CRC_START:]))
    return bytes(copy)
