"""The main job on real processes: a workload goes on while the leaders under it are killed, one after another.

One producer writes keyed records at a steady rate; a consumer reads along. Acknowledgements are dropped on purpose, so
that batches are sent again which the log already has. For every kill the current leader of a partition gets SIGKILL;
once writes to that partition have resumed, the broker is started again, and once all replicas are in sync the next
leader's turn comes. At the end everything is read back from the cluster, the history of all these clients is checked
(`history_check`), and so are the segment files of every replica.

The clients are Fencepost's own, or one of Kafka's (`demo_clients`): then the consumer is a member of a group, and instead of
an acknowledgement a connection is cut after an append.
"""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

from fencepost import AdminClient
from fencepost.history import FILE_BUFFER_BYTES
from fencepost_cli.demo_clients import ClientCounts, DemoClients, demo_clients
from fencepost_proto.protocol.errors import FencepostError
from fencepost_testing.exactly_once import ExactlyOnce, judge
from fencepost_testing.failover import AckWatch, Failover, kill_leader
from fencepost_testing.failures import CommandFailed, leaves
from fencepost_testing.kafka_clients import FENCEPOST
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.log_check.findings import Findings, Kind
from fencepost_testing.log_check.ledger import Ledger
from fencepost_testing.member import ACTIVE_CONTROLLER
from fencepost_testing.read_back import read_everything
from fencepost_testing.topic_waits import Settled, wait_in_sync, wait_settled
from fencepost_testing.workload import RecordSender, Workload, WorkloadSpec

TOPIC = "demo"
HISTORY_FILE = "history.jsonl"  # in the cluster's folder
REPLICATION_FACTOR = 3
MIN_INSYNC_REPLICAS = 2
KEYS = 50
DROPPED_ACKS = 0.02  # share of the answers that the client throws away; more where there are few
MAX_DROPPED_ACKS = 0.25
WANTED_DROPPED_ACKS = 40
SURE_OF_DUPLICATES = 1_000  # records: with so many, some answer was thrown away and the batch sent again
SECONDS_PER_KILL = 2.0  # of workload, at the rate that follows from it
MAX_WORKLOAD_S = 40.0
KILL_AT_SHARE = 0.2  # of the records between two kills
AFTER_KILL_SHARE = 0.2  # … those that are sent after it in any case, however slow this machine is to kill


@dataclass(frozen=True, slots=True)
class DemoOptions:
    brokers: int = 3
    partitions: int = 3
    records: int = 20_000
    record_size_bytes: int = 100
    kills: int = 3
    seed: int = 0
    client: str = FENCEPOST
    controllers: int = 1

    @property
    def rate(self) -> float:
        """Records a second: so slow that each kill meets a running workload."""
        return self.records / min(MAX_WORKLOAD_S, SECONDS_PER_KILL * self.kills + 1)

    @property
    def dropped_acks(self) -> float:
        """The probability that the client throws an answer away."""
        return min(MAX_DROPPED_ACKS, max(DROPPED_ACKS, WANTED_DROPPED_ACKS / self.records))

    def clients(self, cluster: AsyncLocalCluster) -> AbstractAsyncContextManager[DemoClients]:
        """Of a cluster that is not up yet."""
        return demo_clients(cluster, self.client, seed=self.seed, drop_acks=self.dropped_acks)


@dataclass(slots=True)
class DemoResult:
    """Everything that the verdict is made of."""

    options: DemoOptions
    records_sent: int = 0
    records_acked: int = 0
    records_in_log: int = 0
    records_read_along: int = 0
    counts: ClientCounts = field(default_factory=ClientCounts)
    replicas_checked: int = 0
    failovers: list[Failover] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    problems: list[str] = field(default_factory=list)  # what did not happen as it should have, beyond the log's content
    elapsed_s: float = 0.0

    @property
    def ok(self) -> bool:
        return self.findings.clean and not self.problems

    def to_json(self, data_dir: str) -> dict[str, Any]:
        counts = self.findings.counts
        return {
            "ok": self.ok,
            "records_sent": self.records_sent,
            "records_acked": self.records_acked,
            "records_in_log": self.records_in_log,
            **{kind.value: counts[kind] for kind in Kind},
            "client": self.options.client,
            "retried_batches": self.counts.retried_batches,
            "deduplicated_batches": self.counts.deduplicated_batches,
            "dropped_acks": self.counts.dropped_acks,
            "leader_kills": len(self.failovers),
            "unavailable_ms": [round(failover.unavailable_ms, 1) for failover in self.failovers],
            "controller_take_over_ms": [
                round(failover.controller.within_ms, 1) for failover in self.failovers if failover.controller
            ],
            "replicas_checked": self.replicas_checked,
            "problems": [*self.problems, *self.findings.examples],
            "elapsed_s": round(self.elapsed_s, 2),
            "data_dir": data_dir,
        }


class Demo:
    """One run over a cluster that is up. `tell` gets one line for each thing that happens."""

    def __init__(
        self, cluster: AsyncLocalCluster, clients: DemoClients, options: DemoOptions, tell: Callable[[str], None]
    ) -> None:
        self.cluster = cluster
        self.options = options
        self._clients = clients
        self.result = DemoResult(options)
        self.ledger = Ledger(f"{random.Random(options.seed).randrange(16**8):08x}")
        self._tell = tell
        self._acks = AckWatch()
        self.history_file = cluster.directory / HISTORY_FILE  # requests of the clients, and the answers
        self._history_lines: IO[str] = io.StringIO()
        self._judged = ExactlyOnce(TOPIC)

    async def run(self) -> DemoResult:
        """Raises FencepostError and CommandFailed where the run itself cannot go on."""
        started = time.monotonic()
        try:
            async with AdminClient(self.cluster.bootstrap) as admin:
                settled = await self._make_history(admin)
            await self._judge(settled)
            self._check_story()
        finally:
            self.result.elapsed_s = time.monotonic() - started
        return self.result

    async def _make_history(self, admin: AdminClient) -> Settled:
        """All that clients do, recorded in one file: they share the event loop, so its lines are in their order."""
        options, bootstrap = self.options, self.cluster.bootstrap
        with self.history_file.open("w", encoding="utf-8", buffering=FILE_BUFFER_BYTES) as self._history_lines:
            await admin.create_topic(
                TOPIC,
                partitions=options.partitions,
                replication_factor=REPLICATION_FACTOR,
                min_insync_replicas=MIN_INSYNC_REPLICAS,
            )
            await wait_in_sync(admin, TOPIC)
            await self._produce_through_failovers(admin)
            self._tell("reading everything back, and checking every replica's files")
            settled = await self._wait_settled(admin)
            self.result.records_in_log = await read_everything(bootstrap, TOPIC, self.record)
        return settled

    def record(self, line: str) -> None:
        """One line of the history."""
        self._history_lines.write(line + "\n")

    # ---- While it runs ----

    async def _produce_through_failovers(self, admin: AdminClient) -> None:
        options, result, clients = self.options, self.result, self._clients
        spec = WorkloadSpec(
            TOPIC,
            record_size_bytes=options.record_size_bytes,
            keys=KEYS,
            rate=options.rate,
            count=options.records,
            seed=options.seed,
        )
        written = asyncio.Event()
        try:
            async with clients.producer(self.record) as producer, asyncio.TaskGroup() as tasks:
                workload = Workload(producer, spec, self.ledger, on_acked=self._acks)
                workload.allow(0)
                tasks.create_task(self._read_along(written))
                tasks.create_task(self._fail_over(admin, workload))
                await workload.run(asyncio.Event())
                written.set()
        except* (FencepostError, CommandFailed) as group:
            raise leaves(group)[0] from None
        finally:
            result.records_sent, result.records_acked = self.ledger.sent, self.ledger.acked
            result.counts = clients.counts()
        for name, count in workload.failed.items():
            result.problems.append(f"{count} records failed with {name}: {workload.last_error}")

    async def _fail_over(self, admin: AdminClient, workload: Workload[RecordSender]) -> None:
        """The workload may send one share of its records for each kill, and one more after the last."""
        options = self.options
        share = options.records / (options.kills + 1)
        for number in range(options.kills):
            allow_all = partial(workload.allow, round(share * (number + 1)))
            workload.allow(round(share * (number + 1 - AFTER_KILL_SHARE)))
            await workload.wait_sent(round(share * (number + KILL_AT_SHARE)))
            partition = number % options.partitions
            active = await self.cluster.resolve(ACTIVE_CONTROLLER) if options.controllers > 1 else None
            failover = await kill_leader(
                self.cluster, admin, TOPIC, partition, self._acks, controller=active, on_killed=allow_all
            )
            self.result.failovers.append(failover)
            self._tell(
                f"kill -9 of broker {failover.killed}, leader of {TOPIC}-{partition}: "
                f"writes resumed after {failover.unavailable_ms:.0f} ms"
            )
            if change := failover.controller:
                self._tell(
                    f"kill -9 of {change.killed}, the active one, in the same instant: {change.active} was active "
                    f"after {change.within_ms:.0f} ms"
                )
                await self.cluster.start(change.killed)
            await self.cluster.restart(failover.killed)
            await wait_in_sync(admin, TOPIC)
            self._tell(f"broker {failover.killed} is back, all replicas in sync")
        workload.allow(options.records)

    async def _read_along(self, written: asyncio.Event) -> None:
        """Read while others write; then to the end."""
        self.result.records_read_along = await self._clients.read_along(TOPIC, self.record, written)

    # ---- The verdict ----

    async def _wait_settled(self, admin: AdminClient) -> Settled:
        """Once every replica has all, and knows that it is committed."""
        return await wait_settled(admin, TOPIC)

    async def _judge(self, settled: Settled) -> None:
        """Every replica's files, what the clients recorded, and a consumer that has seen nothing yet."""
        result = self.result
        found = self._judged = await judge(
            self.cluster, TOPIC, settled=settled, history=[self.history_file], one_partition_per_key=True
        )
        result.findings, result.replicas_checked = found.findings, found.replicas_checked
        result.problems += found.problems

    def _check_story(self) -> None:
        """Beyond the log's content: did all that was to happen happen?"""
        result, options, history = self.result, self.options, self._judged.history
        expected = {
            "records sent": (result.records_sent, options.records),
            "records acknowledged": (result.records_acked, options.records),
            "records acknowledged in the history": (history.acked if history else 0, options.records),
            "partitions read whole": (history.final_reads if history else 0, options.partitions),
            "records in the log": (result.records_in_log, options.records),
            "records in the segment files": (self._judged.records, options.records),
            "records read along": (result.records_read_along, options.records),
            "leaders killed": (len(result.failovers), options.kills),
            "active controllers killed": (
                sum(failover.controller is not None for failover in result.failovers),
                options.kills if options.controllers > 1 else 0,
            ),
        }
        for what, (is_so, should_be) in expected.items():
            if is_so != should_be:
                result.problems.append(f"{is_so} {what}, not {should_be}")
        if options.records >= SURE_OF_DUPLICATES:
            if result.counts.dropped_acks == 0:
                result.problems.append("no acknowledgement was lost, as it should have been on purpose")
            elif result.counts.deduplicated_batches == 0:
                result.problems.append("no duplicate was recognised, though acknowledgements were dropped")
        for failover in result.failovers:
            for change in failover.changes:
                where = f"{TOPIC}-{change.partition}, broker {change.leader_before} to {change.leader_after}"
                for view in change.forgotten():
                    result.problems.append(f"{where}: state of producer {view.producer_id} was forgotten")
