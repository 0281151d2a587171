"""Clients that mean harm, or have gone wrong: a process of its own for each, on the simulated network.

What they send is refused with the error that is for it, by whichever broker is asked, and the promises hold for everyone
else meanwhile; the judge, the ledger and the clients of the run see to that. Whatever is taken that must not be is reported
here, as a broken bound: it need not do harm in this run.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from tests.simulation.cluster import CONTROLLER_ADDRESS
from tests.simulation.disk import MountedDisk

from fencepost_proto.errors import ErrorCode
from fencepost_proto.host import Host
from fencepost_proto.metadata import MetadataImage
from fencepost_proto.request_limits import MAX_ENTRIES, MAX_STRING_BYTES
from fencepost_proto.v1 import (
    broker_pb2,
    broker_pb2_grpc,
    common_pb2,
    controller_pb2,
    controller_pb2_grpc,
    replication_pb2,
    replication_pb2_grpc,
)

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

        async def main(host: Host, disk: MountedDisk) -> None:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await kind(host, address)
            except TimeoutError:
                pass
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                self._world.tell("hostile client", f"is left alone: {type(error).__name__}")

        self._number += 1
        self._world.tell("nemesis", f"sends a hostile client to {address}: {kind.__name__.strip('_')}")
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
