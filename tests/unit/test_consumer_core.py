"""What a consumer decides: every record once and in order, whatever answers come, late, twice, cut short or damaged."""

from __future__ import annotations

from collections import defaultdict
from random import Random
from struct import pack_into

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from fencepost.consuming.consumer_core import (
    MAX_BUFFERED_BYTES,
    MAX_CORRUPT_FETCHES,
    MAX_HAND_OUT_RECORDS,
    MAX_WAIT_MS,
    RETRY_BACKOFF_S,
    Ask,
    ConsumerCore,
    ResetPolicy,
    UnreadablePolicy,
)
from fencepost.consuming.partition import (
    LARGE_COMPRESSED_BYTES,
    LATEST,
    MAX_INLINE_BYTES,
    UNRESOLVED,
    ConsumerRecord,
    TopicPartition,
    end_of_batches,
)
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import CorruptMessage, CurrentLeader, InvalidRequest, OffsetOutOfRange
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.record_batch import HEADER_BYTES, read_header, stamp
from fencepost_proto.protocol.records import Compression
from fencepost_proto.protocol.v1 import broker_pb2
from tests.unit.batches import batch, with_field
from tests.unit.fake_broker_read import Log, batch_of

T0, T1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
KEYS: dict[TopicPartition, PartitionKey] = {T0: ("id", 0), T1: ("id", 1)}
LEADER = CurrentLeader(1, 0, "leader:1")


def value_at(tp: TopicPartition, offset: int) -> bytes:
    return f"{tp.partition}/{offset}".encode()


class World:
    """The leaders' logs, and the answers that they give."""

    def __init__(self) -> None:
        self.logs = {tp: Log() for tp in KEYS}

    def append(self, tp: TopicPartition, count: int, compression: Compression = Compression.NONE) -> None:
        log = self.logs[tp]
        log.append(batch_of([value_at(tp, log.end_offset + n) for n in range(count)], compression=compression))

    def answer(self, asked: broker_pb2.FetchPartition, max_bytes: int = 1 << 20) -> broker_pb2.FetchedPartition:
        log = self.logs[TopicPartition("orders", asked.partition)]
        fetched = broker_pb2.FetchedPartition(
            topic_id=asked.topic_id,
            partition=asked.partition,
            high_watermark=log.end_offset,
        )
        if log.start_offset <= asked.fetch_offset <= log.end_offset:
            fetched.records = log.read(asked.fetch_offset, max_bytes)
        else:
            fetched.error.CopyFrom(errors.to_proto(OffsetOutOfRange(str(asked.fetch_offset))))
        return fetched


def core_at(
    *positions: int, reset: ResetPolicy = "earliest", unreadable: UnreadablePolicy = "error", limit: int = 10**6
) -> ConsumerCore:
    core = ConsumerCore(reset, unreadable, limit)
    tps = [T0, T1][: len(positions)]
    core.assign({tp: KEYS[tp] for tp in tps}, dict(zip(tps, positions, strict=True)))
    return core


def ask(core: ConsumerCore, now_s: float = 0.0) -> Ask:
    return core.ask(core.routes(lambda _: LEADER).get(LEADER.address, frozenset()), now_s)


def fetch(core: ConsumerCore, world: World, now_s: float = 0.0) -> None:
    asked = ask(core, now_s)
    for partition in asked.partitions:
        core.accept_answer(asked.asked, world.answer(partition), now_s, "leader:1")


def resolve(core: ConsumerCore, world: World) -> None:
    while unresolved := core.unresolved():
        for tp, key, marker, generation in unresolved:
            assert key == KEYS[tp]
            log = world.logs[tp]
            core.resolve(tp, generation, log.end_offset if marker == LATEST else log.start_offset)


def hand_out_all(core: ConsumerCore, at_once: int = 100) -> list[ConsumerRecord]:
    handed: list[ConsumerRecord] = []
    while core.readable:
        large = core.large_batch()
        if large is not None:
            try:
                core.put_opened(large, large.open())
            except CorruptMessage as error:
                core.put_opened(large, error)
        handed += core.hand_out(at_once)
    return handed


def test_a_fetch_from_the_middle_of_a_batch_skips_what_lies_below() -> None:
    world, core = World(), core_at(7)
    world.append(T0, 5)
    world.append(T0, 5)
    fetch(core, world)
    records = hand_out_all(core)
    assert [r.offset for r in records] == [7, 8, 9]
    assert [r.value for r in records] == [value_at(T0, n) for n in (7, 8, 9)]
    assert core.position(T0) == 10
    assert core.high_watermark(T0) == 10


def test_partitions_take_turns_answer_by_answer() -> None:
    world, core = World(), core_at(0, 0)
    for tp in (T0, T1):
        world.append(tp, 3)
    fetch(core, world)
    for tp in (T0, T1):
        world.append(tp, 3)
    fetch(core, world)
    assert [(r.partition, r.offset) for r in core.hand_out(100)] == [
        *((0, n) for n in range(3)),
        *((1, n) for n in range(3)),
        *((0, n) for n in range(3, 6)),
        *((1, n) for n in range(3, 6)),
    ]


def test_the_partition_that_waited_longest_is_asked_for_first() -> None:
    world, core = World(), core_at(0, 0)
    world.append(T0, 1)
    fetch(core, world)
    assert [p.partition for p in ask(core).partitions] == [1, 0]


def test_nothing_is_asked_while_the_buffer_is_full_and_again_when_it_has_room() -> None:
    world, core = World(), core_at(0)
    big = batch_of([bytes(MAX_BUFFERED_BYTES // 2 + 1000)])
    for _ in range(2):
        world.logs[T0].append(big)
        fetch(core, world)
    assert core.buffered_bytes >= MAX_BUFFERED_BYTES
    assert ask(core).partitions == []
    core.hand_out(1)
    assert core.buffered_bytes < MAX_BUFFERED_BYTES
    assert [p.fetch_offset for p in ask(core).partitions] == [2]
    hand_out_all(core)
    assert core.buffered_bytes == 0


def test_a_hand_out_is_bounded_in_records() -> None:
    world, core = World(), core_at(0)
    world.append(T0, MAX_HAND_OUT_RECORDS + 1)
    fetch(core, world)
    assert len(core.hand_out(10 * MAX_HAND_OUT_RECORDS)) == MAX_HAND_OUT_RECORDS
    assert len(core.hand_out(10 * MAX_HAND_OUT_RECORDS)) == 1


def test_a_refused_partition_waits_its_time_and_shortens_the_others_long_poll() -> None:
    world, core = World(), core_at(0, 0)
    asked = ask(core)
    refusal = broker_pb2.FetchedPartition(topic_id="id", partition=0)
    refusal.error.CopyFrom(errors.to_proto(errors.UnknownLeaderEpoch("not yet")))
    core.accept_answer(asked.asked, refusal, 10.0)
    core.accept_answer(asked.asked, world.answer(asked.partitions[1]), 10.0)
    later = ask(core, 10.0)
    assert [p.partition for p in later.partitions] == [1]
    assert RETRY_BACKOFF_S * 1000 <= later.request().max_wait_ms <= RETRY_BACKOFF_S * 1000 + 1
    again = ask(core, 10.0 + RETRY_BACKOFF_S)
    assert [p.partition for p in again.partitions] == [0, 1]
    assert again.request().max_wait_ms == MAX_WAIT_MS


def test_a_newer_leader_is_asked_at_once_whatever_the_older_one_refused() -> None:
    core = core_at(0)
    asked = ask(core)
    refusal = broker_pb2.FetchedPartition(topic_id="id", partition=0)
    refusal.error.CopyFrom(errors.to_proto(errors.NotLeaderOrFollower("moved")))
    core.accept_answer(asked.asked, refusal, 10.0)
    assert ask(core, 10.0).partitions == []
    newer = core.routes(lambda _: CurrentLeader(2, 1, "newer:1"))["newer:1"]
    assert [p.leader_epoch for p in core.ask(newer, 10.0).partitions] == [1]


def test_a_refusal_for_good_fails_the_partition_and_leaves_the_other() -> None:
    world, core = World(), core_at(0, 0)
    asked = ask(core)
    refusal = broker_pb2.FetchedPartition(topic_id="id", partition=0)
    refusal.error.CopyFrom(errors.to_proto(errors.InvalidRequest("no such thing")))
    core.accept_answer(asked.asked, refusal, 0.0)
    assert [type(error) for error in core.failures()] == [InvalidRequest]
    world.append(T1, 1)
    fetch(core, world)
    assert [r.partition for r in hand_out_all(core)] == [1]


@pytest.mark.parametrize(("reset", "expected"), [("earliest", 6), ("latest", 9)])
def test_what_retention_removed_is_passed_as_the_policy_says(reset: ResetPolicy, expected: int) -> None:
    world, core = World(), core_at(2, reset=reset)
    for _ in range(3):
        world.append(T0, 3)
    world.logs[T0].remove_before(6)
    fetch(core, world)
    assert core.position(T0) == UNRESOLVED
    resolve(core, world)
    world.append(T0, 1)
    fetch(core, world)
    assert hand_out_all(core)[0].offset == expected


def test_what_was_fetched_before_retention_removed_what_follows_is_still_handed_out() -> None:
    world, core = World(), core_at(0)
    world.append(T0, 3)
    fetch(core, world)
    for _ in range(3):
        world.append(T0, 3)
    world.logs[T0].remove_before(9)
    fetch(core, world)
    assert [r.offset for r in hand_out_all(core)] == [0, 1, 2]
    fetch(core, world, now_s=RETRY_BACKOFF_S)
    resolve(core, world)
    fetch(core, world, now_s=RETRY_BACKOFF_S)
    assert [r.offset for r in hand_out_all(core)] == [9, 10, 11]


@pytest.mark.parametrize(("reset", "position"), [("error", 0), ("earliest", 50), ("latest", 50), ("error", 50)])
def test_a_position_above_the_end_is_an_error_and_below_the_start_too_if_the_policy_says_so(
    reset: ResetPolicy, position: int
) -> None:
    world, core = World(), core_at(position, reset=reset)
    world.append(T0, 3)
    world.append(T0, 3)
    world.logs[T0].remove_before(3)
    fetch(core, world)
    resolve(core, world)
    assert core.position(T0) == position
    (failure,) = core.failures()
    assert isinstance(failure, OffsetOutOfRange)
    assert f"offset {position} of orders-0" in failure.message
    assert ask(core).partitions == []
    core.seek(T0, 3)
    fetch(core, world)
    assert [r.offset for r in hand_out_all(core)] == [3, 4, 5]


@pytest.mark.parametrize("at", [16, 17, 25, 56, 60])  # magic, CRC, last offset delta, sequence, count
def test_a_damaged_header_is_damage_whatever_it_seems_to_say(at: int) -> None:
    world, core = World(), core_at(0)
    world.append(T0, 3)
    asked = ask(core)
    answer = world.answer(asked.partitions[0])
    answer.records = answer.records[:at] + bytes([answer.records[at] ^ 2]) + answer.records[at + 1 :]
    core.accept_answer(asked.asked, answer, 0.0)
    assert hand_out_all(core) == []
    assert core.failures() == []
    fetch(core, world)
    assert [r.offset for r in hand_out_all(core)] == [0, 1, 2]


def test_damaged_bytes_are_fetched_again_and_given_up_after_a_bounded_number_of_times() -> None:
    world, core = World(), core_at(0)
    world.append(T0, 3)
    for attempt in range(MAX_CORRUPT_FETCHES):
        assert core.failures() == [], attempt
        asked = ask(core)
        answer = world.answer(asked.partitions[0])
        answer.records = answer.records[:-1] + bytes([answer.records[-1] ^ 1])
        core.accept_answer(asked.asked, answer, 0.0)
        assert core.hand_out(10) == []
    assert [type(error) for error in core.failures()] == [CorruptMessage]
    core.seek(T0, 0)
    fetch(core, world)
    assert [r.offset for r in hand_out_all(core)] == [0, 1, 2]


def poison(codec: Compression, content: bytes, count: int = 3) -> bytes:
    """A batch as a hostile producer makes one: header and CRC are right, the content is anything."""
    data = bytearray(batch(count)[:HEADER_BYTES] + content)
    pack_into(">i", data, 8, len(data) - 12)
    return with_field(bytes(data), 21, ">h", int(codec))


def read_all(core: ConsumerCore, world: World) -> list[int]:
    offsets = []
    for _ in range(4 * MAX_CORRUPT_FETCHES):
        fetch(core, world)
        offsets += [record.offset for record in hand_out_all(core)]
    return offsets


POISON = {
    "no gzip": poison(Compression.GZIP, b"\x07" * 100),
    "no zstd, and large": poison(Compression.ZSTD, b"\x07" * 2 * LARGE_COMPRESSED_BYTES),
    "a bomb": poison(Compression.ZSTD, bytes(cramjam.zstd.compress(bytes(2_000_000)))),
    "no such codec": with_field(poison(Compression.NONE, b"\x07" * 100), 21, ">h", 5),
    "garbage": poison(Compression.NONE, b"\x07" * 100),
    "fewer records than it says": poison(Compression.NONE, batch(2)[HEADER_BYTES:]),
}  # fmt: skip


@pytest.mark.parametrize("name", POISON)
def test_a_batch_that_no_one_can_read_is_an_error_at_its_offset_or_skipped_and_reported(name: str) -> None:
    world = World()
    world.append(T0, 2)
    world.logs[T0].append(POISON[name])
    world.append(T0, 4)
    core = core_at(0)
    assert read_all(core, world) == [0, 1]
    (failure,) = core.failures()
    assert isinstance(failure, CorruptMessage)
    assert "orders-0 at offset 2, as broker leader:1 sent it: " in failure.message
    assert "the next batch begins at offset 5" in failure.message
    assert core.position(T0) == 2
    assert not core.skipped

    core = core_at(0, unreadable="skip")
    assert read_all(core, world) == [0, 1, 5, 6, 7, 8]
    assert core.failures() == []
    assert [(s.tp, s.offset, s.end_offset) for s in core.skipped] == [(T0, 2, 5)]
    assert "orders-0 at offset 2" in core.skipped[0].error.message


def test_a_batch_that_opens_to_much_is_opened_apart_up_to_the_limit() -> None:
    world = World()
    world.logs[T0].append(batch_of([bytes(MAX_INLINE_BYTES)], compression=Compression.GZIP))
    core = core_at(0, limit=2 * MAX_INLINE_BYTES)
    fetch(core, world)
    assert core.large_batch() is None  # by its compressed size it is small
    assert core.hand_out(10) == []
    assert core.large_batch() is not None
    assert [r.offset for r in hand_out_all(core)] == [0]
    core = core_at(0, limit=MAX_INLINE_BYTES)
    assert read_all(core, world) == []
    assert f"more than the limit of {MAX_INLINE_BYTES}" in str(core.failures()[0])


@pytest.mark.parametrize("followed", [True, False])
def test_a_damaged_batch_is_skipped_only_where_its_end_is_certain(followed: bool) -> None:
    """The CRC does not cover a header that is damaged: what it says of its end may be damage too."""
    world = World()
    world.append(T0, 2)
    bad = bytearray(batch_of([b"a", b"b"], compression=Compression.NONE))
    bad[-1] ^= 1
    world.logs[T0].append(bytes(bad))
    if followed:
        world.append(T0, 1)
    core = core_at(0, unreadable="skip")
    assert read_all(core, world) == ([0, 1, 4] if followed else [0, 1])
    assert len(core.failures()) == (not followed)
    assert len(core.skipped) == followed


def test_answers_that_are_no_batches_are_never_skipped() -> None:
    world, core = World(), core_at(0, unreadable="skip")
    world.append(T0, 3)
    for _ in range(MAX_CORRUPT_FETCHES):
        asked = ask(core)
        answer = world.answer(asked.partitions[0])
        answer.records = answer.records + b"more"
        core.accept_answer(asked.asked, answer, 0.0)
    assert [type(error) for error in core.failures()] == [CorruptMessage]
    assert not core.skipped
    assert core.position(T0) == 0


def test_a_large_compressed_batch_is_opened_apart_and_a_seek_meanwhile_wins() -> None:
    world, core = World(), core_at(0)
    values = [Random(n).randbytes(LARGE_COMPRESSED_BYTES // 40) for n in range(41)]
    world.logs[T0].append(batch_of(values, compression=Compression.GZIP))
    fetch(core, world)
    large = core.large_batch()
    assert large is not None
    assert core.hand_out(10) == []
    core.seek(T0, 5)
    core.put_opened(large, large.open())
    assert core.hand_out(10) == []
    fetch(core, world)
    assert [r.offset for r in hand_out_all(core)] == list(range(5, 41))
    assert core.buffered_bytes == 0


def test_the_high_watermark_never_goes_back() -> None:
    core = core_at(0)
    asked = ask(core)
    for told, seen in ((5, 5), (3, 5), (6, 6)):
        core.accept_answer(
            asked.asked, broker_pb2.FetchedPartition(topic_id="id", partition=0, high_watermark=told), 0.0
        )
        assert core.high_watermark(T0) == seen


def test_the_high_watermark_keeps_up_with_records_of_a_leader_that_does_not_tell_it_yet() -> None:
    """A chaos run with --seed 6: a new leader served 274 records below its predecessor's high watermark before it told
    its own."""
    world, core = World(), core_at(0)
    world.append(T0, 5)
    asked = ask(core)
    answer = world.answer(asked.partitions[0])
    answer.high_watermark = -1
    core.accept_answer(asked.asked, answer, 0.0)
    assert core.high_watermark(T0) == 5
    assert len(hand_out_all(core)) == 5


def test_routes_follow_leaders_epochs_and_seeks_and_a_partition_that_is_gone_fails() -> None:
    core = core_at(0, 0)
    first = core.routes(lambda key: CurrentLeader(key[1], 0, f"b{key[1]}:1"))
    assert {address: [r.key for r in routes] for address, routes in first.items()} == {
        "b0:1": [KEYS[T0]],
        "b1:1": [KEYS[T1]],
    }
    assert core.routes(lambda key: CurrentLeader(key[1], 1, f"b{key[1]}:1")) != first
    assert core.routes(lambda key: CurrentLeader(-1, 1, "")) == {}
    version = core.routes_version
    core.seek(T0, 0)
    assert core.routes_version > version
    assert core.routes(lambda key: CurrentLeader(key[1], 0, f"b{key[1]}:1")) != first
    assert core.routes(lambda key: None if key == KEYS[T0] else LEADER).keys() == {LEADER.address}
    assert [type(error) for error in core.failures()] == [errors.UnknownTopicOrPartition]


def test_assigning_anew_keeps_positions_of_what_stays_and_drops_the_rest() -> None:
    world, core = World(), core_at(0, 0)
    for tp in (T0, T1):
        world.append(tp, 4)
    fetch(core, world)
    core.hand_out(2)
    core.assign({T0: KEYS[T0]}, {})
    assert [r.offset for r in hand_out_all(core)] == [2, 3]
    assert core.buffered_bytes == 0
    core.assign(KEYS, {})
    assert core.position(T0) == 4
    assert core.position(T1) == UNRESOLVED
    with pytest.raises(InvalidRequest, match="other-0"):
        core.position(TopicPartition("other", 0))
    with pytest.raises(InvalidRequest, match="-1"):
        core.seek(T0, -1)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_an_answer_that_is_not_whole_batches_in_order_below_the_high_watermark_is_refused(data: st.DataObject) -> None:
    log = Log()
    for count in data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=5)):
        log.append(batch_of([b"x"] * count))
    whole = b"".join(batch for _, batch in log.batches)
    end = log.end_offset
    assert end_of_batches(whole, 0, end) == end_of_batches(whole, 0, -1) == end
    cut = data.draw(st.integers(1, len(whole) - 1))
    ends = {sum(len(batch) for _, batch in log.batches[:n]) for n in range(len(log.batches) + 1)}
    bad = [
        (whole, end, end),  # nothing that was asked for
        (whole, 0, end - 1),  # above the high watermark
        (stamp(whole, 1, 0), 0, end + 1),  # begins behind the offset asked for
        (whole + stamp(log.batches[0][1], end + 1, 0), 0, end + 9),  # a gap
        (whole + log.batches[-1][1], 0, end + 9),  # a repeat
        *([(whole[:cut], 0, end)] if cut not in ends else []),
    ]
    for records, fetch_offset, high_watermark in bad:
        with pytest.raises(CorruptMessage):
            end_of_batches(records, fetch_offset, high_watermark)


class Reading(RuleBasedStateMachine):
    """One consumer of two partitions; answers come late, twice, cut short and damaged; logs grow and shrink."""

    answers = Bundle("answers")

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.core = core_at(0, 0)
        self.expected: dict[TopicPartition, int] = defaultdict(int)
        self.now_s = 0.0
        self.seen_high_watermark = dict.fromkeys(KEYS, -1)

    @rule(tp=st.sampled_from([T0, T1]), count=st.integers(1, 6), compression=st.sampled_from(Compression))
    def append(self, tp: TopicPartition, count: int, compression: Compression) -> None:
        self.world.append(tp, count, compression)

    @rule(target=answers, max_bytes=st.integers(1, 500))
    def ask(self, max_bytes: int) -> tuple[Ask, list[broker_pb2.FetchedPartition]]:
        self.now_s += RETRY_BACKOFF_S
        asked = ask(self.core, self.now_s)
        return asked, [self.world.answer(partition, max_bytes) for partition in asked.partitions]

    def _take(self, answer: tuple[Ask, list[broker_pb2.FetchedPartition]]) -> None:
        for fetched in answer[1]:
            self.core.accept_answer(answer[0].asked, fetched, self.now_s)

    @rule(answer=consumes(answers))
    def accept_answer(self, answer: tuple[Ask, list[broker_pb2.FetchedPartition]]) -> None:
        self._take(answer)

    @rule(answer=answers)
    def take_and_keep_for_a_repeat(self, answer: tuple[Ask, list[broker_pb2.FetchedPartition]]) -> None:
        self._take(answer)

    @rule(answer=consumes(answers), at=st.integers(0, 10_000), bit=st.integers(0, 7))
    def take_damaged(self, answer: tuple[Ask, list[broker_pb2.FetchedPartition]], at: int, bit: int) -> None:
        for fetched in answer[1]:
            if fetched.records:
                damaged = bytearray(fetched.records)
                first = read_header(damaged).size_bytes
                damaged[16 + at % (first - 16)] ^= 1 << bit  # the 16 bytes before are outside the CRC
                fetched.records = bytes(damaged)
        self._take(answer)

    @rule(answer=consumes(answers))
    def take_refusal(self, answer: tuple[Ask, list[broker_pb2.FetchedPartition]]) -> None:
        for fetched in answer[1]:
            refusal = broker_pb2.FetchedPartition(topic_id=fetched.topic_id, partition=fetched.partition)
            refusal.error.CopyFrom(errors.to_proto(errors.NotLeaderOrFollower("moved")))
            self.core.accept_answer(answer[0].asked, refusal, self.now_s)

    @rule(count=st.integers(1, 8))
    def hand_out(self, count: int) -> None:
        records = self.core.hand_out(count)
        assert len(records) <= count
        for record in records:
            tp = TopicPartition(record.topic, record.partition)
            assert record.offset == self.expected[tp]
            assert record.value == value_at(tp, record.offset)
            self.expected[tp] += 1

    @rule(tp=st.sampled_from([T0, T1]), share=st.floats(0, 1))
    def seek(self, tp: TopicPartition, share: float) -> None:
        log = self.world.logs[tp]
        offset = log.start_offset + int(share * (log.end_offset - log.start_offset))
        self.core.seek(tp, offset)
        self.expected[tp] = offset

    @rule(tp=st.sampled_from([T0, T1]))
    def retention_removes_the_first_batch(self, tp: TopicPartition) -> None:
        log = self.world.logs[tp]
        if len(log.batches) > 1:
            log.remove_before(log.batches[1][0].base_offset)

    @rule()
    def resolve(self) -> None:
        for tp, _, _, generation in self.core.unresolved():
            start = self.world.logs[tp].start_offset
            assert self.expected[tp] < start, "only what retention removed may be skipped"
            self.core.resolve(tp, generation, start)
            self.expected[tp] = start

    @rule()
    def go_on_after_a_failure(self) -> None:
        for tp in KEYS:
            if self.core.failures():
                self.core.seek(tp, max(self.expected[tp], self.world.logs[tp].start_offset))
                self.expected[tp] = self.core.position(tp)

    @invariant()
    def positions_are_what_comes_next(self) -> None:
        for tp in KEYS:
            assert self.core.position(tp) in (self.expected[tp], UNRESOLVED)

    @invariant()
    def the_high_watermark_rises(self) -> None:
        for tp in KEYS:
            assert self.core.high_watermark(tp) >= self.seen_high_watermark[tp]
            self.seen_high_watermark[tp] = self.core.high_watermark(tp)

    def teardown(self) -> None:
        """When faults stop, everything is read to the end."""
        for _ in range(200):
            self.now_s += RETRY_BACKOFF_S
            self.go_on_after_a_failure()
            self.resolve()
            fetch(self.core, self.world, self.now_s)
            self.hand_out(1000)
        for tp, log in self.world.logs.items():
            assert self.expected[tp] == log.end_offset
        assert self.core.buffered_bytes == 0


Reading.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestReading = Reading.TestCase
