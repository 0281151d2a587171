"""Laws of consumer groups (KIP-848) over random histories: one owner for each partition, and everyone comes to a share."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from fencepost_node.coordination.assignors import ASSIGNORS, Subscriber
from fencepost_node.coordination.consumer_group import ConsumerGroup
from fencepost_node.coordination.consumer_records import records_of
from fencepost_node.coordination.coordinator import Coordinator, Decision, Question, load
from fencepost_node.coordination.messages import (
    Commit,
    Committed,
    ConsumerAlive,
    ConsumerHeartbeat,
    OffsetToCommit,
)
from fencepost_node.coordination.moment import ConsumerSettings, Moment, TopicFacts
from fencepost_node.coordination.record_bytes import decode_entry, encode_record
from fencepost_node.coordination.records import Key, OffsetKey, Record, Value
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError

GROUP = "billing"
SETTINGS = ConsumerSettings(session_timeout_s=10.0, heartbeat_interval_ms=1_000)
REBALANCE_MS = 15_000
Place = tuple[bytes, int]


class Topics:
    def __init__(self) -> None:
        self.version = 1
        self.counts = {"orders": 5, "payments": 3}

    def find(self, name: str) -> TopicFacts | None:
        count = self.counts.get(name)
        return None if count is None else TopicFacts(name.encode().ljust(16, b"\0"), count)

    def grow(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        self.version += 1

    def all(self) -> set[Place]:
        return {
            (name.encode().ljust(16, b"\0"), index) for name, count in self.counts.items() for index in range(count)
        }


@dataclass
class Client:
    """A consumer as the Java client is one: it claims what it has, and lets go of what it is not given any more."""

    number: int
    instance_id: str | None
    member_id: str = ""
    epoch: int = 0
    has: set[Place] = field(default_factory=set)
    given: set[Place] = field(default_factory=set)
    lives: bool = True
    says_all: bool = True

    @property
    def owner(self) -> str:
        return self.instance_id or self.member_id


class World:
    def __init__(self, seed: int, statics: int, assignor: str) -> None:
        self.chance = random.Random(seed)
        self.assignor = assignor
        self.now = 50.0
        self.topics = Topics()
        self.core = Coordinator()
        self.log: list[Record] = []
        self.borders = [0]  # a decision's records are one batch
        self.committed = 0
        self.held_back: list[tuple[int, Client, ConsumerHeartbeat, ConsumerAlive]] = []
        self.owners: dict[tuple[int, Place], str] = {}  # by member epoch
        self.counts: dict[str, int] = {}
        self.clients = [Client(number, f"i{number}" if number < statics else None) for number in range(4)]
        self._ids = 0

    @property
    def moment(self) -> Moment:
        return Moment(self.now, int(self.now * 1000), 0.0, self.topics, SETTINGS)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    @property
    def group(self) -> ConsumerGroup:
        found = self.core.groups.get(GROUP)
        assert isinstance(found, ConsumerGroup)
        return found

    def decide(self, question: Question) -> Decision | FencepostError:
        try:
            return self.core.decide(question, 1, self.moment)
        except FencepostError as error:
            return error

    def carry_out(self, decision: Decision) -> None:
        self.log += decision.records
        self.borders.append(len(self.log))
        self.core.apply(decision)
        group = self.core.groups.get(GROUP)
        if isinstance(group, ConsumerGroup):
            check_group(group)
            if self.chance.random() < 0.2:
                self.check_refold()

    def folded(self) -> dict[Key, Value]:
        table: dict[Key, Value] = {}
        for key, value in self.log:
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value
        return table

    def check_refold(self) -> None:
        table = self.folded()
        offsets = {key for key in table if isinstance(key, OffsetKey)}
        assert {key: value for key, value in table.items() if key not in offsets} == records_of(self.group)
        for record in table.items():
            key, value = encode_record(record)
            assert value is not None
            assert decode_entry(key, value) == record

    # ---- What happens ----

    def beat(self, client: Client) -> None:
        joins = client.epoch == 0
        if joins and not client.member_id:
            self._ids += 1
            client.member_id = f"m{self._ids}"
        full = joins or client.says_all
        question = ConsumerHeartbeat(
            group_id=GROUP,
            member_id=client.member_id,
            member_epoch=client.epoch,
            instance_id=client.instance_id,
            rebalance_timeout_ms=REBALANCE_MS if full else -1,
            topics=self.subscription(client) if full else None,
            assignor=self.assignor if full else None,
            owned=tuple(sorted(client.has)) if full or self.chance.random() < 0.8 else None,
        )
        answer = self.decide(question)
        if isinstance(answer, FencepostError):
            self.count(answer.code.name)
            self.refused(client, answer)
            return
        self.carry_out(answer)
        (_, alive) = answer.answers[0]
        assert isinstance(alive, ConsumerAlive)
        if self.chance.random() < 0.05:
            self.count("answer lost")
            client.says_all = True
        else:
            self.held_back.append((len(self.log), client, question, alive))

    def subscription(self, client: Client) -> tuple[str, ...]:
        return ("orders", "payments") if client.number % 3 else ("orders",)

    def refused(self, client: Client, error: FencepostError) -> None:
        if isinstance(error, errors.FencedMemberEpoch | errors.UnknownMemberId):
            client.epoch, client.has, client.given, client.says_all = 0, set(), set(), True
        elif isinstance(error, errors.FencedInstanceId):
            client.epoch, client.member_id, client.has, client.given = 0, "", set(), set()

    def commit_log(self) -> None:
        self.committed = len(self.log)
        for _, client, question, alive in self.held_back:
            if (
                client.member_id != alive.member_id
                or client.epoch not in (question.member_epoch, 0)
                or not client.lives
            ):
                continue  # of another life
            if alive.assignment is not None:
                for place in alive.assignment:
                    owner = self.owners.setdefault((alive.member_epoch, place), client.owner)
                    assert owner == client.owner, (place, alive.member_epoch, owner, client.owner)
                client.given = set(alive.assignment)
                self.count("assigned")
            client.epoch, client.says_all = alive.member_epoch, False
            client.has |= client.given - client.has if self.chance.random() < 0.7 else set()
        self.held_back.clear()

    def let_go(self, client: Client) -> None:
        """It takes its time to give up what it was not given any more."""
        client.has &= client.given
        client.has |= client.given

    def commit_offset(self, client: Client) -> None:
        for place in sorted(client.has & client.given):
            epoch = client.epoch if self.chance.random() < 0.7 else client.epoch - 1
            offset = OffsetToCommit(place[0].rstrip(b"\0").decode(), place[1], place[0], 1, -1, "")
            answer = self.decide(Commit(GROUP, epoch, client.member_id, client.instance_id, (offset,)))
            if isinstance(answer, FencepostError):
                self.count(answer.code.name)
                continue
            self.carry_out(answer)
            assert answer.answers[0][1] == Committed((None,))
            assert self.group.owners().get(place) == client.member_id, "a commit for what is another member's"
            self.count("committed" if epoch == client.epoch else "committed in an epoch before")

    def tick(self, seconds: float) -> None:
        self.now += seconds
        group = self.core.groups.get(GROUP)
        if group is not None and group.next_deadline() <= self.now:
            self.carry_out(self.core.tick(GROUP, self.moment))

    def fail_over(self) -> None:
        self.count("failover")
        del self.log[self.chance.choice([at for at in self.borders if self.committed <= at <= len(self.log)]) :]
        self.core = load(self.folded().items(), self.moment)
        self.held_back.clear()
        for client in self.clients:
            client.says_all = True

    def leave(self, client: Client, epoch: int) -> None:
        question = ConsumerHeartbeat(GROUP, client.member_id, epoch, client.instance_id)
        answer = self.decide(question)
        if isinstance(answer, Decision):
            self.carry_out(answer)
            self.count(f"left {epoch}")
        client.epoch, client.member_id, client.has, client.given, client.says_all = 0, "", set(), set(), True

    def step(self) -> None:
        what, client = self.chance.random(), self.chance.choice(self.clients)
        if what < 0.60:
            self.beat(client)
        elif what < 0.72:
            self.let_go(client)
        elif what < 0.80:
            self.commit_offset(client)
        elif what < 0.88:
            self.tick(self.chance.choice([0.1, 0.5, 1.0]))
        elif what < 0.90:
            self.tick(self.chance.choice([6.0, 11.0, 16.0]))
        elif what < 0.915:
            self.fail_over()
        elif what < 0.93:
            self.leave(client, -2 if client.instance_id and self.chance.random() < 0.7 else -1)
        elif what < 0.94:
            client.epoch, client.member_id, client.has, client.given, client.says_all = 0, "", set(), set(), True
        elif what < 0.945:
            self.topics.grow(self.chance.choice(["orders", "payments"]))
        if self.chance.random() < 0.5:
            self.commit_log()

    def settle(self) -> None:
        for _ in range(300):
            for client in self.clients:
                self.beat(client)
                self.commit_log()
                self.let_go(client)
            self.tick(0.5)
            owned = [place for client in self.clients for place in client.has]
            if self.group.state == "Stable" and set(owned) == self.topics.all() and len(owned) == len(set(owned)):
                return
        raise AssertionError(f"the group does not settle: {self.group}")


def check_group(group: ConsumerGroup) -> None:
    """No partition is, or still is, two members'."""
    held = [
        place for member in group.members.values() for which in (member.assigned, member.revoking) for place in which
    ]
    assert len(held) == len(set(held)), group
    targets = [place for target in group.target.values() for place in target]
    assert len(targets) == len(set(targets)), group
    assert group.assignment_epoch <= group.epoch
    for member in group.members.values():
        assert member.epoch <= group.assignment_epoch
        assert not (member.assigned.keys() & member.revoking.keys())


@pytest.mark.parametrize("seed", range(16))
def test_whatever_happens_a_partition_has_one_owner_in_an_epoch_and_all_come_to_a_share(seed: int) -> None:
    world = World(seed, statics=seed % 3, assignor=("uniform", "range")[seed % 2])
    for _ in range(350):
        world.step()
    world.settle()
    assert world.counts["assigned"] > 3


def test_histories_come_to_everything_that_they_are_meant_to_judge() -> None:
    counts: dict[str, int] = {}
    for seed in range(10):
        world = World(100 + seed, seed % 3, "uniform")
        for _ in range(500):
            world.step()
        for what, count in world.counts.items():
            counts[what] = counts.get(what, 0) + count
    for what in (
        "assigned", "committed", "committed in an epoch before", "STALE_MEMBER_EPOCH", "failover", "left -1", "left -2",
        "UNKNOWN_MEMBER_ID", "answer lost", "UNRELEASED_INSTANCE_ID",
    ):  # fmt: skip
        assert counts.get(what, 0) >= 3, (what, counts)


@pytest.mark.parametrize("name", sorted(ASSIGNORS))
def test_assignors_give_each_partition_to_one_of_its_subscribers_and_nobody_much_more(name: str) -> None:
    for seed in range(40):
        chance = random.Random(seed)
        topics = {bytes([number]) * 16: chance.randint(1, 9) for number in range(chance.randint(1, 4))}
        alike = chance.random() < 0.5
        members = {
            f"m{number}": Subscriber(
                f"m{number}", frozenset(topic for topic in topics if alike or chance.random() < 0.7)
            )
            for number in range(chance.randint(1, 6))
        }
        before = ASSIGNORS[name](dict(list(members.items())[:-1]), topics, {})
        found = ASSIGNORS[name](members, topics, before)
        given = [place for share in found.values() for place in share]
        wanted = {
            (topic, index)
            for topic, count in topics.items()
            for index in range(count)
            if any(topic in member.topics for member in members.values())
        }
        assert sorted(given) == sorted(wanted)
        assert all(place[0] in members[member_id].topics for member_id, share in found.items() for place in share)
        if name == "uniform":
            assert ASSIGNORS[name](members, topics, found) == found
            if alike:
                sizes = [len(share) for share in found.values()]
                assert max(sizes) - min(sizes) <= 1
                kept = sum(len(found[member_id] & share) for member_id, share in before.items())
                fair = len(wanted) // len(members)
                assert kept >= sum(min(len(share), fair) for share in before.values())
