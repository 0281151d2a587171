"""Histories of real clients through a failover, judged by the history checker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fencepost import AdminClient, Consumer, History, Producer
from fencepost.history_format import RecordStamp, from_line
from fencepost_testing.faults.lossy_wire import lossy_host
from fencepost_testing.history_check import Anomaly, check_history
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.log_check.ledger import Ledger
from fencepost_testing.read_back import read_to_end
from fencepost_testing.topic_waits import wait_in_sync
from fencepost_testing.workload import Workload, WorkloadSpec
from tests.integration.command_line import Shell
from tests.integration.running import TOPIC

Run = Callable[[Coroutine[Any, Any, None]], None]
ClusterFactory = Callable[..., AsyncLocalCluster]
RECORDS = 2_000


def test_what_clients_recorded_through_a_failover_is_clean_and_what_is_damaged_in_it_is_found(
    run: Run, cluster: AsyncLocalCluster
) -> None:
    lines: list[str] = []

    async def scenario() -> None:
        async with AdminClient(cluster.bootstrap) as admin:
            await admin.create_topic(TOPIC, partitions=2, replication_factor=3, min_insync_replicas=2)
            ledger = Ledger("recorded")
            history = History(lines.append, process="producer")
            async with Producer(cluster.bootstrap, history=history, host=lossy_host(drop_acks=0.05)) as producer:
                workload = Workload(producer, WorkloadSpec(TOPIC, keys=20, rate=2_000, count=RECORDS), ledger)
                working = asyncio.create_task(workload.run(asyncio.Event()))
                await workload.wait_sent(RECORDS // 3)
                await cluster.kill((await admin.describe_topic(TOPIC)).partitions[0].leader)
                await working
            assert ledger.acked == RECORDS
            reader = History(lines.append, process="reader")
            async with Consumer(cluster.bootstrap, TOPIC, history=reader) as consumer:
                await read_to_end(consumer, lambda _: None)
            for node in cluster.broker_ids:
                if not cluster.running(node):
                    await cluster.restart(node)
            await wait_in_sync(admin, TOPIC)

    run(scenario())
    verdict = check_history(lines)
    assert verdict.clean, verdict.to_json()
    polled = [line for line in lines if json.loads(line)["op"] == "poll" and json.loads(line).get("value")]
    spoilt = [line for line in lines if line != polled[len(polled) // 2]]
    assert not check_history(spoilt).clean, "a record that no one polled, below others that were, is found"
    check_stamps(lines)


def test_a_workload_of_the_command_line_records_what_can_be_checked(
    run: Run, cluster_factory: ClusterFactory, tmp_path: Path
) -> None:
    sent, read = str(tmp_path / "sent.jsonl"), str(tmp_path / "read.jsonl")

    async def scenario() -> None:
        async with cluster_factory(brokers=3) as cluster:
            shell = Shell(tmp_path)
            where = ("--bootstrap", cluster.bootstrap)
            await asyncio.to_thread(shell.ok, "workload", "produce", TOPIC, "--count", "500", "--history", sent, *where)
            await asyncio.to_thread(shell.ok, "workload", "consume", TOPIC, "--until-end", "--history", read, *where)

    run(scenario())
    shell = Shell(tmp_path)
    told = json.loads(shell.ok("check", "--json", sent, read).splitlines()[-1])
    assert (told["acked"], told["stamped"], told["records_read"]) == (500, 500, 500)
    unread = shell.run("check", "--json", sent)
    assert unread.returncode == 1
    assert json.loads(unread.stdout.splitlines()[-1])["anomalies"] == {"unseen": 500}


def check_stamps(lines: list[str]) -> None:
    """Every acknowledgement carries the stamp that brokers know its record by, and the checker judges by them."""
    operations = [from_line(line) for line in lines]
    acked = [index for index, line in enumerate(operations) if line.op == "send" and line.type == "ok"]
    sequences: dict[int, list[int]] = {0: [], 1: []}
    for index in acked:
        stamp = operations[index].producer
        assert stamp is not None
        assert stamp.epoch == 0
        sequences[operations[index].partition].append(stamp.sequence)
    for partition, of_partition in sequences.items():
        assert sorted(of_partition) == list(range(len(of_partition))), partition

    def at(sequence: int) -> int:
        """The acknowledgement of partition 0 with this sequence."""
        return next(i for i in acked if operations[i].partition == 0 and operations[i].producer == stamp_of(sequence))

    def stamp_of(sequence: int) -> RecordStamp:
        stamp = operations[acked[0]].producer
        assert stamp is not None
        return stamp._replace(sequence=sequence)

    def damaged(changes: dict[int, int]) -> set[Anomaly]:
        """What is found where these sequences are others."""
        changed = {at(sequence): stamp_of(wrong) for sequence, wrong in changes.items()}
        return set(
            check_history(
                [line._replace(producer=changed.get(index, line.producer)) for index, line in enumerate(operations)]
            ).counts
        )

    assert Anomaly.DUPLICATE in damaged({100: 99})
    assert Anomaly.SEQUENCE_GAP in damaged({100: 1_000_000})
    assert Anomaly.REORDERED in damaged({100: 101, 101: 100})
