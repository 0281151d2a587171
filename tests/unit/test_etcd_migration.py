"""Metadata goes from one store to another and back, whole; and an etcd that went back is made whole from the brokers."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from fencepost_controller import recovery
from fencepost_controller.decisions.recovery_inputs import BrokerReport
from fencepost_controller.migration import migrate
from fencepost_controller.recovery import recover_shared
from fencepost_controller.store import StoreError
from fencepost_controller.store.etcd import sole_writer
from fencepost_controller.store.etcd.reader import MetadataReader
from fencepost_proto.protocol.lineage import Lineage, LineageStart
from fencepost_proto.protocol.metadata import (
    BrokerRegistration,
    ClusterIdentity,
    MetadataImage,
    NamedProducer,
    NextProducerId,
    Partition,
    Topic,
)
from fencepost_proto.runtime.host import Host
from tests.asynchronous import asynchronous
from tests.unit.controller_cluster import in_memory
from tests.unit.etcd_world import EtcdWorld, candidate, etcd_world

ENTITIES = (
    ClusterIdentity("the-cluster"),
    Lineage((LineageStart(7, 1),)),
    BrokerRegistration(1, "host:1", 2, "life", fenced=True),
    NextProducerId(1_000),
    Topic("id", "a"),
    Partition("id", 0, (1,), (1,), -1, 5, 9),
)
VERSION = 12


def filled() -> MetadataImage:
    return MetadataImage().with_changes(VERSION, {entity.key: entity for entity in ENTITIES})


async def in_etcd(world: EtcdWorld) -> MetadataImage:
    reader = MetadataReader(world.client(), world.keys)
    await reader.catch_up()
    return reader.image


@asynchronous
async def test_metadata_goes_from_sqlite_to_etcd_and_back() -> None:
    old, new = in_memory(), in_memory()
    old.commit(0, VERSION, {entity.key: entity for entity in ENTITIES})
    async with etcd_world() as world:
        assert await migrate(old, world.shared(), random.Random(1)) == filled()
        assert await in_etcd(world) == filled()
        assert world.keys.leader not in world.cluster.keys  # the controllers may start at once
        assert await migrate(world.shared(), new, random.Random(1)) == filled()
        version, entities = new.load()
        assert MetadataImage().with_changes(version, {e.key: e for e in entities}) == filled()
        with pytest.raises(StoreError, match="the target is not new: it is at metadata version 12"):
            await migrate(old, world.shared(), random.Random(1))
        with pytest.raises(StoreError, match="the target is not new"):
            await migrate(world.shared(), new, random.Random(1))
        with pytest.raises(StoreError, match="nothing to migrate"):
            await migrate(in_memory(), world.shared(), random.Random(1))


@asynchronous
async def test_a_store_whose_controller_is_active_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sole_writer, "PATIENCE_S", 0.5)
    old = in_memory()
    old.commit(0, VERSION, {entity.key: entity for entity in ENTITIES})
    async with etcd_world() as world, candidate(world) as one:
        await one.win()
        with pytest.raises(
            StoreError, match="controller 1 at controller-1:9090 is active: stop every controller first"
        ):
            await migrate(old, world.shared(), random.Random(1))
        assert (await in_etcd(world)).version == 0


@asynchronous
async def test_an_etcd_that_went_back_is_made_whole_and_later_epochs_are_above_what_brokers_have_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    newer = filled().with_changes(
        VERSION + 5, {"producers/p": NamedProducer("p", 2**62, 3), "next-producer-id": NextProducerId(5_000, 2**62 + 1)}
    )
    report = BrokerReport(1, "the-cluster", "host:1", 2, newer.version, newer, known_lineage_id=7, controller_epoch=900)

    async def ask_all(*_: object) -> tuple[Sequence[BrokerReport], list[str]]:
        return [report], []

    monkeypatch.setattr(recovery, "_ask_all", ask_all)
    old = in_memory()
    old.commit(0, VERSION, {entity.key: entity for entity in ENTITIES})
    async with etcd_world() as world:
        await migrate(old, world.shared(), random.Random(1))
        done = await recover_shared(world.shared(), Host(random=random.Random(2)), ["host:1"])
        image = await in_etcd(world)
        assert image == done.image
        assert image.version > newer.version
        assert image.next_ids.next_id >= 5_000
        async with candidate(world) as one:
            term = await one.win()
            assert term.epoch > 900
