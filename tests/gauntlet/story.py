"""A tale: a simulated cluster on which a test arranges events one by one, and what everyone said and stored.

    @tale()
    async def test_acknowledgement_lost(story: Story) -> None:
        await story.create_topic("orders", [[1, 2, 3]])
        client = await story.producer()
        story.cut("broker-1", client.node)       # answers do not arrive any more
        sent = await client.send("A")
        await story.answered("A")                # broker 1 has written its answer
        …
        assert await story.end() == {"orders-0": ["A"]}

Every process runs production code, in virtual time. The simulation's judge looks on all the while (G1 to G10), and `end`
heals everything, waits until every replica is in sync, and compares what clients were told, what a consumer reads, and
what is on the disks. Each record's value is its name; a batch is called by the values in it.

A tale runs once for each of SEEDS: delays differ, what happens must not.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest

from fencepost.producer import Producer
from fencepost.producing.delivery import Delivery
from fencepost_node.replication.replica import Replica
from fencepost_proto.protocol.errors import ErrorCode, FencepostError
from fencepost_proto.protocol.metadata import Partition, Topic
from fencepost_proto.protocol.record_batch import read_header
from fencepost_proto.protocol.records import read_records
from fencepost_proto.protocol.v1 import controller_pb2
from fencepost_proto.runtime.host import Host
from fencepost_testing.waiting import until
from tests.simulation.cluster import CONTROLLER, ClusterSettings, SimCluster, broker_node
from tests.simulation.disk import Fault, FileNode, FolderNode, MountedDisk
from tests.simulation.judge import BROKER
from tests.simulation.logview import LogView
from tests.simulation.loop import SimLoop, collector_off, current_process
from tests.simulation.metadata_store import MetadataCopy
from tests.simulation.network import Tap
from tests.simulation.process import SimProcess
from tests.simulation.workload import ConsumerApp, SendLedger
from tests.simulation.world import World

SEEDS = (1, 2, 3)
NEVER_MS = 3_600_000
LOOK_S = 0.001  # how often a condition is looked at, in virtual time
SWEEP_S = 0.1
TIMEOUT_S = 60.0  # of every wait, in virtual time


def tale(
    *, brokers: int = 3, expiring: bool = False, **settings: Any
) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """Make a test of an async function that takes a `Story`, and perhaps pytest's parameters by keyword.

    `expiring`: producers expire in this tale, so live producer state is not compared with the fold of the whole log.
    """

    def decorate(told: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        def test(seed: int, **parameters: Any) -> None:
            with collector_off(), World(seed) as world:
                story = Story(world, brokers, expiring, settings)

                async def whole() -> None:
                    await story.begin()
                    await told(story, **parameters)
                    assert story.ended, "a tale is told to its end"

                try:
                    world.run(whole())
                except BaseException:
                    print("\n".join(world.trace))  # pytest shows it with the failure
                    raise
                finally:
                    story.cluster.database.close()

        parameters = [p for p in inspect.signature(told).parameters.values() if p.name != "story"]
        seed = inspect.Parameter("seed", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        test.__signature__ = inspect.Signature([seed, *parameters])  # type: ignore[attr-defined]
        test.__name__, test.__doc__, test.__module__ = told.__name__, told.__doc__, told.__module__
        marked: Callable[..., None] = pytest.mark.parametrize("seed", SEEDS)(test)
        return marked

    return decorate


@dataclass(frozen=True, slots=True)
class Said:
    """A broker has read a batch, or has written the answer to one."""

    at: float
    broker: str
    batch: str
    stamp: tuple[int, int, int]  # producer id, epoch, base sequence
    answer: str  # empty: it was asked


@dataclass(slots=True)
class Sent:
    """One record that a producer has taken."""

    value: str
    partition: str  # topic-partition
    offset: int | None = None  # acknowledged there; -1: the broker no longer knew where
    error: FencepostError | None = None

    @property
    def settled(self) -> bool:
        return self.offset is not None or self.error is not None


class Client:
    """A process with one producer."""

    def __init__(self, story: Story, node: str, options: dict[str, Any]) -> None:
        self.node = node
        self.sent: list[Sent] = []
        self.producer: Producer | None = None
        self._story = story
        self._options = dict(options)
        self._process: SimProcess | None = None

    async def start(self) -> None:
        bootstrap = self._options.pop("bootstrap", self._story.cluster.bootstrap)

        async def main(host: Host, disk: MountedDisk) -> None:
            producer = Producer(bootstrap, host=host, **({"batch_size": 1} | self._options))
            await producer.start()
            self.producer = producer
            await asyncio.get_running_loop().create_future()  # until it is killed

        self._process = self._story.world.start(self.node, main)
        await self._story.until(lambda: self.producer is not None, f"{self.node} has started")

    @property
    def identity(self) -> tuple[int, int]:
        assert self.producer is not None
        return self.producer.producer_id, self.producer.epoch

    async def send(
        self, value: str, partition: int = 0, topic: str = "orders", padding: int = 0, timestamp_ms: int | None = None
    ) -> Sent:
        """Returns when the producer has taken the record, which leaves at once, in a batch of its own.

        `padding`: bytes that follow the value's name."""
        assert self.producer is not None
        assert self._process is not None
        sent = Sent(value, f"{topic}-{partition}")
        self.sent.append(sent)
        content = (value + " " * padding).encode()
        taking = self._process.spawn(self.producer.send(topic, content, partition=partition, timestamp_ms=timestamp_ms))
        delivery = await taking

        async def settle() -> None:
            try:
                sent.offset = (await delivery).offset
            except FencepostError as error:
                sent.error = error

        self._process.spawn(settle())
        self._process.spawn(self.producer.flush())
        return sent

    async def send_together(self, values: Sequence[str], partition: int = 0, topic: str = "orders") -> list[Sent]:
        """As many to a batch as go in; returns when the producer has taken them all."""
        assert self.producer is not None
        assert self._process is not None
        together = [Sent(value, f"{topic}-{partition}") for value in values]
        self.sent += together

        async def one(sent: Sent, delivery: Delivery) -> None:
            try:
                sent.offset = (await delivery).offset
            except FencepostError as error:
                sent.error = error

        async def take(producer: Producer, process: SimProcess) -> None:
            for sent in together:
                delivery = await producer.send(topic, sent.value.encode(), partition=partition)
                process.spawn(one(sent, delivery))
            await producer.flush()

        self._process.spawn(take(self.producer, self._process))
        return list(together)

    async def refusal(self, value: str, partition: int = 0, topic: str = "orders", **options: Any) -> FencepostError:
        """The error with which the producer does not even take this record."""
        assert self.producer is not None
        assert self._process is not None
        try:
            await self._process.spawn(self.producer.send(topic, value.encode(), partition=partition, **options))
        except FencepostError as error:
            return error
        raise AssertionError(f"{value} was taken")


class Story:
    """What a tale can do, see and wait for."""

    def __init__(self, world: World, brokers: int, expiring: bool, settings: dict[str, Any]) -> None:
        self.world = world
        quiet = {"preferred_leader_interval_ms": NEVER_MS} | settings
        self.cluster = SimCluster(world, ClusterSettings(broker_ids=tuple(range(1, brokers + 1)), **quiet))
        self.judge = self.cluster.judge
        self.said: list[Said] = []
        self.clients: list[Client] = []
        self.lossy: dict[str, None] = {}  # partitions that have lost acknowledged records, as the tale wants it
        self.ended = False
        self._readers = 0
        self._expiring = expiring
        self._hooks: dict[str, Callable[[], None]] = {}
        self._background: list[asyncio.Task[None]] = []
        taps = world.network.taps
        taps[f"{BROKER}Produce"] = _Ear(self, taps[f"{BROKER}Produce"])

    # ---- The beginning ----

    async def begin(self) -> None:
        self.cluster.start_all()
        await self.all_live()
        for work in (self.cluster.supervise(), self._sweep_for_ever()):
            self._background.append(self.world.loop.create_task(work))

    async def create_topic(
        self, name: str = "orders", assignments: Sequence[Sequence[int]] = ((1, 2, 3),), **config: Any
    ) -> None:
        """`assignments`: the replicas of each partition, the leader first. In sync when this returns."""
        await self.order_topic(name, assignments, **config)
        await self.until(lambda: self._all_led(name), f"{name} is led")

    async def order_topic(self, name: str, assignments: Sequence[Sequence[int]], **config: Any) -> None:
        """As an operator does; returns as soon as the controller has answered."""
        request = controller_pb2.CreateTopicRequest(name=name)
        for replicas in assignments:
            request.assignments.add(replicas=replicas)
        for key, value in config.items():
            setattr(request.config, key, value)
        await self.order("CreateTopic", request)

    async def order(self, method: str, request: object) -> None:
        """One command of an operator, which succeeds as soon as the controller is there."""
        deadline = self.world.now + TIMEOUT_S
        while (outcome := await self.cluster.ask_admin(method, request)) == "UNAVAILABLE":
            assert self.world.now < deadline, f"{method}: no controller"
        assert outcome == "ok", f"{method}: {outcome}"

    async def reassign(self, topic: str, partition: int, replicas: Sequence[int]) -> None:
        request = controller_pb2.AlterPartitionReassignmentsRequest(topic_name=topic)
        request.reassignments.add(partition=partition, replicas=replicas)
        await self.order("AlterPartitionReassignments", request)

    async def producer(self, node: str = "producer", **options: Any) -> Client:
        """A producing process, started."""
        client = Client(self, node, options)
        self.clients.append(client)
        await client.start()
        return client

    # ---- Faults ----

    def tell(self, what: str) -> None:
        self.world.tell("story", what)

    def kill(self, *nodes: str) -> None:
        """kill -9; stays down until `start`."""
        for node in nodes:
            self.tell(f"kills {node}")
            self.cluster.kept_down[node] = None
            self.world.kill(node)
            self._forget(node)

    def start(self, *nodes: str) -> None:
        for node in nodes:
            self.cluster.kept_down.pop(node, None)
            if not self.world.machine(node).powered:
                self.world.power_on(node)
            self.cluster.start(node)

    async def stop(self, node: str) -> None:
        """A clean shutdown, to its end."""
        self.tell(f"stops {node}")
        process = self.world.machine(node).process
        assert process is not None
        self.cluster.kept_down[node] = None
        self.cluster.stop(node)
        await self.until(lambda: not process.alive, f"{node} has stopped")

    def pause(self, node: str) -> None:
        self.tell(f"pauses {node}")
        self.world.pause(node)

    def wake(self, node: str) -> None:
        self.tell(f"wakes {node}")
        self.world.resume(node)

    def power_failure(self, *broker_ids: int) -> None:
        """These machines lose power at once, and with it everything that was not synced: the worst that is possible."""
        self.tell(f"takes the power from {broker_ids}")
        for broker_id in broker_ids:
            node = broker_node(broker_id)
            disk = self.world.machine(node).disk
            self.cluster.kept_down[node] = None
            fate, disk._random = disk._random, _Worst()
            self.world.power_failure(node)
            disk._random = fate
            self._forget(node)
        self.judge.lost_power(list(broker_ids))

    def write_back(self, broker_id: int) -> None:
        """The kernel writes this machine's page cache to its disk, as it does every now and then."""

        def sync(node: FileNode | FolderNode) -> None:
            node.sync()
            if isinstance(node, FolderNode):
                for entry in node.entries.values():
                    sync(entry)

        sync(self.world.machine(broker_node(broker_id)).disk.root)

    def fail_next_append(self, broker_id: int, partition: str) -> None:
        """The next write to that partition's log on that broker fails half way."""
        fault = Fault(("append",), errno.EIO, f"/{partition}/0")
        self.world.machine(broker_node(broker_id)).disk.faults.append(fault)

    def faults(self, broker_id: int) -> dict[str, int]:
        """Those that have come about."""
        return self.world.machine(broker_node(broker_id)).disk.counters.faults

    def cut(self, source: str, target: str) -> None:
        """One way: what `source` sends waits until `heal`, or is lost with its connection (`reset`)."""
        self.tell(f"cuts {source}->{target}")
        self.world.network.cut(source, target)

    def heal(self, source: str, target: str) -> None:
        self.tell(f"heals {source}->{target}")
        self.world.network.heal(source, target)

    def separate(self, node: str, *others: str) -> None:
        """Both ways."""
        for other in others:
            self.cut(node, other)
            self.cut(other, node)

    def rejoin(self, node: str, *others: str) -> None:
        for other in others:
            self.heal(node, other)
            self.heal(other, node)

    async def reset(self, one: str, other: str) -> None:
        """Their connections break; what is under way on them is lost."""
        self.tell(f"resets {one}-{other}")
        self.world.network.reset(one, other)
        await asyncio.sleep(0.002)

    async def lose_answers(self, broker: str, client: Client) -> None:
        """After `cut(broker, client)`: what the broker has answered is lost, and the link is whole again."""
        await self.reset(broker, client.node)
        self.heal(broker, client.node)

    @contextmanager
    def slow_disk(self, node: str, seconds: float) -> Iterator[None]:
        """Whatever this node does in threads (opening logs, truncations, syncs) begins so much later."""
        original = SimLoop.run_in_executor

        def run_in_executor(loop: SimLoop, executor: object, func: Any, *args: Any) -> asyncio.Future[Any]:
            process = current_process.get()
            if not isinstance(process, SimProcess) or process.node != node:
                return original(loop, executor, func, *args)

            async def later() -> Any:
                await asyncio.sleep(seconds)
                return await original(loop, executor, func, *args)

            return loop.create_task(later())

        with patch.object(SimLoop, "run_in_executor", run_in_executor):
            yield

    async def power_failure_of_a_lone_replica(self, broker_id: int, partition: str) -> None:
        """It comes back without what was not synced; an operator, asked, makes it lead again. (With a producer's
        batches gone, the producer's next one meets OUT_OF_ORDER_SEQUENCE_NUMBER: no other way leads to that.)"""
        self.lossy[partition] = None
        self.power_failure(broker_id)
        self.start(broker_node(broker_id))
        await self.until(lambda: not self.partition(partition).isr, f"{partition} has no one in sync")
        await self.until(lambda: broker_id in self._live(), f"broker {broker_id} is back")
        await self.elect(partition, broker_id)

    # ---- The controller's folder ----

    def put_controller_back(self, copy: MetadataCopy) -> None:
        """Its process dies, its store is that of the copy, and it is started again."""
        self.kill(CONTROLLER)
        self.tell(f"puts the controller's store back to version {copy.image.version}")
        self.cluster.database.put_back(copy, self.cluster.known_version)
        self.start(CONTROLLER)

    async def controller_refuses(self) -> str:
        """Returns the reason, once the controller has met a broker that knows more than its store, and has ended."""
        process = self.world.machine(CONTROLLER).process
        assert process is not None
        await self.until(lambda: not process.alive, "the controller has ended")
        self.cluster.kept_down[CONTROLLER] = None
        endings = [line for line in self.world.trace if "ended: MetadataWentBack" in line]
        assert endings, "the controller has ended for another reason"
        return endings[-1]

    async def recover_controller(self) -> None:
        """`fencepost controller recover`, and the controller's start."""
        assert await self.cluster.recover_controller() == "ok"
        self.start(CONTROLLER)
        await self.all_live()

    # ---- An operator ----

    async def elect(self, partition: str, broker_id: int) -> None:
        """An unclean election, by an operator."""
        topic, _, index = partition.rpartition("-")
        request = controller_pb2.ElectLeaderRequest(
            topic_name=topic, partition=int(index), unclean=True, leader=broker_id
        )
        await self.order("ElectLeader", request)
        await self.led(partition, by=broker_id)

    def others(self, node: str) -> list[str]:
        return [name for name in self.world.machines if name != node]

    # ---- Waiting ----

    async def until(self, condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
        await until(condition, what, timeout_s, poll_s=LOOK_S, error=AssertionError)

    async def asked(self, batch: str, broker: str = "") -> None:
        """A broker has read this batch."""
        await self.until(lambda: self.questions(batch, broker), f"{batch} has reached {broker or 'a broker'}")

    async def answered(self, batch: str, broker: str = "") -> None:
        """A broker has answered it; whether the answer arrives is another matter."""
        await self.until(lambda: self.answers(batch, broker), f"{batch} is answered by {broker or 'a broker'}")

    async def settled(self, *sent: Sent) -> None:
        """The producer has been told what became of these."""
        await self.until(lambda: all(one.settled for one in sent), f"settled: {sent}")

    async def acked(self, *sent: Sent) -> None:
        await self.settled(*sent)
        assert [one.error for one in sent] == [None] * len(sent)

    async def in_sync(self, partition: str = "orders-0", *broker_ids: int) -> None:
        """Exactly these are in sync; without any, all replicas, and they hold all that the leader holds."""
        if broker_ids:
            await self.until(
                lambda: set(self.partition(partition).isr) == set(broker_ids), f"isr of {partition} is {broker_ids}"
            )
            return

        def same() -> bool:
            known = self.partition(partition)
            if set(known.isr) != set(known.replicas) or known.leader < 0:
                return False
            logs = [self.log(broker_id, partition) for broker_id in known.replicas]
            start = max(log.start_offset for log in logs)  # retention is each replica's own
            return all(log.since(start) == logs[0].since(start) for log in logs)

        await self.until(same, f"all replicas of {partition} are in sync: {self.partition(partition)}")

    async def all_live(self) -> None:
        """Every broker is registered and serves, as far as the controller knows."""
        ids = self.cluster.settings.broker_ids
        await self.until(lambda: len(self._live()) == len(ids), "every broker is live")

    async def led(self, partition: str = "orders-0", *, by: int | None = None, not_by: int = -1) -> int:
        """Returns the leader, once the controller has elected one and it knows of it."""

        def led() -> bool:
            leader = self.partition(partition).leader
            return leader >= 0 and leader != not_by and by in (None, leader) and self.leads(leader, partition)

        await self.until(led, f"{partition} is led by {by if by is not None else 'someone'}")
        return self.partition(partition).leader

    def when_asked(self, batch: str, action: Callable[[], None]) -> None:
        """Do something at the moment at which a broker reads this batch for the first time, before it looks at it."""
        self._hooks[batch] = action

    # ---- Looking ----

    def questions(self, batch: str, broker: str = "") -> list[Said]:
        return [said for said in self.said if said.batch == batch and not said.answer and broker in ("", said.broker)]

    def answers(self, batch: str, broker: str = "") -> list[str]:
        """In the order in which they were written, like "broker-1: at 0"."""
        return [
            f"{said.broker}: {said.answer}"
            for said in self.said
            if said.batch == batch and said.answer and broker in ("", said.broker)
        ]

    def stamps(self, batch: str) -> set[tuple[int, int, int]]:
        """Every stamp under which any broker has ever seen it."""
        return {said.stamp for said in self.said if said.batch == batch}

    def codes(self) -> set[str]:
        """Every error with which any broker has ever refused a batch."""
        return {said.answer for said in self.said if said.answer.isupper()}

    def traced(self, *words: str) -> bool:
        """Whether some line of the trace has all of these."""
        return any(all(word in line for word in words) for line in self.world.trace)

    def topic(self, name: str) -> Topic:
        return next(topic for topic in self.judge.image.topics.values() if topic.name == name)

    def partition(self, name: str) -> Partition:
        """As the controller has committed it."""
        topic, _, index = name.rpartition("-")
        return self.judge.image.partitions[self.topic(topic).topic_id, int(index)]

    def replica(self, broker_id: int, partition: str) -> Replica:
        """Of a living broker."""
        return self.cluster.brokers[broker_id].manager.replicas[self.partition(partition).id]

    def leads(self, broker_id: int, partition: str = "orders-0") -> bool:
        """Whether this broker believes so."""
        broker = self.cluster.brokers.get(broker_id)
        replica = broker.manager.replicas.get(self.partition(partition).id) if broker is not None else None
        return replica is not None and replica.is_leader

    def log(self, broker_id: int, partition: str = "orders-0") -> LogView:
        """What stands in the replica's files."""
        disk, topic_id = self.world.machine(broker_node(broker_id)).disk, self.partition(partition).topic_id
        return LogView(disk, f"/data/{partition}", topic_id).refresh()

    def values(self, broker_id: int, partition: str = "orders-0") -> list[str]:
        """The records in the replica's files."""
        files = self.world.machine(broker_node(broker_id)).disk.files()
        contents = [bytes(n.content) for path, n in files if path.startswith(f"/data/{partition}/") and ".log" in path]
        return [_name(record.value) for content in contents for record in read_records(content)]

    def _forget(self, node: str) -> None:
        """Its process is dead: what it believed is not asked for any more."""
        for broker_id in self.cluster.settings.broker_ids:
            if broker_node(broker_id) == node:
                self.cluster.brokers.pop(broker_id, None)

    def _live(self) -> list[int]:
        return [broker.id for broker in self.judge.image.brokers.values() if not broker.fenced]

    def _all_led(self, topic: str) -> bool:
        partitions = self.judge.image.partitions_of(self.topic(topic).topic_id)
        return all(
            set(partition.isr) == set(partition.replicas) and self.leads(partition.leader, f"{topic}-{partition.index}")
            for partition in partitions
        )

    # ---- The end ----

    async def end(self) -> dict[str, list[str]]:
        """Heal everything, wait until all is in sync and settled, and compare all with all. What consumers read."""
        self.tell("heals everything")
        self.world.network.heal_all()
        for node in (CONTROLLER, *(broker_node(broker_id) for broker_id in self.cluster.settings.broker_ids)):
            self.world.machine(node).disk.faults.clear()
            self.world.resume(node)
            self.start(node)
        sent = [one for client in self.clients for one in client.sent if self._process_lives(client)]
        await self.settled(*sent)
        names = [f"{topic.name}-{partition.index}" for topic, partition in self._partitions()]
        for name in names:
            await self.in_sync(name)
        logs = {name: self.values(self.partition(name).leader, name) for name in names}
        self._sweep()
        for client in self.clients:
            self._compare(client, logs)
        await self._compare_with_a_reader(logs)
        assert self.world.failures() == []
        for task in self._background:
            task.cancel()
        self.ended = True
        return logs

    async def leave(self) -> None:
        """The end of a tale that has compared for itself: the logs hold what no reader of `end` can read."""
        self._sweep()
        assert self.world.failures() == []
        for task in self._background:
            task.cancel()
        self.ended = True

    def _process_lives(self, client: Client) -> bool:
        process = self.world.machine(client.node).process
        return process is not None and process.alive

    def _partitions(self) -> list[tuple[Topic, Partition]]:
        image = self.judge.image
        return [(image.topics[partition.topic_id], partition) for partition in image.partitions.values()]

    def _compare(self, client: Client, logs: dict[str, list[str]]) -> None:
        """What one client was told against what the log holds."""
        for name, log in logs.items():
            mine = [sent for sent in client.sent if sent.partition == name]
            start = self.log(self.partition(name).leader, name).start_offset
            for sent in mine:
                found = log.count(sent.value)
                assert found <= 1, f"{sent.value} is {found} times in {name}: {log}"
                if sent.offset is not None and sent.offset >= start and name not in self.lossy:
                    assert log[sent.offset - start] == sent.value, f"{sent} in {log}"
                elif sent.offset == -1 and start == 0 and name not in self.lossy:
                    assert found == 1, f"{sent} in {log}"
                elif sent.error is not None and not sent.error.may_have_been_appended:
                    assert found == 0, f"{sent} in {log}"
            order = [sent.value for sent in mine if sent.value in log]
            assert order == [value for value in log if value in order], f"{client.node} sent {order}; {name} is {log}"

    async def _compare_with_a_reader(self, logs: dict[str, list[str]]) -> None:
        total = sum(len(log) for log in logs.values())
        for (topic, index), read in (await self._read(total)).items():
            assert [_name(read[offset]) for offset in sorted(read)] == logs[f"{topic}-{index}"]

    async def read_some(self, count: int, partition: str = "orders-0") -> list[str]:
        """What a new consumer of everything has read of this partition once it has read so many records of all."""
        topic, _, index = partition.rpartition("-")
        read = (await self._read(count))[topic, int(index)]
        return [_name(read[offset]) for offset in sorted(read)]

    async def read_all(self, partition: str = "orders-0") -> list[str]:
        """What a new consumer reads of this partition, the only one."""
        return await self.read_some(len([sent for client in self.clients for sent in client.sent]), partition)

    async def _read(self, count: int) -> dict[tuple[str, int], dict[int, bytes]]:
        self._readers += 1
        topics = tuple(topic.name for topic in self.judge.image.topics.values())
        node = f"reader-{self._readers}" if self._readers > 1 else "reader"
        reader = ConsumerApp(self.world, node, topics, self.cluster.bootstrap, SendLedger())
        reader.start()
        await self.until(lambda: sum(len(read) for read in reader.read.values()) >= count, f"{count} records are read")
        assert reader.problems == []
        self.world.kill(node)
        return reader.read

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._sweep()

    def _sweep(self) -> None:
        if not self._expiring:
            self.judge.sweep(self.cluster.replicas())


@dataclass(slots=True)
class _Ear(Tap):
    """Hears every batch and every answer, and passes them on to the judge."""

    story: Story
    judge: Tap
    _asked: dict[tuple[object, int], Said] = field(default_factory=dict)

    def request(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None:
        self.judge.request(server, client, call, message)
        for batch in message.batches:
            header = read_header(batch.records)
            try:
                name = "".join(_name(record.value) for record in read_records(batch.records))
            except FencepostError:
                name = "poison"
            stamp = (header.producer_id, header.producer_epoch, header.base_sequence)
            said = Said(self.story.world.now, server.node, name, stamp, "")
            self._asked[call, batch.correlation_id] = said
            self.story.said.append(said)
            self.story.tell(f"{server!r} reads {name} {stamp}")
            action = self.story._hooks.pop(name, None)
            if action is not None:
                action()

    def response(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None:
        self.judge.response(server, client, call, message)
        for result in message.results:
            asked = self._asked.pop((call, result.correlation_id))
            if result.error.code:
                answer = ErrorCode(result.error.code).name
            else:
                answer = f"{'duplicate of' if result.duplicate else 'at'} {result.base_offset}"
            said = Said(self.story.world.now, server.node, asked.batch, asked.stamp, answer)
            self.story.said.append(said)
            self.story.tell(f"{server!r} answers {asked.batch}: {answer}")


class _Worst(random.Random):
    """Of everything unsynced, nothing is kept (see SimDisk.lose_power)."""

    def random(self) -> float:
        return 1.0

    def randint(self, a: int, b: int) -> int:
        return a

    def choice(self, seq: Any) -> Any:
        return seq[0]


def _name(value: bytes | None) -> str:
    return (value or b"").decode().rstrip()
