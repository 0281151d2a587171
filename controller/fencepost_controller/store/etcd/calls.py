"""What is asked of etcd, as values: comparisons, operations, answers, and the two ways in which a call fails.

`EtcdRefused`: etcd did not do it, and says why. `EtcdUnreachable`: no one knows; the request may even be carried out
later.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol


class EtcdRefused(Exception):
    """etcd has not done it, and says why."""


class EtcdUnreachable(Exception):
    """No answer: it may have been done, may be done yet, or not."""


class KeyValue(NamedTuple):
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int


class Created(NamedTuple):
    """A comparison: the key was created at this revision; 0: it is absent."""

    key: bytes
    revision: int


class Modified(NamedTuple):
    """A comparison: the key was last written at this revision; 0: it is absent."""

    key: bytes
    revision: int


class Holds(NamedTuple):
    """A comparison: the key has this value."""

    key: bytes
    value: bytes


class Put(NamedTuple):
    key: bytes
    value: bytes
    lease_id: int = 0


class Delete(NamedTuple):
    """From `key` to before `end`; an empty end: the key alone."""

    key: bytes
    end: bytes = b""


class Get(NamedTuple):
    """From `key` to before `end`, in key order; an empty end: the key alone. `limit` 0: all."""

    key: bytes
    end: bytes = b""
    limit: int = 0


Comparison = Created | Modified | Holds
Operation = Put | Delete | Get


class Txn(NamedTuple):
    """What a transaction came to: `found` has a list for each Get of the branch that was taken, in their order."""

    succeeded: bool
    revision: int
    found: list[list[KeyValue]]


class Change(NamedTuple):
    """What a watch reports; `value` None: the key was deleted."""

    key: bytes
    value: bytes | None
    create_revision: int
    lease_id: int
    revision: int


class Etcd(Protocol):
    """The calls. Each goes to one endpoint, once; after it failed the next call goes to the next endpoint."""

    async def transact(
        self, compare: Iterable[Comparison], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> Txn:
        """One transaction. Without comparisons `success` is done."""
        ...

    async def get(self, what: Get) -> list[KeyValue]: ...

    async def grant(self, ttl_s: int) -> int:
        """A new lease's id."""
        ...

    async def renew(self, lease_id: int) -> bool:
        """False: the lease is over."""
        ...

    async def revoke(self, lease_id: int) -> None: ...

    def watch(
        self, start: bytes, end: bytes, revision: int
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Change]]]:
        """What happens to the keys from `start` to before `end`, from `revision` on: lists of changes, in order.

        Entered once etcd watches. Raises EtcdUnreachable when the watch breaks, EtcdRefused where etcd does not
        remember that revision any more.
        """
        ...

    async def close(self) -> None: ...
