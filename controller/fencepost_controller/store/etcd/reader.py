"""What etcd holds of one cluster, read into an image and kept current: the part of a controller that does not write.

`catch_up` reads, in one transaction, who is active, the newest version, and the log behind the image; where the log
does not reach back that far it reads the newest snapshot first. `follow` watches from there on. After whatever breaks
off, `catch_up` comes first again: etcd may have been restored meanwhile, and a watch from a revision that is yet to
come would wait for it in silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from fencepost_controller.decisions.invariants import check_image
from fencepost_controller.decisions.lineage import WHAT_TO_DO, MetadataWentBack
from fencepost_controller.store import StoreError
from fencepost_controller.store.etcd.calls import Etcd, EtcdUnreachable, Get, KeyValue
from fencepost_controller.store.etcd.layout import (
    Content,
    Keys,
    Leader,
    Version,
    decode_content,
    decode_leader,
    decode_number,
    decode_version,
)
from fencepost_proto.protocol.errors import InvariantBroken
from fencepost_proto.protocol.lineage import VersionCheck
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.v1 import common_pb2

LOG_PAGE = 64  # entries of one answer: 8 MB
PIECES_PAGE = 16  # the same
MAX_TRIES = 10  # of a snapshot that is replaced while it is read


@dataclass(frozen=True, slots=True)
class Standing:
    """What one read found, at one revision of etcd."""

    revision: int
    leader: Leader | None
    version: Version
    epoch_base: int  # plus the leader key's creation revision: the controller epoch


@dataclass(frozen=True, slots=True)
class _Read:
    standing: Standing
    log: list[KeyValue]
    snapshot: KeyValue | None


class MetadataReader:
    """One image, always a version of the store's."""

    def __init__(self, etcd: Etcd, keys: Keys) -> None:
        self.image = MetadataImage()
        self.leader: Leader | None = None
        self.decided = 0  # the last leadership, by its revision, that was seen to decide something about brokers
        self.snapshot: KeyValue | None = None  # as last read
        self.log_entries = 0  # behind the snapshot, as far as they were read …
        self.log_bytes = 0
        self.snapshot_bytes = 0
        self._etcd = etcd
        self._keys = keys

    async def catch_up(self) -> Standing:
        """Bring the image to the store's newest version. Raises EtcdRefused, EtcdUnreachable, StoreError,
        MetadataWentBack."""
        known = self.image
        for _ in range(MAX_TRIES):
            read = await self._read()
            try:
                while not await self._take(read):
                    read = await self._read()
            except _Replaced:
                continue
            self.leader = read.standing.leader
            self._check_history(known)
            return read.standing
        raise EtcdUnreachable(f"the snapshot was replaced {MAX_TRIES} times while it was read")

    async def _read(self) -> _Read:
        keys = self._keys
        after = Get(keys.log(self.image.version + 1), keys.log_end, LOG_PAGE)
        answer = await self._etcd.transact(
            [], [Get(keys.leader), Get(keys.version), Get(keys.snapshot), Get(keys.epoch_base), after]
        )
        leader, version, snapshot, epoch_base, log = answer.found
        standing = Standing(
            answer.revision,
            decode_leader(leader[0].value, leader[0].create_revision, leader[0].lease_id) if leader else None,
            decode_version(version[0].value) if version else Version(),
            decode_number(epoch_base[0].value) if epoch_base else 0,
        )
        return _Read(standing, log, snapshot[0] if snapshot else None)

    async def _take(self, read: _Read) -> bool:
        """Apply one page. True: the image is at the version that was read."""
        version = read.standing.version
        self.snapshot = read.snapshot
        if version == self._version():
            return True
        if version.number <= self.image.version:
            raise self._went_back(f"it is at metadata version {version.number} of lineage {version.lineage_id:016x}")
        if not read.log:
            await self._load_snapshot(read)
            return version == self._version()
        for entry in read.log:
            found = decode_content(entry.value, f"the log entry {entry.key!r}")
            if found.before.number > self.image.version:
                await self._load_snapshot(read)
                return version == self._version()
            await self.apply(entry.key, found)
            if self.image.version == version.number:
                break
        return version == self._version()

    async def apply(self, key: bytes, entry: Content) -> common_pb2.MetadataDelta:
        """The next entry of the log. Raises MetadataWentBack where it does not follow the image."""
        if entry.before != self._version():
            raise self._went_back(
                f"the log entry {key.decode()} follows version {entry.before.number} of "
                f"lineage {entry.before.lineage_id:016x}"
            )
        data = await self._data(b"parts", self._keys.version_of(key) or 0, entry)
        delta = _delta(data, f"the log entry {key!r}")
        self.image = await _with_delta(self.image, delta)
        self.log_entries += 1
        self.log_bytes += len(data)
        return delta

    async def _load_snapshot(self, read: _Read) -> None:
        if read.snapshot is None:
            raise StoreError(f"etcd: the log behind version {self.image.version} is gone, and there is no snapshot")
        found = decode_content(read.snapshot.value, "the snapshot")
        if found.before.number <= self.image.version:
            raise StoreError(
                f"etcd: the log behind version {self.image.version} is gone, and the snapshot is of {found.before.number}"
            )
        data = await self._data(b"image", found.before.number, found)
        self.image = await _with_delta(MetadataImage(), _delta(data, "the snapshot"))
        if self._version() != found.before:
            raise StoreError(f"etcd: the snapshot of {found.before} holds {self._version()}")
        self.snapshot_bytes, self.log_entries, self.log_bytes = len(data), 0, 0

    async def _data(self, kind: bytes, version: int, what: Content) -> bytes:
        """The bytes of an entry or a snapshot. Raises _Replaced where a newer snapshot has replaced them."""
        if not what.pieces:
            return what.data
        start, end = self._keys.pieces(kind, version, what.attempt)
        pieces: list[bytes] = []
        while len(pieces) < what.pieces:
            page = await self._etcd.get(Get(start, end, PIECES_PAGE))
            if not page:
                raise _Replaced
            pieces += [piece.value for piece in page]
            start = page[-1].key + b"\0"
        data = b"".join(pieces)
        what.check(data, f"{kind.decode()} of version {version}")
        return data

    def _version(self) -> Version:
        return Version(self.image.version, self.image.lineage.current_id)

    def _check_history(self, known: MetadataImage) -> None:
        """`known` was an image of this store: it must be a version of the history that is read now."""
        lineage = self.image.lineage
        if lineage.check(known.version, known.lineage.current_id, self.image.version) is not VersionCheck.SOUND:
            raise self._went_back(f"version {known.version} is of another lineage there")
        try:
            if known.version == 0:
                check_image(self.image)
        except InvariantBroken as error:
            raise StoreError(f"the metadata store contradicts itself: {error}") from error

    def _went_back(self, what: str) -> MetadataWentBack:
        return MetadataWentBack(
            f"this controller's store, etcd at {self._keys.prefix.decode()!r}, has gone back: {what}, and this controller "
            f"knows version {self.image.version} of lineage {self.image.lineage.current_id:016x}: {WHAT_TO_DO}"
        )

    def take(self, image: MetadataImage) -> None:
        """This controller has committed it."""
        self.image = image

    # ---- Watching ----

    async def follow(self, standing: Standing) -> AsyncIterator[None]:
        """Watch from what `catch_up` returned on; yields after each change, of the image or of `leader`, and once at
        the beginning.

        Raises EtcdUnreachable and EtcdRefused when the watch breaks, StoreError, MetadataWentBack.
        """
        start, end = self._keys.watched
        async with self._etcd.watch(start, end, standing.revision + 1) as changes:
            yield
            async for some in changes:
                for change in some:
                    if change.key == self._keys.leader:
                        self.leader = (
                            None
                            if change.value is None
                            else decode_leader(change.value, change.create_revision, change.lease_id)
                        )
                    elif change.value is not None:
                        delta = await self._follow_log(change.key, change.value)
                        if delta is not None and self.leader is not None and _is_of_brokers(delta):
                            self.decided = self.leader.revision
                yield

    async def _follow_log(self, key: bytes, value: bytes) -> common_pb2.MetadataDelta | None:
        """What it changes; None: nothing that is not known."""
        version = self._keys.version_of(key)
        if version is None or version <= self.image.version:
            return None
        try:
            return await self.apply(key, decode_content(value, f"the log entry {key!r}"))
        except _Replaced:
            raise EtcdUnreachable(f"the pieces of the log entry {key!r} are gone: it is read again") from None


class _Replaced(Exception):
    """What was to be read has been deleted, since a newer snapshot holds it."""


def _delta(data: bytes, what: str) -> common_pb2.MetadataDelta:
    try:
        return common_pb2.MetadataDelta.FromString(data)
    except DecodeError as error:
        raise StoreError(f"etcd: {what} cannot be read: {error}") from error


def _is_of_brokers(delta: common_pb2.MetadataDelta) -> bool:
    """Whether it is about brokers or partitions: no controller decides that before it has heard the brokers."""
    return any(entity.WhichOneof("kind") in ("broker", "partition") for entity in delta.changed)


async def _with_delta(image: MetadataImage, delta: common_pb2.MetadataDelta) -> MetadataImage:
    try:
        return await asyncio.get_running_loop().run_in_executor(None, image.apply, delta)
    except (ValueError, TypeError) as error:
        raise StoreError(f"etcd: metadata version {delta.version} cannot be read: {error}") from error
