"""A coordinator's core, a log with a committed end, members that behave as clients do, and everything that may go wrong.

Answers go out when the log is committed as far as it was when they were made, as the shell does it. A failover keeps any
part of the log from the committed end on. Members may lose questions and answers, die, come back, and be slow.

The judge looks at what members were told:

- G12: in one generation a partition is assigned to one owner (a static member's owner is its instance id);
- generations never go back, and one number is one generation: the same owners in it;
- G13: what a fetch answers is the newest commit in the log; a commit is not acknowledged under a generation older than
  one that was told before it was asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fencepost_node.coordination.classic_group import ClassicGroup, State
from fencepost_node.coordination.classic_rules import MemberIdGiven
from fencepost_node.coordination.coordinator import Coordinator, Decision, Question, load
from fencepost_node.coordination.messages import (
    NO_GENERATION,
    Alive,
    Commit,
    Committed,
    FetchedOffsets,
    FetchOffsets,
    Heartbeat,
    Join,
    Joined,
    Leave,
    Leaver,
    OffsetToCommit,
    Sync,
    Synced,
)
from fencepost_node.coordination.moment import Moment
from fencepost_node.coordination.records import NO_TOPIC_ID, Key, OffsetKey, OffsetRecord, Record, Value
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError

GROUP = "billing"
TOPIC = "orders"
PARTITIONS = 6
SESSION_MS = 10_000
REBALANCE_MS = 20_000


@dataclass(slots=True)
class Client:
    """One process of a member."""

    number: int
    instance_id: str | None
    member_id: str = ""
    generation: int = NO_GENERATION
    owned: tuple[int, ...] = ()
    leads: Joined | None = None
    next: str = "join"  # what it asks next: join, sync, or heartbeats and commits
    asked: int | None = None  # the question that it waits for
    delayed: Commit | None = None  # is still on its way

    @property
    def owner(self) -> str:
        return self.instance_id or self.member_id

    def reset(self) -> None:
        self.member_id, self.generation, self.owned, self.leads, self.next = "", NO_GENERATION, (), None, "join"


@dataclass(slots=True)
class World:
    chance: random.Random
    statics: int = 0
    trouble: bool = True
    now: float = 100.0
    core: Coordinator = field(default_factory=Coordinator)
    log: list[Record] = field(default_factory=list)
    table: dict[Key, Value] = field(default_factory=dict)  # its fold
    committed: int = 0
    clients: list[Client] = field(default_factory=list)
    waiting: dict[int, tuple[Client | None, Question]] = field(default_factory=dict)
    held_back: list[tuple[int, int, object]] = field(default_factory=list)  # answers: log end, token, answer
    counts: dict[str, int] = field(default_factory=dict)
    # The judge's
    owners: dict[int, dict[int, str]] = field(default_factory=dict)  # by generation and partition
    memberships: dict[int, set[str]] = field(default_factory=dict)
    newest_told: int = NO_GENERATION
    told_at_question: dict[int, int] = field(default_factory=dict)
    acknowledged: dict[int, int] = field(default_factory=dict)  # newest commit of each partition
    commits_in_log: int = 0
    _tokens: int = 0
    _ids: int = 0

    # ---- The coordinator's shell ----

    def moment(self) -> Moment:
        return Moment(self.now, int(self.now * 1000), 0.5)

    def ask(self, client: Client | None, question: Question) -> int:
        self._tokens += 1
        token = self._tokens
        self.waiting[token] = (client, question)
        self.told_at_question[token] = self.newest_told
        if client is not None:
            client.asked = token
        try:
            decision = self.core.decide(question, token, self.moment())
        except FencepostError as error:
            self.hold_back(token, error)
            return token
        self.carry_out(decision)
        return token

    def carry_out(self, decision: Decision) -> None:
        if decision.records and self.trouble and self.chance.random() < 0.05:
            self.count("append refused")
            decision = self.core.refuse(decision, errors.CoordinatorNotAvailable("refused"), self.moment())
        self.log += decision.records
        self.fold(decision.records)
        self.core.apply(decision)
        for token, answer in decision.answers:
            self.hold_back(token, answer)
        if self.chance.random() < 0.2:
            self.check_refold()

    def hold_back(self, token: int, answer: object) -> None:
        self.held_back.append((len(self.log), token, answer))

    def commit_log(self, end: int) -> None:
        self.committed = max(self.committed, end)
        due = [each for each in self.held_back if each[0] <= self.committed]
        self.held_back = [each for each in self.held_back if each[0] > self.committed]
        for _, token, answer in due:
            client, question = self.waiting.pop(token)
            self.judge(token, client, question, answer)
            if client is not None and client.asked == token:
                client.asked = None
                if not (self.trouble and self.chance.random() < 0.05):  # else the answer is lost on its way
                    self.receive(client, question, answer)

    def tick(self) -> None:
        for group_id in list(self.core.groups):
            if self.core.groups[group_id].next_deadline() <= self.now:
                self.carry_out(self.core.tick(group_id, self.moment()))

    def fail_over(self) -> None:
        """Another leader: it has the log up to any place from the committed end on, and no one who waits."""
        self.count("failover")
        del self.log[self.chance.randint(self.committed, len(self.log)) :]
        self.table.clear()
        self.fold(self.log)
        self.core = self.folded()
        self.held_back.clear()
        for client, _ in self.waiting.values():
            if client is not None:
                client.asked = None
        self.waiting.clear()
        self.check_refold()

    def folded(self) -> Coordinator:
        return load(self.table.items(), self.moment())

    def fold(self, records: Sequence[Record]) -> None:
        for key, value in records:
            if value is None:
                self.table.pop(key, None)
            else:
                self.table[key] = value

    def check_refold(self) -> None:
        """Who folds the log again has the same state, but for what is this process's alone."""
        again = self.folded()
        assert again.offsets == self.core.offsets
        for group_id, group in self.core.groups.items():
            assert isinstance(group, ClassicGroup)
            assert_group_is_sound(group)
            if not group.is_recorded:
                continue
            found = again.groups[group_id]
            assert isinstance(found, ClassicGroup)
            assert found.generation == group.generation
            if group.state is not State.PREPARING:
                assert found.as_record() == group.as_record()
                assert found.state is group.state
        assert {group_id for group_id in again.groups if group_id not in self.core.groups} == set()

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # ---- The judge ----

    def judge(self, token: int, client: Client | None, question: Question, answer: object) -> None:
        if isinstance(answer, Joined):
            assert answer.generation >= self.newest_told, f"generation {answer.generation} after {self.newest_told}"
            self.newest_told = answer.generation
            self.count("joined")
            if answer.members:
                owners = {member.instance_id or member.member_id for member in answer.members}
                assert self.memberships.setdefault(answer.generation, owners) == owners
        elif isinstance(answer, Synced) and isinstance(question, Sync) and client is not None:
            self.count("synced")
            owners_of = self.owners.setdefault(question.generation, {})
            for partition in answer.assignment:
                owner = owners_of.setdefault(partition, client.owner)
                assert owner == client.owner, (
                    f"{partition} in generation {question.generation}: {owner}, {client.owner}"
                )
        elif isinstance(answer, Committed) and isinstance(question, Commit):
            self.count("committed")
            assert question.generation >= self.told_at_question[token], "a commit of an older generation"
            for offset in question.offsets:
                self.acknowledged[offset.partition] = offset.offset
        elif isinstance(answer, FetchedOffsets):
            self.count("fetched")
            newest: dict[int, int] = {}
            for key, value in self.log:
                if isinstance(key, OffsetKey) and isinstance(value, OffsetRecord):
                    newest[key.partition] = value.offset
            for each in answer.offsets:
                assert each.offset <= newest.get(each.partition, -1)
                assert each.offset >= self.acknowledged.get(each.partition, -1), "an acknowledged commit is gone"
        elif isinstance(answer, FencepostError):
            self.count(answer.code.name)

    # ---- Members ----

    def fresh_id(self) -> str:
        self._ids += 1
        return f"m{self._ids}"

    def join_of(self, client: Client, protocols: Sequence[tuple[str, bytes]] | None = None) -> Join:
        return Join(
            group_id=GROUP,
            member_id=client.member_id,
            instance_id=client.instance_id,
            protocol_type="consumer",
            protocols=tuple(protocols or (("range", b"r%d" % client.number), ("sticky", b"s%d" % client.number))),
            session_timeout_ms=SESSION_MS,
            rebalance_timeout_ms=REBALANCE_MS,
            client_id=f"client-{client.number}",
            client_host="127.0.0.1",
            fresh_member_id=self.fresh_id(),
            needs_id_first=client.number % 2 == 0,
            may_skip_assignment=client.number % 3 == 0,
        )

    def act(self, client: Client) -> None:
        """The client's next question."""
        if client.next == "join":
            self.ask(client, self.join_of(client))
        elif client.next == "sync":
            assignments: tuple[tuple[str, bytes], ...] = ()
            if client.leads is not None:
                assignments = self.assign(client.leads)
            self.ask(
                client, Sync(GROUP, client.generation, client.member_id, client.instance_id, None, None, assignments)
            )
        elif self.chance.random() < 0.5:
            self.ask(client, Heartbeat(GROUP, client.generation, client.member_id, client.instance_id))
        else:
            self.ask(client, self.commit_of(client))

    def commit_of(self, client: Client) -> Commit:
        self.commits_in_log += 1
        offsets = tuple(
            OffsetToCommit(TOPIC, partition, NO_TOPIC_ID, self.commits_in_log, 0, "") for partition in client.owned
        )
        return Commit(GROUP, client.generation, client.member_id, client.instance_id, offsets)

    def assign(self, joined: Joined) -> tuple[tuple[str, bytes], ...]:
        """Another one each time: a leader that asks twice may have changed its mind."""
        shares: dict[str, list[int]] = {member.member_id: [] for member in joined.members}
        for partition in range(PARTITIONS):
            shares[self.chance.choice(sorted(shares))].append(partition)
        return tuple((member_id, bytes(partitions)) for member_id, partitions in shares.items())

    def receive(self, client: Client, question: Question, answer: object) -> None:
        match answer:
            case MemberIdGiven():
                client.member_id, client.next = answer.member_id, "join"
            case Joined():
                client.member_id, client.generation, client.owned = answer.member_id, answer.generation, ()
                leads = answer.leader == answer.member_id and not answer.skip_assignment
                client.leads, client.next = (answer if leads else None), "sync"
            case Synced():
                client.owned, client.next = tuple(answer.assignment), "live"
            case errors.RebalanceInProgress():
                client.next = "join"
            case errors.UnknownMemberId() | errors.IllegalGeneration() | errors.FencedInstanceId():
                client.reset()
            case errors.CoordinatorNotAvailable():
                client.next = "join" if isinstance(question, Sync) else client.next
            case Alive() | Committed():
                pass

    def step(self) -> None:
        """Something happens."""
        chance = self.chance
        client = chance.choice(self.clients)
        weights: dict[Callable[[Client], None], float] = {}
        weights |= {self.ask_next: 70, self.pass_some_time: 6, self.delay_commit: 7, self.look: 4, self.commit_some: 8}
        weights |= {self.restart: 1, self.leave: 1}
        if self.trouble:
            weights |= {self.pass_much_time: 1.5, self.fail_over_sometime: 1}
        chance.choices(list(weights), list(weights.values()))[0](client)
        if self.trouble and len(self.log) > self.committed and chance.random() < 0.02:
            self.fail_over()
        if chance.random() < 0.25:
            self.commit_log(len(self.log))

    def ask_next(self, client: Client) -> None:
        if client.asked is None or self.chance.random() < 0.02:  # … or it asks again though it waits
            self.act(client)

    def pass_some_time(self, _: Client) -> None:
        self.now += self.chance.choice([0.1, 0.5, 1.0, 3.0])
        self.tick()

    def pass_much_time(self, _: Client) -> None:
        self.now += self.chance.choice([5.0, 11.0, 21.0])
        self.tick()

    def fail_over_sometime(self, _: Client) -> None:
        self.fail_over()

    def restart(self, client: Client) -> None:
        client.reset()
        client.asked = None

    def leave(self, client: Client) -> None:
        if client.member_id:
            self.ask(None, Leave(GROUP, (Leaver(client.member_id, client.instance_id),)))
            self.restart(client)

    def delay_commit(self, client: Client) -> None:
        """A commit that was on its way for long arrives, or one sets out."""
        if client.delayed is not None:
            self.commits_in_log += 1
            offsets = tuple(each._replace(offset=self.commits_in_log) for each in client.delayed.offsets)
            self.ask(None, replace(client.delayed, offsets=offsets))
            client.delayed = None
        elif client.next == "live":
            client.delayed = self.commit_of(client)

    def look(self, _: Client) -> None:
        self.ask(None, FetchOffsets(GROUP, None))

    def commit_some(self, _: Client) -> None:
        self.commit_log(self.chance.randint(self.committed, len(self.log)))

    def run(self, steps: int, until: Callable[[], bool] = lambda: False) -> None:
        for number in range(len(self.clients), 5):
            self.clients.append(Client(number, f"i{number}" if number < self.statics else None))
        for _ in range(steps):
            self.step()
            if until():
                return

    def settle(self) -> None:
        """No more trouble: everyone that lives comes to have a share, and all shares are all partitions."""
        self.trouble = False
        for _ in range(400):
            for client in self.clients:
                if client.asked is None:
                    self.act(client)
                elif client.asked not in self.waiting:
                    client.asked = None
            self.now += 0.5
            self.tick()
            self.commit_log(len(self.log))
            group = self.core.groups.get(GROUP)
            if group is not None and group.state is State.STABLE and len(group.members) == len(self.clients):
                owned = sorted(partition for client in self.clients for partition in client.owned)
                if all(client.next == "live" for client in self.clients) and owned == list(range(PARTITIONS)):
                    return
        raise AssertionError(f"the group does not settle: {self.core.groups.get(GROUP)} {self.clients}")


def assert_group_is_sound(group: ClassicGroup) -> None:
    assert (group.state is State.EMPTY) == (not group.members), group
    assert group.leader is None or group.leader in group.members, group
    instances = [member.instance_id for member in group.members.values() if member.instance_id is not None]
    assert len(instances) == len(set(instances)), group
    assert not set(group.pending) & set(group.members), group
    if group.state is State.STABLE:
        assert not any(member.waits for member in group.members.values()), group
    if group.state in (State.COMPLETING, State.STABLE):
        assert not any(member.join for member in group.members.values()), group
        assert group.protocol in group.common_protocols(), group
    if group.state is not State.EMPTY:
        assert group.next_deadline() < float("inf") or all(member.waits for member in group.members.values()), group
