"""All metadata from one store to another, while no controller runs on either. It is read again at the end, and compared."""

from __future__ import annotations

import asyncio
from random import Random

from fencepost_controller.store import LeadershipLost, Store, StoreError, image_of
from fencepost_controller.store.etcd.reader import MetadataReader
from fencepost_controller.store.etcd.shared import SharedMetadata
from fencepost_controller.store.etcd.sole_writer import sole_writer
from fencepost_proto.protocol.metadata import Entity, MetadataImage


async def migrate(source: Store | SharedMetadata, target: Store | SharedMetadata, random: Random) -> MetadataImage:
    """What was copied. The target has to be new. Raises StoreError, CommitFailed."""
    if isinstance(source, SharedMetadata):
        async with sole_writer(source, random) as held:
            return await _copy(held.reader.image, target, random)
    return await _copy(await _load(source), target, random)


async def _copy(image: MetadataImage, target: Store | SharedMetadata, random: Random) -> MetadataImage:
    if not image.version:
        raise StoreError("there is nothing to migrate: the store is new")
    changes: dict[str, Entity | None] = {entity.key: entity for entity in image.entities()}
    if isinstance(target, SharedMetadata):
        async with sole_writer(target, random) as held:
            _check_new(held.reader.image)
            try:
                await held.term.commit(MetadataImage(), image, changes)
            except LeadershipLost as error:
                raise StoreError(f"a controller has become active meanwhile: {error}") from error
        reader = MetadataReader(target.etcd, target.keys)
        await reader.catch_up()
        copied = reader.image
    else:
        _check_new(await _load(target))
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, target.commit, 0, image.version, changes)
        copied = await _load(target)
    if copied != image:
        raise StoreError(f"what was read back of metadata version {image.version} is not what was written")
    return copied


def _check_new(image: MetadataImage) -> None:
    if image.version:
        raise StoreError(f"the target is not new: it is at metadata version {image.version}")


async def _load(store: Store) -> MetadataImage:
    return await asyncio.get_running_loop().run_in_executor(None, image_of, store)
