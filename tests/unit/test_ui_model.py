"""What the live page makes of what brokers say, and how browsers are told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from fencepost_proto.protocol.v1 import broker_pb2, common_pb2
from fencepost_proto.transport.latencies import BOUNDS_S
from fencepost_ui import hub as hub_module
from fencepost_ui.hub import MAX_PAGES, MAX_QUEUE, Hub, TooManyPages
from fencepost_ui.model import MAX_PRODUCERS, Model
from fencepost_ui.timeline import MAX_ENTRIES, MAX_OF_ONE_KIND
from fencepost_ui.watch import quantile_ms
from tests.asynchronous import asynchronous


def producer(producer_id: int, *batches: tuple[int, int, int], epoch: int = 0, fence: int = 0) -> Any:
    state = broker_pb2.ProducerStateInfo(
        producer_id=producer_id,
        producer_epoch=epoch,
        batches=[
            broker_pb2.BatchState(first_sequence=first, last_sequence=last, base_offset=at)
            for first, last, at in batches
        ],
    )
    return broker_pb2.ObservedProducer(state=state, fence_epoch=fence)


def replica(leader: int, epoch: int = 0, *, broker: int = 1, isr: tuple[int, ...] = (1, 2, 3), **values: Any) -> Any:
    return broker_pb2.ObservedReplica(
        topic_id="id",
        topic="orders",
        leader=leader,
        leader_epoch=epoch,
        is_leader=leader == broker,
        replicas=(1, 2, 3),
        isr=isr,
        **values,
    )


def said(broker: int, *replicas: Any, events: list[Any] | None = None) -> broker_pb2.Observation:
    return broker_pb2.Observation(broker_id=broker, cluster_id="c", replicas=replicas, events=events or [])


def event(kind: str, **values: Any) -> broker_pb2.BrokerEvent:
    return broker_pb2.BrokerEvent(kind=kind, topic="orders", time_ms=5, **{"producer_id": -1, **values})


def texts(model: Model, kind: str) -> list[str]:
    return [entry.text for entry in model.timeline.entries if entry.kind == kind]


def test_producer_state_is_shown_for_each_replica_through_a_failover() -> None:
    model = Model(lambda: 7)
    model.observe(said(1, replica(1, producers=[producer(9, (0, 4, 0))], log_end_offset=5)))
    model.observe(said(2, replica(1, broker=2, producers=[producer(9, (0, 4, 0))], log_end_offset=5)))
    told = model.patch()["partitions"]["orders-0"]
    assert told["producers"]["9"]["batches"] == {"1": [[0, 4, 0]], "2": [[0, 4, 0]]}
    assert (told["leader"], told["epoch"], told["isr"]) == (1, 0, [1, 2, 3])
    assert model.patch() == {}

    elected = event("LEADS", leader_epoch=1)
    model.observe(said(2, replica(2, 1, broker=2, isr=(2, 3), log_end_offset=5), events=[elected]))
    told = model.patch()["partitions"]["orders-0"]
    assert (told["leader"], told["epoch"], told["isr"]) == (2, 1, [2, 3])
    assert told["producers"]["9"]["batches"] == {"1": [[0, 4, 0]], "2": [[0, 4, 0]]}
    assert texts(model, "election") == ["Broker 2 leads orders-0 under epoch 1"]
    assert texts(model, "isr") == ["In sync in orders-0: 2, 3 (before: 1, 2, 3)"]

    model.observe(said(1, replica(1, 0, broker=1)))  # it was deposed, and does not know it yet
    assert model.patch()["partitions"]["orders-0"]["leader"] == 2
    repeat = event("REPEAT", producer_id=9, first_sequence=0, last_sequence=4, offset=0)
    model.observe(said(2, events=[repeat]))
    (entry,) = model.patch()["events"]
    assert (entry["kind"], entry["node"], entry["producer"], entry["first"]) == ("repeat", "2", "9", 0)


def test_a_smaller_in_sync_set_is_told_also_where_a_follower_is_the_first_to_say_so() -> None:
    model = Model(lambda: 7)
    model.observe(said(1, replica(1)))
    model.observe(said(3, replica(2, 1, broker=3, isr=(2, 3))))
    model.observe(said(2, replica(2, 1, broker=2, isr=(2, 3))))
    assert texts(model, "isr") == ["In sync in orders-0: 2, 3 (before: 1, 2, 3)"]
    model.observe(said(3, replica(2, 1, broker=3, isr=(1, 2, 3))))  # only the leader's word counts now
    assert model.snapshot()["partitions"]["orders-0"]["isr"] == [2, 3]
    model.observe(said(2, replica(2, 1, broker=2, isr=(1, 2, 3))))
    assert texts(model, "isr")[1:] == ["In sync in orders-0: 1, 2, 3 (before: 2, 3)"]


def test_fences_and_refusals_are_told_apart() -> None:
    model = Model(lambda: 7)
    model.observe(said(1, replica(1, producers=[producer(9, (0, 0, 0), fence=1)])))
    model.observe(said(1, replica(1, producers=[producer(9, (0, 0, 0), fence=2)])))
    fenced = event("REFUSED", producer_id=9, text="INVALID_PRODUCER_EPOCH: epoch 1 is older than 2")
    refused = event("REFUSED", producer_id=9, text="NOT_ENOUGH_REPLICAS: 1 in sync")
    model.observe(said(1, events=[fenced, refused]))
    assert texts(model, "fence") == [
        "Producer 9: only epoch 2 and later may write now",
        "Broker 1 refused a fenced producer in orders-0: INVALID_PRODUCER_EPOCH: epoch 1 is older than 2",
    ]
    assert len(texts(model, "refused")) == 1
    first_epoch = event("LEADS", leader_epoch=0)
    model.observe(said(1, events=[first_epoch, event("FOLLOWS"), event("SOMETHING_NEW")]))
    assert len(model.timeline.entries) == 3


def test_a_thousand_elections_are_a_few_lines_and_memory_is_bounded() -> None:
    model = Model(lambda: 7)
    model.observe(said(2, events=[event("LEADS", leader_epoch=1, partition=index) for index in range(1_000)]))
    assert len(texts(model, "election")) == MAX_OF_ONE_KIND + 1
    assert texts(model, "election")[-1] == f"Broker 2: {1_000 - MAX_OF_ONE_KIND} more of these"
    for index in range(3 * MAX_ENTRIES):
        model.timeline.add(index, "process", "x")
    assert len(model.patch()["events"]) == MAX_ENTRIES
    many = [producer(number, (0, 0, number)) for number in range(3 * MAX_PRODUCERS)]
    model.observe(said(1, replica(1, producers=many)))
    shown = model.snapshot()["partitions"]["orders-0"]["producers"]
    assert set(map(int, shown)) == set(range(2 * MAX_PRODUCERS, 3 * MAX_PRODUCERS))


def test_a_partition_goes_when_its_last_replica_does() -> None:
    model = Model(lambda: 7)
    model.observe(said(1, replica(1)))
    model.observe(said(2, replica(1, broker=2)))
    gone = [common_pb2.PartitionRef(topic_id="id", partition=0)]
    model.observe(broker_pb2.Observation(broker_id=1, gone=gone))
    assert list(model.patch()["partitions"]["orders-0"]["of"]) == ["2"]
    model.observe(broker_pb2.Observation(broker_id=2, gone=gone))
    assert model.patch() == {"gone": ["orders-0"]}
    assert model.snapshot()["partitions"] == {}


def test_quantiles_are_the_bounds_of_their_buckets() -> None:
    counts = [0] * (len(BOUNDS_S) + 1)
    assert quantile_ms(counts, 0.5) == -1
    counts[3], counts[5], counts[-1] = 50, 49, 1
    assert quantile_ms(counts, 0.5) == BOUNDS_S[3] * 1000
    assert quantile_ms(counts, 0.99) == BOUNDS_S[5] * 1000
    assert quantile_ms(counts, 1.0) == BOUNDS_S[-1] * 1000


def parse(message: str) -> tuple[str, Any]:
    event_line, data = message.strip().split("\n")
    return event_line.removeprefix("event: "), json.loads(data.removeprefix("data: "))


@asynchronous
async def test_a_page_gets_a_snapshot_and_patches_and_one_that_does_not_read_a_new_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "PAUSE_S", 0)
    patches = iter(range(10_000))
    hub = Hub(lambda: {"patch": next(patches)}, lambda: {"all": True})
    running = asyncio.create_task(hub.run())
    reads, sleeps = hub.events(), hub.events()
    assert parse(await anext(reads)) == ("snapshot", {"all": True})
    assert parse(await anext(sleeps)) == ("snapshot", {"all": True})
    for number in range(MAX_QUEUE + 5):
        hub.changed()
        assert parse(await anext(reads)) == ("patch", {"patch": number})
    assert parse(await anext(sleeps)) == ("snapshot", {"all": True})
    hub.changed()
    assert parse(await anext(sleeps))[0] == "patch"
    running.cancel()


@asynchronous
async def test_the_streams_of_pages_end_with_the_server() -> None:
    hub = Hub(dict, dict)
    page = hub.events()
    await anext(page)
    waiting = asyncio.ensure_future(anext(page))
    await asyncio.sleep(0)
    hub.close()
    with pytest.raises(StopAsyncIteration):
        await waiting


@asynchronous
async def test_there_is_a_bound_on_open_pages() -> None:
    hub = Hub(dict, dict)
    pages = [hub.events() for _ in range(MAX_PAGES)]
    for page in pages:
        await anext(page)
    with pytest.raises(TooManyPages, match=f"{MAX_PAGES} pages are open"):
        await anext(hub.events())
