"""One run: a cluster, its clients and its faults, all drawn from one seed; and the judgement at the end.

The course of a run: the cluster starts and topics are made; producers and consumers work while the nemesis does; then
everything is healed, the producers finish, the replicas catch up, and everything is compared with everything.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from unittest.mock import patch

from tests.simulation.cluster import NEVER_MS, ClusterSettings, SimCluster, broker_node
from tests.simulation.judge import Record, Violation
from tests.simulation.loop import Deadlock, Runaway, collector_off
from tests.simulation.nemesis import Nemesis
from tests.simulation.workload import ConsumerApp, Entry, Fate, Ledger, ProducerApp, ProducerSpec
from tests.simulation.world import World

from fencepost.producing import sequencer
from fencepost_controller.decisions import producers as controller_producers
from fencepost_node import producer_state
from fencepost_proto import record_batch
from fencepost_proto.records import read_records
from fencepost_proto.v1 import controller_pb2

SWEEP_INTERVAL_S = 0.25
TOPICS_WITHIN_S = 30.0
LEADERS_WITHIN_S = 30.0  # after the faults
IN_SYNC_WITHIN_S = 60.0  # after the faults: every replica
FINISHED_WITHIN_S = 90.0  # after the faults: every send, every read
EXPIRATION_MS = 6_000  # of idle producers, in some runs; in the others none is forgotten
SMALL_SEQUENCES = 1_024  # so many there are in some runs; a window of five batches takes less than half of them
SMALL_MAX_EPOCH = 3


@dataclass(frozen=True, slots=True)
class TopicPlan:
    name: str
    partitions: int
    replication: int
    min_insync_replicas: int
    flush_always: bool
    segment_bytes: int
    retention_bytes: int

    def request(self) -> controller_pb2.CreateTopicRequest:
        request = controller_pb2.CreateTopicRequest(
            name=self.name, partitions=self.partitions, replication_factor=self.replication
        )
        request.config.min_insync_replicas = self.min_insync_replicas
        request.config.flush_always = self.flush_always
        request.config.segment_bytes = self.segment_bytes
        request.config.retention_bytes = self.retention_bytes
        return request


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed decides before the run begins."""

    seed: int
    settings: ClusterSettings
    topics: tuple[TopicPlan, ...]
    producers: tuple[ProducerSpec, ...]
    consumers: int
    faults_for_s: float
    mean_pause_s: float  # between faults
    thread_delay_s: float  # how long work in threads takes, at most: slow disks
    small_numbers: bool  # sequences and epochs are used up soon

    def __str__(self) -> str:
        topics = ", ".join(
            f"{t.name} ({t.partitions} partitions x {t.replication}, min in sync {t.min_insync_replicas}"
            f"{', flush' if t.flush_always else ''}{f', retention {t.retention_bytes} B' if t.retention_bytes > 0 else ''})"
            for t in self.topics
        )
        return (
            f"seed {self.seed}: {len(self.settings.broker_ids)} brokers, {topics}, {len(self.producers)} producers, "
            f"{self.consumers} consumers, a fault every {self.mean_pause_s:.1f} s for {self.faults_for_s:.0f} s, "
            f"threads take up to {self.thread_delay_s * 1000:.0f} ms"
            f"{', small numbers' if self.small_numbers else ''}{', producers expire' if self.producers_expire else ''}"
        )

    @property
    def producers_expire(self) -> bool:
        return self.settings.producer_expiration_ms < NEVER_MS


def plan(seed: int) -> Plan:
    chance = random.Random(f"{seed}/plan")
    ids = tuple(range(1, chance.choice((3, 3, 3, 4, 5)) + 1))
    expire = chance.random() < 0.15
    small_numbers = chance.random() < 0.2
    settings = ClusterSettings(
        broker_ids=ids,
        session_timeout_ms=chance.choice((1_000, 2_000, 3_000)),
        heartbeat_interval_ms=chance.choice((100, 300)),
        replica_lag_time_max_ms=chance.choice((1_000, 2_000, 5_000)),
        snapshot_interval_bytes=chance.choice((1_000, 4_000, 20_000)),
        tail_bytes=chance.choice((0, 2_000, 65_536)),
        replication_window_bytes=65_536,
        preferred_leader_interval_ms=chance.choice((1_000, 10_000)),
        producer_expiration_ms=EXPIRATION_MS if expire else NEVER_MS,
    )
    topics = tuple(
        TopicPlan(
            name=f"topic{number}",
            partitions=chance.randint(1, 3),
            replication=chance.choice((3, 3, 2)),
            min_insync_replicas=chance.choice((2, 2, 1)),
            flush_always=chance.random() < 0.3,
            segment_bytes=chance.choice((2_000, 8_000, 100_000)),
            retention_bytes=chance.choice((-1, -1, -1, 6_000)),
        )
        for number in range(chance.randint(1, 2))
    )
    names = {topic.name: topic.partitions for topic in topics}
    producers = tuple(
        _producer(number, names, chance, expire=expire, small_numbers=small_numbers)
        for number in range(chance.randint(2, 4))
    )
    return Plan(
        seed,
        settings,
        topics,
        producers,
        consumers=chance.randint(1, 2),
        faults_for_s=chance.choice((10.0, 20.0, 30.0)),
        mean_pause_s=chance.choice((0.5, 1.5, 4.0)),
        thread_delay_s=chance.choice((0.002, 0.002, 0.02, 0.2)),
        small_numbers=small_numbers,
    )


def _producer(
    number: int, topics: dict[str, int], chance: random.Random, *, expire: bool, small_numbers: bool
) -> ProducerSpec:
    options: dict[str, object] = {
        "batch_size": chance.choice((200, 1_000, 16_384)),
        "linger_ms": chance.choice((0, 5, 20)),
        "compression": chance.choice(("none", "none", "none", "lz4", "zstd", "gzip", "snappy")),
        "delivery_timeout_ms": chance.choice((3_000, 20_000, 60_000)),
        "request_timeout_ms": chance.choice((1_000, 5_000)),
        "fault_drop_acks": chance.choice((0.0, 0.0, 0.02)),
    }
    if chance.random() < 0.5:
        options["name"] = f"name-{chance.randrange(2)}"  # two may share it, and fence each other
    elif chance.random() < 0.2:
        options["acks"] = chance.choice((1, 1, 0))
    if expire:
        options["delivery_timeout_ms"] = 3_000  # nobody may retry for longer than brokers remember
    if small_numbers:
        options["batch_size"] = min(int(options["batch_size"]), 1_000)  # type: ignore[call-overload]
    return ProducerSpec(
        node=f"producer-{number}",
        topics=topics,
        options=options,
        keys=chance.choice((0, 3, 20)),
        pause_s=chance.choice((0.02, 0.1, 0.3, 8.0) if expire and number else (0.02, 0.1, 0.3)),
        burst=chance.choice((1, 5, 20)),
    )


@dataclass(slots=True)
class Result:
    """What came of one run."""

    seed: int
    plan: Plan
    trace: list[str]
    problem: str = ""  # empty: every promise held
    promise: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.problem


def simulate(seed: int, kinds: tuple[str, ...] = ()) -> Result:
    """One run from one seed; with `kinds`, under faults of these kinds only."""
    planned = plan(seed)
    numbers = small_numbers() if planned.small_numbers else nullcontext()
    with collector_off(), numbers, World(seed) as world:
        began = time.process_time()
        run = Run(world, planned)
        if kinds:
            run.nemesis.only(kinds)
        elif planned.producers_expire:
            run.nemesis.without("clock jump")  # an hour's jump is more than the expiration time
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
        result.virtual_s = world.now
        result.cpu_s = time.process_time() - began
        run.close()
    return result


@contextmanager
def small_numbers() -> Iterator[None]:
    """A world with fewer sequence numbers and producer epochs, so that they wrap and run out within a run.

    The numbers are constants, and nothing else is changed: the rules at their ends are the same.
    """
    with ExitStack() as stack:
        for where, name, value in (
            (record_batch, "MAX_SEQUENCE", SMALL_SEQUENCES - 1),
            (producer_state, "MAX_SEQUENCE", SMALL_SEQUENCES - 1),
            (producer_state, "_SEQUENCES", SMALL_SEQUENCES),
            (producer_state, "_HALF_OF_SEQUENCES", SMALL_SEQUENCES // 2),
            (sequencer, "MAX_EPOCH", SMALL_MAX_EPOCH),
            (controller_producers, "MAX_EPOCH", SMALL_MAX_EPOCH),
        ):
            stack.enter_context(patch.object(where, name, value))
        yield


class Run:
    """The story of one run."""

    def __init__(self, world: World, planned: Plan) -> None:
        self.world = world
        self.plan = planned
        world.loop.thread_delay_s = planned.thread_delay_s
        self.cluster = SimCluster(world, planned.settings)
        self.judge = self.cluster.judge
        self.ledger = Ledger()
        bootstrap = self.cluster.bootstrap
        topics = tuple(topic.name for topic in planned.topics)
        self.producers = [ProducerApp(world, spec, bootstrap, self.ledger) for spec in planned.producers]
        self.consumers = [ConsumerApp(world, f"consumer-{n}", topics, bootstrap) for n in range(planned.consumers)]
        clients = [spec.node for spec in planned.producers] + [consumer.node for consumer in self.consumers]
        requests = {topic.name: topic.request() for topic in planned.topics}
        self.nemesis = Nemesis(self.cluster, self.producers, clients, requests, world.chance("nemesis"))
        self._background: list[asyncio.Task[None]] = []

    def close(self) -> None:
        self.cluster.database.close()

    async def story(self) -> None:
        world = self.world
        world.tell("plan", str(self.plan))
        self.cluster.start_all()
        for work in (self.cluster.supervise(), self._sweep_for_ever()):
            self._background.append(world.loop.create_task(work))
        for topic in self.plan.topics:
            await self._create(topic)
        for producer in self.producers:
            producer.start()
        for consumer in self.consumers:
            consumer.start()
        await asyncio.sleep(1)
        await self.nemesis.run(world.now + self.plan.faults_for_s, self.plan.mean_pause_s)
        await self.nemesis.heal_everything()
        for topic in self.plan.topics:
            await self._create(topic)  # it may have been deleted
        for producer in self.producers:
            process = world.machine(producer.spec.node).process
            if process is None or not process.alive:
                producer.start()
        await self._recover()
        for task in self._background:
            task.cancel()
        self._final_judgement()
        world.tell("judge", "every promise held")

    async def _create(self, topic: TopicPlan) -> None:
        deadline = self.world.now + TOPICS_WITHIN_S
        while (outcome := await self.cluster.ask_admin("CreateTopic", topic.request())) != "ok":
            if "exists" in outcome:
                return
            if self.world.now > deadline:
                self.judge.fail("G11", f"topic {topic.name} could not be created: {outcome}")
            await asyncio.sleep(0.3)

    # ---- Looking on ----

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self._sweep()

    def _sweep(self) -> None:
        self.judge.sweep(self.cluster.replicas())
        for consumer in self.consumers:
            if not self._tainted():
                consumer.look()
                if consumer.problems:
                    self.judge.fail("G10", consumer.problems[0])
        failures = self.world.failures()
        if failures:
            self.judge.fail("unhandled", "; ".join(failures))

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
        await self._until("every send has ended", healed_at + FINISHED_WITHIN_S, self._unfinished)
        await self._until("every replica is in sync", self.world.now + IN_SYNC_WITHIN_S, self._out_of_sync)
        await self._until("every consumer is at the end", self.world.now + FINISHED_WITHIN_S, self._behind)

    async def _until(self, what: str, deadline: float, missing: object) -> None:
        while left := missing():  # type: ignore[operator]
            await self._elect_uncleanly()
            if self.world.now > deadline:
                self.judge.fail("G11", f"not in time: {what}; missing: {left}")
            await asyncio.sleep(0.25)
        self.world.tell("judge", f"{what}")

    async def _elect_uncleanly(self) -> None:
        """An operator's part: where the last in-sync replica came back from a power failure, nobody is elected silently.

        The operator takes the longest sound log of all replicas. Only where even that one has lost something is the
        partition tainted.
        """
        for record in list(self.judge.records.values()):
            partition = self.judge.image.partitions[record.key]
            if partition.leader >= 0 or partition.isr or not partition.last_known_isr:
                continue
            best = max(partition.replicas, key=lambda member: self._length(record, member))
            if not self.judge.holds_all(record, best):
                self.judge.taint(record, f"only {best} is left of {partition.last_known_isr}")
            topic = self.judge.image.topics[partition.topic_id]
            request = controller_pb2.ElectLeaderRequest(
                topic_name=topic.name, partition=partition.index, unclean=True, leader=best
            )
            await self.cluster.ask_admin("ElectLeader", request)

    def _length(self, record: Record, broker_id: int) -> tuple[bool, int]:
        return self.judge.holds_all(record, broker_id), self.judge.view(record, broker_id).end_offset

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
        ]

    def _out_of_sync(self) -> list[str]:
        return [
            f"{key} {partition}"
            for key, partition in self.judge.image.partitions.items()
            if set(partition.isr) != set(partition.replicas) or partition.adding or partition.removing
        ]

    def _behind(self) -> list[str]:
        self._sweep()
        missing = []
        for consumer in self.consumers:
            for record in self.judge.records.values():
                topic, _, index = record.name.rpartition("-")
                if consumer.topic_ids.get(topic) != record.key[0]:
                    missing.append(f"{consumer.node} has not found {topic} anew")
                    continue
                position = consumer.positions.get((topic, int(index)), 0)
                end = self.judge.view(record, self.judge.image.partitions[record.key].leader).end_offset
                if position < end:
                    missing.append(f"{consumer.node} at {position} of {record.name}, which ends at {end}")
        return missing

    # ---- The end ----

    def _final_judgement(self) -> None:
        self._sweep()
        logs = {name: list(values) for name, values in self._committed_values()}
        where: dict[bytes, tuple[str, int]] = {}
        for record in self.judge.records.values():
            if record.tainted:
                continue
            newest: dict[str, int] = {}
            for offset, value in logs[record.name]:
                if value in where:
                    self.judge.fail("G2", f"{value!r} is at {where[value]} and at {record.name} {offset}")
                where[value] = (record.name, offset)
                if value not in self.ledger.entries:
                    self.judge.fail("G2", f"{value!r} at {record.name} {offset} was never sent")
                if self.ledger.entries[value].topic_id != record.key[0]:
                    self.judge.fail("G2", f"{value!r} at {record.name} {offset} was sent to a topic since deleted")
                if self.ledger.entries[value].may_be_lost:
                    continue  # without stamps, a batch of a broken stream may come late
                sender, _, number = value.decode().rpartition("/")
                if int(number) <= newest.get(sender, -1):
                    self.judge.fail("G3", f"{record.name} {offset}: {value!r} after number {newest[sender]}")
                newest[sender] = int(number)
        for value, entry in self.ledger.entries.items():
            if entry.may_be_lost:
                continue
            if entry.fate is Fate.ACKED:
                self._check_acked(value, entry, where)
            elif entry.fate is Fate.REFUSED and value in where:
                self.judge.fail("G1", f"{value!r} was refused for certain ({entry.error}), and is at {where[value]}")
        self._check_reads(logs)
        self._check_resumptions()

    def _check_resumptions(self) -> None:
        """What a named producer was told of its predecessors stayed true: nothing of theirs came after, nothing went."""
        for told in self.ledger.resumptions:
            record = self.judge.records.get(told.key)
            if record is None or record.tainted:
                continue  # deleted since, or lost its tail
            last, idle_s = -1, 0.0
            for batch in record.committed:
                if batch.producer_id == told.producer_id and batch.producer_epoch < told.epoch:
                    last, idle_s = batch.end_offset - 1, told.told_at - record.appended_at[batch]
            if told.last_offset < 0 and self.judge.may_have_expired(idle_s):
                continue
            if last != told.last_offset:
                self.judge.fail("G9", f"{record.name}: {told}, but the last record of earlier epochs is at {last}")

    def _check_acked(self, value: bytes, entry: Entry, where: dict[bytes, tuple[str, int]]) -> None:
        record, offset = self.judge.records.get((entry.topic_id, entry.partition)), entry.offset
        if record is None or record.tainted or (0 <= offset < self._log_start(record)):
            return  # its topic is deleted, or retention has been there
        name = record.name
        found = where.get(value)
        if found is None and offset >= 0:
            self.judge.fail("G1", f"{value!r} was acknowledged at {name} {offset} and is not in the log")
        elif found is not None and offset >= 0 and found != (name, offset):
            self.judge.fail("G1", f"{value!r} was acknowledged at {name} {offset} and is at {found}")

    def _log_start(self, record: Record) -> int:
        leader = self.judge.image.partitions[record.key].leader
        return self.judge.view(record, leader).start_offset

    def _committed_values(self) -> Iterator[tuple[str, Iterator[tuple[int, bytes]]]]:
        """Of each partition's leader: offset and value of every record in its files."""
        for record in self.judge.records.values():
            partition = self.judge.image.partitions[record.key]
            disk = self.world.machine(broker_node(partition.leader)).disk
            contents = [
                bytes(node.content)
                for path, node in disk.files()
                if path.startswith(f"/data/{record.name}/") and path.endswith(".log")
            ]
            records = itertools.chain.from_iterable(map(read_records, contents))
            yield record.name, ((found.offset, found.value or b"") for found in records)

    def _check_reads(self, logs: dict[str, list[tuple[int, bytes]]]) -> None:
        for consumer in self.consumers:
            for record in self.judge.records.values():
                if record.tainted:
                    continue
                topic, _, index = record.name.rpartition("-")
                read = consumer.read.get((topic, int(index)), {})
                for offset, value in logs[record.name]:
                    if read.get(offset, value) != value:
                        self.judge.fail(
                            "G10", f"{consumer.node} read {read[offset]!r} at {record.name} {offset}: {value!r}"
                        )

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
    "logs started over": ("starting over topic", ""),
    "subscriptions refused": ("subscription refused", ""),
    "replicas failed": ("replica failed", ""),
    "brokers fenced": ("broker fenced", ""),
    "sessions broken": ("session broke", ""),
}
