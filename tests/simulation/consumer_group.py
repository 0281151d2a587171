"""A group of Fencepost's own consumers (KIP-848 over gRPC) in the simulation, and a judge of what they read and commit.

A writer sends numbered records. The members read them, work, commit, and are killed, paused and cut off. One that has lost
its partitions also sends a commit of the time before, under the epoch of then, as a process would that was paused in the
middle of a call.

The judge sees every member at once:

- G12: when a member gets records of a partition, no other member may be handed out any of it;
- G13: a partition begins at the newest acknowledged commit or behind it, and a commit that is acknowledged is not below one
  that was acknowledged before it was sent;
- under one grant records come without a gap or a repeat, and in the end every acknowledged record was read by someone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from fencepost.consumer import Consumer
from fencepost.consuming.partition import UNRESOLVED, ConsumerRecord, TopicPartition
from fencepost.group_requests import GroupRequests
from fencepost.producer import Producer
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.v1 import groups_pb2
from fencepost_proto.runtime.host import Host
from tests.simulation.disk import MountedDisk
from tests.simulation.groups import (
    GROUP,
    KINDS,
    MEMBERS,
    PARTITIONS,
    TOPIC,
    App,
    GroupResult,
    GroupStory,
    MembersJudge,
    run_group,
)
from tests.simulation.world import World

POLL_MS, POLL_RECORDS = 300, 20
COMMITTED = 0.5  # of what members have worked on: they commit it at once
LATE = 0.5  # of what they have lost: they commit it all the same
WRITE_EVERY_S = 0.05
WORK_S = 0.1
PAUSED = 0.5  # of the harm that comes to members


@dataclass
class ConsumerJudge(MembersJudge):
    members: list[Member] = field(default_factory=list)
    values: dict[tuple[int, int], bytes] = field(default_factory=dict)  # by partition and offset, as read
    written: dict[int, int] = field(default_factory=dict)  # by partition: the last acknowledged offset
    acknowledged: dict[int, int] = field(default_factory=dict)  # commits, by partition

    def begins(self, member: Member, partition: int, position: int) -> None:
        self.counts["assigned"] += 1
        if position < self.acknowledged.get(partition, UNRESOLVED):
            self.fail(
                "G13", f"{member.node} begins {partition} at {position}, committed was {self.acknowledged[partition]}"
            )

    def handed_out(self, member: Member, record: ConsumerRecord) -> None:
        self.counts["read"] += 1
        tp = TopicPartition(TOPIC, record.partition)
        for other in self.members:
            if other is not member and other.may_get(tp):
                self.fail("G12", f"{member.node} gets {tp.partition}, {record.offset} while {other.node} has it too")
        expected = member.next_offset.get(record.partition)
        if expected is not None and record.offset != expected:
            self.fail("G10", f"{member.node} gets {tp.partition}, {record.offset} where {expected} is next")
        member.next_offset[record.partition] = record.offset + 1
        value = record.value or b""
        if self.values.setdefault((record.partition, record.offset), value) != value:
            self.fail("G10", f"{tp.partition}, {record.offset} is {value!r}, and was another")

    def committed(self, member: Member, before: dict[int, int], partition: int, offset: int) -> None:
        self.counts["committed"] += 1
        if offset < before.get(partition, -1):
            self.fail(
                "G13", f"{member.node} commits {partition} at {offset}, after {before[partition]} was acknowledged"
            )
        self.acknowledged[partition] = max(offset, self.acknowledged.get(partition, -1))

    def missing(self) -> list[tuple[int, int]]:
        """Partition and offset of acknowledged records that nobody has read."""
        return [
            (partition, offset)
            for partition, last in self.written.items()
            for offset in range(last + 1)
            if (partition, offset) not in self.values
        ]


class Member:
    """One consumer, in a process of its own, that is opened again where it fails."""

    def __init__(self, world: World, node: str, bootstrap: list[str], judge: ConsumerJudge) -> None:
        self.world, self.node, self.bootstrap, self.judge = world, node, bootstrap, judge
        self.consumer: Consumer | None = None
        self.next_offset: dict[int, int] = {}  # of this consumer, by partition, under the present grant
        self.work_on: dict[int, int] = {}  # behind what it has worked on and not committed
        self.late: tuple[str, int, dict[int, int]] | None = None  # member id, epoch, offsets of before it lost them
        judge.members.append(self)

    def start(self) -> None:
        self.consumer = None
        self.world.start(self.node, self._run)

    @property
    def alive(self) -> bool:
        process = self.world.machine(self.node).process
        return process is not None and process.alive

    def may_get(self, tp: TopicPartition) -> bool:
        """Its next read may hand out records of that partition."""
        consumer = self.consumer if self.alive else None
        if consumer is None or consumer._group is None:
            return False
        return tp in consumer.assignment and consumer._group.may_hand_out

    async def _run(self, host: Host, disk: MountedDisk) -> None:
        while True:
            consumer = Consumer(
                self.bootstrap, TOPIC, group=GROUP, host=host, auto_commit_ms=None, client_id=self.node,
                on_assigned=self._assigned, on_revoked=self._revoked, on_lost=self._lost,
            )  # fmt: skip
            self.next_offset, self.work_on, self.late = {}, {}, None
            try:
                async with consumer:
                    self.consumer = consumer
                    while True:
                        await self._round(consumer, host)
            except FencepostError as error:
                self.judge.counts[f"consumer: {error.code.name.lower()}"] += 1
                self.consumer = None
                await asyncio.sleep(0.2 + host.random.random())

    def _assigned(self, tps: list[TopicPartition]) -> None:
        assert self.consumer is not None
        for tp in tps:
            self.next_offset.pop(tp.partition, None)
            self.judge.begins(self, tp.partition, self.consumer._core.position(tp))

    async def _revoked(self, tps: list[TopicPartition]) -> None:
        self.judge.counts["revoked"] += 1
        await self._commit({tp.partition: self.work_on.pop(tp.partition) for tp in tps if tp.partition in self.work_on})

    def _lost(self, tps: list[TopicPartition]) -> None:
        self.judge.counts["lost"] += 1
        for tp in tps:
            self.work_on.pop(tp.partition, None)

    async def _round(self, consumer: Consumer, host: Host) -> None:
        records = await consumer.poll(POLL_RECORDS, timeout_ms=POLL_MS)
        for record in records:
            self.judge.handed_out(self, record)
            self.work_on[record.partition] = record.offset + 1
        group = consumer._group
        assert group is not None
        if records and self.late is None and host.random.random() < LATE:
            self.late = (group._member_id, group._member.epoch, dict(self.work_on))
        await asyncio.sleep(host.random.expovariate(1 / WORK_S))
        if self.work_on and host.random.random() < COMMITTED:
            offsets, self.work_on = self.work_on, {}
            await self._commit({p: o for p, o in offsets.items() if TopicPartition(TOPIC, p) in consumer.assignment})
        if self.late is not None and host.random.random() < 0.05:
            await self._commit_late(consumer, *self.late)
            self.late = None

    async def _commit(self, offsets: dict[int, int]) -> None:
        before = dict(self.judge.acknowledged)
        assert self.consumer is not None
        try:
            await self.consumer.commit({TopicPartition(TOPIC, p): offset for p, offset in offsets.items()})
        except FencepostError as error:
            self.judge.counts[f"commit: {error.code.name.lower()}"] += 1
            return
        for partition, offset in offsets.items():
            self.judge.committed(self, before, partition, offset)

    async def _commit_late(self, consumer: Consumer, member_id: str, epoch: int, offsets: dict[int, int]) -> None:
        """Of partitions that are another member's."""
        before = dict(self.judge.acknowledged)
        away = [p for p in offsets if TopicPartition(TOPIC, p) not in consumer.assignment]
        offsets = {p: offsets[p] for p in away if offsets[p] < before.get(p, -1)}
        if not offsets:
            return
        topic_id = consumer._cluster.image.topic_ids[TOPIC]
        request = groups_pb2.CommitOffsetsRequest(group_id=GROUP, member_id=member_id, member_epoch=epoch)
        for partition, offset in offsets.items():
            request.offsets.add(topic_id=topic_id, partition=partition, offset=offset)
        asked = GroupRequests(consumer._cluster).ask(GROUP, lambda groups: groups.CommitOffsets, lambda: request, 2.0)
        try:
            answer = await asked
        except FencepostError as error:
            self.judge.counts[f"late commit: {error.code.name.lower()}"] += 1
            return
        if not answer.refused:
            for partition, offset in offsets.items():
                self.judge.committed(self, before, partition, offset)


class Writer:
    """Sends numbered records until it is told to stop."""

    def __init__(self, world: World, bootstrap: list[str], judge: ConsumerJudge) -> None:
        self.node, self.stopping = "writer", False
        self._world, self._bootstrap, self._judge = world, bootstrap, judge

    def start(self) -> None:
        self._world.start(self.node, self._run)

    async def _run(self, host: Host, disk: MountedDisk) -> None:
        number = 0
        async with Producer(self._bootstrap, host=host) as producer:
            while not self.stopping:
                delivery = await producer.send(TOPIC, b"%d" % number, partition=host.random.randrange(PARTITIONS))
                number += 1
                try:
                    place = await delivery
                except FencepostError as error:
                    self._judge.counts[f"write: {error.code.name.lower()}"] += 1
                else:
                    last = self._judge.written.get(place.partition, -1)
                    self._judge.written[place.partition] = max(last, place.offset)
                await asyncio.sleep(host.random.expovariate(1 / WRITE_EVERY_S))


class ConsumerGroupStory(GroupStory):
    judge: ConsumerJudge
    members: Sequence[Member]

    def cast(self) -> tuple[ConsumerJudge, Sequence[Member]]:
        judge, bootstrap = ConsumerJudge(self.world), self.cluster.bootstrap
        self.writer = Writer(self.world, bootstrap, judge)
        return judge, [Member(self.world, f"member-{n}", bootstrap, judge) for n in range(MEMBERS)]

    def begin(self) -> None:
        self.writer.start()

    async def harm(self, member: App) -> None:
        if self.chance.random() < PAUSED:
            self.world.tell("nemesis", f"pauses {member.node}")
            self.world.pause(member.node)
            await asyncio.sleep(self.chance.random() * 5)
            self.world.resume(member.node)
        else:
            await super().harm(member)

    def is_settled(self) -> bool:
        self.writer.stopping = True
        owned = [tp.partition for m in self.members if m.consumer is not None for tp in m.consumer.assignment]
        return sorted(owned) == list(range(PARTITIONS)) and not self.judge.missing()

    def standing(self) -> str:
        owned = [(m.node, m.consumer.assignment if m.consumer is not None else None) for m in self.members]
        return f"{owned}, not read {self.judge.missing()[:10]}"


def simulate_consumer_group(seed: int, kinds: tuple[str, ...] = KINDS, faults_for_s: float = 25.0) -> GroupResult:
    """One run from one seed: a cluster, a group of own consumers, faults; then everything is healed, and all is read."""
    return run_group(ConsumerGroupStory, seed, kinds, faults_for_s)
