"""The mark that says: a sync of this log's segments has begun, and has not succeeded.

Theory of operation. When a sync fails, the system takes the pages for clean nevertheless. They stay in the cache, where
every process reads them; they are not on disk; and no later sync writes them. The process that gets the error
fails its log. The next process finds whole batches, and would confirm them with a snapshot.

So a sync is announced before it begins, by an empty file in the log's folder, which goes when it has succeeded. Between any
two steps a process may die: it leaves the mark, or nothing to doubt. Recovery that finds the mark writes again what is
there above the newest snapshot (`File.redirty`), so that the pages are dirty once more, and syncs it. What has left
the cache meanwhile is read, and written, as the disk has it, and then found to be damaged like any other bad batch.

- The mark is not synced itself. A power failure may take it, and takes the cache too: then the checks of recovery, which
  begin at the newest snapshot, see what the disk holds, and no snapshot has been written above a failed sync.
- Where it cannot be made, the sync is not begun: nothing is lost, and nothing is confirmed.
- Where it cannot be removed, the log has failed, and the next process writes again what it need not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fencepost_node.log.disk import Disk
from fencepost_node.log.errors import NO_ROOM, storage_error
from fencepost_node.log.names import SYNC_BEGUN


@contextmanager
def sync_announced(disk: Disk, directory: str) -> Iterator[None]:
    """Sync segments inside, one thread at a time. Raises OSError; OutOfRoom where the mark cannot be made for want of it."""
    path = f"{directory}/{SYNC_BEGUN}"
    try:
        disk.open(path, create=True).close()
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise storage_error(f"no sync of {directory} was begun", error) from error
    yield
    disk.remove(path)
