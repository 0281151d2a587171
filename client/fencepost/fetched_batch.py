"""The records of one batch that a leader has sent, checked before the application gets them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, dropwhile

from fencepost_proto.protocol.errors import CorruptMessage, InvalidRecord, UnsupportedForMessageFormat
from fencepost_proto.protocol.records import MAX_DECOMPRESSED_BYTES, Record, read_records


def open_batch(batch: bytes, position: int, max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES) -> Iterator[Record]:
    """The batch's records from `position` on: checked and decompressed now, decoded as they are taken.

    Raises CorruptMessage, now or while records are taken; DecompressedTooLarge above the limit.
    """
    records = read_records(batch, max_decompressed_bytes)
    try:
        first = next(records, None)
    except (InvalidRecord, UnsupportedForMessageFormat) as error:  # leaders do not store such a batch: it was damaged
        raise CorruptMessage(error.message) from error
    if first is None:
        raise CorruptMessage(f"{len(batch)} bytes hold no record")
    whole = chain((first,), records)
    return whole if first.offset >= position else dropwhile(lambda record: record.offset < position, whole)
