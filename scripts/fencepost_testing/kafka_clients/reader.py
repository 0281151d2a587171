"""What the group members of other projects have in common here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from fencepost.history import History

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


class KafkaReader(ABC):
    """Commits by itself, as these clients do by default. After a failover of the group's coordinator it may read again what
    it has not committed."""

    def __init__(self, bootstrap: str, topic: str, group: str, history: History | None, latest: bool) -> None:
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

    def assigned(self) -> None:
        """For the clients' modules, in any thread: partitions were assigned; reading goes on where the group has committed.
        What one poll brings may be from before and after it."""
        self._assigned = True

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
    async def _stop(self) -> None: ...
