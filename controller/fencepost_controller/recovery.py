"""Recover a controller's store: ask every broker what it holds, decide, write. The rules: `decisions/recovery.py`.

The controller must not run meanwhile; the brokers must, and have no session with one. Everything is written in one
transaction: where it fails, the store is as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from random import Random

import grpc

from fencepost_controller.decisions.recovery import RecoveredMetadata, RecoveryRefused, recover
from fencepost_controller.decisions.recovery_inputs import BrokerReport, HeldLog
from fencepost_controller.store import LeadershipLost, Store, VersionMismatch, image_of
from fencepost_controller.store.etcd.shared import SharedMetadata
from fencepost_controller.store.etcd.sole_writer import sole_writer
from fencepost_proto.protocol.errors import FencepostError, raise_for
from fencepost_proto.protocol.metadata import Changes, Entity, MetadataImage, from_proto
from fencepost_proto.protocol.v1 import controller_pb2, controller_pb2_grpc
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.wire import Wire

ANSWER_TIMEOUT_S = 60.0  # of one broker: it reads through what it knows of its producers
RETRY_S = 0.2
MAX_PARTS = 10_000  # of one broker's answer
LINEAGE_ID_BITS = 63


def new_lineage_id(random: Random) -> int:
    return 1 + random.getrandbits(LINEAGE_ID_BITS)


async def recover_store(
    store: Store, host: Host, addresses: Iterable[str], without: Collection[int] = (), wait_s: float = 10.0
) -> RecoveredMetadata:
    """Make the store whole. `addresses`: of brokers; those that they and the store know of are asked too.

    `wait_s`: how long to try to reach one. Raises RecoveryRefused, StoreError, CommitFailed.
    """
    loop = asyncio.get_running_loop()
    before = await loop.run_in_executor(None, image_of, store)
    done, _, changes = await _recovered(before, host, addresses, without, wait_s)
    try:
        await loop.run_in_executor(None, store.commit, before.version, done.image.version, changes)
    except VersionMismatch as error:
        raise RecoveryRefused(
            f"the store has changed meanwhile, by another recovery or a controller that runs; nothing was written: {error}"
        ) from error
    return done


async def recover_shared(
    shared: SharedMetadata, host: Host, addresses: Iterable[str], without: Collection[int] = (), wait_s: float = 10.0
) -> RecoveredMetadata:
    """The same for metadata in etcd, whose controllers are all down. Later controller epochs are above all that brokers
    have seen: in an etcd that has gone back, creation revisions come again.

    Raises RecoveryRefused, StoreError, CommitFailed.
    """
    async with sole_writer(shared, host.random) as held:
        before = held.reader.image
        done, newest_epoch, changes = await _recovered(before, host, addresses, without, wait_s)
        await held.raise_epochs(newest_epoch)
        try:
            await held.term.commit(before, done.image, changes)
        except LeadershipLost as error:
            raise RecoveryRefused(f"a controller has become active meanwhile: {error}") from error
    return done


async def _recovered(
    before: MetadataImage, host: Host, addresses: Iterable[str], without: Collection[int], wait_s: float
) -> tuple[RecoveredMetadata, int, Changes]:
    """What the store is to become, the newest controller epoch that a broker has seen, and the changes that lead there."""
    reports, problems = await _ask_all(host.wire, addresses, before, without, wait_s)
    try:
        done = recover(before, reports, without, new_lineage_id(host.random))
    except RecoveryRefused as error:
        raise RecoveryRefused("; ".join((str(error), *problems))) from None
    changes: dict[str, Entity | None] = {entity.key: None for entity in before.entities()}
    changes.update({entity.key: entity for entity in done.image.entities()})
    return done, max((report.controller_epoch for report in reports), default=0), changes


async def _ask_all(
    wire: Wire, addresses: Iterable[str], store: MetadataImage, without: Collection[int], wait_s: float
) -> tuple[list[BrokerReport], list[str]]:
    """The reports of these brokers and of those that they know; and why some do not answer. `recover` decides whether that
    may be."""
    reports: dict[int, BrokerReport] = {}
    asked: set[str] = set()
    problems: list[str] = []
    waiting = [*addresses, *_addresses(store, reports, without)]
    while waiting := [address for address in dict.fromkeys(waiting) if address not in asked]:
        asked.update(waiting)
        answers = await asyncio.gather(*(_ask_until(wire, address, wait_s) for address in waiting))
        for address, answer in zip(waiting, answers, strict=True):
            if isinstance(answer, BrokerReport):
                reports[answer.broker_id] = answer
            else:
                problems.append(f"{address}: {answer}")
        waiting = [address for one in reports.values() for address in _addresses(one.image, reports, without)]
    return [reports[broker_id] for broker_id in sorted(reports)], problems


def _addresses(image: MetadataImage, reports: Collection[int], without: Collection[int]) -> list[str]:
    return [b.address for b in image.brokers.values() if b.id not in reports and b.id not in without]


async def _ask_until(wire: Wire, address: str, wait_s: float) -> BrokerReport | str:
    """What the broker there holds, or why it does not say."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + wait_s
    while True:
        try:
            return await ask(wire, address)
        except grpc.aio.AioRpcError as error:
            problem = f"{error.code().name}: {error.details()}"
        except FencepostError as error:  # it has a session with a controller, which may just have ended
            problem = str(error)
        if loop.time() >= give_up_at:
            return problem
        await asyncio.sleep(RETRY_S)


async def ask(wire: Wire, address: str) -> BrokerReport:
    """One broker. Raises AioRpcError, or the FencepostError with which it refuses."""
    head = controller_pb2.HeldHead()
    entities: list[Entity] = []
    logs: list[HeldLog] = []
    epochs: dict[int, int] = {}
    channel = wire.connect(address)
    try:
        stub: controller_pb2_grpc.RecoveryAsyncStub = controller_pb2_grpc.RecoveryStub(channel)
        parts = 0
        async for part in stub.DescribeHeld(controller_pb2.DescribeHeldRequest(), timeout=ANSWER_TIMEOUT_S):
            raise_for(part.error)
            if part.HasField("head"):
                head = part.head
            entities += map(from_proto, part.entities)
            logs += map(_log, part.logs)
            epochs.update({one.producer_id: one.epoch for one in part.epochs})
            parts += 1
            if parts > MAX_PARTS:
                raise RecoveryRefused(f"the broker at {address} answers with more than {MAX_PARTS} parts")
    finally:
        await channel.close()
    image = MetadataImage().with_changes(head.image_version, {entity.key: entity for entity in entities})
    return BrokerReport(
        head.broker_id,
        head.cluster_id,
        head.address,
        head.broker_epoch,
        head.known_version,
        image,
        tuple(logs),
        epochs,
        head.known_lineage_id,
        head.controller_epoch,
    )


def _log(held: controller_pb2.HeldLog) -> HeldLog:
    return HeldLog(
        held.topic_id,
        held.topic_name,
        held.partition,
        held.leads,
        held.leader_epoch,
        held.last_epoch,
        held.log_end_offset,
        held.max_producer_id,
        held.failure,
        held.max_named_id,
    )
