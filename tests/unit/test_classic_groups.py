"""Classic groups, question by question: what Kafka's clients rely on."""

from __future__ import annotations

import pytest

from fencepost_node.coordination import limits
from fencepost_node.coordination.classic_group import State
from fencepost_node.coordination.classic_rules import MemberIdGiven
from fencepost_node.coordination.coordinator import Answer, Coordinator, Decision, Question, load
from fencepost_node.coordination.messages import (
    NO_GENERATION,
    Alive,
    Commit,
    Committed,
    Deleted,
    DeleteGroup,
    DeleteOffsets,
    Describe,
    Description,
    FetchedOffsets,
    FetchOffsets,
    Heartbeat,
    Join,
    Joined,
    Leave,
    Leaver,
    Left,
    OffsetToCommit,
    Sync,
    Synced,
)
from fencepost_node.coordination.moment import Moment
from fencepost_node.coordination.record_bytes import decode_entry, encode_record
from fencepost_node.coordination.records import NO_TOPIC_ID, Key, OffsetKey, OffsetRecord, Record, Value
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError

DAY_MS = 24 * 3600 * 1000
SUBSCRIPTION = b"\0\1\0\0\0\1\0\6orders\0\0\0\0"


def value_of(record: Record) -> Value:
    assert record[1] is not None
    return record[1]


class Story:
    """One coordinator whose records are committed at once; answers by the name that was given to a question."""

    def __init__(self, initial_delay_s: float = 3.0) -> None:
        self.core = Coordinator()
        self.now, self.initial_delay_s = 0.0, initial_delay_s
        self.answers: dict[int, Answer] = {}
        self.table: dict[Key, Value] = {}
        self._token = 0

    @property
    def moment(self) -> Moment:
        return Moment(self.now, int(self.now * 1000), self.initial_delay_s)

    def ask(self, question: Question) -> int:
        self._token += 1
        try:
            decision = self.core.decide(question, self._token, self.moment)
        except FencepostError as error:
            self.answers[self._token] = error
            return self._token
        self._carry_out(decision)
        return self._token

    def _carry_out(self, decision: Decision) -> None:
        for record in decision.records:
            key, value = encode_record(record)
            if value is None:
                self.table.pop(record[0], None)
            else:
                decoded = decode_entry(key, value)
                assert decoded == record
                self.table[record[0]] = value_of(record)
        self.core.apply(decision)
        self.answers.update(decision.answers)

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := min((g.next_deadline() for g in self.core.groups.values()), default=until)) <= until:
            self.now = max(self.now, due)
            for group_id in [g.group_id for g in self.core.groups.values() if g.next_deadline() <= self.now]:
                self._carry_out(self.core.tick(group_id, self.moment))
        self.now = until

    def fail_over(self) -> None:
        self.core = load(self.table.items(), self.moment)

    def answer(self, token: int) -> Answer:
        return self.answers[token]

    def error(self, token: int) -> type[object]:
        answer = self.answers[token]
        assert isinstance(answer, FencepostError)
        return type(answer)

    # ---- Questions ----

    def join(
        self,
        name: str,
        *,
        member_id: str = "",
        static: bool = False,
        protocols: tuple[tuple[str, bytes], ...] = (("range", SUBSCRIPTION),),
        needs_id_first: bool = False,
        session_ms: int = 10_000,
        may_skip: bool = False,
    ) -> int:
        return self.ask(
            Join("g", member_id, name if static else None, "consumer", protocols, session_ms, 30_000, name, "host",
                 f"{name}-{self._token}", needs_id_first, may_skip)
        )  # fmt: skip

    def joined(self, token: int) -> Joined:
        answer = self.answers[token]
        assert isinstance(answer, Joined), answer
        return answer

    def sync(self, joined: Joined, assignments: dict[str, bytes] | None = None, instance_id: str | None = None) -> int:
        given = tuple((assignments or {}).items())
        return self.ask(Sync("g", joined.generation, joined.member_id, instance_id, "consumer", "range", given))

    def commit(self, joined: Joined | None, offset: int, partition: int = 0, metadata: str = "") -> int:
        generation, member_id = (joined.generation, joined.member_id) if joined else (NO_GENERATION, "")
        offsets = (OffsetToCommit("orders", partition, bytes(range(16)), offset, 3, metadata),)
        return self.ask(Commit("g", generation, member_id, None, offsets))

    def fetched(self) -> dict[int, int]:
        answer = self.answers[self.ask(FetchOffsets("g", None))]
        assert isinstance(answer, FetchedOffsets)
        return {each.partition: each.offset for each in answer.offsets}

    def stable_with(self, *names: str, static: bool = False) -> list[Joined]:
        """A group of these members; the first one leads."""
        tokens = [self.join(name, static=static) for name in names]
        self.pass_time(self.initial_delay_s * 2)
        joined = [self.joined(token) for token in tokens]
        assignments = {each.member_id: each.member_id.encode() for each in joined}
        for each, name in zip(joined, names, strict=True):
            leads = each.leader == each.member_id
            self.sync(each, assignments if leads else None, name if static else None)
        assert self.core.groups["g"].state is State.STABLE
        return joined


def test_the_first_rebalance_waits_for_others_for_the_initial_delay() -> None:
    story = Story()
    first = story.join("a")
    story.pass_time(2)
    second = story.join("b")
    story.pass_time(1.5)
    assert first not in story.answers  # the second came meanwhile: once more
    story.pass_time(3)
    assert story.joined(first).generation == story.joined(second).generation == 1
    assert {member.member_id for member in story.joined(first).members} == {"a-0", "b-1"}
    assert story.joined(second).members == ()


def test_without_a_delay_a_member_alone_is_a_generation_at_once() -> None:
    story = Story(0)
    assert story.joined(story.join("a")).generation == 1


def test_a_member_without_an_id_is_given_one_first() -> None:
    story = Story(0)
    given = story.answer(story.join("a", needs_id_first=True))
    assert isinstance(given, MemberIdGiven)
    assert story.core.groups["g"].state is State.EMPTY
    assert story.joined(story.join("a", member_id=given.member_id, needs_id_first=True)).member_id == given.member_id
    story.join("b", needs_id_first=True)
    story.pass_time(11)
    assert not story.core.groups["g"].pending  # it never came


def test_nobody_has_an_assignment_before_the_leader_has_given_it() -> None:
    story = Story()
    tokens = [story.join("a"), story.join("b")]
    story.pass_time(10)
    leader, other = (story.joined(token) for token in tokens)
    waits = story.sync(other)
    assert waits not in story.answers
    leads = story.sync(leader, {leader.member_id: b"0", other.member_id: b"1", "stranger": b"2"})
    assert story.answer(waits) == Synced("consumer", "range", b"1")
    assert story.answer(leads) == Synced("consumer", "range", b"0")
    assert story.answer(story.sync(other)) == Synced("consumer", "range", b"1")
    description = story.answer(story.ask(Describe("g")))
    assert isinstance(description, Description)
    assert [(member.client_id, member.assignment) for member in description.members] == [("a", b"0"), ("b", b"1")]


def test_a_new_member_makes_the_others_join_again() -> None:
    story = Story()
    a, b = story.stable_with("a", "b")
    new = story.join("c")
    assert story.error(story.ask(Heartbeat("g", 1, a.member_id, None))) is errors.RebalanceInProgress
    assert story.error(story.sync(a)) is errors.RebalanceInProgress
    assert isinstance(story.answer(story.commit(a, 5)), Committed)  # its generation is the newest that there is
    again = [story.join("a", member_id=a.member_id), story.join("b", member_id=b.member_id)]
    assert [story.joined(token).generation for token in (new, *again)] == [2, 2, 2]
    assert story.error(story.commit(a, 6)) is errors.IllegalGeneration
    assert story.error(story.commit(story.joined(again[0]), 6)) is errors.RebalanceInProgress
    assert story.fetched() == {0: 5}


def test_a_member_that_is_not_heard_of_is_removed() -> None:
    story = Story()
    a, b = story.stable_with("a", "b")
    for _ in range(3):
        story.pass_time(4)
        story.ask(Heartbeat("g", 1, a.member_id, None))
    assert story.error(story.ask(Heartbeat("g", 1, b.member_id, None))) is errors.UnknownMemberId
    again = story.joined(story.join("a", member_id=a.member_id))
    assert (again.generation, again.leader) == (2, a.member_id)


@pytest.mark.parametrize("why", ["it has left", "its session has ended"])
def test_the_next_leader_does_not_wait_for_a_member_that_is_gone(why: str) -> None:
    story = Story()
    a, b, c = story.stable_with("a", "b", "c")
    if why == "it has left":
        story.ask(Leave("g", (Leaver(b.member_id, None),)))
    else:
        for _ in range(3):
            story.pass_time(4)
            for alive in (a, c):
                story.ask(Heartbeat("g", 1, alive.member_id, None))
    for _ in range(2):  # leaders, one after the other
        story.fail_over()
        story.pass_time(0)
        for alive in (a, c):
            assert story.error(story.ask(Heartbeat("g", 1, alive.member_id, None))) is errors.RebalanceInProgress
    assert story.error(story.ask(Heartbeat("g", 1, b.member_id, None))) is errors.UnknownMemberId
    first, second = story.join("a", member_id=a.member_id), story.join("c", member_id=c.member_id)
    assert story.joined(first).generation == story.joined(second).generation == 2
    assert [member.member_id for member in story.joined(first).members] == [a.member_id, c.member_id]


def test_departures_from_a_large_group_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECORDED_DEPARTURE_BYTES", len(SUBSCRIPTION))
    story = Story()
    _, b, _ = story.stable_with("a", "b", "c")
    story.ask(Leave("g", (Leaver(b.member_id, None),)))
    story.fail_over()
    story.pass_time(0)
    assert isinstance(story.answer(story.ask(Heartbeat("g", 1, b.member_id, None))), Alive)
    assert story.core.groups["g"].state is State.STABLE


def test_who_does_not_ask_for_its_assignment_in_time_is_removed() -> None:
    story = Story()
    tokens = [story.join("a", session_ms=60_000), story.join("b", session_ms=60_000)]
    story.pass_time(10)
    a, b = (story.joined(token) for token in tokens)
    story.sync(a, {a.member_id: b"0", b.member_id: b"1"})
    story.pass_time(31)
    assert list(story.core.groups["g"].members) == [a.member_id]


def test_who_does_not_join_again_in_time_is_not_in_the_next_generation() -> None:
    story = Story()
    a, b = story.stable_with("a", "b")
    new = story.join("c")
    for _ in range(4):
        story.pass_time(8)
        story.ask(Heartbeat("g", 1, a.member_id, None))  # it lives, and does not join
        story.ask(Heartbeat("g", 1, b.member_id, None))
    assert [member.member_id for member in story.joined(new).members] == ["c-4"]


def test_a_group_that_all_have_left_is_empty_and_keeps_its_offsets_and_its_generation() -> None:
    story = Story()
    a, b = story.stable_with("a", "b")
    story.commit(a, 7)
    left = story.answer(
        story.ask(Leave("g", (Leaver(a.member_id, None), Leaver("nobody", None), Leaver(b.member_id, None))))
    )
    assert isinstance(left, Left)
    assert [error and type(error) for error in left.errors] == [None, errors.UnknownMemberId, None]
    assert story.core.groups["g"].state is State.EMPTY
    story.fail_over()
    assert story.fetched() == {0: 7}
    token = story.join("d")
    story.pass_time(10)
    assert story.joined(token).generation == 3


@pytest.mark.parametrize("may_skip", [False, True])
def test_a_static_member_that_starts_again_takes_its_place_without_a_rebalance(may_skip: bool) -> None:
    story = Story()
    a, b = story.stable_with("a", "b", static=True)
    again = story.joined(story.join("a", static=True, may_skip=may_skip))
    assert again.generation == 1
    assert again.member_id != a.member_id
    assert again.skip_assignment is may_skip
    assert (again.leader == again.member_id) is may_skip
    assert story.answer(story.sync(again, instance_id="a")) == Synced("consumer", "range", a.member_id.encode())
    assert story.error(story.ask(Heartbeat("g", 1, a.member_id, "a"))) is errors.FencedInstanceId
    assert story.error(story.sync(a, instance_id="a")) is errors.FencedInstanceId
    assert isinstance(story.answer(story.ask(Heartbeat("g", 1, b.member_id, "b"))), Alive)
    story.fail_over()
    assert again.member_id in story.core.groups["g"].members


def test_a_new_leader_knows_the_assignment_and_a_generation_that_has_none_yet() -> None:
    story = Story()
    a, b = story.stable_with("a", "b")
    story.fail_over()
    assert isinstance(story.answer(story.ask(Heartbeat("g", 1, a.member_id, None))), Alive)
    assert story.answer(story.sync(b)) == Synced("consumer", "range", b.member_id.encode())
    tokens = [story.join("c"), story.join("a", member_id=a.member_id), story.join("b", member_id=b.member_id)]
    story.fail_over()
    assert story.core.groups["g"].state is State.COMPLETING
    leader = next(story.joined(token) for token in tokens if story.joined(token).members)
    waits = story.sync(story.joined(tokens[0]))
    story.sync(leader, {member.member_id: b"x" for member in leader.members})
    assert isinstance(story.answer(waits), Synced)


def test_a_protocol_that_not_all_have_is_refused_and_the_preferred_one_is_chosen() -> None:
    story = Story()
    both = (("sticky", b"s"), ("range", b"r"))
    tokens = [story.join("a", protocols=both), story.join("b", protocols=both[::-1]), story.join("c", protocols=both)]
    assert story.error(story.join("d", protocols=(("other", b""),))) is errors.InconsistentGroupProtocol
    story.pass_time(10)
    assert story.joined(tokens[0]).protocol == "sticky"
    assert story.joined(tokens[0]).members[0].subscription == b"s"


def test_who_is_no_member_commits_to_a_group_without_members_only() -> None:
    story = Story()
    story.commit(None, 3)
    assert story.fetched() == {0: 3}
    story.stable_with("a")
    assert story.error(story.commit(None, 4)) is errors.UnknownMemberId
    missing = story.answer(story.ask(FetchOffsets("other", (("orders", 1),))))
    assert isinstance(missing, FetchedOffsets)
    assert [(each.partition, each.offset, each.metadata) for each in missing.offsets] == [(1, -1, "")]


def test_an_offset_keeps_its_metadata_and_its_topics_id() -> None:
    story = Story()
    story.commit(None, 3, metadata="é")
    story.fail_over()
    answer = story.answer(story.ask(FetchOffsets("g", (("orders", 0),))))
    assert isinstance(answer, FetchedOffsets)
    assert answer.offsets[0] == ("orders", 0, bytes(range(16)), 3, 3, "é")


def test_bounds_are_refused_by_name() -> None:
    story = Story()
    assert story.error(story.ask(Heartbeat("g" * 300, 1, "a", None))) is errors.InvalidGroupId
    assert story.error(story.ask(Heartbeat("", 1, "a", None))) is errors.InvalidGroupId
    assert story.error(story.join("a" * 300)) is errors.InvalidRequest
    assert story.error(story.join("a", session_ms=1)) is errors.InvalidSessionTimeout
    everyone = tuple(Leaver(str(number), None) for number in range(limits.MAX_MEMBERS + 1))
    assert story.error(story.ask(Leave("g", everyone))) is errors.InvalidRequest
    many = tuple(("orders", number) for number in range(limits.MAX_PARTITIONS_OF_A_QUESTION + 1))
    assert story.error(story.ask(FetchOffsets("g", many))) is errors.InvalidRequest
    assert story.error(story.join("a", protocols=())) is errors.InconsistentGroupProtocol
    assert story.error(story.join("a", protocols=(("p", b""),) * 2)) is errors.InvalidRequest
    too_much = (("range", bytes(limits.MAX_GROUP_BYTES)),)
    assert story.error(story.join("a", protocols=too_much)) is errors.GroupMaxSizeReached
    committed = story.answer(story.commit(None, 1, metadata="x" * 5_000))
    assert isinstance(committed, Committed)
    assert isinstance(committed.errors[0], errors.OffsetMetadataTooLarge)
    committed = story.answer(story.commit(None, -7))
    assert isinstance(committed, Committed)
    assert isinstance(committed.errors[0], errors.InvalidRequest)
    assert story.table == {}
    assert story.core.groups == {}


def test_a_group_takes_so_many_members_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_MEMBERS", 2)
    monkeypatch.setattr(limits, "MAX_GROUPS", 1)
    monkeypatch.setattr(limits, "MAX_OFFSETS_OF_A_GROUP", 1)
    story = Story()
    story.join("a", needs_id_first=True)
    story.join("b")
    assert story.error(story.join("c")) is errors.GroupMaxSizeReached
    assert story.error(story.ask(Commit("h", -1, "", None, (OffsetToCommit("t", 0, NO_TOPIC_ID, 1, -1, ""),)))) is (
        errors.GroupMaxSizeReached
    )
    other = Story()
    other.commit(None, 1)
    refused = other.answer(other.commit(None, 1, partition=1))
    assert isinstance(refused, Committed)
    assert isinstance(refused.errors[0], errors.InvalidCommitOffsetSize)
    assert isinstance(other.answer(other.commit(None, 2)), Committed)
    assert other.fetched() == {0: 2}


def test_offsets_are_deleted_where_no_one_uses_them() -> None:
    story = Story()
    (a,) = story.stable_with("a")
    story.commit(a, 3)
    deleted = story.answer(story.ask(DeleteOffsets("g", (("orders", 0), ("payments", 0)))))
    assert isinstance(deleted, Committed)
    assert [error and type(error) for error in deleted.errors] == [errors.GroupSubscribedToTopic, None]
    assert story.error(story.ask(DeleteGroup("g"))) is errors.NonEmptyGroup
    story.ask(Leave("g", (Leaver(a.member_id, None),)))
    deleted = story.answer(story.ask(DeleteOffsets("g", (("orders", 0),))))
    assert deleted == Committed((None,))
    assert story.fetched() == {}
    story.commit(None, 4)
    assert story.answer(story.ask(DeleteGroup("g"))) == Deleted()
    assert story.table == {}
    assert story.core.groups == {}
    assert story.error(story.ask(DeleteGroup("g"))) is errors.GroupIdNotFound
    assert story.error(story.ask(Describe("g"))) is errors.GroupIdNotFound


def test_offsets_are_forgotten_a_week_after_the_group_was_left_and_with_their_topic() -> None:
    story = Story()
    gone: set[str] = set()

    def sweep() -> None:
        decision = story.core.sweep("g", story.moment, 7 * DAY_MS, lambda topic, _: topic in gone)
        if decision is not None:
            story._carry_out(decision)

    (a,) = story.stable_with("a")
    story.commit(a, 3)
    story.now += 30 * 86_400
    sweep()
    assert story.fetched() == {0: 3}  # it has a member
    story.ask(Leave("g", (Leaver(a.member_id, None),)))
    story.now += 6 * 86_400
    sweep()
    assert story.fetched() == {0: 3}
    story.commit(None, 4, partition=1)
    story.now += 2 * 86_400
    sweep()
    assert story.fetched() == {1: 4}
    gone.add("orders")
    sweep()
    assert story.fetched() == {}
    assert story.table == {}
    assert story.core.groups == {}


def test_a_decision_that_cannot_be_appended_changes_nothing_and_whoever_waits_is_told() -> None:
    story = Story()
    tokens = [story.join("a"), story.join("b")]
    story.now = 100.0
    decision = story.core.tick("g", story.moment)
    assert decision.records
    refused = story.core.refuse(decision, errors.CoordinatorNotAvailable("too few in sync"), story.moment)
    story._carry_out(refused)
    assert [story.error(token) for token in tokens] == [errors.CoordinatorNotAvailable] * 2
    again = [story.join("a", member_id="a-0"), story.join("b", member_id="b-1")]
    assert [story.joined(token).generation for token in again] == [1, 1]


def test_bytes_are_kafkas() -> None:
    key, value = encode_record((OffsetKey("g", "t", 7), OffsetRecord(5, 2, "m", 9, bytes(range(1, 17)))))
    assert key == b"\0\1" + b"\0\1g" + b"\0\1t" + b"\0\0\0\7"
    assert value == (
        b"\0\4" + (5).to_bytes(8) + (2).to_bytes(4) + b"\2m" + (9).to_bytes(8) + b"\1\0\x10" + bytes(range(1, 17))
    )
    with pytest.raises(errors.CorruptMessage):
        decode_entry(key, value[:-1])
    with pytest.raises(errors.CorruptMessage):
        decode_entry(b"\0", value)
