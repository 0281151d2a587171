"""Logs that the metadata does not know: set aside, never deleted at once.

A broker deletes a log where it receives a deletion: a change of the metadata that takes the partition away, or gives it
to other brokers. A log that is only *missing* from an image proves nothing. The topic may have been deleted while the
broker was away; or the controller's store has lost it, and this is all that is left of it. So its folder becomes
`<topic>-<partition>.<when>.stray` (when: the wall clock, in ms), is named in a warning, and is removed
`stray_retention_ms` later. Where the metadata comes to know its topic id and partition again before that, it is
opened again, as the log of a replica that was away.

A clock that jumps must not delete it early: this process has to have seen it for an hour too, or for the whole time.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from fencepost_node.log.disk import Disk
from fencepost_node.log.names import UNKNOWN_PARTITION, read_identity
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.runtime.host import Host

log = logging.getLogger(__name__)

STRAY_SUFFIX: Final = ".stray"
MIN_SEEN_S = 3_600.0
CHECK_INTERVAL_S = 60.0

_NAME = re.compile(r".+?(-(?P<partition>[0-9]+))?\.(?P<when>[0-9]+)\.stray")

Rename = Callable[[str, str, int], str]  # a folder, a suffix, a number -> the folder's new path


class _Stray(NamedTuple):
    folder: str
    key: PartitionKey | None  # None: the folder does not say
    since_ms: int  # of the wall clock


class StrayLogs:
    """The folders of one broker's stray logs. `take_back` and `set_aside` block."""

    def __init__(self, host: Host, disk: Disk, data_dir: str, retention_ms: int, set_aside: Rename) -> None:
        self._host = host
        self._disk = disk
        self._data_dir = data_dir
        self._retention_ms = retention_ms
        self._rename = set_aside
        self._strays: dict[str, _Stray] = {}  # by folder
        self._seen_s: dict[str, float] = {}  # by folder: when `watch` first saw it, by the loop's clock

    def found(self, name: str) -> None:
        """A folder whose name ends in `.stray`, at the start. Raises OSError."""
        folder = f"{self._data_dir}/{name}"
        match = _NAME.fullmatch(name)
        if match is None:
            log.warning("%s is no name that a broker gives: it is left alone", folder)
            return
        identity = read_identity(self._disk, folder)
        key = None
        if identity is not None and identity.partition != UNKNOWN_PARTITION:
            key = identity.topic_id, identity.partition
        elif identity is not None and match["partition"]:
            key = identity.topic_id, int(match["partition"])
        self._strays[folder] = _Stray(folder, key, int(match["when"]))

    def set_aside(self, folder: str, key: PartitionKey) -> None:
        """The folder of a closed log. Raises OSError."""
        when = self._host.wall_clock_ms()
        aside = self._rename(folder, STRAY_SUFFIX, when)
        self._strays[aside] = _Stray(aside, key, when)
        log.warning(
            "a log that the metadata does not know is set aside topic_id=%s partition=%d folder=%s; "
            "it is removed in %.1f hours, and opened again where its topic comes back before that",
            *key,
            aside,
            self._retention_ms / 3_600_000,
        )

    def take_back(self, key: PartitionKey, folder: str) -> bool:
        """Where a log of this partition was set aside, and nothing is at `folder`: True, it is there now. Raises OSError."""
        of_it = [stray for stray in list(self._strays.values()) if stray.key == key]
        if not of_it or self._disk.exists(folder):
            return False
        newest = max(of_it, key=lambda stray: stray.since_ms)
        self._disk.rename(newest.folder, folder)
        self._disk.sync_directory(self._data_dir)
        del self._strays[newest.folder]
        log.warning("a log that was set aside is opened again topic_id=%s partition=%d folder=%s", *key, folder)
        return True

    async def watch(self) -> None:
        """Remove those whose time has come; a task for the broker's life."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            for stray in self._due(loop.time()):
                log.warning("a log that was set aside is removed folder=%s", stray.folder)
                del self._strays[stray.folder]
                try:
                    await asyncio.to_thread(self._disk.remove_tree, stray.folder)
                except OSError as error:  # a part may be gone; the next start finds the rest
                    log.error("folder cannot be removed folder=%s error=%s", stray.folder, error)

    def _due(self, now_s: float) -> list[_Stray]:
        now_ms = self._host.wall_clock_ms()
        least_s = min(MIN_SEEN_S, self._retention_ms / 1000)
        return [
            stray
            for stray in list(self._strays.values())
            if now_s - self._seen_s.setdefault(stray.folder, now_s) >= least_s
            and now_ms - stray.since_ms >= self._retention_ms
        ]
