"""One run: a cluster, its clients and its faults, all drawn from one seed; and the judgement at the end.

The course of a run: the cluster starts and topics are made; producers and consumers work while the nemesis does; then
everything is healed, the producers finish, the replicas catch up, and everything is compared with everything.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Literal
from unittest.mock import patch

from fencepost.history_format import Operation
from fencepost_node.log.names import (
    EPOCH_CHECKPOINT,
    INDEX_SUFFIX,
    LOG_SUFFIX,
    PARTITION_METADATA,
    SNAPSHOT_SUFFIX,
    TIME_INDEX_SUFFIX,
)
from fencepost_proto.protocol.v1 import controller_pb2
from fencepost_proto.transport.streams import split_address
from tests.simulation.cause_judge import LOOKED_EVERY_S
from tests.simulation.cluster import SimCluster, broker_kafka_address, broker_node
from tests.simulation.judged import Violation
from tests.simulation.kafka_tap import KafkaTap
from tests.simulation.kafka_workload import TOPIC as KAFKA_TOPIC
from tests.simulation.kafka_workload import KafkaApps, aiokafka_in, topic_request
from tests.simulation.loop import Deadlock, Runaway, collector_off
from tests.simulation.nemesis import SMALL_FILES_ROT, Nemesis, is_snapshot
from tests.simulation.plan import Plan, plan, short_room, small_numbers
from tests.simulation.small_files import close_entries
from tests.simulation.verdict import FinalVerdict
from tests.simulation.workload import ConsumerApp, Fate, ProducerApp, SendLedger
from tests.simulation.world import World

CARRIERS: tuple[Literal["grpc", "lean", "mixed"], ...] = ("grpc", "lean", "grpc", "mixed")  # of seeds, in turn
FLOOD = "flood of new producers"
POISONED = 0.25  # of the runs: hostile clients write batches that no one can read
WITH_KAFKA = 0.3  # of the runs without strangers, expiring producers and small numbers: Kafka's clients work beside
CHANGED = 0.2  # of the runs: operators change topics
ROTTEN = 0.25  # of the runs: bytes change in the small files of logs
STRANGE, FLOODED = 0.25, 0.1  # of the runs: strangers write under others' ids; partitions have room for few producers
TOPICS_WITHIN_S = 30.0
LEADERS_WITHIN_S = 30.0  # after the faults
IN_SYNC_WITHIN_S = 180.0  # after the faults: every replica; slow disks take a second for ten kilobytes
OF_A_LOG = (LOG_SUFFIX, INDEX_SUFFIX, TIME_INDEX_SUFFIX, SNAPSHOT_SUFFIX, EPOCH_CHECKPOINT, PARTITION_METADATA)
FINISHED_WITHIN_S = 90.0  # after the faults: every send, every read


@dataclass(slots=True)
class Result:
    """What came of one run."""

    seed: int
    plan: Plan
    trace: list[str]
    history: list[Operation] = field(default_factory=list)  # what its clients recorded, as far as it was judged
    problem: str = ""  # empty: every promise held
    promise: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.problem


def simulate(
    seed: int,
    kinds: tuple[str, ...] = (),
    *,
    kafka: bool = False,
    carrier: Literal["grpc", "lean", "mixed"] | None = None,
    controllers: int = 1,
) -> Result:
    """One run from one seed; with `kinds`, under faults of these kinds only; `kafka`: certainly with Kafka's clients.

    `carrier`: how calls travel; None: as the seed says, and as gRPC with `kinds`. `mixed`: each process has one of its own.
    """
    planned = plan(seed)
    if controllers > 1:
        planned = replace(planned, settings=replace(planned.settings, controllers=controllers))
    if kafka:
        planned = replace(planned, small_numbers=False)
    strange = random.Random(f"{seed}/strange").random()
    if FLOOD in kinds or (not kinds and strange < FLOODED):
        planned = planned.with_short_room()
    drawn = not kinds and strange >= STRANGE and random.Random(f"{seed}/kafka").random() < WITH_KAFKA
    if kafka or (drawn and not planned.small_numbers and not planned.producers_expire):
        planned = replace(planned, settings=replace(planned.settings, serves_kafka=True))
    rots = SMALL_FILES_ROT in kinds or (not kinds and random.Random(f"{seed}/small files").random() < ROTTEN)
    with collector_off(), constants(planned, rots=rots), World(seed) as world, gzip_in_time(world), aiokafka_in(world):
        began = time.process_time()
        world.carrier = carrier or ("grpc" if kinds else CARRIERS[seed % len(CARRIERS)])
        run = Run(world, planned)
        if controllers > 1:
            run.nemesis.with_several_controllers()
        if kinds:
            run.nemesis.only(kinds)
        elif planned.producers_expire:
            run.nemesis.without("clock jump")  # an hour's jump is more than the expiration time
        # aiokafka passes over what is deleted, and stops at what no one can read
        poisoned = random.Random(f"{seed}/poison").random() < POISONED
        run.nemesis.poisons = poisoned and not kinds and run.kafka is None
        changed = random.Random(f"{seed}/operators").random() < CHANGED
        run.nemesis.changes_topics = changed and not kinds and run.kafka is None
        run.nemesis.small_files_rot = rots and not kinds
        if strange >= STRANGE or controllers > 1:
            run.nemesis.strangers = {}
        elif not planned.settings.room_is_short:
            run.nemesis.strangers.pop(FLOOD, None)
        result = Result(seed, planned, world.trace)
        try:
            world.run(run.story())
            failures = world.failures()
            if failures:
                result.promise, result.problem = "unhandled", "; ".join(failures)
        except Violation as violation:
            result.promise, result.problem = violation.promise, str(violation)
        except (Deadlock, Runaway, AssertionError) as error:
            result.promise, result.problem = "unhandled", f"{type(error).__name__}: {error}"
        result.counts.update(run.cluster.judge.counts)
        result.counts.update(run.counts())
        result.faults.update(run.nemesis.counts)
        result.history = run.verdict.history
        result.virtual_s = world.now
        result.cpu_s = time.process_time() - began
        run.close()
    return result


@contextmanager
def constants(planned: Plan, *, rots: bool) -> Iterator[None]:
    """The numbers of the production code that are smaller in this run."""
    with ExitStack() as stack:
        if planned.small_numbers:
            stack.enter_context(small_numbers())
        if planned.settings.room_is_short:
            stack.enter_context(short_room())
        if rots:
            stack.enter_context(close_entries())
        yield


def gzip_in_time(world: World) -> AbstractContextManager[object]:
    """Python's gzip writes the time of day into what it compresses: here it is the world's, or no run would repeat."""
    return patch.object(gzip, "time", SimpleNamespace(time=lambda: world.now))


class Run:
    """The story of one run."""

    def __init__(self, world: World, planned: Plan) -> None:
        self.world = world
        self.plan = planned
        world.loop.thread_delay_s = planned.thread_delay_s
        self.cluster = SimCluster(world, planned.settings)
        self.judge = self.cluster.judge
        self.ledger = SendLedger()
        self.kafka = KafkaApps(world, self.cluster, self.ledger) if planned.settings.serves_kafka else None
        bootstrap = self.cluster.bootstrap
        topics = tuple(topic.name for topic in planned.topics) + ((KAFKA_TOPIC,) if self.kafka is not None else ())
        self.producers = [ProducerApp(world, spec, bootstrap, self.ledger) for spec in planned.producers]
        self.consumers = [
            ConsumerApp(world, f"consumer-{n}", topics, bootstrap, self.ledger) for n in range(planned.consumers)
        ]
        for producer in self.producers:
            producer.newest_of = self.judge.newest_of
            if self.cluster.is_quick and not planned.settings.room_is_short:
                producer.wait_judged = self.cluster.waits.judged
        for consumer in self.consumers:
            consumer.unclean = self.judge.unclean_elections
        self.verdict = FinalVerdict(world, self.judge, self.ledger, self.consumers)
        clients = [spec.node for spec in planned.producers] + [consumer.node for consumer in self.consumers]
        if self.kafka is not None:
            clients += self.kafka.nodes
            world.network.tap_of = partial(KafkaTap, self.judge)
            world.network.tapped_port = split_address(broker_kafka_address(planned.settings.broker_ids[0]))[1]
        requests = {topic.name: topic.request() for topic in planned.topics}
        self.nemesis = Nemesis(self.cluster, self.producers, clients, requests, world.chance("nemesis"))
        self.nemesis.readers = self.nemesis.changes.readers = self.consumers
        self._background: list[asyncio.Task[None]] = []

    def close(self) -> None:
        self.cluster.database.close()

    async def story(self) -> None:
        world = self.world
        world.tell("plan", str(self.plan))
        self.cluster.start_all()
        works = [self.cluster.supervise(), self._sweep_for_ever()]
        if self.cluster.etcd is not None:
            works.append(self.cluster.etcd.tick_for_ever())
        for work in works:
            self._background.append(world.loop.create_task(work))
        for topic in self.plan.topics:
            await self._create(topic.name, topic.request())
        if self.kafka is not None:
            await self._create(KAFKA_TOPIC, topic_request(3))
            self.kafka.start()
        for producer in self.producers:
            producer.start()
        for consumer in self.consumers:
            consumer.start()
        await asyncio.sleep(1)
        await self.nemesis.run(world.now + self.plan.faults_for_s, self.plan.mean_pause_s)
        await self.nemesis.heal_everything()
        for topic in self.plan.topics:
            await self._create(topic.name, topic.request())  # it may have been deleted
        for producer in self.producers:
            process = world.machine(producer.spec.node).process
            if process is None or not process.alive:
                producer.start()
        await self._recover()
        for task in self._background:
            task.cancel()
        self._sweep()
        self.judge.look_at_strangers()
        self.judge.look_at_suspicions()
        self.verdict.give()
        self.nemesis.small_files.judge()
        if self.cluster.etcd is not None and self.cluster.exits.get("MetadataWentBack"):
            self.judge.fail("unhandled", "a controller took its store for one that has gone back")
        logs = [(record.name, record.committed) for record in self.judge.records.values()]
        world.tell("judge", f"every promise held; what is committed has the CRC {zlib.crc32(repr(logs).encode()):08x}")

    async def _create(self, name: str, request: controller_pb2.CreateTopicRequest) -> None:
        deadline = self.world.now + TOPICS_WITHIN_S
        while (outcome := await self.cluster.ask_admin("CreateTopic", request)) != "ok":
            if "exists" in outcome:
                return
            if self.world.now > deadline:
                self.judge.fail("G11", f"topic {name} could not be created: {outcome}")
            await asyncio.sleep(0.3)

    # ---- Looking on ----

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOKED_EVERY_S)
            self._sweep()

    def _sweep(self) -> None:
        self.cluster.look_around()
        self.judge.sweep(self.cluster.replicas())
        if self.cluster.etcd is not None:
            self.cluster.etcd.sweep(self.cluster.brokers)
        for producer in self.producers:
            if producer.problems:
                self.judge.fail("G11", producer.problems[0])
        for consumer in self.consumers:
            if self.cluster.is_quick:
                self._look_whether_late(consumer)
            if not self._tainted():
                consumer.look()
                if consumer.problems:
                    self.judge.fail("G10", consumer.problems[0])
        if self.kafka is not None:
            self.kafka.look()
        failures = self.world.failures()
        if failures:
            self.judge.fail("unhandled", "; ".join(failures))

    def _look_whether_late(self, consumer: ConsumerApp) -> None:
        for key, record in self.judge.records.items():
            topic, _, index = record.name.rpartition("-")
            if consumer.topic_ids.get(topic) == key[0] and consumer.follows(topic, int(index)):
                position = consumer.position(topic, int(index))
                if late := self.cluster.waits.reader_judged(consumer.node, key, position, self.world.now):
                    self.judge.fail("G11", late)

    def _tainted(self) -> bool:
        return any(record.tainted for record in self.judge.records.values())

    # ---- After the faults ----

    async def _recover(self) -> None:
        """G11: leaders for all, an end for every send, every replica in sync, every reader at the end."""
        healed_at = self.world.now
        await self._until("a leader for every partition", healed_at + LEADERS_WITHIN_S, self._leaderless)
        await asyncio.sleep(2)
        for producer in self.producers:
            producer.stopping = True
        if self.kafka is not None:
            self.kafka.stopping = True
        await self._until("every send has ended", healed_at + FINISHED_WITHIN_S, self._unfinished)
        await self._until("every replica is in sync", self.world.now + IN_SYNC_WITHIN_S, self._out_of_sync)
        for broker in self.cluster.brokers.values():
            broker.manager.scrubber.scrub_now()
        await self._until("every replica is sound", self.world.now + IN_SYNC_WITHIN_S, self._unsound)
        await self._until("every replica is in sync", self.world.now + IN_SYNC_WITHIN_S, self._out_of_sync)
        await self._until("every consumer is at the end", self.world.now + FINISHED_WITHIN_S, self._behind)
        await self._until("nothing is left over", self.world.now + FINISHED_WITHIN_S, self._left_over)

    async def _until(self, what: str, deadline: float, missing: object) -> None:
        while left := missing():  # type: ignore[operator]
            await self._elect_uncleanly()
            if self.world.now > deadline:
                self.judge.fail("G11", f"not in time: {what}; missing: {left}")
            await asyncio.sleep(0.25)
        self.world.tell("judge", f"{what}")

    async def _elect_uncleanly(self) -> None:
        """An operator's part: where the last in-sync replica came back from a power failure, no one is elected silently.

        The operator takes the log that the admin client proposes. A leader whose log is damaged and which is the only one in
        sync is stopped first, as docs/OPERATIONS.md has it.
        """
        for key, partition in list(self.judge.image.partitions.items()):
            if partition.leader < 0 and not (*partition.isr, *partition.eligible) and partition.last_known_isr:
                await self.cluster.elect_uncleanly(key)
            elif partition.isr == (partition.leader,) and (partition.leader, key) in self.judge.rotten:
                node = broker_node(partition.leader)
                self.world.kill(node)
                self.cluster.kept_down[node] = None
                while (now := self.judge.image.partitions[key].leader) == partition.leader:  # noqa: ASYNC110 - the image has no events
                    await asyncio.sleep(0.25)
                if now < 0:  # no replica was eligible
                    await self.cluster.elect_uncleanly(key)
                self.cluster.kept_down.pop(node)
                self.cluster.start(node)

    def _leaderless(self) -> list[str]:
        return [
            f"{record.name} {self.judge.image.partitions[record.key]}"
            for record in self.judge.records.values()
            if self.judge.image.partitions[record.key].leader < 0
        ]

    def _unfinished(self) -> list[str]:
        return [
            f"{producer.spec.node} ({len(self.ledger.pending())} records)"
            for producer in self.producers
            if not producer.finished
        ] + (self.kafka.unfinished() if self.kafka is not None else [])

    def _out_of_sync(self) -> list[str]:
        return [
            f"{key} {partition}"
            for key, partition in self.judge.image.partitions.items()
            if set(partition.isr) != set(partition.replicas) or partition.adding or partition.removing
        ]

    def _unsound(self) -> list[str]:
        """Scrubs that have not ended, replicas with bytes that have changed, snapshots that cannot be read."""
        self._sweep()
        missing = [f"broker {i} scrubs" for i, b in self.cluster.brokers.items() if not b.manager.scrubber.passes]
        for record in self.judge.records.values():
            for broker_id in self.judge.image.partitions[record.key].replicas:
                if (broker_id, record.key) in self.judge.damaged and not record.tainted:
                    missing.append(f"broker {broker_id} holds a damaged log of {record.name}")
                folder = f"{self.judge.view(record, broker_id).folder}/"
                for path, node in self.world.machine(broker_node(broker_id)).disk.files():
                    if path.startswith(folder) and path.endswith(".snapshot") and not is_snapshot(bytes(node.content)):
                        missing.append(f"broker {broker_id} has a damaged {path}")
        return missing

    def _left_over(self) -> list[str]:
        """Files that stand for work under way, where there is none."""
        missing = []
        for record in self.judge.records.values():
            for broker_id in self.judge.image.partitions[record.key].replicas:
                folder = self.judge.view(record, broker_id).folder
                names = self.world.machine(broker_node(broker_id)).disk.folder(folder).entries
                strange = [name for name in names if not name.endswith(OF_A_LOG) and not record.tainted]
                missing += [f"broker {broker_id} has {folder}/{name}" for name in strange]
        return missing

    def _behind(self) -> list[str]:
        self._sweep()
        missing = self._kafka_behind()
        for consumer in self.consumers:
            for record in self.judge.records.values():
                topic, _, index = record.name.rpartition("-")
                if consumer.topic_ids.get(topic) != record.key[0]:
                    missing.append(f"{consumer.node} has not found {topic} again")
                    continue
                if self.nemesis.changes.grown and not consumer.reads(topic, int(index)):
                    self.nemesis.changes.subscribe_again(consumer)  # it subscribed before there were so many
                    missing.append(f"{consumer.node} has not found {record.name}")
                    break
                position = consumer.position(topic, int(index))
                end = self.judge.view(record, self.judge.image.partitions[record.key].leader).end_offset
                if position < end:
                    missing.append(f"{consumer.node} at {position} of {record.name}, which ends at {end}")
        return missing

    def _kafka_behind(self) -> list[str]:
        missing = []
        for record in self.judge.records.values() if self.kafka is not None else ():
            topic, _, index = record.name.rpartition("-")
            if topic != KAFKA_TOPIC or record.tainted:
                continue
            position = self.kafka.position(int(index)) if self.kafka is not None else 0
            end = self.judge.view(record, self.judge.image.partitions[record.key].leader).end_offset
            if position < end:
                missing.append(f"aiokafka at {position} of {record.name}, which ends at {end}")
        return missing

    def counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        counts["records sent"] = len(self.ledger.entries)
        for fate in Fate:
            counts[f"records {fate.value}"] = self.ledger.count(fate)
        for how, number in self.cluster.exits.items():
            counts[f"process exits: {how}"] = number
        for machine in self.world.machines.values():
            counts.update({f"disk: {what}": number for what, number in machine.disk.counters.faults.items()})
        counts["resumptions"] = len(self.ledger.resumptions)
        counts["times fenced"] = sum(producer.fenced for producer in self.producers)
        for line in self.world.trace:
            for name, (words, unless) in _STORIES.items():
                if words in line and not (unless and unless in line):
                    counts[name] += 1
        return counts


# What to count: lines of the trace with the first words and without the second.
_STORIES = {
    "leaderships begun": ("became leader", ""),
    "truncations": ("info: truncating ", ""),
    "log starts moved": ("info: segments deleted ", ""),
    "logs recovered from a snapshot": ("info: log recovered ", "checked_from=0 "),
    "tails cut in recovery": ("warning: log is cut ", ""),
    "damaged logs found": ("error: log is damaged ", ""),
    "producers expired": ("info: producers expired ", ""),
    "named epochs bumped": ("info: producer epoch bumped ", ""),
    "producer ids used up": ("info: producer id replaced ", ""),
    "batches split": ("info: batch split ", ""),
    "reading went back after an unclean election": ("reading goes back", ""),
    "logs started over": ("starting over topic", ""),
    "subscriptions refused": ("subscription refused", ""),
    "replicas failed": ("replica failed", ""),
    "replicas recovered": ("replica recovered ", ""),
    "damaged logs given up": ("giving up a damaged log", ""),
    "leaders in trouble": ("leader in trouble", ""),
    "brokers fenced": ("broker fenced", ""),
    "sessions broken": ("session broke", ""),
}
