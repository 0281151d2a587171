"""The controller's store, with faults of the disk that it is on: full, slow, or one whose syncs fail.

A commit that fails is not in the store, as SQLite has it too: a write-ahead log that could not be written or synced is
written over by the next commit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from fencepost_controller.store import CommitFailed, Store
from fencepost_proto.protocol.metadata import Changes, Entity
from fencepost_testing.faults.inside import FaultsInside
from fencepost_testing.faults.rules import DISK_ERRNO, DiskAction


class FaultyStore:
    """Another store. What no fault concerns is done by the store itself."""

    def __init__(self, store: Store, faults: FaultsInside) -> None:
        self._store = store
        self._faults = faults

    def load(self) -> tuple[int, Sequence[Entity]]:
        return self._store.load()

    def commit(self, expected_version: int, version: int, changes: Changes) -> None:
        """[thread]"""
        faults, what = self._faults, f"commit of {version}"
        for posted in faults.fired(faults.store_rules(DiskAction.SLOW), what):
            time.sleep(faults.delay_s(posted.rule))
        for action, number in DISK_ERRNO.items():
            for _ in faults.fired(faults.store_rules(action), what):
                raise CommitFailed(f"metadata store: {os.strerror(number)}, by a fault")
        self._store.commit(expected_version, version, changes)

    def close(self) -> None:
        self._store.close()
