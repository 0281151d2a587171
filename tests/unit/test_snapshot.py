"""Snapshots: their bytes, those of older versions, and which are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from crc32c import crc32c

from fencepost_node.log.snapshot import MAX_PARTS, Snapshot, decode_snapshot, encode_snapshot
from fencepost_node.log.state_machine import AnyMachine, StateMachine, States
from fencepost_node.producers.producer_state import UNKNOWN_CRC, ProducerEntry, ProducerState, RememberedBatch
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_proto.protocol.errors import CorruptMessage
from tests.unit.counted_batches import BATCHES_COUNTED, BatchCount

# As brokers of these versions have written them, of the state below at offset 100.
OLDER = {
    1: "46505053000171e898260000000000000064000000020000000000000007000300020000000000000001000000000000005a0000000000"
    "0003e80000000200000002000000000000005c00000000000003e90000010000000000000001017fffffff0000000000000000000000620000"
    "0000000003ea",
    2: "465050530002b9813505000000000000006400000004000000020000000000000007000300020000000000000001000000000000005a00"
    "000000000003e80000000200000002000000000000005c00000000000003e90000010000000000000001017fffffff000000000000000000000"
    "06200000000000003ea",
    3: "4650505300035fe044d7000000000000006400000004000000020000000000000007000300020000000000000001000000000000005a00"
    "000000000003e800000000deadbeef0000000200000002000000000000005c00000000000003e900000000000000050000010000000000000001"
    "017fffffff00000000000000000000006200000000000003ea0000000000000000",
}
PRODUCERS_PART = OLDER[3][44:]


def state(*, crcs: bool) -> ProducerState:
    def remembered(first: int, last: int, base_offset: int, timestamp_ms: int, crc: int) -> RememberedBatch:
        return RememberedBatch(first, last, base_offset, timestamp_ms, crc if crcs else UNKNOWN_CRC)

    two = (remembered(0, 1, 90, 1_000, 0xDEADBEEF), remembered(2, 2, 92, 1_001, 5))
    across_the_wrap = (remembered(2**31 - 1, 0, 98, 1_002, 0),)
    return ProducerState({7: ProducerEntry(3, False, two), 2**40: ProducerEntry(0, True, across_the_wrap)})


@pytest.mark.parametrize(("version", "last_epoch", "crcs"), [(1, -1, False), (2, 4, False), (3, 4, True)])
def test_snapshots_of_older_versions_are_read(version: int, last_epoch: int, crcs: bool) -> None:
    snapshot = decode_snapshot(bytes.fromhex(OLDER[version]), (PRODUCERS,))
    assert (snapshot.offset, snapshot.last_epoch) == (100, last_epoch)
    assert snapshot.states[PRODUCERS] == state(crcs=crcs)


def test_a_snapshot_is_laid_out_as_its_file_says() -> None:
    written = encode_snapshot(Snapshot(100, States({PRODUCERS: state(crcs=True)}), 4))
    producers = bytes.fromhex(PRODUCERS_PART)
    content = (100).to_bytes(8) + (4).to_bytes(4) + b"\x01\x09producers\x02" + len(producers).to_bytes(4) + producers
    assert written == b"FPPS\x00\x04" + crc32c(content).to_bytes(4) + content
    decoded = decode_snapshot(written, (PRODUCERS,))
    assert (decoded.offset, decoded.last_epoch, decoded.states[PRODUCERS]) == (100, 4, state(crcs=True))


def test_each_state_machine_has_a_part_whatever_the_order() -> None:
    written = encode_snapshot(Snapshot(7, States({BATCHES_COUNTED: BatchCount(5), PRODUCERS: state(crcs=True)})))
    decoded = decode_snapshot(written, (PRODUCERS, BATCHES_COUNTED))
    assert decoded.states[BATCHES_COUNTED].batches == 5
    assert decoded.states[PRODUCERS] == state(crcs=True)
    assert decoded.states.machines == (PRODUCERS, BATCHES_COUNTED)


def empty(*machines: AnyMachine) -> bytes:
    return encode_snapshot(Snapshot(7, States.initial(machines)))


def test_a_part_that_the_log_does_not_fold_is_refused_by_name() -> None:
    with pytest.raises(CorruptMessage, match=r"at 7 has the part 'batch-count': this log folds \['producers'\]"):
        decode_snapshot(empty(PRODUCERS, BATCHES_COUNTED), (PRODUCERS,))


def test_a_part_that_is_not_there_is_refused_by_name() -> None:
    for data in (empty(PRODUCERS), bytes.fromhex(OLDER[3])):
        with pytest.raises(CorruptMessage, match="lacks the part 'batch-count'"):
            decode_snapshot(data, (PRODUCERS, BATCHES_COUNTED))


def test_a_newer_format_of_a_part_is_refused_by_name() -> None:
    newer = replace(PRODUCERS, format=PRODUCERS.format + 1)
    with pytest.raises(CorruptMessage, match="format 3 of producer state is not known"):
        decode_snapshot(empty(newer), (PRODUCERS,))


def with_parts(parts: bytes) -> bytes:
    content = (7).to_bytes(8) + (4).to_bytes(4) + parts
    return b"FPPS\x00\x04" + crc32c(content).to_bytes(4) + content


COUNTED = b"\x0bbatch-count\x01\x00\x00\x00\x08" + (5).to_bytes(8)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (b"", "0 parts"),
        (b"\x00", "0 parts"),
        (bytes((MAX_PARTS + 1,)) + (MAX_PARTS + 1) * COUNTED, "17 parts"),
        (b"\x02" + COUNTED, "part 2 of 2 in a snapshot has no whole name"),
        (b"\x02" + COUNTED + COUNTED, "'batch-count' twice"),
        (b"\x01" + COUNTED + b"\x00", "1 bytes follow the last part"),
        (b"\x01" + COUNTED[:-1], "within its part 'batch-count', of 8 bytes"),
        (b"\x01\x00\x01\x00\x00\x00\x00", "part 1 of 1 in a snapshot has no whole name"),
        (b"\x01" + bytes((33,)) + 33 * b"a" + b"\x01\x00\x00\x00\x00", "part 1 of 1 in a snapshot has no whole name"),
        (b"\x01\x02\xff\xfe\x01\x00\x00\x00\x00", "part 1 of 1 in a snapshot has no whole name"),
        (b"\x01\x0bbatch-count\x01\xff\xff\xff\xff", "'batch-count', of 4294967295 bytes"),
    ],
)
def test_what_is_not_exactly_parts_is_refused(parts: bytes, told: str) -> None:
    assert decode_snapshot(with_parts(b"\x01" + COUNTED), (BATCHES_COUNTED,)).states[BATCHES_COUNTED].batches == 5
    with pytest.raises(CorruptMessage, match=told):
        decode_snapshot(with_parts(parts), (BATCHES_COUNTED,))


def test_bytes_cut_or_changed_anywhere_are_no_snapshot() -> None:
    data = encode_snapshot(Snapshot(100, States({PRODUCERS: state(crcs=True)}), 4))
    for length in range(len(data)):
        with pytest.raises(CorruptMessage):
            decode_snapshot(data[:length], (PRODUCERS,))
    for position in range(len(data)):
        changed = data[:position] + bytes((data[position] ^ 1,)) + data[position + 1 :]
        with pytest.raises(CorruptMessage):
            decode_snapshot(changed, (PRODUCERS,))


@pytest.mark.parametrize("name", ["", "Producers", "a b", "é", "a" * 33])
def test_a_state_machine_has_a_name_that_a_part_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="the name is 1 to 32"):
        replace(BATCHES_COUNTED, name=name)


def machines_named(names: Sequence[str]) -> list[StateMachine[BatchCount]]:
    return [replace(BATCHES_COUNTED, name=name) for name in names]


def test_as_many_parts_as_there_may_be() -> None:
    machines = machines_named([f"m{number}" for number in range(MAX_PARTS)])
    assert decode_snapshot(empty(*machines), machines).states.machines == tuple(machines)
