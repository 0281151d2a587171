"""What this broker knows of the cluster's metadata, kept in its folder for the day on which the controller's store is lost.

``metadata-known``
    The newest metadata version that the broker has received, and its lineage (`protocol.lineage`). It is written
    before the broker acknowledges the version or uses what it brought, and reported at every registration: a controller
    whose store does not have that version has gone back, and must not serve.
``metadata-image``, ``metadata-journal-a``, ``metadata-journal-b``
    All metadata as of a moment, and every change since: from these a lost store is made again (`fencepost controller
    recover`). A change is in the journal before it is acknowledged.

**What the version costs.** One write of 32 bytes over bytes that are there, to the page cache: some microseconds, and no
room on a full disk. There are two slots, written in turns, so that one that is torn leaves the other. The page cache
outlives the process, which is what has to be survived for certain. A sync for each version would cost milliseconds on
every broker for every change, and with many partitions changing leader it would keep the disk from the logs; so a
thread syncs within `PERSIST_PAUSE_S`. A power failure of *every* broker may therefore take the last second of versions
with it, and only a backup of the controller that was taken within that second passes unnoticed.

**What the image costs.** A change is one more write to the page cache. The image is encoded and written in a thread, at
most once in `PERSIST_PAUSE_S`, and for at most one part in `SHARE` of the time; the journals are written in turns, so that
the one before can be emptied then, and they hold no more than what changes meanwhile. A full disk refuses the journal; the
broker goes on, since it must not end for that, and the next image makes it good.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import threading
import zlib
from contextlib import suppress
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from fencepost_node.log.disk import Disk, File
from fencepost_proto.protocol.errors import StorageError
from fencepost_proto.protocol.lineage import UNKNOWN_LINEAGE
from fencepost_proto.protocol.metadata import MetadataImage, encode_delta
from fencepost_proto.protocol.v1 import common_pb2

log = logging.getLogger(__name__)

VERSION_FILE: Final = "metadata-known"
IMAGE_FILE: Final = "metadata-image"
JOURNAL_FILES: Final = ("metadata-journal-a", "metadata-journal-b")
PERSIST_PAUSE_S = 1.0
SHARE = 50

_SLOT = struct.Struct(">qQI")  # version, lineage id, CRC-32 of these
_SLOT_BYTES = 32
_SLOTS = 2
_CRC = struct.Struct(">I")  # before the image
_FRAME = struct.Struct(">II")  # length and CRC-32 of a change in a journal


class KnownVersion(NamedTuple):
    version: int = 0  # none
    lineage_id: int = UNKNOWN_LINEAGE


class KnownMetadata:
    """`open` first. `learn`, `applies` and `turn` are called on the event loop; all else blocks."""

    def __init__(self, disk: Disk, path: str) -> None:
        self.newest = KnownVersion()
        self.image = MetadataImage()  # the newest that is known: version 0 where none is
        self._disk = disk
        self._path = path
        self._file: File | None = None
        self._journals: list[File] = []
        self._journal = 0  # that changes go to
        self._slot = 0  # to be written next
        self._changed = asyncio.Event()
        self._writing = threading.Lock()  # a task that is cancelled leaves its thread at work
        self._persisted = KnownVersion()
        self._trouble = ""

    def open(self) -> None:
        """Read what the folder holds; the folder is there. Raises OSError."""
        name = f"{self._path}/{VERSION_FILE}"
        data = self._disk.read_bytes(name) if self._disk.exists(name) else b""
        if len(data) != _SLOTS * _SLOT_BYTES:
            if data:
                log.warning("%s has %d bytes instead of %d, and begins again", name, len(data), _SLOTS * _SLOT_BYTES)
            data = bytes(_SLOTS * _SLOT_BYTES)
            self._disk.write_atomically(name, data)
        slots = [_decode(data[at * _SLOT_BYTES :]) for at in range(_SLOTS)]
        self._slot = slots.index(min(slots))
        self.image = self._read_image()
        kept = self.image.version
        for change in self._read_journals():
            follows = change.version == self.image.version + 1  # else one is missing that could not be written
            if change.version > self.image.version and (follows or change.image):
                self.image = self.image.apply(change)
        of_image = KnownVersion(self.image.version, self.image.lineage.id_at(self.image.version))
        self.newest = max(*slots, of_image, key=lambda known: known.version)
        self._file = self._disk.open(name)
        self._journals = [self._disk.open(f"{self._path}/{journal}", create=True) for journal in JOURNAL_FILES]
        if self.image.version > kept:
            self._write_image(self.image)
        self._persisted = of_image
        for journal in self._journals:
            journal.truncate(0)

    def learn(self, version: int, lineage_id: int) -> None:
        """A version of the metadata is known here from now on. Older ones than the newest change nothing.

        Raises StorageError: then it must not be acknowledged, or used.
        """
        if version <= self.newest.version:
            return
        if self._file is None:
            raise StorageError(f"{self._path}/{VERSION_FILE} is not open")
        try:
            self._file.overwrite(self._slot * _SLOT_BYTES, _encode(KnownVersion(version, lineage_id)))
        except OSError as error:
            raise StorageError(f"{self._path}/{VERSION_FILE}: metadata version {version}: {error}") from error
        self._slot = (self._slot + 1) % _SLOTS
        self.newest = KnownVersion(version, lineage_id)
        self._changed.set()

    def applies(self, image: MetadataImage, change: common_pb2.MetadataDelta) -> None:
        """This broker is about to apply a change, which makes the image. Raises StorageError, as `learn` does."""
        self.learn(image.version, image.lineage.current_id)
        self.image = image
        self._changed.set()
        content = change.SerializeToString()
        journal = self._journals[self._journal]
        size = journal.size
        try:
            journal.append(_FRAME.pack(len(content), zlib.crc32(content)) + content)
        except OSError as error:
            self._log_trouble(error)
            with suppress(OSError):  # else what follows it cannot be read, until the next image
                journal.truncate(size)

    async def persist(self) -> None:
        """Bring what changes to stable storage; a task for the broker's life."""
        loop = asyncio.get_running_loop()
        while True:
            await self._changed.wait()
            self._changed.clear()
            began = loop.time()
            await asyncio.to_thread(self.write, self.turn())
            await asyncio.sleep(max(PERSIST_PAUSE_S, SHARE * (loop.time() - began)))

    def turn(self) -> int:
        """Changes go to the other journal from now on, in which nothing is left to be kept. Which one went before."""
        before, self._journal = self._journal, 1 - self._journal
        return before

    def write(self, journal: int) -> None:
        """Once, after `turn`. A disk that refuses is logged and asked again at the next change: the logs decide what that
        means. The journal is then not emptied, and is read before the other one."""
        with self._writing:
            image = self.image  # at least all that is in that journal
            try:
                if self._file is not None:
                    self._file.sync()
                if KnownVersion(image.version, image.lineage.current_id) != self._persisted and image.version:
                    self._write_image(image)
                self._journals[journal].truncate(0)
            except OSError as error:
                self._log_trouble(error)
            else:
                self._trouble = ""

    def _write_image(self, image: MetadataImage) -> None:
        content = encode_delta(image.version, image.entities(), image=True)
        self._disk.write_atomically(f"{self._path}/{IMAGE_FILE}", _CRC.pack(zlib.crc32(content)) + content)
        self._persisted = KnownVersion(image.version, image.lineage.current_id)

    def _log_trouble(self, error: OSError) -> None:
        """Once, while it lasts."""
        if str(error) != self._trouble:
            log.warning("metadata could not be kept in the data folder error=%s", error)
            self._trouble = str(error)

    def close(self) -> None:
        if self._file is not None:
            for file in (self._file, *self._journals):
                file.close()
            self._file = None

    def _read_journals(self) -> list[common_pb2.MetadataDelta]:
        """The changes that are whole, in order of their versions."""
        changes = []
        for journal in JOURNAL_FILES:
            name = f"{self._path}/{journal}"
            data = self._disk.read_bytes(name) if self._disk.exists(name) else b""
            position = 0
            while position + _FRAME.size <= len(data):
                length, crc = _FRAME.unpack_from(data, position)
                content = data[position + _FRAME.size : position + _FRAME.size + length]
                if not length or len(content) < length or zlib.crc32(content) != crc:
                    break
                changes.append(common_pb2.MetadataDelta.FromString(content))
                position += _FRAME.size + length
        return sorted(changes, key=lambda change: change.version)

    def _read_image(self) -> MetadataImage:
        name = f"{self._path}/{IMAGE_FILE}"
        if not self._disk.exists(name):
            return MetadataImage()
        data = self._disk.read_bytes(name)
        try:
            (crc,) = _CRC.unpack_from(data)
            if zlib.crc32(data[_CRC.size :]) != crc:
                raise ValueError("its checksum does not match")
            return MetadataImage().apply(common_pb2.MetadataDelta.FromString(data[_CRC.size :]))
        except (ValueError, DecodeError, struct.error) as error:
            log.warning("%s cannot be read, and is not used error=%s", name, error)
            return MetadataImage()


def _encode(known: KnownVersion) -> bytes:
    content = _SLOT.pack(*known, 0)[: -_CRC.size]
    return (content + _CRC.pack(zlib.crc32(content))).ljust(_SLOT_BYTES, b"\0")


def _decode(data: bytes) -> KnownVersion:
    """Nothing known where the slot is empty or torn."""
    version, lineage_id, crc = _SLOT.unpack_from(data)
    if crc != zlib.crc32(data[: _SLOT.size - _CRC.size]):
        return KnownVersion()
    return KnownVersion(version, lineage_id)
