"""A consumer group in the simulation: members that speak Kafka's protocol, and a judge of G12 and G13.

The members are small clients of their own over simulated byte streams: they find the coordinator, join, sync, send
heartbeats and commits, fetch what is committed, and are killed, paused and cut off. One in some commits is sent again under
the generation before: it has to be refused.

The judge sees what members are told:

- G12: in one generation a partition is assigned to one member; a generation's number is one set of members.
- G13: what is fetched is the newest acknowledged commit, or one of unknown outcome; a commit of an older generation than one
  that was told before it was sent is refused; generations do not go back.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fencepost_node.coordination.table import TABLE
from fencepost_proto.kafka.messages.find_coordinator import FindCoordinatorRequest
from fencepost_proto.kafka.messages.heartbeat import HeartbeatRequest
from fencepost_proto.kafka.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from fencepost_proto.kafka.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from fencepost_proto.kafka.messages.offset_fetch import OffsetFetchRequest, OffsetFetchRequestTopic
from fencepost_proto.kafka.messages.sync_group import SyncGroupRequest, SyncGroupRequestAssignment
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.internal_topics import OFFSETS_TOPIC
from fencepost_proto.protocol.v1 import controller_pb2
from fencepost_proto.runtime.host import Host
from tests.simulation.cluster import SimCluster, broker_kafka_address
from tests.simulation.disk import MountedDisk
from tests.simulation.judged import Violation
from tests.simulation.loop import Deadlock, Runaway, collector_off
from tests.simulation.nemesis import Nemesis
from tests.simulation.plan import plan
from tests.simulation.world import World
from tests.unit.kafka_client import KafkaClient, kafka_client

GROUP, TOPIC, PARTITIONS, MEMBERS = "billing", "topic0", 4, 3
SESSION_MS, REBALANCE_MS, HEARTBEAT_S = 2_000, 3_000, 0.3
ANSWER_WITHIN_S = 6.0  # beyond the rebalance timeout
LATE = 0.1  # of the rounds of a member: it also sends a commit of its generation before
KILLED_EVERY_S = 6.0
SETTLED_WITHIN_S = 60.0
STAYS_SETTLED_S = 8.0  # a group that rebalances without a cause does so within this
NONE, LOST = int(ErrorCode.NONE), (OSError, EOFError, TimeoutError)
AWAY = (ErrorCode.NOT_COORDINATOR, ErrorCode.COORDINATOR_NOT_AVAILABLE, ErrorCode.COORDINATOR_LOAD_IN_PROGRESS)
KINDS = (
    "kill broker", "kill leader", "pause broker", "clean restart", "cut one way", "cut both ways", "isolate broker",
    "reset connections", "kill controller", "flaky links",
)  # fmt: skip


@dataclass
class MembersJudge:
    """What the judges of both kinds of groups have in common."""

    world: World
    counts: Counter[str] = field(default_factory=Counter)
    first: Violation | None = None  # that a member has met: it ends the run

    def fail(self, promise: str, what: str) -> None:
        self.world.tell("judge", f"{promise}: {what}")
        violation = Violation(promise, f"{self.world.now:.3f} s: {what}")
        self.first = self.first or violation
        self.world.stop(violation)
        raise violation


@dataclass
class GroupJudge(MembersJudge):
    owners: dict[tuple[int, int], str] = field(default_factory=dict)  # by generation and partition
    memberships: dict[int, frozenset[str]] = field(default_factory=dict)
    newest: int = -1  # generation that was told
    acknowledged: dict[int, int] = field(default_factory=dict)  # by partition
    unknown: dict[int, set[int]] = field(default_factory=dict)  # commits that were sent and not answered with success
    commits: int = 0

    def joined(self, generation: int, newest_before: int, members: list[str]) -> None:
        self.counts["joined"] += 1
        if generation < newest_before:
            self.fail("G13", f"generation {generation} was told after {newest_before}")
        self.newest = max(self.newest, generation)
        if members and self.memberships.setdefault(generation, frozenset(members)) != frozenset(members):
            self.fail(
                "G12", f"generation {generation} has members {members} and {sorted(self.memberships[generation])}"
            )

    def assigned(self, generation: int, member_id: str, partitions: bytes) -> None:
        self.counts["assigned"] += 1
        for partition in partitions:
            owner = self.owners.setdefault((generation, partition), member_id)
            if owner != member_id:
                self.fail("G12", f"partition {partition} in generation {generation}: {owner} and {member_id}")

    def next_commit(self, partition: int) -> int:
        self.commits += 1
        self.unknown.setdefault(partition, set()).add(self.commits)
        return self.commits

    def committed(self, generation: int, newest_before: int, partition: int, offset: int) -> None:
        self.counts["committed"] += 1
        if generation < newest_before:
            self.fail("G13", f"a commit of generation {generation} was taken after {newest_before} was told")
        self.unknown[partition].discard(offset)
        self.acknowledged[partition] = max(offset, self.acknowledged.get(partition, -1))

    def fetched(self, partition: int, offset: int, acknowledged_before: int) -> None:
        self.counts["fetched"] += 1
        if offset < acknowledged_before and offset not in self.unknown.get(partition, ()):
            self.fail(
                "G13", f"partition {partition}: {offset} was fetched where {acknowledged_before} was acknowledged"
            )


class MemberApp:
    """One member, in a process of its own. Whatever does not answer is asked again elsewhere."""

    def __init__(self, world: World, node: str, brokers: tuple[int, ...], judge: GroupJudge) -> None:
        self.world, self.node, self.brokers, self.judge = world, node, brokers, judge
        self.owned: bytes | None = None  # None: it is not settled
        self._reset()

    def _reset(self) -> None:
        self.member_id, self.generation, self.before = "", -1, (-1, "", b"")
        self.owned = None

    def start(self) -> None:
        self._reset()
        self.world.start(self.node, self._run)

    async def _run(self, host: Host, disk: MountedDisk) -> None:
        self.chance = host.random
        while True:
            try:
                broker = await self._coordinator()
                async with kafka_client(broker_kafka_address(broker)) as client:
                    while await self._live(client):
                        pass
            except LOST:
                self.judge.counts["connection lost"] += 1
            self.owned = None
            await asyncio.sleep(0.05 + self.chance.random() / 5)

    async def _coordinator(self) -> int:
        asked = broker_kafka_address(self.chance.choice(self.brokers))
        async with asyncio.timeout(ANSWER_WITHIN_S), kafka_client(asked) as client:
            found = await client.ask(FindCoordinatorRequest(key=GROUP), 2)
        if found.error_code != NONE:
            raise EOFError
        return int(found.node_id)

    async def _ask(self, client: KafkaClient, request: object, version: int) -> Any:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            return await client.ask(request, version)

    async def _live(self, client: KafkaClient) -> bool:
        """Join, and live in the generation until it is over. False: another broker coordinates now."""
        newest = self.judge.newest
        request = JoinGroupRequest(
            group_id=GROUP,
            session_timeout_ms=SESSION_MS,
            rebalance_timeout_ms=REBALANCE_MS,
            member_id=self.member_id,
            protocol_type="consumer",
            protocols=[JoinGroupRequestProtocol("range", self.node.encode())],
        )
        joined = await self._ask(client, request, 7)
        self.member_id = joined.member_id
        if joined.error_code == ErrorCode.MEMBER_ID_REQUIRED:
            return True
        if joined.error_code != NONE:
            return self._refused(joined.error_code)
        if self.owned is not None:
            self.before = (self.generation, self.member_id, self.owned)
        self.generation = joined.generation_id
        self.judge.joined(self.generation, newest, [member.member_id for member in joined.members])
        shares: dict[str, list[int]] = {member.member_id: [] for member in joined.members}
        for partition in range(PARTITIONS if shares else 0):
            shares[self.chance.choice(sorted(shares))].append(partition)
        given = [SyncGroupRequestAssignment(member_id, bytes(share)) for member_id, share in shares.items()]
        synced = await self._ask(client, SyncGroupRequest(GROUP, self.generation, self.member_id, assignments=given), 3)
        if synced.error_code != NONE:
            return self._refused(synced.error_code)
        self.owned = bytes(synced.assignment)
        self.judge.assigned(self.generation, self.member_id, self.owned)
        while True:
            code = await self._round(client)
            if code != NONE:
                return self._refused(code)
            await asyncio.sleep(HEARTBEAT_S * self.chance.random())

    def _refused(self, code: int) -> bool:
        self.judge.counts[ErrorCode(code).name.lower()] += 1
        if code in (ErrorCode.UNKNOWN_MEMBER_ID, ErrorCode.ILLEGAL_GENERATION):
            self._reset()
        return code not in AWAY

    async def _round(self, client: KafkaClient) -> int:
        alive = await self._ask(client, HeartbeatRequest(GROUP, self.generation, self.member_id), 3)
        if alive.error_code != NONE:
            return int(alive.error_code)
        if self.chance.random() < LATE and self.before[0] >= 0:
            await self._commit(client, *self.before)
        code = await self._commit(client, self.generation, self.member_id, self.owned or b"")
        if code == NONE and self.chance.random() < 0.3:
            code = await self.fetch(client)
        return code

    async def _commit(self, client: KafkaClient, generation: int, member_id: str, partitions: bytes) -> int:
        newest = self.judge.newest
        offsets = {partition: self.judge.next_commit(partition) for partition in partitions}
        topic = OffsetCommitRequestTopic(
            name=TOPIC, partitions=[OffsetCommitRequestPartition(index, offset) for index, offset in offsets.items()]
        )
        request = OffsetCommitRequest(
            group_id=GROUP, generation_id_or_member_epoch=generation, member_id=member_id, topics=[topic]
        )
        answer = await self._ask(client, request, 7)
        codes = {each.partition_index: each.error_code for found in answer.topics for each in found.partitions}
        for partition, code in codes.items():
            if code == NONE:
                self.judge.committed(generation, newest, partition, offsets[partition])
            else:
                self.judge.counts[f"commit: {ErrorCode(code).name.lower()}"] += 1
        return max(codes.values(), default=NONE)

    async def fetch(self, client: KafkaClient) -> int:
        before = dict(self.judge.acknowledged)
        topics = [OffsetFetchRequestTopic(TOPIC, list(range(PARTITIONS)))]
        answer = await self._ask(client, OffsetFetchRequest(group_id=GROUP, topics=topics), 5)
        for found in answer.topics:
            for each in found.partitions:
                self.judge.fetched(each.partition_index, each.committed_offset, before.get(each.partition_index, -1))
        return int(answer.error_code)


@dataclass(slots=True)
class GroupResult:
    seed: int
    trace: list[str]
    problem: str = ""
    promise: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.problem


class App(Protocol):
    """One member, in a process of its own."""

    @property
    def node(self) -> str: ...

    def start(self) -> None: ...


class GroupStory(ABC):
    """A cluster and a group under faults; then everything is healed, and the group settles."""

    def __init__(self, world: World, seed: int, kinds: tuple[str, ...], faults_for_s: float) -> None:
        self.world = world
        self.faults_for_s = faults_for_s
        settings = replace(plan(seed).settings, broker_ids=(1, 2, 3), serves_kafka=True)
        self.cluster = SimCluster(world, settings)
        self.judge, self.members = self.cast()
        self.nemesis = Nemesis(self.cluster, [], [app.node for app in self.members], {}, world.chance("nemesis"))
        self.nemesis.only(kinds)
        self.chance = world.chance("members")

    @abstractmethod
    def cast(self) -> tuple[MembersJudge, Sequence[App]]:
        """The judge and the members."""

    @abstractmethod
    def is_settled(self) -> bool:
        """Nothing goes wrong any more: all partitions are assigned, to one member each, and all is done."""

    @abstractmethod
    def standing(self) -> str:
        """Where the members stand, for who has to find out why they do not settle."""

    def begin(self) -> None:  # noqa: B027  # not every story has something to do then
        """The topic is there."""

    async def story(self) -> None:
        world = self.world
        self.cluster.start_all()
        background = [world.loop.create_task(work) for work in (self.cluster.supervise(), self._watch())]
        request = controller_pb2.CreateTopicRequest(name=TOPIC, partitions=PARTITIONS, replication_factor=3)
        deadline = world.now + 30
        while (outcome := await self.cluster.ask_admin("CreateTopic", request)) != "ok" and "exists" not in outcome:
            if world.now > deadline:
                self.judge.fail("G11", f"the topic could not be created: {outcome}")
            await asyncio.sleep(0.3)
        self.begin()
        for member in self.members:
            member.start()
        await asyncio.sleep(2)
        background.append(world.loop.create_task(self._kill_members(world.now + self.faults_for_s)))
        await self.nemesis.run(world.now + self.faults_for_s, 2.0)
        await self.nemesis.heal_everything()
        for member in self.members:
            self._ensure_runs(member)
        await self._settle()
        for task in background:
            task.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            if failures := self.world.failures():
                self.judge.fail("unhandled", "; ".join(failures))

    async def _kill_members(self, until: float) -> None:
        while self.world.now < until:
            await asyncio.sleep(self.chance.expovariate(1 / KILLED_EVERY_S))
            member = self.chance.choice(self.members)
            process = self.world.machine(member.node).process
            if process is not None and process.alive:
                await self.harm(member)

    async def harm(self, member: App) -> None:
        self.world.tell("nemesis", f"kills {member.node}")
        self.world.kill(member.node)
        await asyncio.sleep(self.chance.random() * 4)
        self._ensure_runs(member)

    def _ensure_runs(self, member: App) -> None:
        process = self.world.machine(member.node).process
        if process is None or not process.alive:
            member.start()

    async def _settle(self) -> None:
        """The group settles and stays so, and every replica of the internal topic has the same table."""
        deadline, since, stood = self.world.now + SETTLED_WITHIN_S, self.world.now, ""
        while not stood or self.world.now - since < STAYS_SETTLED_S:
            if self.world.now > deadline:
                self.judge.fail("G11", f"the group does not settle: {self.standing()}")
            await asyncio.sleep(0.2)
            stands = self.standing() if self.is_settled() else ""
            if stands != stood:
                since, stood = self.world.now, stands
        tables: list[dict[int, object]] = []
        while True:
            tables = self._tables()
            if all(len(found) == 3 and len(set(map(str, found.values()))) == 1 for found in tables):
                break
            if self.world.now > deadline + SETTLED_WITHIN_S:
                self.judge.fail("G13", f"replicas of {OFFSETS_TOPIC} have different tables: {tables}")
            await asyncio.sleep(0.2)

    def _tables(self) -> list[dict[int, object]]:
        """Of each partition of the internal topic: by broker, its log's end and its table."""
        image = self.cluster.judge.image
        topic_id = next((t.topic_id for t in image.topics.values() if t.name == OFFSETS_TOPIC), "")
        found = []
        for partition in image.partitions_of(topic_id):
            tables: dict[int, object] = {}
            for broker_id, broker in self.cluster.brokers.items():
                replica = broker.manager.replicas.get(partition.id)
                if replica is not None and self.cluster.alive(broker_id):
                    tables[broker_id] = (replica.log.log_end_offset, sorted(replica.log.states[TABLE].items()))
            found.append(tables)
        return found


class GroupRun(GroupStory):
    """Members of the classic protocol."""

    judge: GroupJudge
    members: Sequence[MemberApp]

    def cast(self) -> tuple[GroupJudge, Sequence[MemberApp]]:
        judge = GroupJudge(self.world)
        brokers = self.cluster.settings.broker_ids
        return judge, [MemberApp(self.world, f"member-{n}", brokers, judge) for n in range(MEMBERS)]

    def is_settled(self) -> bool:
        owned = [partition for member in self.members for partition in member.owned or b""]
        joined = {member.generation for member in self.members if member.owned is not None}
        return (
            sorted(owned) == list(range(PARTITIONS))
            and len(joined) == 1
            and all(member.owned is not None for member in self.members)
        )

    def standing(self) -> str:
        return str([(m.node, m.generation, m.owned) for m in self.members])


def run_group(story: type[GroupStory], seed: int, kinds: tuple[str, ...], faults_for_s: float) -> GroupResult:
    """One run from one seed."""
    with collector_off(), World(seed) as world:
        began = time.process_time()
        run = story(world, seed, kinds, faults_for_s)
        result = GroupResult(seed, world.trace)
        try:
            world.run(run.story())
            if failures := world.failures():
                result.promise, result.problem = "unhandled", "; ".join(failures)
        except Violation as violation:
            result.promise, result.problem = violation.promise, str(violation)
        except (Deadlock, Runaway, AssertionError) as error:
            result.promise, result.problem = "unhandled", f"{type(error).__name__}: {error}"
        if run.judge.first is not None:
            result.promise, result.problem = run.judge.first.promise, str(run.judge.first)
        result.counts.update(run.judge.counts)
        result.faults.update(run.nemesis.counts)
        result.cpu_s = time.process_time() - began
        run.cluster.database.close()
    return result


def simulate_group(seed: int, kinds: tuple[str, ...] = KINDS, faults_for_s: float = 25.0) -> GroupResult:
    """A group of the classic protocol."""
    return run_group(GroupRun, seed, kinds, faults_for_s)
