"""`fencepost produce` and `fencepost consume`: lines of standard input into a topic, and records out as lines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.terminal import DEFAULT_DATA_DIR, EXIT_USAGE, Bootstrap, DataDir, bootstrap_of, fail, run
from fencepost_testing.failures import CommandFailed

if TYPE_CHECKING:
    from fencepost import ConsumerRecord, Delivery

MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_PENDING = 50_000  # lines sent and not yet acknowledged
_READ_BYTES = 64 * 1024
_QUEUED_CHUNKS = 4
_POLL_RECORDS = 1_000
_POLL_MS = 200

Topic = Annotated[str, typer.Argument(help="The topic.")]
KeySeparator = Annotated[
    str | None, typer.Option("--key-separator", metavar="TEXT", help="What stands between key and value in a line.")
]


def split_line(line: bytes, separator: bytes) -> tuple[bytes | None, bytes]:
    """(key, value) of a line without its end; a line without the separator has no key."""
    if not separator:
        return None, line
    key, found, value = line.partition(separator)
    return (key, value) if found else (None, line)


def produce(
    topic: Topic,
    *,
    key_separator: KeySeparator = None,
    name: Annotated[str, typer.Option(help="Produce under this name: an older instance of it is fenced.")] = "",
    compression: Annotated[str, typer.Option(help="none, gzip, snappy, lz4 or zstd.")] = "none",
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Send each line of standard input as a record. Exit code 0 once all are acknowledged."""
    if key_separator == "":
        fail("--key-separator must not be empty", EXIT_USAGE)
    brokers = bootstrap_of(bootstrap, data_dir)
    sent = run(_produce(brokers, topic, (key_separator or "").encode(), name, compression))
    typer.echo(f"{sent} records acknowledged", err=True)


async def _produce(brokers: str, topic: str, separator: bytes, name: str, compression: str) -> int:
    """How many lines were sent, all of them acknowledged. Raises CommandFailed naming the first line that was not."""
    from fencepost import Producer
    from fencepost_proto.protocol.errors import FencepostError

    sent = number = 0
    failure: FencepostError | None = None
    pending: deque[tuple[int, Delivery]] = deque()

    async def settle() -> None:
        nonlocal number
        number, delivery = pending[0]
        await delivery
        pending.popleft()

    async with Producer(brokers, name=name, compression=compression) as producer:
        try:
            async for line in _standard_input():
                key, value = split_line(line.removesuffix(b"\r"), separator)
                sent = number = sent + 1
                pending.append((sent, await producer.send(topic, value, key=key)))
                while len(pending) > MAX_PENDING or (pending and pending[0][1].done()):
                    await settle()
            while pending:
                await settle()
        except FencepostError as error:
            failure = error
    if failure is not None:
        raise CommandFailed(f"line {number}: {failure} ({producer.stats.records_acked} acknowledged)")
    return sent


async def _standard_input() -> AsyncIterator[bytes]:
    """The lines of standard input, without their ends, as they come; the last one may have none.

    A daemon thread reads: a terminal or a pipe may keep it waiting indefinitely, and Ctrl-C must not wait for it. It uses
    os.read, since the lock of a buffered reader would be missed as the interpreter ends.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue(_QUEUED_CHUNKS)

    def read() -> None:
        with contextlib.suppress(RuntimeError, CancelledError):  # the loop is gone: no one wants more
            while True:
                try:
                    chunk: bytes | OSError = os.read(sys.stdin.fileno(), _READ_BYTES)
                except OSError as error:
                    chunk = error
                asyncio.run_coroutine_threadsafe(chunks.put(chunk), loop).result()
                if not chunk or isinstance(chunk, OSError):
                    return

    threading.Thread(target=read, name="standard-input", daemon=True).start()
    rest = b""
    while chunk := await chunks.get():
        if isinstance(chunk, OSError):
            raise CommandFailed(f"standard input cannot be read: {chunk}")
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise CommandFailed(f"a line of more than {MAX_LINE_BYTES} bytes")
        for line in lines:
            yield line
    if rest:
        yield rest


def consume(
    topic: Topic,
    *,
    key_separator: KeySeparator = None,
    partition: Annotated[list[int] | None, typer.Option(min=0, help="Only this one; may be repeated.")] = None,
    offset: Annotated[int | None, typer.Option(min=0, help="Begin there; with one --partition.")] = None,
    latest: Annotated[bool, typer.Option("--latest", help="Begin at the end instead of the beginning.")] = False,
    count: Annotated[int, typer.Option(min=0, help="Records to read; 0: no limit.")] = 0,
    until_end: Annotated[bool, typer.Option("--until-end", help="Stop at what is the end now.")] = False,
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable", help="Go past batches that no one can read, and say so, instead of ending there."
        ),
    ] = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Write each record's value to standard output as a line, until Ctrl-C, the count or the end."""
    if offset is not None and len(partition or ()) != 1:
        fail("--offset goes with exactly one --partition", EXIT_USAGE)
    brokers = bootstrap_of(bootstrap, data_dir)
    separator = None if key_separator is None else key_separator.encode()

    async def work() -> None:
        from fencepost import Consumer, TopicPartition

        async with Consumer(
            brokers,
            start="latest" if latest else "earliest",
            unreadable="skip" if skip_unreadable else "error",
        ) as consumer:
            if partition:
                await consumer.assign(TopicPartition(topic, number) for number in partition)
            else:
                await consumer.subscribe(topic)
            if offset is not None:
                consumer.seek(consumer.assignment[0], offset)
            ends = await consumer.end_offsets(consumer.assignment) if until_end else {}
            if offset is not None and any(offset > end for end in ends.values()):
                raise CommandFailed(f"offset {offset} is behind the end of {topic}-{partition[0] if partition else 0}")
            left = {tp for tp, end in ends.items() if await consumer.position(tp) < end}
            written = 0
            while not (count and written >= count) and (left or not until_end):
                records = await consumer.poll(min(_POLL_RECORDS, count - written) if count else _POLL_RECORDS, _POLL_MS)
                if until_end:
                    records = [r for r in records if r.offset < ends[TopicPartition(r.topic, r.partition)]]
                    left = {tp for tp in left if await consumer.position(tp) < ends[tp]}
                await asyncio.to_thread(_write, records, separator)
                written += len(records)
            if consumer.skipped_batches:
                batches, skipped = consumer.skipped_batches, consumer.skipped_records
                typer.echo(f"{skipped} records of {batches} unreadable batches were skipped", err=True)

    run(work())


def _write(records: Sequence[ConsumerRecord], separator: bytes | None) -> None:
    """May block: the reader of a pipe sets the pace."""
    out = sys.stdout.buffer
    for record in records:
        if separator is not None and record.key is not None:
            out.write(record.key + separator)
        out.write((record.value or b"") + b"\n")
    out.flush()
