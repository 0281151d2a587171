"""Producers that send what is no batch inside: brokers store it, and every reader is told where, or goes past it."""

from __future__ import annotations

import struct

import cramjam
from crc32c import crc32c

from fencepost.consumer import Consumer
from fencepost_proto.protocol.errors import CorruptMessage, ErrorCode
from fencepost_proto.protocol.record_batch import HEADER_BYTES
from fencepost_proto.protocol.records import BatchBuilder, Compression
from fencepost_proto.protocol.v1 import broker_pb2 as pb
from fencepost_proto.protocol.v1 import broker_pb2_grpc
from fencepost_proto.runtime.host import Host
from tests.gauntlet.story import Story, tale
from tests.simulation.disk import MountedDisk

LIMIT = 1_000_000  # that a batch may open to


def holding(codec: Compression, content: bytes, count: int = 3) -> bytes:
    """Header and CRC are right, and the content is anything."""
    checked = struct.pack(">hiqqqhii", int(codec), count - 1, 1_000, 1_000, -1, -1, -1, count) + content
    return struct.pack(">qiibI", 0, 9 + len(checked), 0, 2, crc32c(checked)) + checked


def whole(codec: Compression, count: int) -> bytes:
    """What such a batch should hold."""
    builder = BatchBuilder(codec, 1 << 20)
    for number in range(count):
        builder.append(1_000, b"%d" % number, b"value", [])
    return builder.build(-1, -1, -1)[HEADER_BYTES:]


POISON = {
    "no gzip": holding(Compression.GZIP, b"\x07" * 100),
    "a bomb": holding(Compression.ZSTD, bytes(cramjam.zstd.compress(bytes(3 * LIMIT)))),
    "garbage": holding(Compression.NONE, b"\x07" * 50_000),
    "cut": holding(Compression.LZ4, whole(Compression.LZ4, 50)[:-9]),
}


async def send_poison(story: Story, broker: str, batches: list[bytes]) -> list[int]:
    """The error code of each, as the leader answers."""
    codes: dict[int, int] = {}

    async def main(host: Host, disk: MountedDisk) -> None:
        call = broker_pb2_grpc.BrokerStub(host.wire.connect(f"{broker}:9092")).Produce()
        request = pb.ProduceRequest()
        for number, data in enumerate(batches):
            request.batches.add(
                correlation_id=number, topic_id=story.topic("orders").topic_id, leader_epoch=-1, acks=-1,
                timeout_ms=5_000, records=data,
            )  # fmt: skip
        await call.write(request)
        while len(codes) < len(batches):
            response = await call.read()
            assert isinstance(response, pb.ProduceResponse)
            codes.update({result.correlation_id: result.error.code for result in response.results})

    story.world.start("hostile", main)
    await story.until(lambda: len(codes) == len(batches), "the hostile batches are answered")
    return [codes[number] for number in range(len(batches))]


@tale()
async def test_readers_stop_at_poison_or_skip_it_and_what_it_stands_among_is_untouched(story: Story) -> None:
    await story.create_topic("orders", [[1, 2, 3]])
    client = await story.producer()
    sent = [await client.send("A")]
    await story.acked(*sent)
    codes = await send_poison(story, "broker-1", [*POISON.values(), holding(Compression.NONE, b"", 2**31 - 1)])
    assert codes == [0] * len(POISON) + [ErrorCode.INVALID_RECORD], "brokers see headers, and what a header cannot say"
    sent.append(await client.send("B"))
    await story.acked(*sent)
    story.kill("broker-1")
    leader = await story.led(not_by=1)
    sent.append(await client.send("C"))
    await story.acked(*sent)

    read: dict[int, str] = {}
    skipped: list[tuple[int, int]] = []
    failures: list[CorruptMessage] = []
    positions: list[int] = []

    async def skipping(host: Host, disk: MountedDisk) -> None:
        async with Consumer(
            story.cluster.bootstrap, "orders", host=host, unreadable="skip", max_decompressed_bytes=LIMIT
        ) as consumer:
            while len(read) < 3:
                read.update({record.offset: (record.value or b"").decode() for record in await consumer.poll()})
            skipped.append((consumer.skipped_batches, consumer.skipped_records))

    async def stopping(host: Host, disk: MountedDisk) -> None:
        async with Consumer(story.cluster.bootstrap, "orders", host=host, max_decompressed_bytes=LIMIT) as consumer:
            assert [record.value for record in await consumer.poll()] == [b"A"]
            for _ in range(2):
                try:
                    await consumer.poll()
                except CorruptMessage as error:
                    failures.append(error)
            positions.append(await consumer.position(consumer.assignment[0]))

    story.world.start("skipping", skipping)
    story.world.start("stopping", stopping)
    await story.until(lambda: skipped and positions, "both have read")
    last = 1 + 3 * len(POISON)
    assert read == {0: "A", last: "B", last + 1: "C"}
    assert skipped == [(len(POISON), 3 * len(POISON))]
    assert len(failures) == 2
    assert f"orders-0 at offset 1, as broker broker-{leader}:9092 sent it" in failures[0].message
    assert positions == [1]
    story.start("broker-1")
    await story.in_sync()
    await story.leave()
