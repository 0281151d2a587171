"""`fencepost dump-log`: what a file of a broker's data folder holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from fencepost_cli.terminal import EXIT_USAGE, fail

if TYPE_CHECKING:
    from fencepost_proto.protocol.record_batch import BatchHeader
    from fencepost_proto.protocol.records import Record

_READ_BYTES = 8 * 1024 * 1024
_SHOWN_BYTES = 60  # of a key or value
_COMPRESSION = 0x07


class FoundBatch(NamedTuple):
    position: int
    header: BatchHeader
    data: bytes


def read_batches(path: Path) -> Iterator[FoundBatch]:
    """Every batch of a segment, checked. Raises FencepostError at the first bytes that are none."""
    from fencepost_proto.protocol.record_batch import HEADER_BYTES, LENGTH_END, check_batch

    with path.open("rb") as file:
        position, rest = 0, b""
        while True:
            more = file.read(_READ_BYTES)
            data, start = rest + more, 0
            while len(data) - start >= HEADER_BYTES:
                size = LENGTH_END + int.from_bytes(data[start + 8 : start + LENGTH_END], signed=True)
                if len(data) - start < size and more:
                    break
                header = check_batch(data, start)
                yield FoundBatch(position, header, data[start : start + header.size_bytes])
                start += header.size_bytes
                position += header.size_bytes
            rest = data[start:]
            if not more:
                if rest:
                    check_batch(rest)
                return


def dump_log(
    file: Annotated[Path, typer.Argument(help="A segment (.log) or a snapshot of producer state (.snapshot).")],
    records: Annotated[bool, typer.Option("--records", help="The records of each batch too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show the batch headers of a segment, or what a snapshot holds. Exit code 1 where the file is damaged."""
    try:
        if file.suffix == ".log":
            _dump_segment(file, records=records, as_json=as_json)
        elif file.suffix == ".snapshot":
            _dump_snapshot(file, as_json=as_json)
        else:
            fail(f"{file}: a segment (.log) or a snapshot (.snapshot) is expected", EXIT_USAGE)
    except OSError as error:
        fail(f"{file}: {error.strerror or error}")


def _dump_segment(path: Path, *, records: bool, as_json: bool) -> None:
    from fencepost_proto.protocol.errors import FencepostError
    from fencepost_proto.protocol.records import read_records

    batches = bytes_read = record_count = 0
    try:
        for found in read_batches(path):
            batches, bytes_read = batches + 1, bytes_read + found.header.size_bytes
            record_count += found.header.record_count
            typer.echo(_batch_json(found) if as_json else _batch_line(found))
            for record in read_records(found.data) if records else ():
                typer.echo(_record_json(record) if as_json else _record_line(record))
    except FencepostError as error:
        fail(f"{path} is damaged at byte {bytes_read}: {error}")
    if not as_json:
        typer.echo(f"{batches} batches, {record_count} records, {bytes_read} bytes")


def _batch_json(found: FoundBatch) -> str:
    return json.dumps({"position": found.position, **found.header._asdict(), "size_bytes": found.header.size_bytes})


def _batch_line(found: FoundBatch) -> str:
    from fencepost_proto.protocol.records import Compression

    header = found.header
    producer = "no producer"
    if header.idempotent:
        sequences = f"sequences {header.base_sequence}-{header.last_sequence}"
        producer = f"producer {header.producer_id} epoch {header.producer_epoch} {sequences}"
    codec = header.attributes & _COMPRESSION
    known = codec in Compression._value2member_map_
    compression = Compression(codec).name.lower() if known else f"codec {codec}"
    return (
        f"offsets {header.base_offset}-{header.last_offset} at byte {found.position}: {header.record_count} records, "
        f"{header.size_bytes} bytes, leader epoch {header.leader_epoch}, {producer}, "
        f"max timestamp {header.max_timestamp}, compression {compression}, crc {header.crc:#010x}"
    )


def _record_json(record: Record) -> str:
    return json.dumps(
        {
            "offset": record.offset,
            "timestamp_ms": record.timestamp_ms,
            "key": _text(record.key),
            "value": _text(record.value),
        }
    )


def _record_line(record: Record) -> str:
    return f"    {record.offset}: key {_shown(record.key)} value {_shown(record.value)}"


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode(errors="backslashreplace")


def _shown(data: bytes | None) -> str:
    if data is None:
        return "null"
    text = repr(data[:_SHOWN_BYTES])[1:]
    return text + (f"… ({len(data)} bytes)" if len(data) > _SHOWN_BYTES else "")


def _dump_snapshot(path: Path, *, as_json: bool) -> None:
    from fencepost_node.log.snapshot import decode_snapshot
    from fencepost_node.producers.producer_state_machine import PRODUCERS
    from fencepost_node.state_machines import machines_of_folder
    from fencepost_proto.protocol.errors import FencepostError

    try:
        snapshot = decode_snapshot(path.read_bytes(), machines_of_folder(path.resolve().parent.name))
    except FencepostError as error:
        fail(f"{path} is damaged: {error}")
    producers = sorted(snapshot.states[PRODUCERS].items())
    if not as_json:
        typer.echo(f"producer state at offset {snapshot.offset}: {len(producers)} producers")
    for producer_id, entry in producers:
        batches = [
            {
                "first_sequence": batch.first_sequence,
                "last_sequence": batch.last_sequence,
                "base_offset": batch.base_offset,
                "timestamp_ms": batch.timestamp_ms,
            }
            for batch in entry.batches
        ]
        if as_json:
            told = {"producer_id": producer_id, "producer_epoch": entry.epoch, "batches": batches}
            typer.echo(json.dumps(told))
            continue
        typer.echo(f"producer {producer_id} epoch {entry.epoch}")
        for batch in entry.batches:
            typer.echo(
                f"    sequences {batch.first_sequence}-{batch.last_sequence} at offset {batch.base_offset}, "
                f"timestamp {batch.timestamp_ms}"
            )
