"""Where metadata is kept: entities by key, and one version for all of them.

A store holds exactly one state. `commit` takes it to the next in one step: after a crash at any moment the whole
commit is there, or nothing of it. The expected version is a compare-and-set: a store that someone else has written to
since is never overwritten. Keys are per entity (`brokers/1`, `partitions/<topic id>/<n>`, …).

A `Store` is a file of this process's alone (`sqlite.py`): calls block and belong in a thread, one at a time. A
`SharedStore` is one that several controllers reach by network, of which one may write (`etcd/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fencepost_proto.protocol.metadata import Changes, Entity, MetadataImage


class StoreError(Exception):
    """The store cannot be used: damaged, of another program, or of a newer version of this one. Names the file."""


class CommitFailed(Exception):
    """This commit was not made (disk full, I/O error); the store still holds the state before it."""


class VersionMismatch(Exception):
    """The store is not at the expected version: someone else has written to it."""


class LeadershipLost(Exception):
    """This controller is not the active one any more, or cannot know. Whether its last commit was made is not known
    to it."""


class SharedStore(Protocol):
    """A shared store, for the time in which this controller may write to it."""

    async def commit(self, before: MetadataImage, after: MetadataImage, changes: Changes) -> None:
        """From one image to the next. Returns once it is durable. Raises CommitFailed, LeadershipLost."""
        ...

    async def confirm(self) -> None:
        """Return if no one else could write until now. Raises CommitFailed where that is not known, LeadershipLost."""
        ...


class Store(Protocol):
    def load(self) -> tuple[int, Sequence[Entity]]:
        """The version (0: nothing was ever committed) and everything, in key order. Raises StoreError."""
        ...

    def commit(self, expected_version: int, version: int, changes: Changes) -> None:
        """From one version to another. Returns once it is on disk. Raises CommitFailed or VersionMismatch."""
        ...

    def close(self) -> None: ...


def image_of(store: Store) -> MetadataImage:
    """[thread] All that it holds. Raises StoreError."""
    version, entities = store.load()
    return MetadataImage().with_changes(version, {entity.key: entity for entity in entities})
