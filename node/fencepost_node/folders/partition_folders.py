"""The folders of a broker's partitions, `<topic>-<partition>` in the data folder: each holds one log.

**Whose log is it?** `partition.metadata` in the folder names topic, topic id and partition. A folder is opened only where
that agrees with the folder's own name; one of version 0 has the topic id alone, so its name is compared once the topic's
name is known. Everything else in the data folder (copies, links, files, folders of other programs) is a stranger: named
in a warning, never opened, never removed.

**Unknown to the metadata**: the log is set aside (`stray_logs`), and deleted only where its deletion was received.

**On its way out** a folder is renamed before it is removed, so a deletion is never visible half done; what a start finds of
one it finishes, and where it cannot, goes on without. A damaged log's folder is set aside, for inspection,
when a new log takes its place. One that the disk refuses to read at the start is tried again by `open`, which makes no log
over what it holds. `aside_name` is the one place where names of folders that are set aside are made.

**A log that is gone** (its folder is not there, or nothing in it says any more whose it is, or a clean end left another end
of it) is missed by the catalogue of replicas. It counts as damaged: this broker leaves the in-sync set before it makes an
empty one in its place.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fencepost_node.config import BrokerConfig
from fencepost_node.folders.replica_catalogue import UNKNOWN_EPOCH, UNKNOWN_OFFSET, Entry, ReplicaCatalogue
from fencepost_node.folders.stray_logs import STRAY_SUFFIX, StrayLogs
from fencepost_node.log.disk import Disk
from fencepost_node.log.errors import storage_error
from fencepost_node.log.log import CorruptLog, Log, LogConfig
from fencepost_node.log.names import (
    LOG_FOLDER,
    PARTITION_METADATA,
    TEMPORARY_SUFFIX,
    UNKNOWN_PARTITION,
    PartitionIdentity,
    read_identity,
)
from fencepost_node.state_machines import machines_of
from fencepost_proto.protocol.errors import StorageError
from fencepost_proto.protocol.metadata import PartitionKey, Topic, TopicConfig
from fencepost_proto.runtime.host import Host

log = logging.getLogger(__name__)

RECOVERY_THREADS = 2
LOGS_PER_JOB = 32  # opened by a thread before it takes others: handing over one costs as much as opening it
MAX_FILE_NAME = 255  # bytes; what file systems take

PROBE = f"probe{TEMPORARY_SUFFIX}"  # the file that is written to see whether there is room; a log's start removes it
PROBE_BYTES = 64 * 1024
PROBE_HOLDS_S = 1.0

DELETED_SUFFIX = ".deleted"  # on its way out
DAMAGED_SUFFIX = ".damaged"  # kept for inspection

_SET_ASIDE = re.compile(r".+\.[0-9]+\.[a-z]+")
_DIGEST_BYTES = 8
_DEFAULTS = TopicConfig()
_OF_A_NEW_LOG = {PARTITION_METADATA, PARTITION_METADATA + TEMPORARY_SUFFIX}  # what a start that was killed may leave


def aside_name(name: str, number: int, suffix: str) -> str:
    """`<name>.<number><suffix>`, for a partition's folder that is set aside.

    Where that is more than a file system takes, the folder's name is cut and a digest of it stands for the rest, behind a
    `~`, which no topic's name has.
    """
    ending = f".{number}{suffix}"
    if len(name) + len(ending) <= MAX_FILE_NAME:
        return name + ending
    ending = f"~{hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).hexdigest()}{ending}"
    return name[: MAX_FILE_NAME - len(ending)] + ending


@dataclass(frozen=True, slots=True)
class _Found:
    """A folder that says whose log it holds."""

    folder: str
    identity: PartitionIdentity
    partition: int

    @property
    def key(self) -> PartitionKey:
        return self.identity.topic_id, self.partition


class PartitionFolders:
    """Opens, closes and deletes logs; one call at a time for each."""

    def __init__(self, host: Host, disk: Disk, config: BrokerConfig) -> None:
        self.recovered: dict[PartitionKey, Log] = {}  # at start; the one that takes it closes it
        self.damaged: dict[PartitionKey, str] = {}  # folders of logs that are broken below their end
        # What is in the log's place does not say that it is that log.
        self.unidentified: dict[PartitionKey, str] = {}
        self._unreadable: set[str] = set()  # folders that the disk refused to read at the start; they are tried again
        self.unread_damage: dict[PartitionKey, str] = {}  # of these, whose logs were then found to be damaged
        self._given_up: set[PartitionKey] = set()  # of these, in whose place an empty log may be made
        self._power_lost = True
        self._catalogue = ReplicaCatalogue(disk, config.data_dir)
        self._unclear: dict[PartitionKey, tuple[list[str], bool]] = {}  # folders of one log, and whether power was lost
        self.strays = StrayLogs(host, disk, config.data_dir, config.stray_retention_ms, self.set_aside)
        self._begun: set[str] = set()  # folders of new logs that this process has not come to the end of making
        self._no_room: OSError | None = None  # as last probed
        self._room_known_until = 0.0
        self._host = host
        self._disk = disk
        self._config = config

    async def recover(self, *, power_lost: bool, was_clean: bool = False) -> None:
        """Open every log that the disk lets us read. Raises OSError where it does not let us see which there are.

        `power_lost`: the machine may have gone down with unsynced data. Otherwise a log may only lack an unfinished append;
        one that lacks more is damaged, since its replica counts as in sync. `was_clean`: the last end was, so each log must
        end where the catalogue says.
        """
        self._power_lost = power_lost
        found = await asyncio.to_thread(self._scan)
        claims: dict[PartitionKey, list[_Found]] = {}
        for each in found:
            claims.setdefault(each.key, []).append(each)
        alone = []
        for key, claim in claims.items():
            if len(claim) == 1:
                alone.append(claim[0])
            else:
                folders = [each.folder for each in claim]
                log.error("partition has several folders topic_id=%s partition=%d folders=%s", *key, folders)
                self._unclear[key] = (folders, power_lost)
        limit = asyncio.Semaphore(RECOVERY_THREADS)

        async def recover(some: list[_Found]) -> None:
            async with limit:
                for key, opened in await asyncio.to_thread(self._recover_all, some, power_lost):
                    self.recovered[key] = opened

        async with asyncio.TaskGroup() as group:
            for start in range(0, len(alone), LOGS_PER_JOB):
                group.create_task(recover(alone[start : start + LOGS_PER_JOB]))
        await asyncio.to_thread(self._compare_with_catalogue, was_clean)

    def _compare_with_catalogue(self, was_clean: bool) -> None:
        """[thread] Miss what is not here, and add what the catalogue lacks. Raises OSError."""
        self._catalogue.load()
        holders = {opened.directory: key for key, opened in self.recovered.items()}
        holders |= {folder: key for key, folder in self.damaged.items()}
        replaced = []  # a deletion whose line a power failure took: another topic's log has the name since
        for key, entry in self._catalogue.entries.items():
            folder = f"{self._config.data_dir}/{entry.folder}"
            found = self.recovered.get(key)
            if holders.get(folder, key) != key:
                log.warning("log has left its folder to another folder=%s topic_id=%s partition=%d", folder, *key)
                replaced.append(key)
                continue
            if found is not None:
                end = (found.log_end_offset, found.last_epoch)
                if was_clean and entry.end_offset >= 0 and end != (entry.end_offset, entry.last_epoch):
                    log.error(
                        "log is another than a clean shutdown left folder=%s end=%d last_epoch=%d expected_end=%d "
                        "expected_last_epoch=%d", folder, *end, entry.end_offset, entry.last_epoch,
                    )  # fmt: skip
                    del self.recovered[key]
                    found.close(False)
                    self.damaged[key] = folder
            elif key not in self.damaged and key not in self._unclear and folder not in self._unreadable:
                log.error("log is missing folder=%s topic_id=%s partition=%d", folder, *key)
                self.damaged[key] = folder
                if self._disk.exists(folder):
                    self.unidentified[key] = folder
        known = {key: entry for key, entry in self._catalogue.entries.items() if key not in replaced}
        for key, folder in [
            *((key, opened.directory) for key, opened in self.recovered.items()),
            *self.damaged.items(),
        ]:
            name = folder.rpartition("/")[2]
            if key not in known or known[key].folder != name:
                known[key] = Entry(*key, name)
        if known != self._catalogue.entries or self._catalogue.torn:
            self._catalogue.write(known.values())
        else:
            self._catalogue.sync_again()

    def _scan(self) -> list[_Found]:
        """[thread] The folders that are to be opened, with their names on disk. Finishes deletions. Raises OSError."""
        self._disk.sync_directory(self._config.data_dir)  # who made a folder may not have come to this
        found = []
        for name in self._disk.list(self._config.data_dir):
            folder = f"{self._config.data_dir}/{name}"
            if _SET_ASIDE.fullmatch(name):
                if name.endswith(DELETED_SUFFIX):
                    self._finish_deletion(folder)
                elif name.endswith(STRAY_SUFFIX):
                    self.strays.found(name)
            elif (one := self._identify(name, folder)) is not None:
                found.append(one)
        return found

    def _finish_deletion(self, folder: str) -> None:
        try:
            if self._disk.is_folder(folder):
                self._disk.remove_tree(folder)
            else:
                log.warning("left alone path=%s because=it is no folder", folder)
        except OSError as error:
            log.warning("a deleted folder cannot be removed folder=%s error=%s", folder, error)

    def _identify(self, name: str, folder: str) -> _Found | None:
        """None: no folder of a partition, or none that may be opened, which is logged. Raises OSError."""
        match = LOG_FOLDER.fullmatch(name)
        if not self._disk.is_folder(folder):
            if match:
                log.warning("left alone path=%s because=it is no folder, or a link to one", folder)
            return None
        try:
            identity = read_identity(self._disk, folder)
        except OSError as error:
            log.error("log cannot be read folder=%s error=%s", folder, error)
            self._unreadable.add(folder)
            return None
        if identity is None:
            log.warning("left alone folder=%s because=no %s says whose log it is", folder, PARTITION_METADATA)
            return None
        own_name = identity.folder_name
        if match is None or (own_name and own_name != name):
            owner = f"{self._config.data_dir}/{own_name}" if own_name else f"topic id {identity.topic_id}"
            log.warning("left alone folder=%s because=it holds a copy of the log of %s", folder, owner)
            return None
        return _Found(folder, identity, int(match["partition"]))

    def _recover_all(self, some: list[_Found], power_lost: bool) -> list[tuple[PartitionKey, Log]]:
        """[thread] Those that can be opened."""
        opened = []
        for found in some:
            config, now_ms = self._log_config(found.identity.topic_id, None), self._host.wall_clock_ms()
            try:
                machines = machines_of(found.identity.topic)
                log_of_it = Log.open(
                    self._disk, found.folder, config, now_ms, machines, power_lost=power_lost, folder_synced=True
                )
                opened.append((found.key, log_of_it))
            except CorruptLog as error:
                log.error("log is damaged folder=%s error=%s", found.folder, error)
                self.damaged[found.key] = found.folder
            except (OSError, StorageError) as error:
                log.error("log cannot be read folder=%s error=%s", found.folder, error)
                self._unreadable.add(found.folder)
        return opened

    def take_recovered(self, key: PartitionKey, topic: Topic) -> Log:
        """One of the recovered logs, with its topic's settings.

        Raises StorageError where it lies under another name than it should: it may be a copy. Then it stays here.
        """
        folder = self._folder(topic, key[1])
        if self.recovered[key].directory != folder:
            raise StorageError(
                f"the log of {topic.name}-{key[1]} is in {self.recovered[key].directory}, not in {folder}"
            )
        recovered = self.recovered.pop(key)
        recovered.config = self._log_config(topic.topic_id, topic, key[1])
        return recovered

    async def open(self, partition: int, topic: Topic) -> Log:
        """A new log, where the partition has none or a damaged one; else the one that was set aside as unknown.

        Raises OSError, StorageError.
        """
        folder = self._folder(topic, partition)
        key = (topic.topic_id, partition)
        if key in self.damaged or key in self.unidentified:
            await asyncio.to_thread(self._clear, folder, self.damaged.get(key, folder))
            self.damaged.pop(key, None)
            self.unidentified.pop(key, None)
        config = self._log_config(topic.topic_id, topic, partition)
        if key in self._unclear:
            folders, power_lost = self._unclear[key]
            if folder not in folders:
                raise StorageError(f"the log of {topic.name}-{partition} is in one of {folders}, and not in {folder}")
            now_ms = self._host.wall_clock_ms()
            return await asyncio.to_thread(
                Log.open, self._disk, folder, config, now_ms, machines_of(topic.name), power_lost=power_lost
            )
        if folder in self._unreadable:
            return await asyncio.to_thread(self._read_again, key, folder, config)
        if await asyncio.to_thread(self.strays.take_back, key, folder):
            return await asyncio.to_thread(self._open, folder, config)
        return await asyncio.to_thread(self._create, folder, config)

    async def look_at_place(self, partition: int, topic: Topic) -> None:
        """Where `open` was refused: is a folder in the log's place that does not say that it is that log? Raises OSError."""
        key, folder = (topic.topic_id, partition), self._folder(topic, partition)
        if key not in self.damaged and key not in self._unclear and folder not in self._unreadable:
            identity = PartitionIdentity(topic.topic_id, topic.name, partition)
            if await asyncio.to_thread(self._is_taken, folder, identity):
                self.unidentified[key] = folder

    def _is_taken(self, folder: str, identity: PartitionIdentity) -> bool:
        if not self._disk.is_folder(folder) or not set(self._disk.list(folder)) - _OF_A_NEW_LOG:
            return False
        found = read_identity(self._disk, folder)
        return found is None or (found != identity and found != PartitionIdentity(identity.topic_id))

    def give_up(self, key: PartitionKey) -> None:
        """Of `unread_damage`: the next `open` makes an empty log in its place."""
        self._given_up.add(key)

    def _read_again(self, key: PartitionKey, folder: str, config: LogConfig) -> Log:
        """[thread] The log of a folder that the disk refused to read at the start. Raises StorageError, OSError."""
        if key in self._given_up:
            self.set_aside(folder, DAMAGED_SUFFIX)
            opened = self._create(folder, config)
        else:
            identity = read_identity(self._disk, folder)
            if identity is None or identity.topic_id != config.topic_id:
                raise StorageError(f"{folder} does not say that it holds the log of topic id {config.topic_id}")
            try:
                now_ms = self._host.wall_clock_ms()
                machines = machines_of(config.topic)
                opened = Log.open(self._disk, folder, config, now_ms, machines, power_lost=self._power_lost)
            except CorruptLog:
                self.unread_damage[key] = folder
                raise
        self._unreadable.discard(folder)
        self._given_up.discard(key)
        self.unread_damage.pop(key, None)
        return opened

    def _clear(self, *folders: str) -> None:
        """[thread] Set aside what is in a damaged log's place. Raises OSError."""
        for folder in dict.fromkeys(folders):
            if self._disk.exists(folder):
                self.set_aside(folder, DAMAGED_SUFFIX)

    async def reopen(self, partition: int, topic: Topic, *, probe: bool) -> Log:
        """The log of a replica that has failed and is closed, recovered. `probe`: only if the disk has room by now.

        Raises CorruptLog, StorageError, OSError.
        """
        folder = self._folder(topic, partition)
        if probe:
            await self._look_for_room(folder)
        config, now_ms = self._log_config(topic.topic_id, topic, partition), self._host.wall_clock_ms()
        machines = machines_of(topic.name)
        return await asyncio.to_thread(Log.open, self._disk, folder, config, now_ms, machines, power_lost=False)

    async def replace(self, partition: int, topic: Topic) -> Log:
        """An empty log, for a replica whose damaged one is closed; its folder is set aside. Raises StorageError, OSError."""
        folder = self._folder(topic, partition)
        if await asyncio.to_thread(self._disk.exists, folder):
            await asyncio.to_thread(self.set_aside, folder, DAMAGED_SUFFIX)
        return await asyncio.to_thread(self._create, folder, self._log_config(topic.topic_id, topic, partition))

    async def _look_for_room(self, folder: str) -> None:
        """Raises OutOfRoom; what was found a moment ago is taken for true."""
        now = asyncio.get_running_loop().time()
        if now >= self._room_known_until:
            self._no_room = await asyncio.to_thread(self._probe, f"{folder}/{PROBE}")
            self._room_known_until = now + PROBE_HOLDS_S
        if self._no_room is not None:
            raise storage_error("no room", self._no_room)

    def _probe(self, path: str) -> OSError | None:
        """[thread] What keeps a file of PROBE_BYTES from being written."""
        try:
            try:
                self._disk.write_atomically(path, bytes(PROBE_BYTES))
            finally:
                for left in (path, f"{path}{TEMPORARY_SUFFIX}"):
                    if self._disk.exists(left):
                        self._disk.remove(left)
        except OSError as error:
            return error
        return None

    async def delete(self, opened: Log) -> None:
        """Close the log, where it is still open, and remove its folder."""
        await asyncio.to_thread(opened.close, False)
        await self.remove(opened.directory)

    async def keep_stray(self, opened: Log, key: PartitionKey) -> None:
        """Close the log, and set its folder aside as a stray one."""
        try:
            await asyncio.to_thread(opened.close, True)
        except StorageError as error:
            log.error("log could not be synced folder=%s error=%s", opened.directory, error)
        await self.keep_stray_folder(opened.directory, key)

    async def keep_stray_folder(self, folder: str, key: PartitionKey) -> None:
        """The same for the folder of a closed log, or of one that was never opened."""
        try:
            await asyncio.to_thread(self._keep_stray, folder, key)
        except OSError as error:
            log.error("folder cannot be set aside folder=%s error=%s", folder, error)

    def _keep_stray(self, folder: str, key: PartitionKey) -> None:
        if not self._disk.exists(folder):
            self._catalogue.remove_folder(folder.rpartition("/")[2])
        elif self.unidentified.pop(key, None):
            self.set_aside(folder, DAMAGED_SUFFIX)  # never to be opened as that log
        else:
            self.strays.set_aside(folder, key)

    async def remove(self, folder: str) -> None:
        """The folder of a closed log, or of one that was never opened. What cannot be identified as that log is kept,
        aside."""
        log.info("deleting folder=%s", folder)
        try:
            await asyncio.to_thread(self._remove, folder)
        except OSError as error:
            log.error("folder cannot be deleted folder=%s error=%s", folder, error)

    def _remove(self, folder: str) -> None:
        keys = [key for key, missed in self.unidentified.items() if missed == folder]
        for key in keys:
            del self.unidentified[key]
        if not self._disk.exists(folder):
            self._catalogue.remove_folder(folder.rpartition("/")[2])
        elif keys:
            self.set_aside(folder, DAMAGED_SUFFIX)
        else:
            self._disk.remove_tree(self.set_aside(folder, DELETED_SUFFIX))

    async def close(self, clean: bool, others: Sequence[Log] = ()) -> None:
        """Close the logs that no one has taken. `others`: those that were taken, and are closed."""
        for recovered in self.recovered.values():
            await asyncio.to_thread(recovered.close, clean)
        await asyncio.to_thread(self._close_catalogue, clean, [*self.recovered.values(), *others])

    def _close_catalogue(self, clean: bool, closed: Sequence[Log]) -> None:
        if not clean:
            return
        ends = {opened.directory.rpartition("/")[2]: (opened.log_end_offset, opened.last_epoch) for opened in closed}
        try:
            self._catalogue.write(
                Entry(*key, entry.folder, *ends.get(entry.folder, (UNKNOWN_OFFSET, UNKNOWN_EPOCH)))
                for key, entry in self._catalogue.entries.items()
            )
        except OSError as error:
            log.warning("catalogue cannot be written data_dir=%s error=%s", self._config.data_dir, error)

    def _create(self, folder: str, config: LogConfig) -> Log:
        held = set(self._disk.list(folder)) - _OF_A_NEW_LOG if self._disk.exists(folder) else set()
        if held and folder not in self._begun:
            raise StorageError(
                f"{folder} holds {min(held)!r}, and no log of topic id {config.topic_id} could be read there at the start"
            )
        return self._open(folder, config)

    def _open(self, folder: str, config: LogConfig) -> Log:
        self._begun.add(folder)
        made = Log.open(self._disk, folder, config, self._host.wall_clock_ms(), machines_of(config.topic))
        self._catalogue.add(Entry(config.topic_id, config.partition, folder.rpartition("/")[2]))
        self._begun.discard(folder)
        return made

    def set_aside(self, folder: str, suffix: str, number: int = 0) -> str:
        """[thread] Rename a partition's folder to an `aside_name` that is free, from that number on. Its new path.

        Raises OSError.
        """
        parent, _, name = folder.rpartition("/")
        while self._disk.exists(aside := f"{parent}/{aside_name(name, number, suffix)}"):
            number += 1
        self._catalogue.remove_folder(name)
        self._disk.rename(folder, aside)
        self._disk.sync_directory(parent)
        return aside

    def _folder(self, topic: Topic, partition: int) -> str:
        return f"{self._config.data_dir}/{topic.name}-{partition}"

    def _log_config(self, topic_id: str, topic: Topic | None, partition: int = UNKNOWN_PARTITION) -> LogConfig:
        """The log's settings; the defaults of topics until the metadata is there. `Replica.take_settings` changes them."""
        settings = topic.config if topic else _DEFAULTS
        return LogConfig(
            topic_id=topic_id,
            topic=topic.name if topic else "",
            partition=partition,
            segment_bytes=settings.segment_bytes,
            retention_ms=settings.retention_ms,
            retention_bytes=settings.retention_bytes,
            snapshot_interval_bytes=self._config.snapshot_interval_bytes,
        )
