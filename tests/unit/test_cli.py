"""The command line's own rules: help everywhere, targets, defaults, errors without a traceback."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from fencepost_cli.commands import dump_log
from fencepost_cli.main import app
from fencepost_cli.status import show_status
from fencepost_cli.terminal import table
from fencepost_node.producers.producer_state import ProducerState
from fencepost_proto.protocol.record_batch import read_header, stamp
from fencepost_proto.protocol.records import BatchBuilder, Compression
from fencepost_testing.cluster_status import ClusterStatus, PartitionStatus, ProcessStatus
from fencepost_testing.local_cluster import AsyncLocalCluster
from tests.unit.logs import snapshot_bytes

ROOT = Path(__file__).parents[2]


def commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    below = [
        found
        for name, child in sorted(getattr(command, "commands", {}).items())
        for found in commands(child, (*path, name))
    ]
    return [(path, command), *below]


ALL = commands(typer.main.get_command(app))


@pytest.mark.parametrize("path", [path for path, _ in ALL], ids=lambda path: " ".join(path) or "fencepost")
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    assert "Example: " in result.output


def test_every_command_that_help_names_exists() -> None:
    known = {path for path, _ in ALL}
    groups = {path for path, command in ALL if hasattr(command, "commands")}
    named = {
        (path, tuple(filter(None, words)))
        for path, command in ALL
        for words in re.findall(r"'fencepost ([a-z-]+)(?: ([a-z-]+))?", f"{command.help} {command.epilog}")
    }
    assert named
    assert [(path, words) for path, words in named if words not in known and words[:1] not in known - groups] == []


def test_every_option_says_what_it_is_for() -> None:
    silent = [
        (path, parameter.name)
        for path, command in ALL
        for parameter in command.params
        if not getattr(parameter, "help", None)
    ]
    assert silent == []


def test_help_starts_without_loading_grpc() -> None:
    heavy = ("grpc", "fencepost", "fencepost_node", "aiokafka")
    program = f"import sys, fencepost_cli.main; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_a_cluster_commands_say_how_to_get_one(tmp_path: Path) -> None:
    for command in (["cluster", "status"], ["cluster", "kill", "1"], ["cluster", "down"]):
        result = CliRunner().invoke(app, [*command, "--data-dir", str(tmp_path / "none")])
        assert result.exit_code == 1
        assert "fencepost cluster up" in result.output
        assert "Traceback" not in result.output
    assert not (tmp_path / "none").exists(), "a command that only looks leaves nothing behind"


def test_the_page_wants_addresses_of_brokers() -> None:
    result = CliRunner().invoke(app, ["ui", "--no-browser", "--bootstrap", "nonsense"])
    assert result.exit_code == 2
    assert "bootstrap address 'nonsense' is not host:port" in result.output


def test_no_command_waits_for_a_cluster_that_is_down(tmp_path: Path) -> None:
    AsyncLocalCluster(tmp_path, brokers=1, owned=False).close()
    result = CliRunner().invoke(app, ["topic", "list", "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert f"no broker of the cluster in {tmp_path} runs: start it with 'fencepost cluster up'" in result.output


def test_tables_are_folded_on_a_narrow_terminal_and_nothing_is_cut() -> None:
    narrow = Console(width=30, file=io.StringIO())
    shown = table("topic", "log end", numbers=("log end",))
    shown.add_row("a-rather-long-name-of-a-topic", "12345678901")
    narrow.print(shown)
    assert isinstance(narrow.file, io.StringIO)
    text = narrow.file.getvalue()
    assert "…" not in text
    assert sorted(c for c in text if c.isdigit()) == sorted("12345678901")


# ---- cluster status ----


def status_with(partition: PartitionStatus, cluster_id: str = "c") -> ClusterStatus:
    broker = ProcessStatus("broker 1", "127.0.0.1:1", "running")
    return ClusterStatus(cluster_id, [broker], [partition], active_controller="controller")


def test_a_cluster_is_healthy_only_where_a_broker_answers_and_every_replica_can_be_served() -> None:
    led = PartitionStatus("orders", 0, 1, 0, [1], [1])
    assert status_with(led).healthy
    assert not replace(status_with(led), active_controller="").healthy
    assert not status_with(led, cluster_id="").healthy
    assert not status_with(PartitionStatus("orders", 0, -1, 1, [1], [1])).healthy
    assert not status_with(PartitionStatus("orders", 0, 1, 0, [1, 2], [1], failures={2: "no space"})).healthy


def test_status_says_why_a_partition_has_no_leader_and_what_to_do() -> None:
    out = Console(width=100, file=io.StringIO())
    show_status(status_with(PartitionStatus("orders", 2, -1, 1, [1, 3], [3])), out)
    show_status(status_with(PartitionStatus("orders", 4, -1, 1, [1, 3], [], last_known_isr=[3, 1])), out)
    assert isinstance(out.file, io.StringIO)
    text = out.file.getvalue()
    assert "orders-2 has no leader until broker 3 is back" in text
    assert "orders-4 has no leader: broker 3 or 1, the last in sync, may have lost acknowledged records" in text
    assert "fencepost topic elect orders 4 --unclean" in text


# ---- dump-log ----


def batch(base_offset: int, sequence: int, values: list[bytes], compression: Compression = Compression.NONE) -> bytes:
    builder = BatchBuilder(compression, 10_000)
    for value in values:
        builder.append(1_700_000_000_000, b"k", value, [])
    return stamp(builder.build(7, 2, sequence), base_offset, 5)


def dump(path: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["dump-log", str(path), *options])


def test_a_segment_is_shown_batch_by_batch(tmp_path: Path) -> None:
    path = tmp_path / "00000000000000000040.log"
    path.write_bytes(batch(40, 3, [b"a", b"b"]) + batch(42, 5, [b"c"], Compression.ZSTD))
    result = dump(path)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("offsets 40-41 at byte 0: 2 records")
    assert "leader epoch 5, producer 7 epoch 2 sequences 3-4" in lines[0]
    assert "compression zstd" in lines[1]
    assert lines[2].startswith("2 batches, 3 records, ")
    assert "    42: key b'k' value b'c'".replace("b'", "'") in dump(path, "--records").output
    told = [json.loads(line) for line in dump(path, "--json").output.splitlines()]
    assert [(line["base_offset"], line["base_sequence"], line["producer_id"]) for line in told] == [
        (40, 3, 7),
        (42, 5, 7),
    ]


@pytest.mark.parametrize("chunk_bytes", [1, 61, 100, 8_000])
def test_a_segment_is_read_whole_whatever_the_size_of_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(dump_log, "_READ_BYTES", chunk_bytes)
    path = tmp_path / "00000000000000000000.log"
    path.write_bytes(b"".join(batch(n, n, [b"x" * n]) for n in range(30)))
    assert [found.header.base_offset for found in dump_log.read_batches(path)] == list(range(30))


def test_a_damaged_segment_is_shown_up_to_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "00000000000000000000.log"
    first, second = batch(0, 0, [b"a"]), batch(1, 1, [b"b"])
    for damaged in (second[:-1], second[:-1] + b"?", second[:20], b"\0" * 70):
        path.write_bytes(first + damaged)
        result = dump(path)
        assert result.exit_code == 1
        assert result.output.startswith("offsets 0-0 at byte 0")
        assert f"is damaged at byte {len(first)}" in result.output


def test_a_snapshot_is_shown_producer_by_producer(tmp_path: Path) -> None:
    producers = ProducerState()
    for sequence in range(3):
        producers.record(read_header(batch(sequence, sequence, [b"a"])), sequence)
    path = tmp_path / "00000000000000000003.snapshot"
    path.write_bytes(snapshot_bytes(3, producers))
    lines = dump(path).output.splitlines()
    assert lines[:3] == [
        "producer state at offset 3: 1 producers",
        "producer 7 epoch 2",
        "    sequences 0-0 at offset 0, timestamp 1700000000000",
    ]
    assert json.loads(dump(path, "--json").output)["batches"][2]["base_offset"] == 2
    path.write_bytes(path.read_bytes()[:-1])
    assert dump(path).exit_code == 1


def test_other_files_are_refused(tmp_path: Path) -> None:
    assert dump(tmp_path / "00000000000000000000.index").exit_code == 2
    assert dump(tmp_path / "missing.log").exit_code == 1
