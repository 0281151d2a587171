"""A directed simulation at a size that the whole simulator is too slow for: the production controller and its sessions, in
virtual time, with brokers that are only what their controller sees of them. It counts what goes over the wire.

A stub broker holds a session as `services/session.py` does, applies what comes, and proposes in-sync sets as the production
code does: all that it has at one time in one request, one request at a time. Its followers catch up at once.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from fencepost_controller import session_registry as sessions_module
from fencepost_controller.broker_session import BrokerSession
from fencepost_controller.commands import Commands
from fencepost_controller.config import ControllerConfig
from fencepost_controller.decisions.cluster import FormCluster
from fencepost_controller.decisions.placement import place
from fencepost_controller.failed_replicas import FailedReplicas
from fencepost_controller.probe import ProbeVerdict
from fencepost_controller.services.partitions import alter_partition
from fencepost_controller.session_registry import SessionRegistry
from fencepost_controller.store.sqlite import SqliteStore
from fencepost_node.replication.isr_proposals import MAX_PROPOSALS
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import BrokerRegistration, Changes, MetadataImage, Partition, PartitionKey, Topic
from fencepost_proto.protocol.v1 import controller_pb2 as pb
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.tasks import Tasks
from fencepost_testing.waiting import until
from tests.simulation.loop import SimLoop

REPLICATION_FACTOR = 3
PARTITIONS_PER_TOPIC = 1_000
CATCH_UP_S = 0.02  # from the news of a leadership until the followers have all


@dataclass(slots=True)
class Traffic:
    """What the controller has said and heard, and the versions that it has made."""

    versions: int = 0
    changes: int = 0  # of partitions, in all versions
    deltas: int = 0  # messages to brokers
    delta_bytes: int = 0
    images: int = 0
    image_bytes: int = 0
    proposals: int = 0
    requests: int = 0  # that carried them


@dataclass(slots=True)
class Decoded:
    """A message to the brokers: the same for all, so that the stubs need read it only once."""

    image: MetadataImage  # after it
    size_bytes: int
    changed: dict[int, list[PartitionKey]]  # by broker: which of its partitions
    of_brokers: bool  # a broker has changed


class ManyPartitions:
    """A controller whose store holds `brokers` and `partitions`; nothing runs yet."""

    def __init__(self, brokers: int, partitions: int) -> None:
        self.traffic = Traffic()
        self.brokers: dict[int, StubBroker] = {}
        self._loop = SimLoop(random.Random(1))
        self._decoded: dict[tuple[int, bool], Decoded] = {}  # the newest, by version and whether it is an image
        self._start(brokers, partitions)

    def run(self, story: Coroutine[Any, Any, None]) -> None:
        """In virtual time."""
        with patch.object(sessions_module, "probe", _process_is_gone):
            self._loop.run_until_complete(self._told(story))

    async def _told(self, story: Coroutine[Any, Any, None]) -> None:
        await self.commands.load()
        committing = self.tasks.spawn(self.commands.run(), "commands")
        self.sessions.start()
        self.tasks.spawn(self.sessions.watch(), "watch")
        try:
            await story
            assert not self.failures, self.failures
        finally:
            committing.cancel()
            await self.tasks.close()

    def _start(self, brokers: int, partitions: int) -> None:
        asyncio.set_event_loop(self._loop)
        store = SqliteStore(
            "memory", lambda _: sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        )
        entities: list[Any] = [
            BrokerRegistration(n, f"h:{n}", 1, f"life-0-{n}", fenced=True) for n in range(1, brokers + 1)
        ]
        placed = place(range(1, brokers + 1), (), partitions, REPLICATION_FACTOR, start=0)
        for number, replicas in enumerate(placed):
            topic_number, index = divmod(number, PARTITIONS_PER_TOPIC)
            topic_id = f"topic-id-{topic_number:013d}"
            if not index:
                entities.append(Topic(topic_id, f"topic-{topic_number}"))
            entities.append(Partition(topic_id, index, replicas, replicas, -1, 0, 0))
        store.commit(0, 1, {entity.key: entity for entity in entities})
        self.failures: list[BaseException] = []
        failed = FailedReplicas()

        async def make() -> None:
            self.tasks = Tasks(self.failures.append)
            self.commands = Commands(store, failed, self._committed)
            self.sessions = SessionRegistry(
                wire=Host().wire,
                config=ControllerConfig(data_dir="unused"),
                commands=self.commands,
                failed=failed,
                on_applied=lambda: None,
                on_went_back=self.failures.append,
                spawn=self.tasks.spawn,
            )

        self._loop.run_until_complete(make())

    def _committed(self, image: MetadataImage, changes: Changes) -> None:
        self.traffic.versions += 1
        self.traffic.changes += sum(isinstance(entity, Partition) for entity in changes.values())
        self.sessions.publish(changes)

    # ---- For the story ----

    @property
    def image(self) -> MetadataImage:
        return self.commands.image

    def decoded(self, before: MetadataImage, response: pb.SessionResponse) -> Decoded:
        """What a message makes of an image."""
        delta = response.metadata
        known = self._decoded.get((delta.version, delta.image))
        if known is None:
            if len(self._decoded) > 8:
                self._decoded.clear()
            changed: dict[int, list[PartitionKey]] = {}
            image = before.apply(delta)
            for entity in delta.changed:
                if entity.HasField("partition"):
                    for broker_id in entity.partition.replicas:
                        key = (entity.partition.topic_id, entity.partition.partition)
                        changed.setdefault(broker_id, []).append(key)
            of_brokers = any(entity.HasField("broker") for entity in delta.changed)
            known = Decoded(image, response.ByteSize(), changed, of_brokers)
            self._decoded[(delta.version, delta.image)] = known
        return known

    async def form(self) -> None:
        await self.commands.submit(FormCluster("cluster", 1))

    async def start(self, *broker_ids: int) -> None:
        """New processes, which register at the same time."""
        for broker_id in broker_ids:
            life = self.brokers[broker_id].life + 1 if broker_id in self.brokers else 1
            broker = self.brokers[broker_id] = StubBroker(self, broker_id, life)
            self.tasks.spawn(broker.run(), f"broker {broker_id}")
        await self.until(lambda: all(not self.image.brokers[b].fenced for b in broker_ids), "unfenced")

    def kill(self, *broker_ids: int) -> None:
        for broker_id in broker_ids:
            self.brokers[broker_id].kill()

    def not_in_sync(self) -> int:
        return sum(len(p.isr) < len(p.replicas) or p.leader < 0 for p in self.image.partitions.values())

    async def in_sync(self) -> None:
        await self.until(lambda: not self.not_in_sync(), "all replicas in sync")

    async def until(self, condition: Any, what: str) -> None:
        def holds() -> object:
            assert not self.failures, self.failures
            return condition()

        await until(holds, what, 120)

    def counted(self) -> Traffic:
        """Since the last call."""
        traffic, self.traffic = self.traffic, Traffic()
        return traffic


class StubBroker:
    """One process of a broker, as its controller sees it."""

    def __init__(self, world: ManyPartitions, broker_id: int, life: int) -> None:
        self.world = world
        self.broker_id = broker_id
        self.life = life
        self.image = MetadataImage()
        self.session: BrokerSession | None = None
        self._leading: dict[PartitionKey, Partition] = {}  # not all in sync
        self._proposed: dict[PartitionKey, int] = {}  # partition epoch that the open proposal is based on
        self._tasks: list[asyncio.Task[Any]] = []
        self._wake = asyncio.Event()
        self._killed = False

    async def run(self) -> None:
        register = pb.Register(
            broker_id=self.broker_id,
            incarnation=f"life-{self.life}-{self.broker_id}",
            cluster_id=self.world.image.cluster_id,
            address=f"h:{self.broker_id}",
            folder_epoch=self.world.image.brokers[self.broker_id].broker_epoch,
        )
        self.session = session = await self.world.sessions.register(register)
        loops = (self._receive(session), self._propose(), self.world.sessions.follow(session), self._beat(session))
        self._tasks = [asyncio.create_task(each) for each in loops]
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    raise error
        finally:
            for task in self._tasks:
                task.cancel()
            self.world.sessions.stream_ended(session)

    def kill(self) -> None:
        self._killed = True
        for task in self._tasks:
            task.cancel()

    def _heartbeat(self, session: BrokerSession) -> None:
        self.world.sessions.heartbeat(session, pb.Heartbeat(applied_version=self.image.version, ready=True))

    async def _beat(self, session: BrokerSession) -> None:
        while True:
            await asyncio.sleep(0.5)
            self._heartbeat(session)

    async def _receive(self, session: BrokerSession) -> None:
        while (response := await session.next_response(self.world.sessions.messages.image)) is not None:
            if response.WhichOneof("kind") != "metadata":
                continue
            decoded, traffic = self.world.decoded(self.image, response), self.world.traffic
            if response.metadata.image:
                traffic.images += 1
                traffic.image_bytes += decoded.size_bytes
            else:
                traffic.deltas += 1
                traffic.delta_bytes += decoded.size_bytes
            self.image = decoded.image
            self._look(decoded.changed.get(self.broker_id, []))
            if decoded.of_brokers:
                self._wake.set()  # one that follows may be eligible now
            self._heartbeat(session)

    def _look(self, keys: list[PartitionKey]) -> None:
        """What it leads, and who is not in sync there."""
        for key in keys:
            partition = self.image.partitions[key]
            if partition.leader == self.broker_id and len(partition.isr) < len(partition.replicas):
                self._leading[key] = partition
                self._wake.set()
            else:
                self._leading.pop(key, None)

    async def _propose(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(CATCH_UP_S)
            while proposals := self._proposals():
                await self._ask(proposals)

    def _proposals(self) -> list[pb.IsrProposal]:
        live = {b.id: b.broker_epoch for b in self.image.brokers.values() if not b.fenced}
        proposals: list[pb.IsrProposal] = []
        for key, partition in self._leading.items():
            members = [b for b in partition.replicas if b in partition.isr or b in live]
            if len(members) == len(partition.isr) or self._proposed.get(key) == partition.partition_epoch:
                continue
            self._proposed[key] = partition.partition_epoch
            proposals.append(
                pb.IsrProposal(
                    topic_id=key[0],
                    partition=key[1],
                    leader_epoch=partition.leader_epoch,
                    partition_epoch=partition.partition_epoch,
                    new_isr=[pb.IsrMember(broker_id=b, broker_epoch=live.get(b, -1)) for b in members],
                )
            )
            if len(proposals) == MAX_PROPOSALS:
                break
        return proposals

    async def _ask(self, proposals: list[pb.IsrProposal]) -> None:
        epoch = self.image.brokers[self.broker_id].broker_epoch
        request = pb.AlterPartitionRequest(broker_id=self.broker_id, broker_epoch=epoch, proposals=proposals)
        self.world.traffic.requests += 1
        self.world.traffic.proposals += len(proposals)
        answer = await alter_partition(self.world.commands, request)
        refused = (ErrorCode.INELIGIBLE_REPLICA, ErrorCode.INVALID_REQUEST)
        for proposal, result in zip(proposals, answer.results, strict=True):
            if result.code in refused:
                self._proposed.pop((proposal.topic_id, proposal.partition), None)


async def _process_is_gone(*_: object) -> ProbeVerdict:
    return ProbeVerdict.DEAD
