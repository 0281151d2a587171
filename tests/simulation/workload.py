"""What applications do in the simulation: producers and consumers, and a ledger of every record's fate.

Each record's value is its own name, `node/incarnation/number`, so the log tells by itself what is missing, doubled or out
of order. The ledger knows the rest: what the producer was told about each record.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fencepost.consumer import Consumer
from fencepost.consuming.consumer_core import SkippedBatch
from fencepost.history import History
from fencepost.producer import Producer
from fencepost.producing.delivery import Delivery
from fencepost_proto.protocol.errors import (
    FencepostError,
    InvalidProducerEpoch,
    OffsetOutOfRange,
    ProducerFenced,
)
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.runtime.host import Host
from fencepost_testing.faults.lossy_wire import lossy_host
from tests.simulation.disk import MountedDisk
from tests.simulation.loop import current_process
from tests.simulation.poison import OPENED_BYTES
from tests.simulation.process import SimProcess
from tests.simulation.world import World

START_RETRY_S = 0.5
MAX_PENDING_RECORDS = 200  # of one producer: it waits for answers beyond that


class Fate(enum.Enum):
    PENDING = "pending"  # its process may have died waiting
    ACKED = "acked"
    REFUSED = "refused"  # certainly not in the log
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Entry:
    """One record that was given to a producer."""

    topic: str
    key: bytes | None
    incarnation: SimProcess
    sent_at: float
    fate: Fate = Fate.PENDING
    topic_id: str = ""  # of the topic that took it: another one may have had that name before, or have it later
    partition: int = -1
    offset: int = -1
    error: str = ""
    may_be_lost: bool = False  # sent with acks=1 or 0
    stamp: tuple[int, int, int] | None = None  # producer id, producer epoch, sequence


@dataclass(frozen=True, slots=True)
class Resumption:
    """What a named producer was told of its predecessors: their last record in a partition, permanently."""

    key: PartitionKey
    producer_id: int
    epoch: int  # of the producer that asked
    last_offset: int  # -1: none is known
    told_at: float


@dataclass(slots=True)
class SendLedger:
    """Every record, by value; and what all clients recorded, as lines of one history."""

    entries: dict[bytes, Entry] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    resumptions: list[Resumption] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def pending(self) -> list[bytes]:
        """Records whose producer lives and has not been told."""
        return [v for v, e in self.entries.items() if e.fate is Fate.PENDING and e.incarnation.alive]

    def count(self, fate: Fate) -> int:
        return sum(entry.fate is fate for entry in self.entries.values())


@dataclass(frozen=True, slots=True)
class ProducerSpec:
    """One producing application."""

    node: str
    topics: dict[str, int]  # name -> partitions
    options: dict[str, Any]
    drop_acks: float  # the probability that an acknowledgement is lost
    keys: int  # 0: records without keys
    pause_s: float  # between bursts, on average
    burst: int


class ProducerApp:
    """Sends until it is told to stop, then until every record has its fate."""

    def __init__(self, world: World, spec: ProducerSpec, bootstrap: list[str], ledger: SendLedger) -> None:
        self.world = world
        self.spec = spec
        self.bootstrap = bootstrap
        self.ledger = ledger
        self.stopping = False
        self.finished = False
        self.fenced = 0
        self.retried = 0
        self.newest_of: Callable[[str], tuple[int, int]] = lambda name: (-1, -1)  # a name's newest id and epoch
        self.wait_judged: Callable[[str, PartitionKey, float, float], str] = lambda *_: ""
        self.problems: list[str] = []
        self._pending = 0
        self._room = asyncio.Event()

    @property
    def at_work(self) -> bool:
        """Its process lives, and has not been told that another instance has taken over."""
        process = self.world.machine(self.spec.node).process
        return process is not None and process.alive and not self.finished

    def start(self) -> None:
        self.finished = False
        self._pending = 0
        self._room = asyncio.Event()
        self.world.start(self.spec.node, self._run)

    async def _run(self, host: Host, disk: MountedDisk) -> None:
        process = current_process.get()
        assert isinstance(process, SimProcess)
        producer = await self._started(host)
        if producer is None:
            self.finished = True
            return
        history = History(self.ledger.history.append, process=repr(process))
        number = 0
        try:
            if self.spec.options.get("name"):
                await self._resume(producer)
            while not self.stopping:
                for _ in range(1 + host.random.randrange(self.spec.burst)):
                    await self._send(process, producer, host, history, number)
                    number += 1
                await asyncio.sleep(host.random.expovariate(1 / self.spec.pause_s))
                while self._pending > MAX_PENDING_RECORDS:
                    self._room.clear()
                    await self._room.wait()
        except (ProducerFenced, InvalidProducerEpoch):
            self.fenced += 1
            self.world.tell(repr(process), "is fenced")
            newest = self.newest_of(str(self.spec.options.get("name", "")))
            if newest <= (producer.producer_id, producer.epoch):
                self.problems.append(
                    f"{process!r} is fenced as producer {producer.producer_id}, epoch {producer.epoch}; newest is {newest}"
                )
        while self._pending:
            self._room.clear()
            await self._room.wait()
        await producer.close()
        self.finished = True

    async def _started(self, host: Host) -> Producer | None:
        while not self.stopping:
            faulty = lossy_host(host, drop_acks=self.spec.drop_acks)
            producer = Producer(self.bootstrap, host=faulty, **self.spec.options)
            try:
                await producer.start()
            except FencepostError as error:
                self.ledger.errors[f"start: {type(error).__name__}"] += 1
                await asyncio.sleep(START_RETRY_S)
            else:
                return producer
        return None

    async def _resume(self, producer: Producer) -> None:
        """As an application would that wants to know how far its predecessor came."""
        for topic, partitions in self.spec.topics.items():
            for partition in range(partitions):
                try:
                    resumed = await producer.resume(topic, partition)
                except (ProducerFenced, InvalidProducerEpoch):
                    raise
                except FencepostError as error:
                    self.ledger.errors[f"resume: {type(error).__name__}"] += 1
                    continue
                told_of = (resumed.producer_id, resumed.epoch) if resumed is not None else (-1, -1)
                if told_of >= (producer.producer_id, producer.epoch):
                    continue  # another instance has taken over meanwhile: this one is fenced
                opened = producer._topics.get(topic)
                if opened is None:
                    continue  # it has been deleted meanwhile
                last_offset = resumed.last_offset if resumed is not None else -1
                key = (opened.topic.topic_id, partition)
                self.ledger.resumptions.append(
                    Resumption(key, producer.producer_id, producer.epoch, last_offset, self.world.now)
                )

    async def _send(self, process: SimProcess, producer: Producer, host: Host, history: History, number: int) -> None:
        value = f"{process.node}/{process.incarnation}/{number}".encode()
        topic = host.random.choice(list(self.spec.topics))
        key = b"%d" % host.random.randrange(self.spec.keys) if self.spec.keys else None
        entry = self.ledger.entries[value] = Entry(topic, key, process, self.world.now)
        entry.may_be_lost = self.spec.options.get("acks", "all") != "all"
        operation = history.invoke_send(topic, None, key, value)
        try:
            delivery = await producer.send(topic, value, key=key)
        except FencepostError as error:
            history.complete_send(operation, topic, None, -1, error=error)
            if isinstance(error, (ProducerFenced, InvalidProducerEpoch)):
                entry.fate = Fate.REFUSED
                raise
            self._failed(entry, error)
            return
        self._pending += 1
        entry.topic_id = delivery._batch.queue.topic.topic_id
        process.loop.create_task(self._settle(entry, delivery, history, operation))

    async def _settle(self, entry: Entry, delivery: Delivery, history: History, operation: int) -> None:
        try:
            metadata = await delivery
        except FencepostError as error:
            history.complete_send(operation, entry.topic, None, -1, error=error, producer=delivery.stamp)
            self._failed(entry, error)
        else:
            entry.fate, entry.partition, entry.offset = Fate.ACKED, metadata.partition, metadata.offset
            entry.stamp = delivery.stamp
            history.complete_send(operation, entry.topic, metadata.partition, metadata.offset, producer=delivery.stamp)
        key = (entry.topic_id, delivery._batch.queue.partition)
        if late := self.wait_judged(self.spec.node, key, entry.sent_at, self.world.now):
            self.problems.append(late)
        self._pending -= 1
        self._room.set()

    def _failed(self, entry: Entry, error: FencepostError) -> None:
        entry.fate = Fate.UNKNOWN if error.may_have_been_appended else Fate.REFUSED
        entry.error = f"{type(error).__name__}: {error}"
        self.ledger.errors[type(error).__name__] += 1


class Skips(deque[SkippedBatch]):
    """What a consumer passes over, as it tells of it; noted with the topic's id."""

    def __init__(self, app: ConsumerApp, consumer: Consumer) -> None:
        super().__init__()
        self._app = app
        self._consumer = consumer

    def append(self, skipped: SkippedBatch) -> None:
        self._app.passed_over.append((self._consumer._core.key(skipped.tp), skipped.offset, skipped.end_offset))
        super().append(skipped)


class ConsumerApp:
    """Reads everything, from the beginning, again after each start."""

    def __init__(
        self, world: World, node: str, topics: tuple[str, ...], bootstrap: list[str], ledger: SendLedger
    ) -> None:
        self.world = world
        self.ledger = ledger
        self.node = node
        self.topics = topics
        self.bootstrap = bootstrap
        self.topic_ids: dict[str, str] = {}  # by name, of the topics as they were last found
        self.read: dict[tuple[str, int], dict[int, bytes]] = {}  # (topic, partition) -> offset -> value
        self.positions: dict[tuple[str, int], int] = {}  # next offset, of this incarnation
        self.problems: list[str] = []
        self.high_watermarks: dict[tuple[str, int], int] = {}  # as this incarnation's consumer last told
        self.unclean: Callable[[str, int], int] = lambda topic, partition: 0  # how many unclean elections it has had
        self._went_back: Counter[tuple[str, int]] = Counter()  # as often it may go back, once for each
        self._consumer: Consumer | None = None
        self.passed_over: list[tuple[PartitionKey, int, int]] = []  # batches that it could not read: offset and end
        self.skipped = 0  # offsets that retention took away before they were read

    def start(self) -> None:
        self._forget(None)
        self.world.start(self.node, self._run)

    async def _run(self, host: Host, disk: MountedDisk) -> None:
        for opened in itertools.count(1):
            history = History(self.ledger.history.append, process=f"{current_process.get()!r}.{opened}")
            try:
                async with Consumer(
                    self.bootstrap, *self.topics, host=host, history=history, unreadable="skip",
                    max_decompressed_bytes=OPENED_BYTES,
                ) as consumer:  # fmt: skip
                    consumer._core.skipped = Skips(self, consumer)
                    self._forget(consumer)
                    async for record in consumer:
                        self._take((record.topic, record.partition), record.offset, record.value or b"")
            except FencepostError as error:
                self.world.tell(self.node, f"consumer failed: {error}")
                self._forget(None)
                if isinstance(error, OffsetOutOfRange) and not self._any_unclean():
                    self.problems.append(f"{self.node}: {error}")
                await asyncio.sleep(START_RETRY_S)

    def _forget(self, consumer: Consumer | None) -> None:
        """A consumer begins again, or ends."""
        self._consumer = consumer
        self.positions = {}
        self.high_watermarks = {}
        if consumer is None:
            return
        for tp in consumer.assignment:
            topic_id = consumer._core.key(tp)[0]
            if self.topic_ids.get(tp.topic) != topic_id:  # deleted, and made again under the same name
                self.topic_ids[tp.topic] = topic_id
                self.read = {key: values for key, values in self.read.items() if key[0] != tp.topic}
                self._went_back = Counter({key: often for key, often in self._went_back.items() if key[0] != tp.topic})

    def position(self, topic: str, partition: int) -> int:
        """The next offset: behind what it was handed, and behind what no one can read."""
        handed = self.positions.get((topic, partition), 0)
        at = [tp for tp in (self._consumer.assignment if self._consumer else ()) if tp == (topic, partition)]
        return max(handed, *(self._consumer._core.position(tp) for tp in at)) if self._consumer and at else handed

    def reads(self, topic: str, partition: int) -> bool:
        """It subscribes to that partition, or is about to subscribe."""
        return self._consumer is None or (topic, partition) in self._consumer.assignment

    def follows(self, topic: str, partition: int) -> bool:
        """It reads that partition now."""
        return self._consumer is not None and (topic, partition) in self._consumer.assignment

    def _any_unclean(self) -> bool:
        return any(self.unclean(topic, partition) for topic, partition in self.read)

    def look(self) -> None:
        """What the consumer says of high watermarks never goes back."""
        for tp in self._consumer.assignment if self._consumer is not None else ():
            said = self._consumer.high_watermark(tp) if self._consumer is not None else -1
            before = self.high_watermarks.get((tp.topic, tp.partition), -1)
            if said < before and not self.unclean(*tp):
                self.problems.append(f"{self.node} knew the high watermark {before} of {tp}, then {said}")
            self.high_watermarks[tp.topic, tp.partition] = said

    def _take(self, key: tuple[str, int], offset: int, value: bytes) -> None:
        expected = self.positions.get(key)
        if expected is not None and offset != expected:
            if offset < expected and self._went_back[key] < self.unclean(*key):
                self._went_back[key] += 1
            elif offset < expected:
                self.problems.append(f"{self.node} read offset {offset} of {key} after {expected - 1}")
            self.skipped += offset - expected
        self.positions[key] = offset + 1
        known = self.read.setdefault(key, {}).setdefault(offset, value)
        if known != value and self.unclean(*key):
            self.read[key][offset] = value  # in the end all that it has read is compared with the log
        elif known != value:
            self.problems.append(f"{self.node} read {value!r} at {key} {offset}, where it had read {known!r}")
