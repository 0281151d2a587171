"""One term as the active controller: commits, confirmations and snapshots, each compared with the leader key.

Between any two lines of `commit` anything may happen: this package's docstring has the list.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from fencepost_controller.store import CommitFailed, LeadershipLost
from fencepost_controller.store.etcd.calls import (
    Comparison,
    Created,
    Delete,
    Etcd,
    EtcdRefused,
    EtcdUnreachable,
    Get,
    Holds,
    KeyValue,
    Modified,
    Operation,
    Put,
    Txn,
)
from fencepost_controller.store.etcd.layout import (
    Content,
    Keys,
    Version,
    content,
    decode_content,
    encode_version,
    split,
)
from fencepost_proto.protocol.metadata import Changes, MetadataImage, encode_delta
from fencepost_proto.runtime.backoff import Backoff

log = logging.getLogger(__name__)

PAUSES = Backoff(first_s=0.01, most_s=0.25)  # between two sendings of one request
SNAPSHOT_ENTRIES = 1_000  # of the log, or …
SNAPSHOT_BYTES = 4 * 1024 * 1024  # … so many, or as many as the last image has, before the next image
ATTEMPT_BITS = 32


@dataclass(slots=True)
class LogSize:
    """What is behind the newest snapshot, and that one's size."""

    entries: int
    log_bytes: int
    image_bytes: int

    @property
    def wants_snapshot(self) -> bool:
        return self.entries >= SNAPSHOT_ENTRIES or self.log_bytes >= max(SNAPSHOT_BYTES, self.image_bytes)


class Term:
    """From the creation of the leader key to its loss. One call at a time, but for `confirm`, which may come beside
    others."""

    def __init__(
        self,
        etcd: Etcd,
        keys: Keys,
        random: Random,
        *,
        revision: int,
        epoch: int,
        size: LogSize,
        snapshot: KeyValue | None,
        is_over: Callable[[], bool],
    ) -> None:
        """`revision`: of the leader key's creation. `is_over`: whether the lease's time is over, by this process's
        clock."""
        self.revision = revision
        self.epoch = epoch  # the controller epoch
        self._etcd = etcd
        self._keys = keys
        self._random = random
        self._size = size
        self._snapshot = snapshot
        self._is_over = is_over
        self._snapshotting: asyncio.Task[None] | None = None

    @property
    def _mine(self) -> Created:
        return Created(self._keys.leader, self.revision)

    # ---- Commits ----

    async def commit(self, before: MetadataImage, after: MetadataImage, changes: Changes) -> None:
        """Take the store from one image to the other. Returns once a majority has it on disk.

        Raises CommitFailed where it was definitely not made and never will be. LeadershipLost: this term is over, and
        it may have been made.
        """
        changed = [entity for entity in changes.values() if entity is not None]
        deleted = [key for key, entity in changes.items() if entity is None]
        data = await asyncio.get_running_loop().run_in_executor(
            None, lambda: encode_delta(after.version, changed, deleted)
        )
        attempt = self._random.getrandbits(ATTEMPT_BITS)
        entry = content(_version_of(before), attempt, data, inline=True)
        if entry.pieces:
            await self._put_pieces(b"parts", after.version, entry, data)
        await self._commit(_version_of(before), _version_of(after), entry)
        self._size.entries += 1
        self._size.log_bytes += len(data)
        if self._size.wants_snapshot and (self._snapshotting is None or self._snapshotting.done()):
            self._snapshotting = asyncio.get_running_loop().create_task(self._try_to_snapshot(after))

    async def _commit(self, before: Version, after: Version, entry: Content) -> None:
        keys = self._keys
        key = keys.log(after.number)
        compare = [self._mine, self._holds(before)]
        success = [Put(keys.version, encode_version(after)), Put(key, entry.encode())]
        failure = [Get(keys.leader), Get(keys.version), Get(key)]
        answer, is_first = await self._until_definite(compare, success, failure)
        if answer.succeeded:
            return
        leader, version, found = answer.found
        if not leader or leader[0].create_revision != self.revision:
            raise LeadershipLost(f"another controller has taken over (or none yet), revision {answer.revision}")
        ours = found and decode_content(found[0].value, f"the log entry {key!r}").attempt == entry.attempt
        if ours and version and version[0].value == encode_version(after) and not is_first:
            return  # an earlier sending of this very request was carried out
        # Something else has written to it, or etcd was restored from a backup meanwhile: reading it again shows which.
        raise LeadershipLost(
            f"etcd at {keys.prefix.decode()!r} is at version {version[0].value if version else b''!r}, not at {before}"
        )

    def _holds(self, version: Version) -> Comparison:
        if version == Version():
            return Created(self._keys.version, 0)
        return Holds(self._keys.version, encode_version(version))

    async def confirm(self) -> None:
        """Return if this controller was still active after this call began; then nothing is newer than what it has
        committed.

        Raises CommitFailed where that is not known, LeadershipLost.
        """
        answer, _ = await self._until_definite([self._mine], [], [])
        if not answer.succeeded:
            raise LeadershipLost("another controller has taken over, or the lease has expired")

    async def _until_definite(
        self, compare: Sequence[Comparison], success: Sequence[Operation], failure: Sequence[Operation]
    ) -> tuple[Txn, bool]:
        """Send one transaction until it is known what it came to. The second value: no earlier sending's outcome is
        unknown.

        Raises CommitFailed where no sending was or will be carried out; LeadershipLost when the lease's time is over.
        """
        is_first = True
        pauses = PAUSES.pauses_s()
        while True:
            if self._is_over():
                raise LeadershipLost("the lease could not be renewed in time")
            try:
                return await self._etcd.transact(compare, success, failure), is_first
            except EtcdRefused as error:
                if is_first:
                    raise CommitFailed(str(error)) from error
                log.warning("etcd refuses a request that it may have carried out before reason=%s", error)
            except EtcdUnreachable as error:
                if is_first:
                    log.warning("no answer to a commit, it is sent again reason=%s", error)
                is_first = False
            await asyncio.sleep(next(pauses))

    async def _put_pieces(self, kind: bytes, version: int, what: Content, data: bytes) -> None:
        """Raises CommitFailed, LeadershipLost."""
        for index, piece in enumerate(split(data)):
            key = self._keys.piece(kind, version, what.attempt, index)
            answer, _ = await self._until_definite([self._mine], [Put(key, piece)], [])
            if not answer.succeeded:
                raise LeadershipLost("another controller has taken over, or the lease has expired")

    # ---- Snapshots ----

    async def _try_to_snapshot(self, image: MetadataImage) -> None:
        try:
            await self.write_snapshot(image)
        except (CommitFailed, LeadershipLost) as error:  # the next commit tries again, or the next leader
            log.warning("no snapshot was written version=%d reason=%s", image.version, error)

    async def write_snapshot(self, image: MetadataImage) -> None:
        """Put the whole image beside the log, then delete the log up to it. Raises CommitFailed, LeadershipLost.

        It dies before the key `snapshot` is written: its pieces are deleted with the next one. It dies after that:
        what is to be deleted is deleted with the next one. A reader that is at the pieces of the one before finds
        them gone, and begins again.
        """
        size = self._size
        entries, log_bytes = size.entries, size.log_bytes
        data = await asyncio.get_running_loop().run_in_executor(
            None, lambda: encode_delta(image.version, image.entities(), image=True)
        )
        what = content(_version_of(image), self._random.getrandbits(ATTEMPT_BITS), data, inline=False)
        await self._put_pieces(b"image", image.version, what, data)
        keys, before = self._keys, self._snapshot
        compare: list[Comparison] = [self._mine, Modified(keys.snapshot, before.mod_revision if before else 0)]
        answer, is_first = await self._until_definite(
            compare, [Put(keys.snapshot, what.encode()), Get(keys.snapshot)], [Get(keys.snapshot)]
        )
        found = answer.found[0][0] if answer.found[0] else None
        if not answer.succeeded and (is_first or found is None or found.value != what.encode()):
            raise LeadershipLost("another controller has written a snapshot")
        self._snapshot = found
        garbage = [
            Delete(keys.log(0), keys.log(image.version + 1)),
            Delete(*keys.pieces_below(b"parts", image.version + 1)),
            Delete(*keys.pieces_below(b"image", image.version)),
        ]
        await self._until_definite([self._mine], garbage, [])
        size.entries -= entries
        size.log_bytes -= log_bytes
        size.image_bytes = len(data)
        log.info("snapshot written version=%d bytes=%d log_entries=%d", image.version, len(data), entries)

    async def close(self) -> None:
        """Nothing of this term runs any more."""
        if self._snapshotting is not None:
            self._snapshotting.cancel()
            await asyncio.wait([self._snapshotting])


def _version_of(image: MetadataImage) -> Version:
    return Version(image.version, image.lineage.current_id)
