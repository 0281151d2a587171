"""What a test says that it sent and read, and the files of replicas, are judged as a correct log would have them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from fencepost.history_format import Operation, to_line
from fencepost_proto.protocol.record_batch import stamp
from fencepost_proto.protocol.records import BatchBuilder, Compression
from fencepost_testing import NotExactlyOnce, check_history
from fencepost_testing.exactly_once import _records
from fencepost_testing.log_check.findings import Kind
from fencepost_testing.replica_check import ReplicaSummary, batches_below, check_older, check_replica
from fencepost_testing.said_records import NotARecord, SaidRecord, StoredLog, operations_of, said_records

TOPIC = "orders"


@dataclass
class OfAClient:
    """As kafka-python's and aiokafka's records are: attributes."""

    value: bytes | None
    partition: int = -1
    offset: int | None = None
    topic: str = TOPIC


class OfLibrdkafka:
    """As confluent-kafka's: methods."""

    def __init__(self, value: bytes, error: str | None = None) -> None:
        self._value, self._error = value, error

    def value(self) -> bytes:
        return self._value

    def partition(self) -> int:
        return 1

    def offset(self) -> int:
        return 7

    def topic(self) -> str:
        return TOPIC

    def error(self) -> str | None:
        return self._error


def wrong_in(
    stored: list[StoredLog],
    *,
    sent: Iterable[object] | None = None,
    unacknowledged: Iterable[object] = (),
    read: Iterable[object] | None = None,
    ordered: bool = True,
) -> str:
    """What is found; empty: nothing."""
    operations, unplaced = operations_of(
        TOPIC,
        stored,
        None if sent is None else said_records(sent, "sent", TOPIC),
        said_records(unacknowledged, "unacknowledged", TOPIC),
        None if read is None else said_records(read, "read", TOPIC),
        ordered=ordered,
    )
    found = "\n".join(unplaced)
    try:
        check_history(operations, foreign_records=sent is None)
    except NotExactlyOnce as error:
        found += str(error)
    return found


def wrong(
    log: str,
    *,
    sent: str | None = None,
    unacknowledged: str = "",
    read: str | None = None,
    ordered: bool = True,
    start_offset: int = 0,
) -> str:
    """What is found in a partition whose records are the letters of `log`."""
    return wrong_in(
        [StoredLog(0, [(offset, letter.encode()) for offset, letter in enumerate(log)], start_offset)],
        sent=None if sent is None else list(sent),
        unacknowledged=list(unacknowledged),
        read=None if read is None else list(read),
        ordered=ordered,
    )


def test_values_and_the_records_of_all_clients_are_records() -> None:
    told = said_records(["ü", b"b", OfAClient(b"c"), OfAClient(b"d", 2, 9), OfLibrdkafka(b"e")], "sent", TOPIC)
    assert told == [
        SaidRecord("ü".encode()),
        SaidRecord(b"b"),
        SaidRecord(b"c"),
        SaidRecord(b"d", 2, 9),
        SaidRecord(b"e", 1, 7),
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (7, "read: 7 is neither a value"),
        (None, "read: None is neither a value"),
        (OfAClient(None), "read: a record's value is None; only bytes or text"),
        (OfLibrdkafka(b"", "Local: Timed out"), "is no record, but the error Local: Timed out"),
        (OfAClient(b"a", topic="paid"), "is a record of topic 'paid', and topic 'orders' is checked"),
    ],
)
def test_what_is_no_record_is_refused_by_name(record: object, message: str) -> None:
    with pytest.raises(NotARecord, match=message):
        said_records([record], "read", TOPIC)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ("text", r"sent='text': this is one value, and records are wanted: sent=\['text'\]"),
        (b"bytes", "sent=b'bytes': this is one value"),
        (5, "sent=5: records are wanted, in a list"),
        (None, "sent=None: records are wanted, in a list"),
    ],
)
def test_what_is_no_list_of_records_is_refused(records: object, message: str) -> None:
    with pytest.raises(NotARecord, match=message):
        said_records(records, "sent", TOPIC)


def test_what_was_sent_twice_cannot_be_told_apart() -> None:
    with pytest.raises(NotARecord, match="sent: b'a' twice"):
        wrong("ab", sent="aba")


def test_a_log_that_is_right_is_found_right() -> None:
    assert wrong("abc", sent="abc", read="abc") == ""
    assert wrong("acb", sent="abc", ordered=False) == ""
    assert wrong("abx", sent="ab", unacknowledged="xy") == ""
    assert wrong("", sent="", read="") == ""
    assert wrong("abc") == ""
    assert wrong("abbc", unacknowledged="cx") == "", "without sent, others may have sent the rest, and equal values"


@pytest.mark.parametrize(
    ("found", "log", "said"),
    [
        ("1 unseen", "ac", {"sent": "abc"}),
        ("1 duplicate", "abbc", {"sent": "abc"}),
        ("1 duplicate", "axbx", {"sent": "ab", "unacknowledged": "x"}),
        ("1 reordered", "acb", {"sent": "abc"}),
        ("1 phantom", "abz", {"sent": "ab"}),
        ("1 nonmonotonic-poll", "abc", {"read": "abbc"}),
        ("1 record of orders-0 was never read, at offset 1", "abc", {"read": "ac"}),
        ("2 records of orders-0 were never read, the first at offset 1", "abcd", {"read": "ad"}),
        ("1 duplicate", "axbx", {"unacknowledged": "x"}),
        ("b'z' was read, and is not in the log", "abc", {"read": "abcz"}),
    ],
)
def test_a_log_that_is_wrong_is_found_out_with_the_records_around_it(
    found: str, log: str, said: dict[str, str]
) -> None:
    message = wrong(log, **said)  # type: ignore[arg-type]
    assert found in message
    if "never read" not in found and "was read" not in found:
        assert "> " in message, "the evidence is marked among the operations around it"


def test_a_reader_that_names_places_is_compared_with_what_stands_there() -> None:
    stored = [StoredLog(0, [(0, b"a"), (1, b"b")])]
    assert "inconsistent-offsets" in wrong_in(stored, read=[OfAClient(b"a", 0, 0), OfAClient(b"x", 0, 1)])
    behind = wrong_in(stored, read=[OfAClient(b"a", 0, 0), OfAClient(b"b", 0, 1), OfAClient(b"c", 0, 2)])
    assert behind == "b'c' was read at orders-0 offset 2, where the log has no record"


def test_what_is_deleted_is_asked_of_no_one() -> None:
    for told in ("def", "abcdef", "bdef"):
        assert wrong("abcdef", sent=told, start_offset=3) == ""
        assert wrong("abcdef", read=told, start_offset=3) == ""
    assert wrong("abcdef", sent="def", read="abcdef", start_offset=3) == ""
    assert "1 record of orders-0 was never read, at offset 4" in wrong("abcdef", read="df", start_offset=3)
    assert "1 phantom" in wrong("abcdef", sent="df", start_offset=3)
    assert "1 duplicate" in wrong("abcdea", sent="abcde", start_offset=3), "the file has both still"
    cut = [StoredLog(0, [(3, b"d"), (4, b"e")], 3)]  # the segment is gone
    placed = [OfAClient(value.encode(), 0, offset) for offset, value in enumerate("abcde")]
    assert wrong_in(cut, sent=placed, read=placed) == ""
    assert wrong_in([StoredLog(0, [], 5)], sent=placed, read=placed) == ""


def test_equal_values_are_told_apart_by_their_places() -> None:
    stored = [StoredLog(0, [(0, b"v")]), StoredLog(1, [(0, b"v")])]
    both = [OfAClient(b"v", 0, 0), OfAClient(b"v", 1, 0)]
    assert wrong_in(stored, sent=both, read=both) == ""
    assert wrong_in(stored, sent=both, read=["v", "v"]) == ""
    assert wrong_in(stored, read=both) == ""
    assert "was never read, at offset 0" in wrong_in(stored, sent=both, read=both[:1])
    assert "1 duplicate" in wrong_in(stored, sent=both[:1])
    assert "1 duplicate" in wrong_in(stored, read=["v", "v"])
    assert "phantom: orders-1: 'v (orders-1 offset 1)' stands at offset 1" in wrong_in(
        [stored[0], StoredLog(1, [(0, b"v"), (1, b"v")])], sent=both
    )
    assert "1 lost-write" in wrong_in([stored[0], StoredLog(1, [])], sent=both)
    for twice in ([both[0], both[0]], [both[0], OfAClient(b"v")], ["v", "v"]):
        with pytest.raises(
            NotARecord, match="sent: b'v' twice; records are told apart by their values, or by partition"
        ):
            wrong_in(stored, sent=twice)


def test_the_message_says_no_more_than_is_known() -> None:
    missing = wrong("ac", sent="abc")
    assert "unseen: orders: 'b' of sent was acknowledged, and no read has found it" in missing
    assert " s sent" not in missing, "the times of what a test says are not known"
    foreign = wrong("az", sent="a")
    assert "phantom: orders-0: 'z' stands at offset 1, and no one sent it" in foreign


def test_recorded_histories_are_judged_from_files_and_from_lines(tmp_path: Path) -> None:
    def sent(process: str, number: int, offset: int) -> list[Operation]:
        return [
            Operation(process, number * 10, "invoke", "send", id=number, topic=TOPIC, value=f"{process}{number}"),
            Operation(process, number * 10 + 5, "ok", "send", id=number, topic=TOPIC, partition=0, offset=offset),
        ]

    first, second = sent("p", 1, 0), sent("q", 2, 1)
    read = [
        Operation("r", 30 + offset, "ok", "poll", topic=TOPIC, partition=0, records=((offset, value),))
        for offset, value in enumerate(("p1", "q2"))
    ]
    files = []
    for name, operations in (("p", first), ("q", second), ("r", read)):
        files.append(tmp_path / name)
        files[-1].write_text("".join(to_line(operation) + "\n" for operation in operations))
    assert check_history(*files).acked == 2
    assert check_history([*first, *second, *read]).acked == 2
    with pytest.raises(NotExactlyOnce, match="1 unseen"):
        check_history([*first, *second, read[0]])
    with pytest.raises(TypeError, match="a history is files, or one list"):
        check_history(first, second)


# ---- Files ----


def batch(base_offset: int, values: str, leader_epoch: int = 0) -> bytes:
    builder = BatchBuilder(Compression.NONE, 1000)
    for letter in values:
        builder.append(1_700_000_000_000, None, letter.encode(), [])
    return stamp(builder.build(-1, -1, -1), base_offset, leader_epoch)


def replica(broker: int, *batches: bytes) -> ReplicaSummary:
    return check_replica(broker, "orders-0", [(0, b"".join(batches))])


def test_a_batch_that_is_being_written_behind_the_end_is_not_looked_at() -> None:
    data = batch(0, "ab") + batch(2, "c") + batch(3, "d")[:20]
    assert [header.base_offset for header, _ in batches_below(data, 3)] == [0, 2]
    assert check_replica(1, "orders-0", [(0, data)], end_offset=3).findings.clean
    assert check_replica(1, "orders-0", [(0, data)]).findings.counts == {Kind.CORRUPT: 1}


def test_a_segment_behind_the_end_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "orders-0"
    folder.mkdir()
    (folder / f"{0:020d}.log").write_bytes(batch(0, "ab"))
    (folder / f"{2:020d}.log").write_bytes(batch(2, "c"))
    cluster = SimpleNamespace(member=lambda broker: SimpleNamespace(directory=tmp_path))
    for end, values in ((2, [b"a", b"b"]), (3, [b"a", b"b", b"c"]), (None, [b"a", b"b", b"c"])):
        read = _records(cluster, 1, (TOPIC, 0), end)  # type: ignore[arg-type]
        assert [record.value for record in read] == values


def test_a_replica_that_is_down_may_end_early_or_in_what_it_could_not_replicate() -> None:
    model = replica(1, batch(0, "ab"), batch(2, "c"), batch(3, "de", leader_epoch=2))
    for batches in (
        [],
        [batch(0, "ab")],
        [batch(0, "ab"), batch(2, "c")],
        [batch(0, "ab"), batch(2, "c"), batch(3, "xyz", leader_epoch=1)],
        [batch(0, "ab"), batch(2, "c"), batch(3, "de", leader_epoch=2), batch(5, "f", leader_epoch=2)],
    ):
        assert check_older(replica(2, *batches), model, 5).clean
    for batches in (
        [batch(0, "xy")],
        [batch(0, "ab"), batch(2, "x")],
        [batch(0, "ab"), batch(2, "c"), batch(3, "xy", leader_epoch=2)],
    ):
        found = check_older(replica(2, *batches), model, 5)
        assert found.counts == {Kind.DIVERGED: 1}
        assert "broker 2 orders-0, which does not run, differs from broker 1" in found.examples[0]


def test_a_replica_that_the_leader_counts_on_has_all_that_is_committed() -> None:
    model = replica(1, batch(0, "ab"), batch(2, "c"), batch(3, "de", leader_epoch=2))
    whole = [batch(0, "ab"), batch(2, "c"), batch(3, "de", leader_epoch=2)]
    for batches in (whole, [*whole, batch(5, "f", leader_epoch=2)]):
        assert check_older(replica(2, *batches), model, 5, has_all=True).clean
    short = check_older(replica(2, *whole[:2]), model, 5, has_all=True)
    assert short.examples == [
        "diverged: broker 2 orders-0, which does not run, ends at 3, below the high watermark 5, and the leader counts on "
        "it for all below that: broker 2 has offsets 0 to 2; broker 1 has offsets 0 to 4"
    ]
    assert "broker 2 has no record" in check_older(replica(2), model, 5, has_all=True).examples[0]
    replaced = replica(2, *whole[:2], batch(3, "xy", leader_epoch=1))
    assert check_older(replaced, model, 5).clean, "an older leader's, that was not committed"
    assert "differs from broker 1 at offset 3" in check_older(replaced, model, 5, has_all=True).examples[0]


def test_a_log_that_was_cut_short_ends_early_or_in_the_beginning_of_a_batch() -> None:
    data = batch(0, "ab") + batch(2, "c") + batch(3, "de")
    borders = [len(batch(0, "ab")), len(batch(0, "ab") + batch(2, "c")), len(data)]
    for size in range(len(data) + 1):
        summary = check_replica(2, "orders-0", [(0, data[:size])], stopped=True)
        assert summary.findings.clean, f"{size} bytes: {summary.findings.examples}"
        assert len(summary.batches) == sum(border <= size for border in borders)


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes((data[position] ^ 0xFF,)) + data[position + 1 :]


def test_what_a_kill_cannot_do_to_a_log_is_damage() -> None:
    first, second, third = batch(0, "ab"), batch(2, "cd"), batch(4, "ef")
    data, behind = first + second + third, len(first)
    damaged = {
        "all zero": bytes(len(data)),
        "the first batch": _flipped(data, 3),
        "a byte in the middle": _flipped(data, behind + len(second) // 2),
        "a length in the middle, too great": _flipped(data, behind + 9),
        "a byte of the last batch": _flipped(data, len(data) - 2),
        "a batch cut out": first + third,
        "the first batch cut out": second + third,
        "zeros behind": data + bytes(100),
        "another batch begun behind": data + batch(9, "x")[:30],
    }
    for what, content in damaged.items():
        found = check_replica(2, "orders-0", [(0, content)], stopped=True).findings
        assert found.counts[Kind.CORRUPT], what
        assert "broker 2 orders-0" in found.examples[0]
    segments = [(0, first + second[:20]), (4, third)]
    assert check_replica(2, "orders-0", segments, stopped=True).findings.counts == {Kind.CORRUPT: 1}


def test_an_empty_log_ends_where_what_was_deleted_ends() -> None:
    for end in (None, 7):
        summary = check_replica(1, "orders-0", [(7, b"")], end_offset=end)
        assert (summary.start_offset, summary.end_offset) == (7, 7)
