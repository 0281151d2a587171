"""DescribeHeld: what this broker holds, for a controller's store that has to be made again (`fencepost controller recover`).

Supports: the newest metadata that the broker applied, named producers included; every log in its folder; the newest epoch
of each named producer's id in them. Answered in parts of at most `MAX_IN_A_PART` entries, and with a turn for others after
each part and each log.
Errors: INVALID_REQUEST while the broker has a session with a controller: then nothing is to be made again, and names and
ids are no one's business; or while another such answer is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

from fencepost_node.folders.known_metadata import KnownMetadata
from fencepost_node.log.log import Log
from fencepost_node.producers.producer_state import ProducerState
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.replica_manager import ReplicaManager
from fencepost_proto.protocol.metadata import FIRST_NAMED_ID, BrokerRegistration, PartitionKey, to_proto
from fencepost_proto.protocol.v1 import controller_pb2 as pb

MAX_IN_A_PART = 500


async def describe_held(manager: ReplicaManager, known: KnownMetadata, head: pb.HeldHead) -> AsyncIterator[pb.Held]:
    image = known.image
    yield pb.Held(head=head)
    # A process that knows the incarnation of a broker can register in its place; recovery begins every broker again.
    entities = [replace(e, incarnation="") if isinstance(e, BrokerRegistration) else e for e in image.entities()]
    for at in range(0, len(entities), MAX_IN_A_PART):
        yield pb.Held(entities=map(to_proto, entities[at : at + MAX_IN_A_PART]))
        await asyncio.sleep(0)
    epochs = dict.fromkeys(image.fences, -1)
    logs: list[pb.HeldLog] = []
    for held, log in _logs(manager):
        producers = log.states[PRODUCERS] if log is not None else ProducerState()
        held.max_producer_id = max((i for i in producers.ids() if i < FIRST_NAMED_ID), default=-1)
        held.max_named_id = max((i for i in producers.ids() if i >= FIRST_NAMED_ID), default=-1)
        for producer_id in epochs.keys() & producers.ids():
            entry = producers.get(producer_id)
            epochs[producer_id] = max(epochs[producer_id], entry.epoch if entry is not None else -1)
        logs.append(held)
        if len(logs) == MAX_IN_A_PART:
            yield pb.Held(logs=logs)
            logs = []
        await asyncio.sleep(0)
    yield pb.Held(logs=logs)
    found = [pb.HeldEpoch(producer_id=i, epoch=e) for i, e in epochs.items() if e >= 0]
    for at in range(0, len(found), MAX_IN_A_PART):
        yield pb.Held(epochs=found[at : at + MAX_IN_A_PART])
        await asyncio.sleep(0)


def _logs(manager: ReplicaManager) -> Iterator[tuple[pb.HeldLog, Log | None]]:
    """Those with a role, those that wait for one, and those that cannot be opened, as they are now."""
    for key, replica in list(manager.replicas.items()):
        held = _held(key, replica.log, replica.failure)
        held.topic_name = replica.topic.name
        held.leads = replica.is_leader
        held.leader_epoch = max(held.leader_epoch, replica.leader_epoch)
        yield held, replica.log
    for key, recovered in list(manager.recovered.items()):
        yield _held(key, recovered, recovered.failure), recovered
    for key, folder in list(manager.damaged.items()):
        name = folder.rpartition("/")[2].rpartition("-")[0]
        yield (
            pb.HeldLog(
                topic_id=key[0],
                topic_name=name,
                partition=key[1],
                leader_epoch=-1,
                last_epoch=-1,
                max_producer_id=-1,
                max_named_id=-1,
                failure="it is damaged below its end",
            ),
            None,
        )


def _held(key: PartitionKey, log: Log, failure: str) -> pb.HeldLog:
    return pb.HeldLog(
        topic_id=key[0],
        topic_name=log.directory.rpartition("/")[2].rpartition("-")[0],
        partition=key[1],
        leader_epoch=log.last_epoch,
        last_epoch=log.last_epoch,
        log_start_offset=log.log_start_offset,
        log_end_offset=log.log_end_offset,
        failure=failure,
    )
