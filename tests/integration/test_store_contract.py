"""What every store of metadata promises: SQLite, the etcd in memory that the simulator has, and a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Protocol

import pytest

from fencepost_controller.store import LeadershipLost, VersionMismatch, image_of
from fencepost_controller.store.etcd.calls import Etcd
from fencepost_controller.store.etcd.client import EtcdAccess, EtcdClient
from fencepost_controller.store.etcd.layout import Keys
from fencepost_controller.store.etcd.reader import MetadataReader
from fencepost_controller.store.sqlite import SqliteStore
from fencepost_proto.protocol.metadata import (
    BrokerRegistration,
    Changes,
    Entity,
    MetadataImage,
    NextProducerId,
    Topic,
    TopicConfig,
)
from fencepost_proto.transport.wire import GrpcWire
from tests.asynchronous import asynchronous
from tests.integration.etcd_processes import ETCD, NO_ETCD, processes
from tests.unit.etcd_world import Candidate, etcd_world
from tests.unit.test_etcd_store import BEGUN

COMMITS = 25
LARGE = 3_000  # topics in one commit: more than etcd takes as one request's operations


class Writer(Protocol):
    async def commit(self, before: MetadataImage, after: MetadataImage, changes: Changes) -> None: ...


class Home(Protocol):
    """Where metadata is, however that is done."""

    def writer(self) -> AbstractAsyncContextManager[Writer]:
        """One that may write from now on, and no earlier one."""
        ...

    async def read(self) -> MetadataImage:
        """As a controller that has just started reads it."""
        ...


class SqliteHome:
    def __init__(self, path: Path) -> None:
        self._path = str(path / "metadata.sqlite")

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[Writer]:
        store = SqliteStore(self._path)

        class OfSqlite:
            async def commit(self, before: MetadataImage, after: MetadataImage, changes: Changes) -> None:
                store.commit(before.version, after.version, changes)

        try:
            yield OfSqlite()
        finally:
            store.close()

    async def read(self) -> MetadataImage:
        with contextlib.closing(SqliteStore(self._path)) as store:
            return image_of(store)


class EtcdHome:
    def __init__(self, client: Callable[[], Etcd], keys: Keys) -> None:
        self._client, self._keys, self._writers = client, keys, 0

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[Writer]:
        self._writers += 1
        one = Candidate(self._client(), self._keys, self._writers)
        try:
            standing = await one.reader.catch_up()
            yield await one.win(standing.leader)
        finally:
            await one.close()

    async def read(self) -> MetadataImage:
        reader = MetadataReader(self._client(), self._keys)
        await reader.catch_up()
        return reader.image


@asynccontextmanager
async def home_of(kind: str, folder: Path) -> AsyncIterator[Home]:
    if kind == "sqlite":
        yield SqliteHome(folder)
    elif kind == "etcd in memory":
        async with etcd_world() as world:
            yield EtcdHome(world.client, world.keys)
    else:
        with processes(folder) as group:
            await asyncio.to_thread(group.start_etcd, 1)
            client = EtcdClient(GrpcWire(), EtcdAccess(tuple(group.endpoints)))
            yield EtcdHome(lambda: client, Keys(b"/contract/"))
            await client.close()


HOMES = [
    "sqlite",
    "etcd in memory",
    pytest.param("etcd", marks=pytest.mark.skipif(ETCD is None, reason=NO_ETCD)),
]


def some_changes(chance: Random, image: MetadataImage) -> dict[str, Entity | None]:
    """A few entities, new, other or gone; now and then many."""
    if chance.random() < 0.08:
        return by_key(*(Topic(f"id-many-{n}", f"many-{n}") for n in range(LARGE)))
    found: dict[str, Entity | None] = {}
    for _ in range(chance.randint(1, 4)):
        number = chance.randrange(6)
        entity: Entity = chance.choice(
            [
                NextProducerId(chance.randrange(1_000, 10**6)),
                Topic(f"id-{number}", f"topic-{number}", TopicConfig(min_insync_replicas=chance.randint(1, 3))),
                BrokerRegistration(number, f"host:{chance.randrange(1, 9)}", 1, "life", fenced=chance.random() < 0.5),
            ]
        )
        found[entity.key] = entity
    held = [entity.key for entity in image.entities() if entity.key.startswith("topics/")]
    if held and chance.random() < 0.3:
        found[chance.choice(held)] = None
    return found


def by_key(*entities: Entity) -> dict[str, Entity | None]:
    return {entity.key: entity for entity in entities}


async def committed(writer: Writer, before: MetadataImage, changes: dict[str, Entity | None]) -> MetadataImage:
    after = before.with_changes(before.version + 1, changes)
    await writer.commit(before, after, changes)
    return after


@pytest.mark.parametrize("kind", HOMES)
@asynchronous
async def test_whoever_comes_next_reads_exactly_what_was_committed(kind: str, tmp_path: Path) -> None:
    chance = Random(7)
    async with home_of(kind, tmp_path) as home:
        image = MetadataImage()
        for _ in range(3):  # three controllers, one after the other
            async with home.writer() as writer:
                if not image.version:
                    image = await committed(writer, image, by_key(*BEGUN))
                for _ in range(COMMITS // 3):
                    image = await committed(writer, image, some_changes(chance, image))
            assert await home.read() == image


@pytest.mark.parametrize("kind", HOMES)
@asynchronous
async def test_who_has_been_replaced_changes_nothing_any_more(kind: str, tmp_path: Path) -> None:
    async with home_of(kind, tmp_path) as home, home.writer() as old:
        begun = await committed(old, MetadataImage(), by_key(*BEGUN))
        async with home.writer() as new:
            image = await committed(new, begun, by_key(NextProducerId(1_000)))
            for _ in range(2):
                with pytest.raises((VersionMismatch, LeadershipLost)):
                    await committed(old, begun, by_key(NextProducerId(2_000)))
            image = await committed(new, image, by_key(NextProducerId(3_000)))
            assert await home.read() == image
