"""Records a history: what a client asked for and what it was answered, for `fencepost check` to judge.

It writes one line for each invocation and each completion (`history_format` describes the lines). Producers and consumers
call it through `recording`.

- A send has one invocation and one completion.
- A poll has one invocation, and an `ok` for each record that the application gets; one without a record if it gets none.
  `async for` writes an invocation each time it fetches records ahead, and an `ok` as each is handed out.
- A `seek` line says that a position was moved: by the application, at the start, or past what retention removed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TextIO

from fencepost.history_format import Operation, OperationName, OperationType, RecordStamp, Value, to_line

FILE_BUFFER_BYTES = 1 << 16

Sink = Callable[[str], object]  # is called with each line, without its end


class PolledRecord(Protocol):
    """The fields of a record that a history records."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class History:
    """Writes one client's history to a file (appended to) or to a function. Close it after its client."""

    def __init__(self, sink: str | os.PathLike[str] | Sink, *, process: str) -> None:
        self._file: TextIO | None = None
        if callable(sink):
            self._sink: Sink = sink
        else:
            self._file = Path(sink).open("a", encoding="utf-8", buffering=FILE_BUFFER_BYTES)  # noqa: SIM115 closed by close()
            self._sink = self._to_file
        self._process = process
        self._operations = 0

    def close(self) -> None:
        """All lines are in the file after this. May be called twice."""
        if self._file is not None:
            self._file.close()

    # ---- For the producer ----

    def invoke_send(self, topic: str, partition: int | None, key: bytes | None, value: bytes | None) -> int:
        """A record is about to be sent. Returns the id of the operation. `partition`: None where it is not known yet."""
        operation = self._operation("invoke", "send", self._next())
        where = -1 if partition is None else partition
        self._write(operation._replace(topic=topic, partition=where, key=_text(key), value=_text(value)))
        return operation.id

    def complete_send(
        self,
        send: int,
        topic: str,
        partition: int | None,
        offset: int,
        *,
        error: BaseException | None = None,
        producer: RecordStamp | None = None,
    ) -> None:
        """The record is acknowledged (offset -1: unknown), or has failed: certainly, unless `may_have_been_appended`."""
        where = -1 if partition is None else partition
        if error is None:
            operation = self._operation("ok", "send", send)._replace(offset=offset)
        else:
            uncertain = bool(getattr(error, "may_have_been_appended", True))  # an error of another project does not say
            operation = self._operation("info" if uncertain else "fail", "send", send)
            operation = operation._replace(error=_describe(error), may_have_been_appended=uncertain)
        self._write(operation._replace(topic=topic, partition=where, producer=producer))

    # ---- For the consumer ----

    def invoke_poll(self) -> int:
        """The application is about to read. Returns the id of the operation."""
        operation = self._operation("invoke", "poll", self._next())
        self._write(operation)
        return operation.id

    def polled(self, poll: int, record: PolledRecord, high_watermark: int) -> None:
        """The application gets this record."""
        self._write(
            self._operation("ok", "poll", poll)._replace(
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                key=_text(record.key),
                value=_text(record.value),
                high_watermark=high_watermark,
            )
        )

    def polled_nothing(self, poll: int, error: BaseException | None = None) -> None:
        """The application got no record, or an error."""
        if error is None:
            self._write(self._operation("ok", "poll", poll))
        else:
            self._write(self._operation("fail", "poll", poll)._replace(error=_describe(error)))

    def moved(self, topic: str, partition: int, offset: int) -> None:
        """The next record read from this partition is the one at `offset`, whatever came before."""
        operation = self._operation("info", "seek", self._next())
        self._write(operation._replace(topic=topic, partition=partition, offset=offset))

    # ---- For the member of a group ----

    def given(self, group: str, topic: str, partition: int) -> None:
        """It has this partition from now on."""
        operation = self._operation("info", "given", self._next())
        self._write(operation._replace(topic=topic, partition=partition, group=group))

    def taken(self, group: str, topic: str, partition: int) -> None:
        """It has it no more."""
        operation = self._operation("info", "taken", self._next())
        self._write(operation._replace(topic=topic, partition=partition, group=group))

    def invoke_commit(self, group: str, topic: str, partition: int, offset: int) -> int:
        """It is about to commit. Returns the id of the operation."""
        operation = self._operation("invoke", "commit", self._next())
        self._write(operation._replace(topic=topic, partition=partition, group=group, offset=offset))
        return operation.id

    def complete_commit(
        self,
        commit: int,
        group: str,
        topic: str,
        partition: int,
        error: BaseException | None = None,
        *,
        certain: bool = False,
    ) -> None:
        """It is stored; or it has failed, as far as is known or for `certain`."""
        operation = self._operation("ok" if error is None else "fail" if certain else "info", "commit", commit)
        operation = operation._replace(topic=topic, partition=partition, group=group)
        self._write(operation if error is None else operation._replace(error=_describe(error)))

    # ---- For the reader of everything at the end ----

    def invoke_final(self, topic: str, partition: int) -> int:
        """All sends have ended, and this client begins to read the whole partition."""
        operation = self._operation("invoke", "final", self._next())
        self._write(operation._replace(topic=topic, partition=partition))
        return operation.id

    def complete_final(self, final: int, topic: str, partition: int, start_offset: int, end_offset: int) -> None:
        """It has read everything from `start_offset`, the log's start, up to but not including `end_offset`, its end."""
        operation = self._operation("ok", "final", final)._replace(topic=topic, partition=partition)
        self._write(operation._replace(start_offset=start_offset, end_offset=end_offset))

    # ---- For the operator who orders an unclean election ----

    def invoke_election(self, topic: str, partition: int, kept_end_offset: int, log_end_offset: int) -> int:
        """An unclean election is ordered. It loses no acknowledged record below `kept_end_offset`, and every one at
        `log_end_offset` and above (`AdminClient.unclean_candidates` returns both)."""
        operation = self._operation("invoke", "elect", self._next())._replace(topic=topic, partition=partition)
        self._write(operation._replace(start_offset=kept_end_offset, end_offset=log_end_offset))
        return operation.id

    def complete_election(self, election: int, topic: str, partition: int, error: BaseException | None = None) -> None:
        """The broker leads. With an error it may lead nevertheless: an order whose answer was lost may have been carried out
        before another answer came."""
        operation = self._operation("ok" if error is None else "info", "elect", election)
        operation = operation._replace(topic=topic, partition=partition)
        self._write(operation if error is None else operation._replace(error=_describe(error)))

    # ---- Inside ----

    def _next(self) -> int:
        self._operations += 1
        return self._operations

    def _operation(self, kind: OperationType, name: OperationName, operation: int) -> Operation:
        now_ns = round(asyncio.get_running_loop().time() * 1e9)
        return Operation(self._process, now_ns, kind, name, operation)

    def _write(self, operation: Operation) -> None:
        self._sink(to_line(operation))

    def _to_file(self, line: str) -> None:
        if self._file is not None:
            self._file.write(line)
            self._file.write("\n")


def _text(value: bytes | None) -> Value:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
