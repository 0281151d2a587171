"""Observe: what this broker does, as it does it, for a page or a test that shows it.

The first message has every replica, and the events that are still remembered (all of them, or those after `after_event`);
each later one what has changed since. A message follows an event within EVENT_PAUSE_S, and a change of a log, a high
watermark or a producer within TICK_S; later where looking at all replicas takes long, for it never takes more than one
part in SHARE of this broker's time.

Of each replica the MAX_PRODUCERS that wrote last are told, with their epochs, the lowest epoch that may still write (the
fence) and their last batches, as this replica has them: a follower's, too, which DescribeProducers does not tell.

Errors: INVALID_REQUEST for a negative number. Limits: MAX_OBSERVERS streams, beyond which it is UNAVAILABLE; MAX_REPLICAS
and MAX_EVENTS in one message, with `more` where the rest follows at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Protocol

from fencepost_node.grpc.describe_producers import describe_entry
from fencepost_node.producers.producer_state import ProducerEntry, ProducerState
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.replication.event_ring import Event
from fencepost_node.replication.replica import Replica
from fencepost_proto.protocol.errors import InvalidRequest
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.v1 import broker_pb2 as pb
from fencepost_proto.protocol.v1 import common_pb2
from fencepost_proto.runtime.signal import Signal
from fencepost_proto.runtime.turns import Turns
from fencepost_proto.transport.latencies import Latencies

MAX_OBSERVERS = 8  # of one broker
MAX_PRODUCERS = 8  # of one replica
MAX_REPLICAS = 200  # in one message
MAX_EVENTS = 200  # likewise
TICK_S = 0.15  # with a page's own pause a change is on the screen within 200 ms
EVENT_PAUSE_S = 0.02  # after an event, for others that come with it
SHARE = 20  # the pause is at least as many times as long as the look before it
WEIGHT_OF_A_CHANGE = 16  # of a turn's steps

Seen = tuple[object, ...]


class ObserveContext(Protocol):
    """What this needs of a gRPC servicer context."""

    async def write(self, message: pb.Observation) -> None: ...


class TooManyObservers(Exception):
    """Another stream would be one too many."""


class Observers:
    """How many streams there are."""

    def __init__(self) -> None:
        self._count = 0

    def admit(self) -> AbstractContextManager[None]:
        """Count one for as long as the returned context lasts. Raises TooManyObservers."""
        if self._count >= MAX_OBSERVERS:
            raise TooManyObservers(f"{MAX_OBSERVERS} streams observe this broker, which is the most")
        return self._until_it_ends()

    @contextmanager
    def _until_it_ends(self) -> Iterator[None]:
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


async def observe(manager: ReplicaManager, request: pb.ObserveRequest, context: ObserveContext) -> None:
    """Serve one stream until its client ends it."""
    if request.after_event < 0:
        raise InvalidRequest(f"after_event {request.after_event} is negative")
    loop, ring, woken = asyncio.get_running_loop(), manager.local.events, Signal()
    observer = _Observer(manager, request.after_event)
    ring.watchers[woken] = None
    try:
        while True:
            began = loop.time()
            for message in await observer.messages():
                await context.write(message)
            pause_s = max(TICK_S, SHARE * (loop.time() - began))
            try:
                async with asyncio.timeout(pause_s):
                    await woken.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(EVENT_PAUSE_S)
    finally:
        del ring.watchers[woken]


class _Observer:
    """What one stream has been told."""

    def __init__(self, manager: ReplicaManager, after_event: int) -> None:
        self._manager = manager
        self._told_event = after_event if after_event <= manager.local.events.number else 0  # else: of another process
        self._seen: dict[PartitionKey, Seen] = {}
        self._producers: dict[PartitionKey, dict[int, ProducerEntry]] = {}
        self._first = True
        self._turns = Turns()

    async def messages(self) -> list[pb.Observation]:
        """What has changed; none where nothing has."""
        messages: list[pb.Observation] = []
        current = self._new(messages)
        for key, replica in list(self._manager.replicas.items()):
            if (change := self._change(key, replica)) is None:
                await self._turns.step()
                continue
            if len(current.replicas) >= MAX_REPLICAS:
                current = self._new(messages)
            current.replicas.append(change)
            await self._turns.step(WEIGHT_OF_A_CHANGE)
        for key in [key for key in self._seen if key not in self._manager.replicas]:
            del self._seen[key]
            self._producers.pop(key, None)
            current.gone.append(common_pb2.PartitionRef(topic_id=key[0], partition=key[1]))
        self._add_events(messages)
        if not self._first and not any(m.replicas or m.gone or m.events for m in messages):
            return []
        self._first = False
        messages[-1].counts.CopyFrom(self._counts())
        for message in messages[:-1]:
            message.more = True
        return messages

    def _new(self, messages: list[pb.Observation]) -> pb.Observation:
        manager = self._manager
        message = pb.Observation(
            broker_id=manager.broker_id, cluster_id=manager.image.cluster_id, metadata_version=manager.image.version
        )
        messages.append(message)
        return message

    def _add_events(self, messages: list[pb.Observation]) -> None:
        events, lost = self._manager.local.events.after(self._told_event)
        messages[0].lost_events = lost
        for number, start in enumerate(range(0, len(events), MAX_EVENTS)):
            message = messages[number] if number < len(messages) else self._new(messages)
            message.events.extend(_event(event) for event in events[start : start + MAX_EVENTS])
        if events:
            self._told_event = events[-1].number

    def _change(self, key: PartitionKey, replica: Replica) -> pb.ObservedReplica | None:
        log, partition = replica.log, replica.partition
        seen: Seen = (
            log.log_end_offset,
            replica.high_watermark,
            replica.is_leader,
            partition,
            replica.failure,
            log.log_start_offset,
            replica.topic.name,
        )
        known = self._seen.get(key)
        if known == seen:
            return None
        self._seen[key] = seen
        return pb.ObservedReplica(
            topic_id=key[0],
            topic=replica.topic.name,
            partition=key[1],
            is_leader=replica.is_leader,
            leader=partition.leader,
            leader_epoch=partition.leader_epoch,
            replicas=partition.replicas,
            isr=partition.isr,
            log_start_offset=log.log_start_offset,
            log_end_offset=log.log_end_offset,
            high_watermark=replica.high_watermark,
            size_bytes=log.size_bytes,
            failure=replica.failure or replica.trouble,
            appended_batches=replica.counts.appended,
            deduplicated_batches=replica.counts.repeated,
            producers=self._changed_producers(key, log.states[PRODUCERS]),
            producer_count=len(log.states[PRODUCERS]),
        )

    def _changed_producers(self, key: PartitionKey, state: ProducerState) -> list[pb.ObservedProducer]:
        """Of the last that wrote: those whose entries are others than before."""
        latest = dict(islice(state.latest(), MAX_PRODUCERS))
        before, self._producers[key] = self._producers.get(key, {}), latest
        fences = self._manager.image.fences
        return [
            pb.ObservedProducer(state=describe_entry(producer_id, entry), fence_epoch=fences.get(producer_id, 0))
            for producer_id, entry in latest.items()
            if before.get(producer_id) is not entry
        ]

    def _counts(self) -> pb.ObservedCounts:
        counts = self._manager.local.counts
        return pb.ObservedCounts(
            appended_batches=counts.appended_batches,
            appended_bytes=counts.appended_bytes,
            repeated_batches=counts.repeated_batches,
            refused_batches=counts.refused_batches.total(),
            produce_latencies=_sum(
                *(each.of("Produce") for each in (counts.calls.grpc, counts.calls.lean, counts.kafka))
            ),
        )


def _sum(*latencies: Latencies) -> list[int]:
    return [sum(counts) for counts in zip(*(each.counts for each in latencies), strict=True)]


def _event(event: Event) -> pb.BrokerEvent:
    return pb.BrokerEvent(
        number=event.number,
        time_ms=event.time_ms,
        kind=event.kind.name,
        topic=event.topic,
        partition=event.partition,
        leader_epoch=event.leader_epoch,
        offset=event.offset,
        text=event.text,
        producer_id=event.producer_id,
        producer_epoch=event.producer_epoch,
        first_sequence=event.first_sequence,
        last_sequence=event.last_sequence,
    )
