"""A history: what clients asked for and what they were told, line by line, for a checker to judge.

Each line is one JSON object: the invocation of an operation, or its completion. Fields that do not apply are left out.

    process    who did it: the same for all lines of one client
    time       ns of the event loop's clock
    type       invoke | ok | fail (it certainly did not happen) | info (it may have happened, or something to know)
    op         send | poll | seek
    id         ties completions to their invocation; unique within its process's history
    topic, partition, offset
    key, value text, or {"base64": …} where they are not UTF-8, or null
    high_watermark  of a polled record's partition, as the consumer knew it
    error      what a failure said

A send has one invocation and one completion; an offset that the cluster no longer knew is left out of an `ok`. A poll
has one invocation and then an `ok` for each record that the application got (one without an offset if it got none).
`async for` writes an invocation each time it fetches some records ahead, and an `ok` as each is handed out. A `seek` line
(type info) tells that the position was moved: by the application, at the start, or past what retention removed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, TextIO

FILE_BUFFER_BYTES = 1 << 16

Type = Literal["invoke", "ok", "fail", "info"]
Sink = Callable[[str], object]  # gets each line without its end


class PolledRecord(Protocol):
    """What a history tells of a record."""

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
            self._write: Sink = sink
        else:
            self._file = Path(sink).open("a", encoding="utf-8", buffering=FILE_BUFFER_BYTES)  # noqa: SIM115 closed by close()
            self._write = self._write_line
        self._process = process
        self._operations = 0

    def close(self) -> None:
        """All lines are in the file after this. May be called twice."""
        if self._file is not None:
            self._file.close()

    # ---- For the producer ----

    def invoke_send(self, topic: str, partition: int | None, key: bytes | None, value: bytes | None) -> int:
        """A record is about to be sent. Returns the id to complete the operation with. `partition`: where known yet."""
        operation = self._next()
        where = {} if partition is None else {"partition": partition}
        self._line("invoke", "send", operation, topic=topic, **where, key=_text(key), value=_text(value))
        return operation

    def complete_send(
        self, operation: int, topic: str, partition: int | None, offset: int, error: BaseException | None = None
    ) -> None:
        """The record is acknowledged (offset -1: unknown), or failed: for certain, unless `may_have_been_appended`."""
        fields: dict[str, object] = {"topic": topic}
        if partition is not None:
            fields["partition"] = partition
        if error is not None:
            uncertain = getattr(error, "may_have_been_appended", True)  # what is no error of ours says nothing
            self._line("info" if uncertain else "fail", "send", operation, **fields, error=_describe(error))
            return
        if offset >= 0:
            fields["offset"] = offset
        self._line("ok", "send", operation, **fields)

    # ---- For the consumer ----

    def invoke_poll(self) -> int:
        """The application is about to read. Returns the id to complete the operation with."""
        operation = self._next()
        self._line("invoke", "poll", operation)
        return operation

    def polled(self, operation: int, record: PolledRecord, high_watermark: int) -> None:
        """The application gets this record."""
        self._line(
            "ok",
            "poll",
            operation,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            key=_text(record.key),
            value=_text(record.value),
            high_watermark=high_watermark,
        )

    def polled_nothing(self, operation: int, error: BaseException | None = None) -> None:
        """The application got no record, or an error."""
        if error is None:
            self._line("ok", "poll", operation)
        else:
            self._line("fail", "poll", operation, error=_describe(error))

    def moved(self, topic: str, partition: int, offset: int) -> None:
        """The next record of this partition is `offset`, whatever came before."""
        self._line("info", "seek", self._next(), topic=topic, partition=partition, offset=offset)

    # ---- Inside ----

    def _next(self) -> int:
        self._operations += 1
        return self._operations

    def _line(self, kind: Type, op: str, operation: int, **fields: object) -> None:
        now_ns = round(asyncio.get_running_loop().time() * 1e9)
        line = {"process": self._process, "time": now_ns, "type": kind, "op": op, "id": operation, **fields}
        self._write(json.dumps(line, ensure_ascii=False, separators=(",", ":")))

    def _write_line(self, line: str) -> None:
        if self._file is not None:
            self._file.write(line)
            self._file.write("\n")


def bytes_of(value: object) -> bytes | None:
    """A key or value as it was, from its field in a line. Raises ValueError for a field that none wrote."""
    match value:
        case None:
            return None
        case str():
            return value.encode()
        case {"base64": str(text)}:
            return base64.b64decode(text, validate=True)
        case _:
            raise ValueError(f"{value!r} is neither text nor base64 nor null")


def _text(value: bytes | None) -> object:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
