"""Clients that mean harm, or have gone wrong: a process of its own for each, on the simulated network.

What they send is refused with the error that is for it, by whichever broker is asked, and the promises hold for everyone
else meanwhile; the judge, the ledger and the clients of the run see to that. Whatever is taken that must not be is reported
here, as a broken bound: it need not do harm in this run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from fencepost.history import History
from fencepost_proto.protocol.errors import ErrorCode, RequestTimedOut
from fencepost_proto.protocol.metadata import MetadataImage, Partition
from fencepost_proto.protocol.records import BatchBuilder, Compression
from fencepost_proto.protocol.request_limits import MAX_ENTRIES, MAX_STRING_BYTES
from fencepost_proto.protocol.v1 import (
    broker_pb2,
    broker_pb2_grpc,
    common_pb2,
    controller_pb2,
    controller_pb2_grpc,
    replication_pb2,
    replication_pb2_grpc,
)
from fencepost_proto.runtime.host import Host
from tests.simulation.cluster import CONTROLLER_ADDRESS, NEVER_MS, broker_address
from tests.simulation.disk import MountedDisk
from tests.simulation.loop import current_process
from tests.simulation.process import SimProcess
from tests.simulation.workload import Entry, Fate, SendLedger

if TYPE_CHECKING:
    from tests.simulation.nemesis import Nemesis

BOUNDS = "bounds"  # what the judge calls it
PATIENCE_S = 3.0  # of a call: the broker may be dead, paused or cut off
FORGED = "nowhere:1\n2026-11-28 INFO a forged line"
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class HostileClients:
    """A kind of fault of a nemesis."""

    def __init__(self, nemesis: Nemesis) -> None:
        self._nemesis = nemesis
        self._world = nemesis.world
        self._judge = nemesis.cluster.judge
        self._number = 0

    async def come(self) -> None:
        """One of them, for a few seconds."""
        kinds = (self._too_many_entries, self._forged_names, self._garbage, self._reads_nothing, self._takes_a_place)
        kind = self._nemesis.random.choice(kinds)
        brokers = self._judge.image.brokers
        if not brokers:
            return
        address = brokers[self._nemesis.random.choice(sorted(brokers))].address

        self._world.tell("nemesis", f"sends a hostile client to {address}: {kind.__name__.strip('_')}")
        await self.run(lambda host: kind(host, address))

    async def run(self, work: Callable[[Host], Awaitable[None]]) -> None:
        """In a process of its own. Whatever it meets is its own concern."""

        async def main(host: Host, disk: MountedDisk) -> None:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await work(host)
            except TimeoutError:
                pass
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                self._world.tell("hostile client", f"is left alone: {type(error).__name__}")

        self._number += 1
        process = self._world.start(f"hostile-{self._number}", main)
        while process.alive:  # noqa: ASYNC110 - a process has no event for its end
            await asyncio.sleep(0.05)

    def _taken(self, what: str) -> None:
        self._judge.fail(BOUNDS, f"{what} was taken")

    async def _refused(self, what: str, call: Any) -> None:
        """The call ends with INVALID_ARGUMENT, unless the broker is away."""
        try:
            answer = await call.read()
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.INVALID_ARGUMENT, *_AWAY):
                self._taken(f"{what} ended with {error.code()}: {error.details()}, so it")
        else:
            if answer is not grpc.aio.EOF:
                self._taken(what)

    async def _too_many_entries(self, host: Host, address: str) -> None:
        """More than the bound, in messages small enough to be parsed and in larger ones."""
        channel = host.wire.connect(address)
        broker: Any = broker_pb2_grpc.BrokerStub(channel)
        for count in (MAX_ENTRIES + 1, 4 * MAX_ENTRIES):
            call = broker.Fetch()
            await call.write(broker_pb2.FetchRequest(partitions=[broker_pb2.FetchPartition()] * count))
            await self._refused(f"a fetch of {count} partitions", call)
            call = broker.Produce()
            await call.write(broker_pb2.ProduceRequest(batches=[broker_pb2.ProduceBatch()] * count))
            await self._refused(f"a request of {count} batches", call)
            replication: Any = replication_pb2_grpc.ReplicationStub(channel)
            call = replication.Replicate()
            hello = replication_pb2.ReplicateRequest(broker_id=1, cluster_id=self._judge.image.cluster_id)
            hello.unsubscribe.extend([common_pb2.PartitionRef()] * count)
            await call.write(hello)
            await self._refused(f"a follower's message of {count} partitions", call)

    async def _forged_names(self, host: Host, address: str) -> None:
        """Control characters, and names that are very long."""
        channel = host.wire.connect(address)
        broker: Any = broker_pb2_grpc.BrokerStub(channel)
        admin: Any = controller_pb2_grpc.AdminStub(channel)
        for name in (FORGED, "x" * (MAX_STRING_BYTES + 1)):
            for what, call in (
                ("producer name", broker.InitProducerId(broker_pb2.InitProducerIdRequest(name=name))),
                ("topic name", admin.CreateTopic(controller_pb2.CreateTopicRequest(name=name, partitions=1))),
                ("topic id", broker.ListOffsets(broker_pb2.ListOffsetsRequest(topic_id=name))),
            ):
                if (await call).error.code != ErrorCode.INVALID_REQUEST:
                    self._taken(f"the {what} {name[:60]!r}")

    async def _garbage(self, host: Host, address: str) -> None:
        """Batches that are none: each has its error, and nothing is appended (which the judge sees)."""
        broker: Any = broker_pb2_grpc.BrokerStub(host.wire.connect(address))
        call = broker.Produce()
        request = broker_pb2.ProduceRequest()
        for number, partition in enumerate(self._judge.image.partitions.values()):
            request.batches.add(
                correlation_id=number,
                topic_id=partition.topic_id,
                partition=partition.index,
                leader_epoch=-1,
                acks=-1,
                timeout_ms=-5,
                records=bytes([number % 256]) * (number * 37 % 200),
            )
        await call.write(request)
        answer = await call.read()
        if answer is not grpc.aio.EOF and any(not result.error.code for result in answer.results):
            self._taken("a batch of garbage")

    async def _reads_nothing(self, host: Host, address: str) -> None:
        """Streams that ask for everything, again and again, and read no answer."""
        broker: Any = broker_pb2_grpc.BrokerStub(host.wire.connect(address))
        calls = [broker.Fetch() for _ in range(5)]
        watches = [broker.WatchMetadata(broker_pb2.WatchMetadataRequest()) for _ in range(5)]
        request = broker_pb2.FetchRequest(min_bytes=2**31 - 1, max_bytes=2**31 - 1, max_wait_ms=100)
        for partition in self._judge.image.partitions.values():
            request.partitions.add(topic_id=partition.topic_id, partition=partition.index, leader_epoch=-1)
        for call in calls:
            for _ in range(10):
                await call.write(request)
        await asyncio.sleep(PATIENCE_S / 2)
        for call in (*calls, *watches):
            call.cancel()

    async def _takes_a_place(self, host: Host, address: str) -> None:
        """Registers as a running broker, with all that a client is shown of it."""
        broker: Any = broker_pb2_grpc.BrokerStub(host.wire.connect(address))
        image = MetadataImage().apply((await broker.Metadata(broker_pb2.MetadataRequest())).image)
        controller: Any = controller_pb2_grpc.ControllerStub(host.wire.connect(CONTROLLER_ADDRESS))
        for victim in image.brokers.values():
            for told_address in ("attacker:9092", FORGED):
                call = controller.Session()
                register = controller_pb2.Register(
                    broker_id=victim.id,
                    incarnation=victim.incarnation,
                    cluster_id=image.cluster_id,
                    address=told_address,
                )
                await call.write(controller_pb2.SessionRequest(register=register))
                try:
                    answer = await call.read()
                except grpc.aio.AioRpcError as error:
                    if error.code() not in (grpc.StatusCode.INVALID_ARGUMENT, *_AWAY):
                        raise
                    continue
                if answer is not grpc.aio.EOF and answer.WhichOneof("kind") == "registered":
                    self._taken(f"a client's registration as broker {victim.id}")
                call.cancel()


Stamp = tuple[int, int, int]  # producer id, epoch, base sequence
FLOOD = 40  # new producers at once: more than a partition takes in the runs in which there is a flood
SQUATTED = 4  # ids of each broker's block


class HostileProducers:
    """They keep to no rule of producers. What they write may get into the log; it must do no harm to anyone else's."""

    def __init__(self, nemesis: Nemesis, clients: HostileClients) -> None:
        self._nemesis = nemesis
        self._cluster = nemesis.cluster
        self._world = nemesis.world
        self._clients = clients

    async def ids_never_given_out(self) -> None:
        """Batches under the ids that the next producers will get, and under epochs that names do not have yet."""
        image = self._cluster.judge.image
        stamps: list[Stamp] = [(image.next_ids.next_id + n, 0, 0) for n in range(8)]
        stamps += [(image.next_ids.next_named_id + n, 0, 0) for n in range(2)]
        stamps += [(p.producer_id, p.epoch + 1, 0) for p in list(image.producers.values())[:4]]
        await self._write([(stamp, 1) for stamp in stamps])

    async def ids_of_the_next_producers(self) -> None:
        """Ids that brokers have in hand, in some partition each: one batch, several, or many; also of later epochs. Then
        someone comes who is given them. Not where partitions forget producers: there the same numbers may come again."""
        settings, chance = self._cluster.settings, self._nemesis.strange
        if settings.producer_expiration_ms < NEVER_MS or settings.room_is_short:
            return
        batches: list[tuple[Stamp, int]] = []
        for broker in self._cluster.brokers.values():
            for producer_id in broker._ids._current[:SQUATTED]:
                for epoch in range(chance.choice((1, 1, 2, 4))):
                    sequence = 0
                    for _ in range(chance.choice((1, 1, 2, 8))):
                        count = chance.choice((1, 1, 2, 5))
                        batches.append(((producer_id, epoch, sequence), count))
                        sequence += count
        await self._write(batches)
        anonymous = [app for app in self._nemesis.apps if "name" not in app.spec.options]
        for app in chance.sample(anonymous, min(2, len(anonymous))):
            self._world.tell("nemesis", f"starts {app.spec.node} again: it is given an id")
            self._world.kill(app.spec.node)
            app.start()

    async def flood_of_new_producers(self) -> None:
        """A producer's first batch is acknowledged; many others write their first ones; the first one is repeated."""
        led = self._led()
        if not led:
            return
        partition = self._nemesis.strange.choice(led)
        self._world.tell("nemesis", f"floods {partition.id} with new producers")

        async def work(host: Host) -> None:
            stub = broker_pb2_grpc.BrokerStub(host.wire.connect(broker_address(partition.leader)))
            ids = [await self._new_id(stub) for _ in range(1 + FLOOD)]
            if partition.topic_id not in self._cluster.judge.image.topics:
                return  # deleted meanwhile
            batches = [self._batch(partition, (producer_id, 0, 0), 1) for producer_id in ids]
            call = stub.Produce()
            for some in (batches[:1], batches[1:], batches[:1]):
                await self._send(call, partition, some)

        await self._clients.run(work)

    # ---- What they share ----

    def _led(self) -> list[Partition]:
        return [p for p in self._cluster.judge.image.partitions.values() if p.leader >= 0]

    async def _write(self, stamps: list[tuple[Stamp, int]]) -> None:
        """So many records under each stamp, everywhere."""
        led = self._led()
        self._world.tell("nemesis", f"writes under others' ids: {stamps[:4]} and {max(0, len(stamps) - 4)} more")

        async def work(host: Host) -> None:
            for partition in led:
                if partition.topic_id not in self._cluster.judge.image.topics:
                    continue  # deleted meanwhile
                call = broker_pb2_grpc.BrokerStub(host.wire.connect(broker_address(partition.leader))).Produce()
                await self._send(call, partition, [self._batch(partition, *one) for one in stamps])

        await self._clients.run(work)

    @staticmethod
    async def _new_id(stub: broker_pb2_grpc.BrokerAsyncStub) -> int:
        while True:
            answer = await stub.InitProducerId(broker_pb2.InitProducerIdRequest(), timeout=1)
            if not answer.error.code:
                return answer.producer_id
            await asyncio.sleep(0.1)

    @staticmethod
    async def _send(call: Any, partition: Partition, batches: Sequence[bytes]) -> None:
        """One message, and all answers to it."""
        request = broker_pb2.ProduceRequest()
        for number, data in enumerate(batches):
            request.batches.add(
                correlation_id=number, topic_id=partition.topic_id, partition=partition.index, leader_epoch=-1, acks=-1,
                timeout_ms=1_000, records=data,
            )  # fmt: skip
        await call.write(request)
        answered = 0
        while answered < len(batches):
            response = await call.read()
            if not isinstance(response, broker_pb2.ProduceResponse):
                return
            answered += len(response.results)

    def _batch(self, partition: Partition, stamp: Stamp, count: int) -> bytes:
        """Its records are entered in the ledger as some of which no one waits to hear."""
        process = current_process.get()
        assert isinstance(process, SimProcess)
        ledger: SendLedger = self._nemesis.apps[0].ledger
        topic = self._cluster.judge.image.topics[partition.topic_id].name
        builder = BatchBuilder(Compression.NONE, 10_000)
        for number in range(count):
            value = f"{process.node}/{topic}-{partition.index}/{'/'.join(map(str, stamp))}/{number}".encode()
            builder.append(int(self._world.now * 1000), None, value, [])
            entry = Entry(topic, None, process, self._world.now, Fate.UNKNOWN, partition.topic_id, partition.index)
            if ledger.entries.setdefault(value, entry) is entry:
                history = History(ledger.history.append, process=f"{process.node}/{value.decode()}")
                operation = history.invoke_send(topic, partition.index, None, value)
                history.complete_send(
                    operation, topic, partition.index, -1, error=RequestTimedOut("no one waits for it")
                )
        return builder.build(*stamp)
