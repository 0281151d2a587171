"""Batches that brokers take, since header and CRC are right, and that no consumer can read.

A hostile client writes them among everyone's records, in some runs. Readers go past them (`unreadable="skip"`), and past
nothing else; replicas, producers' state and retention treat them like any other batch. They are known by their content,
whatever a leader has stamped on them.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import cramjam
from crc32c import crc32c

from fencepost_proto.protocol.record_batch import HEADER_BYTES, iter_batches
from fencepost_proto.protocol.records import Compression, Record, read_records
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc
from fencepost_proto.runtime.host import Host

if TYPE_CHECKING:
    from tests.simulation.hostile_clients import HostileClients
    from tests.simulation.nemesis import Nemesis

PATIENCE_S = 3.0  # of a call: the broker may be dead, paused or cut off
BOMB_BYTES = 300_000  # what a bomb opens to …
OPENED_BYTES = 200_000  # … and what the run's consumers open at most


def unreadable_batch(chance: random.Random, number: int, now_ms: int, stamp: tuple[int, int, int]) -> bytes:
    """One that differs from every other in the run, by its number."""
    mark, count = b"unreadable %d " % number, chance.choice((1, 3, 10))
    codec, content = chance.choice(
        (
            (Compression.NONE, mark + b"\x07" * 300),
            (Compression.GZIP, mark + b"\x07" * 50),
            (Compression.LZ4, mark),
            (Compression.SNAPPY, mark),
            (Compression.ZSTD, bytes(cramjam.zstd.compress(mark + bytes(BOMB_BYTES)))),
        )
    )
    checked = struct.pack(">hiqqqhii", int(codec), count - 1, now_ms, now_ms, *stamp, count) + content
    return struct.pack(">qiibI", 0, 9 + len(checked), 0, 2, crc32c(checked)) + checked


class HostileWriters:
    """A kind of fault of a nemesis."""

    def __init__(self, nemesis: Nemesis, clients: HostileClients, chance: random.Random) -> None:
        self._nemesis = nemesis
        self._clients = clients
        self._chance = chance
        self._number = 0

    async def write(self) -> None:
        """A few unreadable batches, to some of the partitions; by a producer with an id, or without."""
        cluster, chance = self._nemesis.cluster, self._chance
        led = [p for p in cluster.judge.image.partitions.values() if p.leader >= 0]
        chosen = [(partition, chance.randint(1, 3)) for partition in led if chance.random() < 0.5]
        with_id = chance.random() < 0.5
        self._nemesis.world.tell("nemesis", f"writes unreadable batches to {[(p.id, count) for p, count in chosen]}")

        async def work(host: Host) -> None:
            for partition, count in chosen:
                stub: Any = broker_pb2_grpc.BrokerStub(
                    host.wire.connect(cluster.judge.image.brokers[partition.leader].address)
                )
                producer_id = -1
                if with_id:
                    answer = await stub.InitProducerId(broker_pb2.InitProducerIdRequest(), timeout=PATIENCE_S)
                    producer_id = -1 if answer.error.code else answer.producer_id
                request, sequence = broker_pb2.ProduceRequest(), 0
                for number in range(count):
                    stamp = (-1, -1, -1) if producer_id < 0 else (producer_id, 0, sequence)
                    self._number += 1
                    data = unreadable_batch(chance, self._number, host.wall_clock_ms(), stamp)
                    cluster.judge.unreadable[data[HEADER_BYTES:]] = None
                    sequence += struct.unpack_from(">i", data, HEADER_BYTES - 4)[0]
                    request.batches.add(
                        correlation_id=number, topic_id=partition.topic_id, partition=partition.index, leader_epoch=-1,
                        acks=chance.choice((-1, -1, 1)), timeout_ms=1_000, records=data,
                    )  # fmt: skip
                call = stub.Produce()
                await call.write(request)
                await call.read()

        await self._clients.run(work)


def readable_records(batches: bytes, unreadable: dict[bytes, None]) -> Iterator[Record | tuple[int, int]]:
    """The records of whole batches; of each that is known to be unreadable (by its content) its first offset and its end.

    Raises CorruptMessage for another one that cannot be read.
    """
    for position, header in iter_batches(batches):
        whole = batches[position : position + header.size_bytes]
        if whole[HEADER_BYTES:] in unreadable:
            yield header.base_offset, header.end_offset
        else:
            yield from read_records(whole)
