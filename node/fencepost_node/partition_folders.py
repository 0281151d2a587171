"""The folders of a broker's partitions, `<topic>-<partition>` in the data folder: each holds one log.

A folder on its way out is renamed before it is removed, so a deletion is never visible half done; what a start finds of
one it finishes. A damaged log's folder is set aside, for whoever wants to look at it, when a new log takes its place. One
that the disk refuses to read at the start stays as it is until the next start: `open` makes no log over what it holds.
"""

from __future__ import annotations

import asyncio
import logging
import re

from fencepost_node.config import BrokerConfig
from fencepost_node.log.disk import Disk
from fencepost_node.log.log import CorruptLog, Log, LogConfig
from fencepost_node.log.names import PARTITION_METADATA, TEMPORARY_SUFFIX, read_topic_id
from fencepost_proto.errors import StorageError
from fencepost_proto.host import Host
from fencepost_proto.metadata import PartitionKey, Topic

log = logging.getLogger(__name__)

RECOVERY_THREADS = 2

_FOLDER = re.compile(r"(?P<topic>.+)-(?P<partition>\d+)")
_DELETED_SUFFIX = ".deleted"
_DAMAGED_SUFFIX = ".damaged"
_OF_A_NEW_LOG = {PARTITION_METADATA, PARTITION_METADATA + TEMPORARY_SUFFIX}  # what a start that was killed may leave


class PartitionFolders:
    """Opens, closes and deletes logs; one call at a time for each."""

    def __init__(self, host: Host, disk: Disk, config: BrokerConfig) -> None:
        self.recovered: dict[PartitionKey, Log] = {}  # at start; whoever takes one closes it
        self.damaged: dict[PartitionKey, str] = {}  # folders of logs that are broken below their end
        self._host = host
        self._disk = disk
        self._config = config

    async def recover(self, *, power_lost: bool) -> None:
        """Open every log that the disk lets us read. Raises OSError where it does not let us see which there are.

        `power_lost`: the machine may have gone down with unsynced data. Otherwise a log may only lack an unfinished append;
        one that lacks more is damaged, since its replica counts as in sync.
        """
        data_dir = self._config.data_dir
        limit = asyncio.Semaphore(RECOVERY_THREADS)

        async def recover(folder: str, partition: int) -> None:
            async with limit:
                await self._recover(folder, partition, power_lost)

        async with asyncio.TaskGroup() as group:
            for name in self._disk.list(data_dir):
                folder = f"{data_dir}/{name}"
                if name.endswith(_DELETED_SUFFIX):
                    await asyncio.to_thread(self._disk.remove_tree, folder)
                elif match := _FOLDER.fullmatch(name):
                    group.create_task(recover(folder, int(match["partition"])))

    async def _recover(self, folder: str, partition: int, power_lost: bool) -> None:
        topic_id = ""
        try:
            topic_id = read_topic_id(self._disk, folder)
            if topic_id:
                config, now_ms = self._log_config(topic_id, None), self._host.wall_clock_ms()
                self.recovered[(topic_id, partition)] = await asyncio.to_thread(
                    Log.open, self._disk, folder, config, now_ms, power_lost=power_lost
                )
        except CorruptLog as error:
            log.error("log is damaged folder=%s error=%s", folder, error)
            self.damaged[(topic_id, partition)] = folder
        except (OSError, StorageError) as error:
            log.error("log cannot be read folder=%s error=%s", folder, error)

    def take(self, key: PartitionKey, topic: Topic) -> Log:
        """One of the recovered logs, with its topic's settings."""
        recovered = self.recovered.pop(key)
        recovered.config = self._log_config(topic.topic_id, topic)
        return recovered

    async def open(self, partition: int, topic: Topic) -> Log:
        """A new log, where the partition has none or a damaged one. Raises OSError, StorageError."""
        folder = f"{self._config.data_dir}/{topic.name}-{partition}"
        key = (topic.topic_id, partition)
        if key in self.damaged:
            await asyncio.to_thread(self._set_aside, self.damaged.pop(key), _DAMAGED_SUFFIX)
        return await asyncio.to_thread(self._create, folder, self._log_config(topic.topic_id, topic))

    async def delete(self, opened: Log) -> None:
        """Close the log, where it is still open, and remove its folder."""
        await asyncio.to_thread(opened.close, False)
        await self.remove(opened.directory)

    async def remove(self, folder: str) -> None:
        """The folder of a closed log, or of one that was never opened."""
        log.info("deleting folder=%s", folder)
        try:
            aside = await asyncio.to_thread(self._set_aside, folder, _DELETED_SUFFIX)
            await asyncio.to_thread(self._disk.remove_tree, aside)
        except OSError as error:
            log.error("folder cannot be deleted folder=%s error=%s", folder, error)

    async def close(self, clean: bool) -> None:
        """Close the logs that nobody has taken."""
        for recovered in self.recovered.values():
            await asyncio.to_thread(recovered.close, clean)

    def _create(self, folder: str, config: LogConfig) -> Log:
        if self._disk.exists(folder) and (held := set(self._disk.list(folder)) - _OF_A_NEW_LOG):
            raise StorageError(
                f"{folder} holds {min(held)!r}, and no log of topic id {config.topic_id} could be read there at the start"
            )
        return Log.open(self._disk, folder, config, self._host.wall_clock_ms())

    def _set_aside(self, folder: str, suffix: str) -> str:
        number = 0
        while self._disk.exists(aside := f"{folder}.{number}{suffix}"):
            number += 1
        self._disk.rename(folder, aside)
        self._disk.sync_directory(self._config.data_dir)
        return aside

    def _log_config(self, topic_id: str, topic: Topic | None) -> LogConfig:
        """The log's settings; the defaults of topics until the metadata is there."""
        settings = topic.config if topic else Topic(topic_id, "").config
        return LogConfig(
            topic_id=topic_id,
            segment_bytes=settings.segment_bytes,
            retention_ms=settings.retention_ms,
            retention_bytes=settings.retention_bytes,
            snapshot_interval_bytes=self._config.snapshot_interval_bytes,
            producer_expiration_ms=self._config.producer_expiration_ms,
        )
