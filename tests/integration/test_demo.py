"""The demo, small: it is exact, says so in the promised form, leaves what it promises, and stops when it is told to."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from aiokafka.record import MemoryRecords

from fencepost import AdminClient, History
from fencepost_cli.demo import HISTORY_FILE, TOPIC, Demo, DemoOptions
from fencepost_testing.kafka_clients import AIOKAFKA, CONFLUENT_KAFKA, KAFKA_PYTHON
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.log_check.findings import Kind
from fencepost_testing.topic_waits import Settled
from fencepost_testing.waiting import until_sync
from tests.asynchronous import asynchronous
from tests.integration.command_line import Shell
from tests.integration.etcd_processes import ETCD, NO_ETCD

DEADLINE_S = 60.0

ClusterFactory = Callable[..., AsyncLocalCluster]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Running processes that name something in this folder on their command line, or have a file open there: what was
    forked has the command line of its fork server, but writes its log there, also once the folder was removed."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = [*(process.info["cmdline"] or []), *files_of(process.pid)]
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(word.startswith(f"{folder}/") for word in words):
            found.append(process)
    return found


def files_of(pid: int) -> list[str]:
    """What it has open, removed files too, which psutil leaves out. (Only Linux has fork servers.)"""
    names = []
    with contextlib.suppress(OSError):  # it ends meanwhile
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                names.append(os.readlink(link))
    return names


def test_the_demo_is_exact_and_its_data_can_be_read_by_others(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    options = ["--records", "3000", "--kills", "2", "--seed", "7", "--keep", "--json", "--data-dir", str(folder)]
    output = Shell(tmp_path).ok("demo", *options)
    told = json.loads(output.splitlines()[-1])
    assert told["ok"] is True, told["problems"]
    assert told["records_sent"] == told["records_acked"] == told["records_in_log"] == 3000
    assert [told[kind] for kind in ("lost", "duplicated", "reordered", "gaps")] == [0, 0, 0, 0]
    assert told["leader_kills"] == len(told["unavailable_ms"]) == 2
    assert told["retried_batches"] >= told["deduplicated_batches"] > 0
    assert told["data_dir"] == str(folder)
    assert told["elapsed_s"] > 0
    assert "EXACT" in output
    assert "before" in output
    assert processes_of(folder) == []
    assert "3000 acknowledged" in (checked := Shell(tmp_path).ok("check", str(folder / HISTORY_FILE)))
    assert "CLEAN" in checked
    for broker in (1, 2, 3):
        assert sum(count_records(path) for path in (folder / f"broker-{broker}").glob("demo-*/*.log")) == 3000


@pytest.mark.skipif(ETCD is None, reason=NO_ETCD)
def test_the_active_controller_dies_with_each_leader_and_the_demo_is_exact(tmp_path: Path) -> None:
    output = Shell(tmp_path).ok("demo", "--controllers", "3", "--records", "1500", "--kills", "2", "--json")
    told = json.loads(output.splitlines()[-1])
    assert told["ok"] is True, told["problems"]
    assert (told["leader_kills"], len(told["controller_take_over_ms"])) == (2, 2)
    assert "the active one, in the same instant" in output


def test_without_etcd_the_demo_says_how_to_install_it(tmp_path: Path) -> None:
    message = Shell(tmp_path, extra={"PATH": str(tmp_path)}).fails("demo", "--controllers", "3")
    assert "etcd, which is not installed: sudo apt-get install etcd-server" in message


@pytest.mark.parametrize(
    "client",
    [
        CONFLUENT_KAFKA,
        pytest.param(KAFKA_PYTHON, marks=pytest.mark.long),
        pytest.param(AIOKAFKA, marks=pytest.mark.long),
    ],
)
def test_the_demo_is_exact_with_clients_of_others(client: str, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    options = ["--client", client, "--records", "1500", "--kills", "1", "--keep", "--json", "--data-dir", str(folder)]
    told = json.loads(Shell(tmp_path).ok("demo", *options).splitlines()[-1])
    assert told["ok"] is True, told["problems"]
    assert told["records_sent"] == told["records_acked"] == told["records_in_log"] == 1500
    assert told["client"] == client
    assert told["dropped_acks"] > 0, "a connection was cut after an append"
    assert "1500 acknowledged" in (checked := Shell(tmp_path).ok("check", str(folder / HISTORY_FILE)))
    assert "CLEAN" in checked
    assert processes_of(folder) == []


def test_an_unknown_client_is_refused_by_name(tmp_path: Path) -> None:
    assert "--client 'sarama'" in Shell(tmp_path).fails("demo", "--client", "sarama", code=2)


def count_records(segment: Path) -> int:
    """By another project's reader of Kafka record batches."""
    records, count = MemoryRecords(segment.read_bytes()), 0
    while (batch := records.next_batch()) is not None:
        assert batch.validate_crc()
        count += sum(1 for _ in batch)
    return count


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    assert "is not empty" in Shell(tmp_path).fails("demo", "--data-dir", str(tmp_path), code=2)
    assert (tmp_path / "mine").read_text() == "precious"


def test_an_interrupted_demo_leaves_no_process_and_no_data(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo = Shell(tmp_path).start("demo", "--records", "100000", "--data-dir", str(folder))
    try:
        assert demo.stdout is not None
        assert "are up in" in demo.stdout.readline()
        assert len(processes_of(folder)) >= 4
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=DEADLINE_S)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode == 130
    assert "Traceback" not in errors
    until_sync(lambda: processes_of(folder), "no process is left", DEADLINE_S, holds=operator.not_, poll_s=0.05)
    assert not folder.exists()


class Tampered(Demo):
    """Between the workload and the verdict: a byte on one disk changes, and one more record was "acknowledged"."""

    async def _wait_settled(self, admin: AdminClient) -> Settled:
        settled = await super()._wait_settled(admin)
        history = History(self.record, process="another")
        history.complete_send(history.invoke_send(TOPIC, None, None, b"never appended"), TOPIC, 0, -1)
        segment = next((self.cluster.member(2).directory / f"{TOPIC}-0").glob("*.log"))
        with segment.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        return settled


@asynchronous
async def test_a_damaged_replica_and_a_missing_record_spoil_the_verdict(
    cluster_factory: Callable[..., AsyncLocalCluster],
) -> None:
    cluster, options = cluster_factory(brokers=3), DemoOptions(records=1_000, kills=0)
    async with options.clients(cluster) as clients, cluster:
        result = await Tampered(cluster, clients, options, lambda _: None).run()
    assert not result.ok
    assert result.findings.counts[Kind.LOST] == 1
    assert result.findings.counts[Kind.CORRUPT] == 1
    assert result.findings.counts[Kind.DIVERGED] == 1
    assert result.to_json("")["ok"] is False
