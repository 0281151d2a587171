"""What the group members of other projects have in common here."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from fencepost.history import History
from fencepost_testing.failures import CommandFailed

POLL_MS: Final = 200
MAX_POLL_RECORDS: Final = 2_000
SESSION_TIMEOUT_MS: Final = 6_000
COMMIT_INTERVAL_MS: Final = 500
NO_HIGH_WATERMARK: Final = -1


class KafkaRecord(NamedTuple):
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


def records_of(topic: str, polled: Mapping[Any, Iterable[Any]]) -> list[KafkaRecord]:
    """What one poll of aiokafka or kafka-python has brought, by partition."""
    return [
        KafkaRecord(topic, record.partition, record.offset, record.key, record.value)
        for records in polled.values()
        for record in records
    ]


class CommitFailed(CommandFailed):
    """A commit was refused. `certain`: it was not stored, and will not be."""

    def __init__(self, message: str, *, certain: bool) -> None:
        super().__init__(message)
        self.certain = certain


class KafkaReader(ABC):
    """Commits by itself, as these clients do by default. After a failover of the group's coordinator it may read again what
    it has not committed.

    `commits`: nothing is committed but by `commit`. `kip_848`: the group is one of that protocol, where the client knows it.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        group: str,
        history: History | None,
        latest: bool,
        *,
        commits: bool = False,
        kip_848: bool = False,
    ) -> None:
        self._commits = commits
        self._kip_848 = kip_848
        self._loop = asyncio.get_running_loop()
        self._owned: set[int] = set()  # partitions
        self._bootstrap = bootstrap
        self._topic = topic
        self._group = group
        self._history = history
        self._offset_reset = "latest" if latest else "earliest"
        self._next: dict[int, int] = {}  # partition → offset behind the last that was read since it was assigned
        self._assigned = False  # since the last poll

    async def poll(self) -> list[KafkaRecord]:
        """The next records; empty where none came for a while."""
        poll = self._history.invoke_poll() if self._history is not None else 0
        records = await self._poll()
        assigned, self._assigned = self._assigned, False
        if assigned:
            self._next.clear()
        if self._history is not None:
            for record in records:
                position = self._next.get(record.partition)
                if position is None or (assigned and record.offset < position):
                    self._history.moved(record.topic, record.partition, record.offset)
                self._next[record.partition] = record.offset + 1
                self._history.polled(poll, record, NO_HIGH_WATERMARK)
            if not records:
                self._history.polled_nothing(poll)
        return records

    async def commit(self) -> None:
        """Commit behind all that was read of the partitions that it has. Raises CommitFailed."""
        offsets = {partition: offset for partition, offset in self._next.items() if partition in self._owned}
        if not offsets:
            return
        told = []
        if self._history is not None:
            for partition, offset in offsets.items():
                told.append((partition, self._history.invoke_commit(self._group, self._topic, partition, offset)))
        failure: CommitFailed | None = None
        try:
            await self._commit(offsets)
        except CommitFailed as error:
            failure = error
        if self._history is not None:
            certain = failure is not None and failure.certain
            for partition, number in told:
                self._history.complete_commit(number, self._group, self._topic, partition, failure, certain=certain)
        if failure is not None:
            raise failure

    # ---- For the clients' modules, in any thread ----

    def assigned(self, partitions: Iterable[int]) -> None:
        """Partitions were assigned; reading goes on where the group has committed. What one poll brings may be from before
        and after it."""
        self._assigned = True
        self._changed(sorted(partitions), given=True)

    def revoked(self, partitions: Iterable[int]) -> None:
        """They are this reader's no more."""
        self._changed(sorted(partitions), given=False)

    def _changed(self, partitions: list[int], *, given: bool) -> None:
        def note() -> None:
            if given:
                self._owned.update(partitions)
            else:
                self._owned.difference_update(partitions)
            if self._history is not None and self._commits:
                tell = self._history.given if given else self._history.taken
                for partition in partitions:
                    tell(self._group, self._topic, partition)

        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:  # a thread without a loop
            here = False
        if here:
            note()
        else:
            self._loop.call_soon_threadsafe(note)

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    @abstractmethod
    async def _start(self) -> None: ...

    @abstractmethod
    async def _poll(self) -> list[KafkaRecord]: ...

    @abstractmethod
    async def _commit(self, offsets: dict[int, int]) -> None:
        """Raises CommitFailed."""

    @abstractmethod
    async def _stop(self) -> None: ...
