"""The state of a partition's producers as bytes, for snapshots.

Layout (big-endian)::

    count        int32
    then for each producer, the longest idle first:
    producer id  int64
    epoch        int16
    wrapped      uint8   0 or 1
    batches      uint8   1 to 5
    then for each batch, the oldest first:
    sequences    int32, int32    first and last
    base offset  int64
    timestamp    int64   ms
    CRC          int64   -1: not known

This is format 2. Format 1 has no CRCs.
"""

from __future__ import annotations

import struct
from itertools import chain

from fencepost_node.log.state_machine import Pause, no_pause
from fencepost_node.producers.producer_state import (
    PRODUCERS_IN_A_TURN,
    REMEMBERED_BATCHES,
    ProducerEntry,
    ProducerState,
    RememberedBatch,
)
from fencepost_proto.protocol.errors import CorruptMessage

FORMAT = 2
_COUNT = struct.Struct(">i")
_ENTRY = struct.Struct(">qhBB")  # producer id, epoch, wrapped, number of batches
_BATCH = struct.Struct(">iiqqq")
_BATCH_WITHOUT_CRC = struct.Struct(">iiqq")
_BATCHES_OF = {1: _BATCH_WITHOUT_CRC, FORMAT: _BATCH}
_ENTRY_OF = [struct.Struct(">qhBB" + count * "iiqqq") for count in range(REMEMBERED_BATCHES + 1)]  # with its batches


def encode_producers(state: ProducerState, pause: Pause = no_pause) -> bytes:
    """The state as bytes; equal states have equal bytes.

    `pause` is called after every PRODUCERS_IN_A_TURN: a thread that encodes many of them lets others run.
    """
    parts = [_COUNT.pack(len(state))]
    for number, (producer_id, entry) in enumerate(state.items(), 1):
        batches = entry.batches
        whole = _ENTRY_OF[len(batches)]
        parts.append(whole.pack(producer_id, entry.epoch, entry.wrapped, len(batches), *chain.from_iterable(batches)))
        if number % PRODUCERS_IN_A_TURN == 0:
            pause()
    return b"".join(parts)


def decode_producers(data: bytes, format: int = FORMAT, pause: Pause = no_pause) -> ProducerState:
    """The state that `encode_producers` gave these bytes for; `pause` is called as there. Raises CorruptMessage."""
    layout = _BATCHES_OF.get(format)
    if layout is None:
        raise CorruptMessage(f"format {format} of producer state is not known: {FORMAT} is the newest")
    entries: dict[int, ProducerEntry] = {}
    try:
        (count,) = _COUNT.unpack_from(data)
        position = _COUNT.size
        for number in range(1, count + 1):
            producer_id, epoch, wrapped, batch_count = _ENTRY.unpack_from(data, position)
            position += _ENTRY.size
            if not 1 <= batch_count <= REMEMBERED_BATCHES:
                raise CorruptMessage(f"{batch_count} batches of producer {producer_id} in a state of producers")
            end = position + batch_count * layout.size
            batches = tuple(RememberedBatch(*batch) for batch in layout.iter_unpack(data[position:end]))
            if len(batches) != batch_count:
                raise CorruptMessage(f"a state of producers ends within producer {producer_id}")
            entries[producer_id] = ProducerEntry(epoch, bool(wrapped), batches)
            position = end
            if number % PRODUCERS_IN_A_TURN == 0:
                pause()
    except struct.error as error:
        raise CorruptMessage(f"a state of producers of {len(data)} bytes ends too early: {error}") from error
    if position != len(data) or len(entries) != count:
        raise CorruptMessage(f"a state of producers of {len(data)} bytes holds {len(entries)} producers, not {count}")
    return ProducerState(entries)
