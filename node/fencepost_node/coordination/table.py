"""What a partition of an internal topic folds: the newest value of each key.

A record with a value puts it under the record's key; one without (a tombstone) removes the key. It is what compaction would
leave of the log, kept in memory and in snapshots, so the log itself may be cut at its start. What keys and values say does
not matter here: a follower folds the records of a newer version's coordinator, too.

The machine reads whole batches. Its records are uncompressed or compressed as in any batch. A record without a key is not
a coordinator's, and changes nothing. A batch that cannot be read was not written by one either: InvariantBroken.

Bounds: a coordinator appends nothing that would make its table larger than MAX_TABLE_BYTES. So a copy takes about a
millisecond, and a snapshot fits a message to a follower.

Bytes in a snapshot, format 1 (big-endian)::

    count         int32
    then for each entry, in the order in which the keys came:
    key length    int32
    key
    value length  int32
    value
"""

from __future__ import annotations

import struct
from collections.abc import ItemsView, Sequence
from typing import Final

from fencepost_node.log.state_machine import Pause, StateMachine, no_pause
from fencepost_proto.protocol.errors import CorruptMessage, InvariantBroken
from fencepost_proto.protocol.record_batch import Buffer

MAX_TABLE_BYTES: Final = 8 * 1024 * 1024
ENTRY_BYTES: Final = 8  # of an entry beside its key and value: their lengths in a snapshot
ENTRIES_IN_A_TURN: Final = 1_024  # encoded or decoded before other threads get a turn: about half a millisecond

FORMAT: Final = 1
_COUNT = struct.Struct(">i")
_LENGTH = struct.Struct(">i")

Entry = tuple[bytes, bytes | None]  # a record's key and value; None: a tombstone


class Table:
    """Newest values by key, and how many bytes they are."""

    __slots__ = ("_entries", "size_bytes")

    def __init__(self, entries: dict[bytes, bytes] | None = None) -> None:
        self._entries = entries or {}
        self.size_bytes = sum(ENTRY_BYTES + len(key) + len(value) for key, value in self._entries.items())

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]  # it changes

    def get(self, key: bytes) -> bytes | None:
        return self._entries.get(key)

    def items(self) -> ItemsView[bytes, bytes]:
        return self._entries.items()

    def growth(self, entries: Sequence[Entry]) -> int:
        """By how many bytes the table grows with these entries, each of another key; negative: it shrinks."""
        grown = 0
        for key, value in entries:
            old = self._entries.get(key)
            grown += ENTRY_BYTES + len(key) + len(value) if value is not None else 0
            grown -= ENTRY_BYTES + len(key) + len(old) if old is not None else 0
        return grown

    # ---- As a folded state ----

    def stage_batches(self, batches: Sequence[Buffer]) -> list[Entry]:
        """Raises InvariantBroken for batches whose records cannot be read."""
        from fencepost_proto.protocol.records import read_records  # loaded by `_new_table`

        staged: list[Entry] = []
        for batch in batches:
            try:
                staged += [
                    (record.key, record.value) for record in read_records(bytes(batch)) if record.key is not None
                ]
            except CorruptMessage as error:
                raise InvariantBroken(f"an internal topic holds what no coordinator has written: {error}") from error
        return staged

    def apply(self, staged: list[Entry]) -> None:
        entries = self._entries
        for key, value in staged:
            old = entries.get(key)
            if old is not None:
                self.size_bytes -= ENTRY_BYTES + len(key) + len(old)
            if value is not None:
                entries[key] = value
                self.size_bytes += ENTRY_BYTES + len(key) + len(value)
            elif old is not None:
                del entries[key]

    def copy(self) -> Table:
        copied = Table()
        copied._entries = self._entries.copy()
        copied.size_bytes = self.size_bytes
        return copied


def encode_table(table: Table, pause: Pause = no_pause) -> bytes:
    parts = [_COUNT.pack(len(table))]
    for number, (key, value) in enumerate(table.items(), 1):
        parts += (_LENGTH.pack(len(key)), key, _LENGTH.pack(len(value)), value)
        if number % ENTRIES_IN_A_TURN == 0:
            pause()
    return b"".join(parts)


def decode_table(data: bytes, format: int = FORMAT, pause: Pause = no_pause) -> Table:
    """Raises CorruptMessage."""
    if format != FORMAT:
        raise CorruptMessage(f"format {format} of a coordinator's table is not known: {FORMAT} is the newest")
    position = _COUNT.size
    count = _COUNT.unpack_from(data)[0] if len(data) >= position else -1

    def taken() -> bytes:
        nonlocal position
        start = position + _LENGTH.size
        length = _LENGTH.unpack_from(data, position)[0] if start <= len(data) else -1
        position = start + length
        if length < 0 or position > len(data):
            raise CorruptMessage(f"a coordinator's table of {len(data)} bytes ends within entry {len(entries) + 1}")
        return data[start:position]

    entries: dict[bytes, bytes] = {}
    for number in range(1, count + 1):
        key = taken()
        entries[key] = taken()
        if number % ENTRIES_IN_A_TURN == 0:
            pause()
    if position != len(data) or len(entries) != count:
        raise CorruptMessage(f"a coordinator's table of {len(data)} bytes holds {len(entries)} entries, not {count}")
    return Table(entries)


def _new_table() -> Table:
    """Loads the reader of records, which takes a fifth of a second, in the thread that opens the log. Brokers without such a
    partition never load it."""
    import fencepost_proto.protocol.records  # noqa: F401

    return Table()


TABLE = StateMachine(
    "table", format=FORMAT, initial=_new_table, encode=encode_table, decode=decode_table, reads_batches=True
)
