"""Observe: what a broker tells those who look on, over real gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from fencepost_node.grpc import observe as observe_module
from fencepost_node.replication.event_ring import MAX_EVENTS, EventKind, EventRing
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import NamedProducer, Partition
from fencepost_proto.protocol.record_batch import read_header
from fencepost_proto.protocol.v1 import broker_pb2
from tests.asynchronous import asynchronous
from tests.unit.fake_controller import fake_controller
from tests.unit.test_broker import BROKER_ID, TOPIC, Running, batch, broker_of, produce_batch

NAMED_ID = 2**40


class Watcher:
    """All that one stream has told, put together."""

    def __init__(self, running: Running, after_event: int = 0) -> None:
        self.call = running.stub.Observe(broker_pb2.ObserveRequest(after_event=after_event))
        self.events: list[broker_pb2.BrokerEvent] = []
        self.replicas: dict[int, broker_pb2.ObservedReplica] = {}
        self.counts = broker_pb2.ObservedCounts()
        self.messages = 0

    async def until(self, holds: Callable[[], bool]) -> None:
        """Read on. Raises AioRpcError where the stream ends; the test's own deadline is the limit."""
        while not holds():
            message = await self.call.read()
            assert isinstance(message, broker_pb2.Observation), "the stream has ended"
            self.messages += 1
            self.events += message.events
            self.replicas |= {replica.partition: replica for replica in message.replicas}
            for gone in message.gone:
                del self.replicas[gone.partition]
            if message.HasField("counts"):
                self.counts = message.counts

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@asynccontextmanager
async def observed(tmp_path: Path, partitions: int = 1) -> AsyncIterator[tuple[Running, Watcher]]:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        await running.leads(partitions)
        watcher = Watcher(running)
        yield running, watcher
        watcher.call.cancel()


@asynchronous
async def test_the_first_message_has_all_and_later_ones_what_has_changed(tmp_path: Path) -> None:
    async with observed(tmp_path, partitions=2) as (running, watcher):
        await watcher.until(lambda: len(watcher.replicas) == 2)
        assert watcher.kinds() == ["LEADS", "LEADS"]
        assert watcher.replicas[0].topic == "orders"
        assert (watcher.replicas[0].leader, list(watcher.replicas[0].isr)) == (BROKER_ID, [BROKER_ID])
        assert watcher.messages == 1
        watcher.replicas.clear()
        await running.produce(produce_batch(batch([b"a", b"b"], (9, 0, 0))))
        await watcher.until(lambda: bool(watcher.replicas))
        (replica,) = watcher.replicas.values()
        assert (replica.partition, replica.log_end_offset, replica.high_watermark) == (0, 2, 2)
        (producer,) = replica.producers
        assert (producer.state.producer_id, producer.state.producer_epoch, replica.producer_count) == (9, 0, 1)
        (known,) = producer.state.batches
        assert (known.first_sequence, known.last_sequence, known.base_offset) == (0, 1, 0)
        assert (watcher.counts.appended_batches, sum(watcher.counts.produce_latencies)) == (1, 1)


@asynchronous
async def test_a_repeat_and_a_refusal_are_told_with_their_producer_and_sequences(tmp_path: Path) -> None:
    async with observed(tmp_path) as (running, watcher):
        sent = batch([b"a", b"b"], (9, 0, 0))
        await running.produce(produce_batch(sent))
        await running.produce(produce_batch(sent))
        await running.produce(produce_batch(batch([b"c"], (9, 0, 5))))
        await watcher.until(lambda: len(watcher.events) == 3)
        assert watcher.kinds() == ["LEADS", "REPEAT", "REFUSED"]
        _, repeat, refused = watcher.events
        assert (repeat.topic, repeat.partition, repeat.offset) == ("orders", 0, 0)
        assert (repeat.producer_id, repeat.producer_epoch, repeat.first_sequence, repeat.last_sequence) == (9, 0, 0, 1)
        assert (refused.first_sequence, refused.offset) == (5, -1)
        assert refused.text.startswith(ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER.name)
        assert refused.time_ms >= repeat.time_ms > 1_600_000_000_000
        later = Watcher(running, after_event=repeat.number)
        await later.until(lambda: bool(later.events))
        assert later.kinds() == ["REFUSED"]
        later.call.cancel()


@asynchronous
async def test_a_fence_is_told_with_the_producers_that_it_concerns(tmp_path: Path) -> None:
    async with observed(tmp_path) as (running, watcher):
        await running.metadata(NamedProducer("n", NAMED_ID, 1))
        await running.produce(produce_batch(batch([b"a"], (NAMED_ID, 1, 0))))
        await watcher.until(lambda: 0 in watcher.replicas and bool(watcher.replicas[0].producers))
        assert watcher.replicas[0].producers[0].fence_epoch == 1


@asynchronous
async def test_a_replica_that_goes_is_told_too(tmp_path: Path) -> None:
    async with observed(tmp_path, partitions=2) as (running, watcher):
        await watcher.until(lambda: len(watcher.replicas) == 2)
        await running.metadata(Partition(TOPIC, 1, (2,), (2,), 2, 1, 1))
        await watcher.until(lambda: list(watcher.replicas) == [0])


@asynchronous
async def test_many_replicas_and_events_come_in_several_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe_module, "MAX_REPLICAS", 2)
    monkeypatch.setattr(observe_module, "MAX_EVENTS", 2)
    async with observed(tmp_path, partitions=7) as (_, watcher):
        await watcher.until(lambda: len(watcher.replicas) == 7 and len(watcher.events) == 7)
        assert watcher.messages == 4
        assert [event.number for event in watcher.events] == list(range(1, 8))


@asynchronous
async def test_observers_beyond_the_bound_and_impossible_requests_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe_module, "MAX_OBSERVERS", 1)
    async with observed(tmp_path) as (running, watcher):
        await watcher.until(lambda: bool(watcher.replicas))
        with pytest.raises(grpc.aio.AioRpcError, match="1 streams observe this broker") as refused:
            await Watcher(running).until(lambda: False)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        monkeypatch.setattr(observe_module, "MAX_OBSERVERS", 2)
        with pytest.raises(grpc.aio.AioRpcError, match="after_event -1 is negative"):
            await Watcher(running, after_event=-1).until(lambda: False)


def test_the_ring_remembers_the_last_events_and_says_how_many_are_forgotten() -> None:
    ring = EventRing(lambda: 7)
    header = read_header(batch([b"x" * 10], (9, 0, 0)))
    for number in range(MAX_EVENTS + 10):
        ring.of_role(EventKind.LEADS, "orders", number, 1)
    ring.of_batch(EventKind.REFUSED, "orders", 0, 1, header, text="y" * 10_000)
    events, lost = ring.after(0)
    assert (len(events), lost, events[-1].number) == (MAX_EVENTS, 11, MAX_EVENTS + 11)
    assert len(events[-1].text) <= 300
    assert ring.after(ring.number) == ([], 0)
    assert [event.number for event in ring.after(ring.number - 2)[0]] == [ring.number - 1, ring.number]
    assert ring.after(ring.number + 5) == ([], 0)
