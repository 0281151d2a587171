"""Where metadata is kept: entities by key, and one version for all of them.

A store holds exactly one state. `commit` takes it to the next in one step: after a crash at any moment the whole commit is
there, or nothing of it. The expected version is a compare-and-set: a store that someone else has written to since is
never overwritten. Keys are per entity (`brokers/1`, `partitions/<topic id>/<n>`, …), so a store with keys and transactions
of its own (etcd) can stand behind the same interface.

Calls block and belong in a thread, one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fencepost_proto.protocol.metadata import Changes, Entity


class StoreError(Exception):
    """The store cannot be used: damaged, of another program, or of a newer version of this one. Names the file."""


class CommitFailed(Exception):
    """This commit was not made (disk full, I/O error); the store still holds the state before it."""


class VersionMismatch(Exception):
    """The store is not at the expected version: someone else has written to it."""


class Store(Protocol):
    def load(self) -> tuple[int, Sequence[Entity]]:
        """The version (0: nothing was ever committed) and everything, in key order. Raises StoreError."""
        ...

    def commit(self, expected_version: int, version: int, changes: Changes) -> None:
        """From one version to another. Returns once it is on disk. Raises CommitFailed or VersionMismatch."""
        ...

    def close(self) -> None: ...
