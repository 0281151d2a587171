"""The story: what happens to one batch when its leader dies having appended it, and before it could say so.

It is the story of docs/ARCHITECTURE.md, on the real cluster: the batches are sent by hand, over Fencepost's own protocol, so
that each step can be read before the next one. No step is played: each does what it says, and its text has what came of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, cast

import grpc

from fencepost import AdminClient
from fencepost.descriptions import PartitionDescription
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.record_batch import iter_batches
from fencepost_proto.protocol.records import BatchBuilder, Compression
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.transport.wire import GrpcWire
from fencepost_testing.failures import CommandFailed
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.topic_waits import wait_in_sync
from fencepost_testing.waiting import until
from fencepost_ui.control import Control, faults_of

TOPIC_PREFIX: Final = "story"
RECORDS: Final = 5  # in each batch
ANSWER_TIMEOUT_S: Final = 10.0
READ_BYTES: Final = 1 << 20
DEFAULT_PACE_S: Final = 3.0
MAX_PACE_S: Final = 60.0
NOT_YET: Final = Backoff(first_s=0.02, most_s=0.5)  # between two attempts at a leader that is not one yet


class StoryError(CommandFailed):
    """Why the story cannot be told, or came to another end."""


@dataclass(slots=True)
class Step:
    """One step, as the page shows it."""

    title: str
    text: str = ""
    state: str = "waiting"  # waiting, running, done, failed

    def told(self) -> dict[str, str]:
        return {"title": self.title, "text": self.text, "state": self.state}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a broker answered to a batch."""

    base_offset: int
    duplicate: bool


TITLES: Final = (
    "A partition with three replicas",
    "A producer gets an id",
    "A batch is appended, copied and acknowledged",
    "The next acknowledgement is lost",
    "The leader is killed",
    "Another replica takes over, with the producer's state",
    "The producer sends the same batch again",
    "It goes on with the next batch",
    "The killed broker comes back",
    "Every record is there once",
)
NOT_TOLD_YET: Final = [Step(title).told() for title in TITLES]


class Story:
    """One telling at a time."""

    def __init__(self, control: Control, on_change: Callable[[], None], tell: Callable[[str, str], None]) -> None:
        self._control = control
        self._on_change = on_change
        self._tell = tell
        self._steps: list[Step] = []
        self._next = asyncio.Event()
        self._pace_s: float | None = DEFAULT_PACE_S
        self._task: asyncio.Task[None] | None = None
        self._partition = ""

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    def told(self) -> dict[str, Any]:
        return {
            "running": self.is_running,
            "stepwise": self._pace_s is None,
            "partition": self._partition,
            "steps": [step.told() for step in self._steps] or NOT_TOLD_YET,
        }

    def start(self, pace_s: float | None) -> None:
        """`pace_s`: between two steps; None: each waits for `advance`. Raises StoryError."""
        if self.is_running:
            raise StoryError("the story is being told already")
        cluster = self._control.cluster()
        if cluster is None or not cluster.any_running():
            raise StoryError("there is no cluster that runs: start one first")
        if pace_s is not None and not 0 <= pace_s <= MAX_PACE_S:
            raise StoryError(f"pace {pace_s!r}: from 0 to {MAX_PACE_S:g} seconds")
        self._pace_s = pace_s
        self._next.clear()
        self._steps = [Step(title) for title in TITLES]
        self._task = asyncio.get_running_loop().create_task(self._run(cluster), name="story")
        self._on_change()

    def advance(self) -> None:
        """The visitor has read the step."""
        self._next.set()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, cluster: AsyncLocalCluster) -> None:
        teller = _Teller(cluster, self._control, self._set_partition)
        try:
            async with AdminClient(cluster.bootstrap) as admin:
                teller.admin = admin
                for number, (step, act) in enumerate(zip(self._steps, teller.acts(), strict=True)):
                    if number:
                        await self._pause()
                    step.state = "running"
                    self._on_change()
                    step.text = await act()
                    step.state = "done"
                    self._tell(str(teller.node or ""), f"Story, step {number + 1}: {step.title}")
                    self._on_change()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the visitor reads it at its step
            broken = next((step for step in self._steps if step.state == "running"), self._steps[0])
            broken.state, broken.text = "failed", f"{type(error).__name__}: {error}"
        finally:
            self._on_change()

    def _set_partition(self, name: str) -> None:
        self._partition = name

    async def _pause(self) -> None:
        """Until the visitor goes on, or the pace is over."""
        try:
            async with asyncio.timeout(self._pace_s):
                await self._next.wait()
        except TimeoutError:
            pass
        self._next.clear()


class _Teller:
    """Does the steps. Each returns the text of what happened."""

    admin: AdminClient

    def __init__(self, cluster: AsyncLocalCluster, control: Control, shows: Callable[[str], None]) -> None:
        self.node: int | None = None  # that the step is about
        self._cluster = cluster
        self._control = control
        self._shows = shows
        self._topic = ""
        self._topic_id = ""
        self._producer_id = -1
        self._sequence = 0
        self._unanswered = b""
        self._first_leader = -1

    def acts(self) -> list[Callable[[], Awaitable[str]]]:
        """In the order of TITLES."""
        return [
            self._create,
            self._init_producer,
            self._append,
            self._lose,
            self._kill,
            self._elect,
            self._repeat,
            self._go_on,
            self._come_back,
            self._verify,
        ]

    async def _create(self) -> str:
        down = [broker for broker in self._cluster.broker_ids if not self._cluster.running(broker)]
        if len(self._cluster.broker_ids) - len(down) < 2:
            raise StoryError(f"at least two brokers must run; broker {', '.join(map(str, down))} does not")
        told = {name for name in await self.admin.list_topics() if name.startswith(TOPIC_PREFIX)}
        self._topic = next(name for number in count(1) if (name := f"{TOPIC_PREFIX}-{number}") not in told)
        replicas = min(3, len(self._cluster.broker_ids) - len(down))
        await self.admin.create_topic(self._topic, partitions=1, replication_factor=replicas, min_insync_replicas=1)
        await wait_in_sync(self.admin, self._topic)
        self._topic_id = (await self.admin.describe_topic(self._topic)).topic_id
        partition = await self._partition()
        self.node = self._first_leader = partition.leader
        self._shows(f"{self._topic}-0")
        return (
            f"Partition 0 of the topic {self._topic} is on brokers {_listed(partition.replicas)}. Broker "
            f"{partition.leader} leads it, under leader epoch {partition.leader_epoch}; all of them are in sync: "
            "a batch is committed when each has it."
        )

    async def _init_producer(self) -> str:
        async with GrpcWire().connect(self._address(self._first_leader)) as channel:
            stub: broker_pb2_grpc.BrokerAsyncStub = broker_pb2_grpc.BrokerStub(channel)
            answer = await stub.InitProducerId(
                broker_pb2.InitProducerIdRequest(), timeout=ANSWER_TIMEOUT_S, wait_for_ready=True
            )
        if answer.error.code:
            raise StoryError(f"no producer id: {answer.error.message}")
        self._producer_id = answer.producer_id
        return (
            f"It is producer {answer.producer_id}, epoch {answer.producer_epoch}. It numbers its records for each "
            "partition, from 0 on: the sequence numbers stand in every batch, so each replica can tell a new "
            "batch from one that it has."
        )

    async def _append(self) -> str:
        answer = await self._produce(self._first_leader, self._new_batch("first"))
        return (
            f"Sequences 0 to {RECORDS - 1} are at offset {answer.base_offset}. Broker {self._first_leader} "
            "appended them and pushed them to its followers; when all had them the high watermark rose, and the "
            "producer got its answer. Below, each replica remembers the batch: the state follows from the log, "
            "and nothing else has to be handed over."
        )

    async def _lose(self) -> str:
        self._unanswered = self._new_batch("second")
        faults, told = faults_of(self._cluster), "the page threw the answer away, as a broken connection would"
        if faults is None:
            await self._produce(self._first_leader, self._unanswered)
        else:
            lost = await asyncio.to_thread(faults.drop_answers, "Produce", topic=self._topic, times=1)
            try:
                await self._produce(self._first_leader, self._unanswered)
            except grpc.aio.AioRpcError:
                await lost.wait_fired_async()
            else:
                raise StoryError("the acknowledgement came, though it was to be lost")
            finally:
                lost.remove()
            told = "the connection was closed instead of the answer (a fault, set for this)"
        return (
            f"Sequences {RECORDS} to {2 * RECORDS - 1} were appended and committed, and {told}. The producer "
            "cannot know whether they are in the log. If it gave up, records might be lost; if it sent them "
            "again to a broker that does not remember, they would be there twice."
        )

    async def _kill(self) -> str:
        self.node = self._first_leader
        await self._control.do("kill", str(self._first_leader))
        return (
            f"Broker {self._first_leader} is gone: SIGKILL, no goodbye. Whatever it knew of the producer in its "
            "memory is gone with it. The controller sees the session break, asks for the process, and finds no "
            "one."
        )

    async def _elect(self) -> str:
        partition = await self._led_by_another(self._first_leader)
        self.node = partition.leader
        answer = await self.admin.describe_producers(self._topic, 0, producer_id=self._producer_id)
        known = answer.producers[0]
        last = known.batches[-1]
        return (
            f"Broker {partition.leader} leads now, under epoch {partition.leader_epoch}; in sync: "
            f"{_listed(partition.isr)}. It has the batches, so it knows producer {self._producer_id}: its last "
            f"one is {last.first_sequence} to {last.last_sequence}, at offset {last.base_offset}. Nobody told it: "
            "as a follower it folded the same batches."
        )

    async def _repeat(self) -> str:
        leader = (await self._partition()).leader
        self.node = leader
        answer = await self._produce(leader, self._unanswered)
        if not answer.duplicate:
            raise StoryError(f"the repeat was not recognised: it was appended at offset {answer.base_offset}")
        return (
            f"The same bytes, to broker {leader}. Its state has sequences {RECORDS} to {2 * RECORDS - 1} with the "
            "same checksum: a repeat. Nothing is appended; the answer is the original's, offset "
            f"{answer.base_offset}. The producer has its acknowledgement, and the log has the records once."
        )

    async def _go_on(self) -> str:
        leader = (await self._partition()).leader
        answer = await self._produce(leader, self._new_batch("third"))
        if answer.base_offset != 2 * RECORDS:
            raise StoryError(f"the third batch is at offset {answer.base_offset}, not at {2 * RECORDS}")
        return (
            f"Sequences {2 * RECORDS} to {3 * RECORDS - 1} come next, and are at offset {answer.base_offset}: no gap, "
            "no repeat."
        )

    async def _come_back(self) -> str:
        self.node = self._first_leader
        await self._control.do("start", str(self._first_leader))
        await wait_in_sync(self.admin, self._topic)
        partition = await self._partition()
        return (
            f"Broker {self._first_leader} recovered its log and the state from its files, compared it with the "
            f"leader's, and got what it lacked. In sync again: {_listed(partition.isr)}. It follows broker "
            f"{partition.leader}."
        )

    async def _verify(self) -> str:
        self.node = None
        leader = (await self._partition()).leader
        request = broker_pb2.FetchRequest(max_wait_ms=1_000, min_bytes=1, max_bytes=READ_BYTES)
        request.partitions.add(
            topic_id=self._topic_id, partition=0, leader_epoch=-1, fetch_offset=0, max_bytes=READ_BYTES
        )
        async with GrpcWire().connect(self._address(leader)) as channel:
            call = broker_pb2_grpc.BrokerStub(channel).Fetch(timeout=ANSWER_TIMEOUT_S, wait_for_ready=True)
            await call.write(request)
            response = cast(broker_pb2.FetchResponse, await call.read())
            call.cancel()
        (fetched,) = response.partitions
        found = [(header.base_sequence, header.base_offset) for _, header in iter_batches(fetched.records)]
        expected = [(number * RECORDS, number * RECORDS) for number in range(3)]
        if found != expected:
            raise StoryError(f"the log holds (sequence, offset) {found}, not {expected}")
        return (
            f"Read back from broker {leader}: {len(found)} batches, sequences 0 to {3 * RECORDS - 1} at offsets 0 "
            f"to {3 * RECORDS - 1}. Each record once, in order, though its leader was killed before it could say "
            "that it had them."
        )

    # ---- What the steps do ----

    def _new_batch(self, word: str) -> bytes:
        builder = BatchBuilder(Compression.NONE, 1 << 16)
        for number in range(RECORDS):
            builder.append(time.time_ns() // 1_000_000, None, f"{word} batch, record {number}".encode(), [])
        batch = builder.build(self._producer_id, 0, self._sequence)
        self._sequence += RECORDS
        return batch

    async def _produce(self, broker: int, batch: bytes) -> Answer:
        """Raises AioRpcError where the connection breaks, StoryError where the batch is refused. A broker that has just
        learned that it leads may not do so yet: then it is sent again, for nothing was appended."""
        deadline = asyncio.get_running_loop().time() + ANSWER_TIMEOUT_S
        for pause_s in NOT_YET.pauses_s():
            result = await self._produce_once(broker, batch)
            if not result.error.code:
                return Answer(result.base_offset, result.duplicate)
            late = asyncio.get_running_loop().time() > deadline
            if result.error.code != ErrorCode.NOT_LEADER_OR_FOLLOWER or late:
                name = ErrorCode(result.error.code).name
                raise StoryError(f"the batch was refused: {name}: {result.error.message}")
            await asyncio.sleep(pause_s)
        raise AssertionError("pauses have no end")

    async def _produce_once(self, broker: int, batch: bytes) -> broker_pb2.ProduceResult:
        request = broker_pb2.ProduceRequest()
        request.batches.add(
            correlation_id=1,
            topic_id=self._topic_id,
            partition=0,
            leader_epoch=-1,
            acks=-1,
            timeout_ms=5_000,
            records=batch,
        )
        async with GrpcWire().connect(self._address(broker)) as channel:
            call = broker_pb2_grpc.BrokerStub(channel).Produce(timeout=ANSWER_TIMEOUT_S, wait_for_ready=True)
            await call.write(request)
            await call.done_writing()
            results = [result async for response in call for result in response.results]
        if not results:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
        (result,) = results
        return result

    async def _partition(self) -> PartitionDescription:
        return (await self.admin.describe_topic(self._topic)).partitions[0]

    async def _led_by_another(self, than: int) -> PartitionDescription:
        async def led() -> PartitionDescription | None:
            partition = await self._partition()
            return partition if partition.leader not in (-1, than) else None

        found = await until(led, f"another broker than {than} leads {self._topic}-0", 15)
        assert found is not None
        return found

    def _address(self, broker: int) -> str:
        return self._cluster.member(broker).address


def _listed(brokers: tuple[int, ...]) -> str:
    return ", ".join(map(str, brokers))
