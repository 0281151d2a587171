"""The member's side of a group, pure: against the coordinator's own core, with answers that are late or lost and failovers.

At no moment do two members read one partition; no commit goes back; and once nothing goes wrong everything is read.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from fencepost.consuming.group_member import JOINING, LEAVING, Alive, Beat, GroupMember
from fencepost_node.coordination.consumer_group import ConsumerGroup
from fencepost_node.coordination.coordinator import Coordinator, Decision, Question, load
from fencepost_node.coordination.messages import Commit, Committed, ConsumerAlive, ConsumerHeartbeat, OffsetToCommit
from fencepost_node.coordination.moment import Moment
from fencepost_node.coordination.records import Key, OffsetKey, OffsetRecord, Record, Value
from fencepost_proto.protocol.errors import FencedMemberEpoch, FencepostError, RequestTimedOut, UnknownMemberId
from tests.unit.test_consumer_group_law import GROUP, SETTINGS, Topics

POLL_S = 15.0
KEY_0, KEY_1 = ("T", 0), ("T", 1)


def alive(epoch: int, *assignment: tuple[str, int]) -> Alive:
    return Alive(epoch, 1.0, 10.0, assignment)


def joined(*assignment: tuple[str, int]) -> GroupMember:
    member = GroupMember(POLL_S)
    member.subscribe(["orders"], 0.0)
    beat = member.beat(0.0)
    assert beat == Beat(0, JOINING, ("orders",), ())
    member.answered(beat, alive(1, *assignment), 0.0, 0.1)
    return member


def sent(member: GroupMember, now: float) -> Beat:
    beat = member.beat(now)
    assert beat is not None
    return beat


def test_a_member_claims_what_it_is_given_until_it_has_given_it_up() -> None:
    member = joined(KEY_0, KEY_1)
    assert sent(member, 1.2).owned == (KEY_0, KEY_1)
    assert [member.adopt(key, grant, 1.2) for key, grant in member.to_adopt().items()] == [True, True]
    member.answered(sent(member, 1.2), alive(2, KEY_1), 1.2, 1.3)
    assert (member.to_give_up(), sent(member, 2.4).owned) == ([KEY_0], (KEY_0, KEY_1))
    member.given_up([KEY_0], 2.4)
    assert sent(member, 2.4).owned == (KEY_1,)  # at once


def test_a_grant_that_is_taken_back_before_it_is_read_counts_no_more() -> None:
    member = joined(KEY_0)
    ((_, before),) = member.to_adopt().items()
    member.answered(sent(member, 2.0), alive(2), 2.0, 2.1)
    assert sent(member, 2.1) == Beat(0, 2, None, ())
    member.answered(sent(member, 2.1), alive(3, KEY_0), 2.1, 2.2)
    assert not member.adopt(KEY_0, before, 2.2)
    assert member.adopt(KEY_0, member.to_adopt()[KEY_0], 2.2)


@pytest.mark.parametrize("error", [FencedMemberEpoch("old"), UnknownMemberId("who?")])
def test_a_fenced_member_has_nothing_and_joins_again(error: FencepostError) -> None:
    member = joined(KEY_0)
    member.adopt(KEY_0, member.to_adopt()[KEY_0], 0.2)
    member.refused(sent(member, 1.2), error, 1.3)
    assert (list(member.lost), dict(member.adopted), member.to_adopt()) == ([KEY_0], {}, {})
    assert sent(member, 1.3) == Beat(1, JOINING, ("orders",), ())


def test_without_an_answer_for_the_session_timeout_it_is_not_sure() -> None:
    member = joined(KEY_0)
    grant = member.to_adopt()[KEY_0]
    late = sent(member, 9.0)
    assert member.is_sure(9.9)
    assert not member.is_sure(10.0)
    assert not member.adopt(KEY_0, grant, 10.0)
    member.refused(late, RequestTimedOut("lost"), 11.0)
    again = sent(member, 11.2)
    assert again.topics == ("orders",)  # it says everything, to be told everything
    member.answered(again, alive(1, KEY_0), 11.2, 11.3)
    assert member.adopt(KEY_0, grant, 11.3)


def test_pauses_after_refusals_grow() -> None:
    member, now, pauses = joined(), 1.2, []
    for _ in range(8):
        member.refused(sent(member, now), RequestTimedOut("lost"), now)
        pauses.append(member.due_at - now)
        now = member.due_at
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


def test_an_application_that_does_not_read_leaves_once_and_comes_back() -> None:
    member = joined(KEY_0)
    member.adopt(KEY_0, member.to_adopt()[KEY_0], 0.2)
    member.has_read(1.0)
    member.answered(sent(member, 15.9), alive(1), 15.9, 15.9)
    assert sent(member, 16.0) == Beat(0, LEAVING, None, ())
    assert (list(member.lost), member.beat(99.0)) == ([KEY_0], None)
    assert member.reading(100.0)
    assert sent(member, 100.0) == Beat(1, JOINING, ("orders",), ())


def test_an_answer_to_an_earlier_membership_changes_nothing() -> None:
    member = joined(KEY_0)
    late = sent(member, 1.2)
    member.fence()
    member.answered(late, alive(1, KEY_0), 1.2, 1.3)
    member.refused(late, FencedMemberEpoch("old"), 1.3)
    assert (member.epoch, member.incarnation, member.to_adopt()) == (JOINING, 1, {})


# ---- Against the coordinator ----


@dataclass
class App:
    """A member, its heartbeat on its way, and what it reads. A record is one step of an offset."""

    number: int
    member: GroupMember = field(default_factory=lambda: GroupMember(POLL_S))
    beat: Beat | None = None
    sent_at: float = 0.0
    answer: Alive | FencepostError | None = None
    paused_until: float = 0.0
    positions: dict[tuple[str, int], int] = field(default_factory=dict)


class World:
    """Everything that happens is one of `step`'s, at a moment that only `tick` moves on."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 50.0
        self.topics = Topics()
        self.core = Coordinator()
        self.table: dict[Key, Value] = {}
        self.apps = [App(number) for number in range(3)]
        self.read: dict[tuple[str, int], int] = {}  # how far anyone has read
        self.counts: dict[str, int] = {}
        for app in self.apps:
            app.member.subscribe(["orders"], self.now)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def decide(self, question: Question) -> Decision | FencepostError:
        moment = Moment(self.now, int(self.now * 1000), 0.0, self.topics, SETTINGS)
        try:
            decision = self.core.decide(question, 1, moment)
        except FencepostError as error:
            return error
        self.carry_out(decision)
        return decision

    def carry_out(self, decision: Decision) -> None:
        records: tuple[Record, ...] = decision.records
        for key, value in records:
            if isinstance(key, OffsetKey) and isinstance(value, OffsetRecord):
                before = self.table.get(key)
                assert not isinstance(before, OffsetRecord) or before.offset <= value.offset, "a commit goes back"
            if value is None:
                self.table.pop(key, None)
            else:
                self.table[key] = value
        self.core.apply(decision)

    def send(self, app: App) -> None:
        if app.beat is None and (beat := app.member.beat(self.now)) is not None:
            app.beat, app.sent_at, app.answer = beat, self.now, None

    def arrive(self, app: App) -> None:
        if app.beat is None or app.answer is not None:
            return
        beat = app.beat
        self.count("left" if beat.epoch == LEAVING else "joined" if beat.epoch == JOINING else "beat")
        decision = self.decide(
            ConsumerHeartbeat(
                group_id=GROUP,
                member_id=f"m{app.number}",
                member_epoch=beat.epoch,
                rebalance_timeout_ms=int(POLL_S * 1000) if beat.topics is not None else 0,
                topics=beat.topics,
                owned=tuple((topic.encode(), index) for topic, index in beat.owned),
            )
        )
        if isinstance(decision, FencepostError):
            app.answer = decision
            self.count(decision.code.name)
            return
        told = decision.answers[0][1]
        assert isinstance(told, ConsumerAlive)
        assignment = told.assignment
        named = None if assignment is None else tuple((topic_id.decode(), index) for topic_id, index in assignment)
        app.answer = Alive(told.member_epoch, told.heartbeat_interval_ms / 1000, told.session_timeout_ms / 1000, named)

    def be_told(self, app: App, *, lost: bool = False) -> None:
        if app.beat is None or (app.answer is None and not lost):
            return
        beat, answer, app.beat = app.beat, app.answer, None
        if lost or answer is None:
            app.member.refused(beat, RequestTimedOut("lost"), self.now)
        elif isinstance(answer, FencepostError):
            app.member.refused(beat, answer, self.now)
        else:
            app.member.answered(beat, answer, app.sent_at, self.now)

    def work(self, app: App) -> None:
        """A reading call: what is lost, given up, taken, read."""
        member = app.member
        member.reading(self.now)
        for key in list(member.lost):
            del member.lost[key]
            self.count("lost")
        leaving = member.to_give_up()
        for key in leaving:
            self.commit(app, key)
        member.given_up(leaving, self.now)
        for key, grant in member.to_adopt().items():
            record = self.table.get(OffsetKey(GROUP, "orders", key[1]))
            if member.adopt(key, grant, self.now):
                app.positions[key] = record.offset if isinstance(record, OffsetRecord) else 0
                self.count("adopted")
        for key in member.adopted:
            if member.is_sure(self.now) and self.chance.random() < 0.5:
                app.positions[key] += 1
                self.read[key] = max(self.read.get(key, 0), app.positions[key])
        member.has_read(self.now)

    def commit(self, app: App, key: tuple[str, int]) -> None:
        if key not in app.member.adopted:
            return
        offset = OffsetToCommit("orders", key[1], key[0].encode(), app.positions[key], -1, "")
        decision = self.decide(Commit(GROUP, app.member.epoch, f"m{app.number}", None, (offset,)))
        if isinstance(decision, FencepostError):
            self.count(f"commit: {decision.code.name}")
            if isinstance(decision, UnknownMemberId):
                app.member.fence()
        else:
            assert decision.answers[0][1] == Committed((None,))
            self.count("committed")

    def tick(self, seconds: float) -> None:
        self.now += seconds
        group = self.core.groups.get(GROUP)
        if isinstance(group, ConsumerGroup) and group.next_deadline() <= self.now:
            moment = Moment(self.now, int(self.now * 1000), 0.0, self.topics, SETTINGS)
            self.carry_out(self.core.tick(GROUP, moment))

    def step(self) -> None:
        what, app = self.chance.random(), self.chance.choice(self.apps)
        if what < 0.12:
            self.tick(self.chance.choice([0.05, 0.2, 1.0]))
        elif what < 0.125:
            app.paused_until = self.now + self.chance.choice([3.0, 12.0, 17.0])
        elif what < 0.13:
            self.count("failover")
            moment = Moment(self.now, int(self.now * 1000), 0.0, self.topics, SETTINGS)
            self.core = load(self.table.items(), moment)
        elif what < 0.35:
            self.arrive(app)
        elif app.paused_until > self.now:
            return
        elif what < 0.55:
            self.send(app)
        elif what < 0.75:
            self.be_told(app, lost=self.chance.random() < 0.05)
        elif what < 0.9:
            self.work(app)
        else:
            for key in list(app.member.adopted):
                self.commit(app, key)

    def check(self) -> None:
        readers: dict[tuple[str, int], int] = {}
        for app in self.apps:
            for key in app.member.adopted if app.member.is_sure(self.now) else ():
                assert readers.setdefault(key, app.number) == app.number, f"two members read {key}"

    def settle(self) -> None:
        wanted = {key for key in ((topic.decode(), index) for topic, index in self.topics.all()) if "orders" in key[0]}
        for _ in range(200):
            for app in self.apps:
                app.paused_until = 0.0
                self.send(app)
                self.arrive(app)
                self.be_told(app)
                self.work(app)
                self.check()
            self.tick(0.5)
            if sorted(key for app in self.apps for key in app.member.adopted) == sorted(wanted):
                return
        raise AssertionError("the group does not settle")


def test_whatever_is_late_or_lost_no_two_members_read_a_partition_and_no_commit_goes_back() -> None:
    counts: dict[str, int] = {}
    for seed in range(20):
        world = World(seed)
        for _ in range(900):
            world.step()
            world.check()
        world.settle()
        for what, number in world.counts.items():
            counts[what] = counts.get(what, 0) + number
    for what in (
        "joined", "beat", "left", "lost", "adopted", "committed", "failover", "UNKNOWN_MEMBER_ID",
        "commit: UNKNOWN_MEMBER_ID",
    ):  # fmt: skip
        assert counts.get(what, 0) >= 2, (what, counts)
