"""How a client takes metadata that concerns thousands of partitions."""

from __future__ import annotations

import asyncio

from fencepost.metadata_watch import SharedDecoding
from fencepost.producer import Producer
from fencepost_proto.protocol.metadata import MetadataImage, Partition, delta_to_proto
from fencepost_proto.protocol.v1 import common_pb2
from fencepost_proto.runtime.turns import STEPS_PER_TURN
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.fake_broker_write import fake_write_cluster

PARTITIONS = 1_000


def partitions(leader_epoch: int) -> list[Partition]:
    return [Partition("t", i, (1, 2, 3), (1, 2, 3), 1, leader_epoch, leader_epoch) for i in range(PARTITIONS)]


def image(version: int) -> common_pb2.MetadataDelta:
    return delta_to_proto(version, partitions(version), image=True)


@asynchronous
async def test_the_event_loop_goes_on_while_a_change_of_many_partitions_is_taken() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    taken = await SharedDecoding().apply(MetadataImage(), image(1))
    counting.cancel()
    assert taken == MetadataImage().apply(image(1))
    assert turns >= PARTITIONS // STEPS_PER_TURN


@asynchronous
async def test_what_two_brokers_tell_alike_is_decoded_once_and_anything_else_by_itself() -> None:
    decoding, empty = SharedDecoding(), MetadataImage()
    first, second = await asyncio.gather(decoding.apply(empty, image(1)), decoding.apply(empty, image(1)))
    assert first is second
    change = delta_to_proto(2, partitions(2)[:1])
    changed = await decoding.apply(first, change)
    assert changed is await decoding.apply(second, change)
    other = delta_to_proto(2, partitions(3)[:1])  # the same version of another history
    assert (await decoding.apply(first, other)).partitions["t", 0].leader_epoch == 3
    fewer = MetadataImage().apply(delta_to_proto(1, partitions(1)[:1], image=True))  # the same change of another image
    assert len((await decoding.apply(fewer, change)).partitions) == 1


@asynchronous
async def test_a_producer_looks_at_the_partitions_whose_leader_has_changed_and_at_no_others() -> None:
    async with fake_write_cluster() as cluster:
        topic_id = cluster.add_topic("orders", 50)
        async with Producer(cluster.bootstrap) as producer:
            await producer.send_and_wait("orders", b"before", partition=7)
            looked_at: set[int] = set()
            sender = producer._sender
            # A stream that opens makes the producer look at all that its broker leads; that answer has needed only one.
            opened = sender._connections.values()
            await until(lambda: all(each.up for each in opened) and not sender._changed, "a stream to each broker")
            assert len(opened) == 3
            pump = sender._pump

            def counted(queue, now):  # type: ignore[no-untyped-def]
                looked_at.add(queue.partition)
                pump(queue, now)

            sender._pump = counted  # type: ignore[method-assign]
            other = next(b for b in (1, 2, 3) if b != cluster.leader_of((topic_id, 7)).id)
            cluster.elect((topic_id, 7), other)
            cluster.add_topic("another")
            await until(lambda: producer._cluster.image.version == cluster.image.version, "the newest metadata")
            await producer.send_and_wait("orders", b"after", partition=8)
            queue = sender.topics["orders"].queues[7]
            assert queue.address == cluster.leader_of((topic_id, 7)).address
            assert looked_at == {7, 8}
