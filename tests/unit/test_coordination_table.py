"""The table of an internal topic's partition is the fold of its records, whatever happens to the log."""

from __future__ import annotations

import random

import pytest

from fencepost_node.coordination.table import TABLE, Entry, Table, decode_table, encode_table
from fencepost_node.log.disk import Disk
from fencepost_node.log.log import Log
from fencepost_node.log.verify import verify_log
from fencepost_node.state_machines import OF_INTERNAL_TOPICS, STATE_MACHINES, machines_of, machines_of_folder
from fencepost_proto.protocol.errors import CorruptMessage, InvariantBroken
from fencepost_proto.protocol.internal_topics import OFFSETS_TOPIC
from fencepost_proto.protocol.record_batch import check_produced
from fencepost_proto.protocol.records import BatchBuilder, Compression
from tests.unit.batches import with_field
from tests.unit.logs import FOLDER, NOW_MS, Machine, settings


def batch_of(entries: list[Entry], compression: Compression = Compression.NONE) -> bytes:
    builder = BatchBuilder(compression, 1 << 20)
    for key, value in entries:
        assert builder.append(NOW_MS, key, value, [])
    return builder.build(-1, -1, -1)


class Model:
    """A log, and what each offset's table is."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.open()
        self.tables: dict[int, dict[bytes, bytes]] = {0: {}}

    def open(self) -> None:
        changes = settings(retention_bytes=1_500)
        self.log = Log.open(self.disk, FOLDER, changes, NOW_MS, OF_INTERNAL_TOPICS)

    def append(self, entries: list[Entry], compression: Compression = Compression.NONE) -> None:
        expected = dict(self.tables[self.log.log_end_offset])
        for key, value in entries:
            expected.pop(key, None)
            if value is not None:
                expected[key] = value
        data = batch_of(entries, compression)
        self.log.append_as_leader(check_produced(data), data, 0)
        self.tables[self.log.log_end_offset] = expected
        self.check()

    def check(self) -> None:
        table, expected = self.log.states[TABLE], self.tables[self.log.log_end_offset]
        assert dict(table.items()) == expected
        assert table.size_bytes == Table(expected).size_bytes


def entries(chance: random.Random) -> list[Entry]:
    keys = [b"key-%d" % chance.randrange(12) for _ in range(chance.randint(1, 4))]
    return [(key, chance.randbytes(chance.randrange(40)) if chance.random() < 0.7 else None) for key in keys]


@pytest.mark.parametrize("seed", range(4))
def test_the_table_is_what_the_records_say_through_cuts_restarts_kills_and_retention(seed: int) -> None:
    chance = random.Random(seed)
    machine = Machine(seed)
    model = Model(machine.mount())
    for _ in range(150):
        what = chance.random()
        if what < 0.75:
            model.append(entries(chance), chance.choice([Compression.NONE, Compression.GZIP]))
        elif what < 0.85:
            model.log.maintain()
            model.log.apply_retention(NOW_MS, model.log.log_end_offset)
        elif what < 0.93:
            start, end = model.log.log_start_offset, model.log.log_end_offset
            model.log.truncate_to(
                chance.choice([border for border in sorted(model.tables) if start <= border <= end][-4:])
            )
        else:
            model.log.close(clean=chance.random() < 0.5)
            model.disk = machine.mount()
            model.open()
        model.check()
    assert model.log.log_start_offset > 0
    follower = Log.open(Machine().mount(), FOLDER, settings(), NOW_MS, OF_INTERNAL_TOPICS)
    follower.reset_to(model.log.log_start_offset, model.log.snapshot_at_base())
    while follower.log_end_offset < model.log.log_end_offset:
        follower.append_as_follower(model.log.read_batches(follower.log_end_offset, 500))
    assert follower.states[TABLE] == model.log.states[TABLE]
    model.log.close(clean=True)
    assert verify_log(machine.mount(), FOLDER, machines_of_folder(f"{OFFSETS_TOPIC}-0"), in_use=False).damage == []


def test_growth_is_told_before_the_append() -> None:
    table = Table({b"a": b"12345", b"b": b"1"})
    for change in ([(b"a", b"1")], [(b"c", b"xyz")], [(b"b", None)], [(b"d", None)], [(b"a", None), (b"e", b"")]):
        after = table.copy()
        after.apply(list(change))
        assert after.size_bytes == table.size_bytes + table.growth(list(change))


def test_records_without_a_key_change_nothing() -> None:
    model = Model(Machine().mount())
    model.append([(b"a", b"1")])
    builder = BatchBuilder(Compression.NONE, 1 << 16)
    assert builder.append(NOW_MS, None, b"1", [])
    data = builder.build(-1, -1, -1)
    model.log.append_as_leader(check_produced(data), data, 0)
    assert dict(model.log.states[TABLE].items()) == {b"a": b"1"}


def test_what_cannot_be_read_is_neither_folded_nor_appended() -> None:
    model = Model(Machine().mount())
    whole = bytearray(batch_of([(b"a", b"1")]))
    builder = BatchBuilder(Compression.GZIP, 1 << 16)
    assert builder.append(NOW_MS, b"a", b"1", [])
    broken = bytearray(builder.build(-1, -1, -1))
    broken[61:] = bytes(len(broken) - 61)
    data = with_field(bytes(broken), 53, ">i", -1)  # with its CRC
    with pytest.raises(InvariantBroken, match="no coordinator has written"):
        model.log.append_as_leader(check_produced(data), data, 0)
    assert model.log.log_end_offset == 0
    model.log.append_as_leader(check_produced(bytes(whole)), bytes(whole), 0)
    assert dict(model.log.states[TABLE].items()) == {b"a": b"1"}


def test_bytes_of_a_table_are_taken_whole_or_not_at_all() -> None:
    table = Table({b"%d" % number: b"v" * (number % 7) for number in range(1_100)})
    pauses: list[None] = []
    data = encode_table(table, lambda: pauses.append(None))
    assert decode_table(data) == table
    assert len(pauses) == 1
    for end in range(0, len(data), 997):
        with pytest.raises(CorruptMessage):
            decode_table(data[:end])
    with pytest.raises(CorruptMessage, match="format 2"):
        decode_table(data, 2)
    with pytest.raises(CorruptMessage):
        decode_table(data + b"\0")


def test_only_internal_topics_fold_a_table() -> None:
    assert machines_of(OFFSETS_TOPIC) == OF_INTERNAL_TOPICS
    assert machines_of("orders") == machines_of_folder("orders-3") == machines_of_folder("strange") == STATE_MACHINES
    assert machines_of_folder("__consumer_offsets-3") == OF_INTERNAL_TOPICS
