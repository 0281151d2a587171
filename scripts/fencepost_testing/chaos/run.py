"""One chaos run, from an empty folder to a verdict.

    REPORT/cluster/     the cluster's folder (removed after an exact run, unless it is to be kept)
    REPORT/clients/     the configuration of each client process
    REPORT/history/     what each client recorded
    REPORT/logs/        what each process logged
    REPORT/nemesis.jsonl, resumed.jsonl

What ends the faults early (a process that does not come back) still leads to the ending and its checks.
"""

from __future__ import annotations

import asyncio
import operator
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fencepost import AdminClient, Consumer
from fencepost.history import History
from fencepost.history_format import from_line
from fencepost_proto.protocol.errors import FencepostError
from fencepost_testing.chaos.client_config import EXIT_FENCED
from fencepost_testing.chaos.cuts import CuttableNetwork, make_network
from fencepost_testing.chaos.fault_cuts import FaultCuts
from fencepost_testing.chaos.faults import Party
from fencepost_testing.chaos.fleet import Fleet, Target
from fencepost_testing.chaos.measure import Measure
from fencepost_testing.chaos.nemesis import RESTART_TIMEOUT_S, Executor, party_of
from fencepost_testing.chaos.nemesis_log import NemesisLog
from fencepost_testing.chaos.network import Network
from fencepost_testing.chaos.result import ChaosOptions, ChaosResult
from fencepost_testing.chaos.resumed import Overruled, ResumeAnswer, ResumedCheck
from fencepost_testing.chaos.roles import groups_of, roles
from fencepost_testing.chaos.schedule import REPLICATION_FACTOR, Shape, make_schedule
from fencepost_testing.cluster_folder import nodes_of, told_controllers
from fencepost_testing.exactly_once import ExactlyOnce, judge, judge_history
from fencepost_testing.failures import CommandFailed, leaves
from fencepost_testing.kafka_clients import FENCEPOST
from fencepost_testing.local_cluster import AsyncLocalCluster, Node
from fencepost_testing.member import log_tail
from fencepost_testing.processes import NetworkPlace
from fencepost_testing.read_back import read_everything
from fencepost_testing.recorded_election import OPERATOR
from fencepost_testing.topic_waits import Settled, wait_in_sync, wait_moved, wait_settled, wait_writable
from fencepost_testing.waiting import until

TOPIC = "chaos"
OPERATORS_HISTORY = "operator.jsonl"
MIN_INSYNC_REPLICAS = 2
SEGMENT_BYTES = 1 << 18  # small, so that segments roll and snapshots are written
CONTROLLER_SETTINGS = {"session_timeout_ms": 1_500, "heartbeat_interval_ms": 300, "preferred_leader_interval_ms": 5_000}
BROKER_SETTINGS = {
    "snapshot_interval_bytes": 256 * 1024,
    "replica_lag_time_max_ms": 3_000,
    "scrub_interval_ms": 1_500,  # a flipped byte is found soon
    "group_consumer_session_timeout_ms": 6_000,  # as those of the classic members
    "group_consumer_heartbeat_interval_ms": 500,
}
IN_SYNC_TIMEOUT_S = 90.0
FINISH_TIMEOUT_S = 90.0  # for the clients' last records: more than any delivery timeout
BEGIN_TIMEOUT_S = 30.0
HEARD_TIMEOUT_S = 60.0  # for an acknowledgement to each producer, once all is healed
GROUPS_TIMEOUT_S = 90.0  # for every group to read and commit all that is there then
_STOP_TIMEOUT_S = 30.0
_POLL_S = 0.3


def shape_of(options: ChaosOptions, *, cuts: bool) -> Shape:
    cast = roles(options.rate, options.client)
    producers = [role for role in cast if role.kind == "producer"]
    return Shape(
        options.brokers,
        options.partitions,
        tuple(role.party for role in producers if role.named),
        tuple(role.party for role in producers if not role.named),
        tuple(role.party for role in cast if role.kind == "consumer"),
        cuts,
        members=tuple(role.party for role in cast if role.kind == "member"),
        elections=options.client == FENCEPOST,  # other clients are not told what an operator has given up
        controllers=options.controllers,
    )


class Chaos:
    """`run` it once. `tell` gets one line for each thing that happens; `phase` and `count_acked` may be asked meanwhile."""

    def __init__(self, report: Path, options: ChaosOptions, tell: Callable[[str], None]) -> None:
        self.result = ChaosResult(options)
        self.phase = "starting"
        self._report = report
        self._options = options
        self._tell = tell
        self._fleet: Fleet | None = None
        self._bootstrap = ""
        self._resumed = ResumedCheck(())
        self._cluster: AsyncLocalCluster | None = None
        self._settled: Settled | None = None  # None: the run did not get to its end

    def count_acked(self) -> int:
        """Of all clients so far; their histories tell."""
        return self._fleet.count_acked() if self._fleet is not None else 0

    async def run(self) -> ChaosResult:
        started = time.monotonic()
        network = await self._network()
        try:
            await self._run_in(network)
        finally:
            if network is not None:
                network.close()
        await self._judge()
        self.result.elapsed_s = time.monotonic() - started
        return self.result

    async def _network(self) -> CuttableNetwork | None:
        result, shape = self.result, shape_of(self._options, cuts=True)
        if not self._options.cuts:
            result.no_cuts_because = "they were not asked for"
            return None
        network, result.cuts_by = await make_network(shape.parties)
        self._tell(f"the network is cut by {result.cuts_by}")
        return network

    async def _run_in(self, network: CuttableNetwork | None) -> None:
        options, result = self._options, self.result

        def place(party: Party) -> NetworkPlace | None:
            return network.place(party) if network is not None else None

        nodes = nodes_of(options.brokers, options.controllers)
        cluster = AsyncLocalCluster(
            self._report / "cluster",
            brokers=options.brokers,
            controllers=options.controllers,
            controller_overrides=CONTROLLER_SETTINGS,
            broker_overrides=BROKER_SETTINGS,
            places={node: network.place(party_of(node)) for node in nodes} if isinstance(network, Network) else None,
        )
        self._cluster = cluster
        target = Target(cluster.bootstrap, TOPIC, options.partitions, cluster.kafka_bootstrap)
        if isinstance(network, FaultCuts):
            network.attach(cluster.directory)
            target = replace(target, faults_in=str(cluster.directory))
        fleet = Fleet(self._report, options.seed, target, place=place)
        self._fleet, self._bootstrap = fleet, cluster.bootstrap
        try:
            async with cluster:
                self._tell(f"{told_controllers(options.controllers)} and {options.brokers} brokers are up")
                async with AdminClient(cluster.bootstrap) as admin:
                    await self._harm_and_heal(cluster, fleet, network, admin)
        except (FencepostError, CommandFailed) as error:
            result.problems.append(f"the run could not go on: {error}")
        finally:
            fleet.close()
            result.clients = len(fleet.processes)
            result.fenced_clients = sum(client.child.returncode == EXIT_FENCED for client in fleet.processes)
            self._gather_logs(cluster)

    async def _harm_and_heal(
        self, cluster: AsyncLocalCluster, fleet: Fleet, network: CuttableNetwork | None, admin: AdminClient
    ) -> None:
        options, result = self._options, self.result
        await admin.create_topic(
            TOPIC,
            partitions=options.partitions,
            replication_factor=min(REPLICATION_FACTOR, options.brokers),
            min_insync_replicas=MIN_INSYNC_REPLICAS,
            segment_bytes=SEGMENT_BYTES,
        )
        await wait_in_sync(admin, TOPIC)
        clients = [fleet.start(role) for role in roles(options.rate, options.client)]
        for client in clients:
            if not await fleet.wait_begun(client, BEGIN_TIMEOUT_S):
                raise CommandFailed(f"client {client.name} has not begun:\n{log_tail(client.log_file)}")
        result.started_at = time.monotonic()
        self.phase = "harming"
        await self._harm(cluster, fleet, network, admin)
        result.faults_end_s = time.monotonic() - result.started_at
        self.phase = "healing"
        self._tell("no more faults: everything is to heal")
        await cluster.start(*cluster.nodes, timeout_s=RESTART_TIMEOUT_S)
        result.healed_in_s = await wait_writable(admin, TOPIC)
        await fleet.wait_heard(HEARD_TIMEOUT_S)
        await self._wait_groups(admin)
        await wait_moved(admin)
        await wait_in_sync(admin, TOPIC, IN_SYNC_TIMEOUT_S)
        self._tell(f"writes go on in every partition after {result.healed_in_s:.1f} s, and all replicas are in sync")
        result.problems += await fleet.finish(FINISH_TIMEOUT_S)
        settled = await wait_settled(admin, TOPIC)
        self.phase = "reading"
        await self._read(cluster, fleet)
        stopped: list[Node] = [*cluster.broker_ids, *cluster.controllers]
        for node in stopped:
            code = await cluster.stop(node, timeout_s=_STOP_TIMEOUT_S)
            if code != 0:
                result.problems.append(f"{party_of(node)}: the exit code of the last clean shutdown was {code}")
        self._settled = settled

    async def _wait_groups(self, admin: AdminClient) -> None:
        """Every group gets to where the log ends now. Raises CommandFailed saying which does not."""
        groups = groups_of(self._options.client)
        if not groups:
            return
        async with Consumer(self._bootstrap, TOPIC) as consumer:
            ends = await consumer.end_offsets(consumer.assignment)

        async def behind() -> str:
            told = []
            for group in groups:
                offsets = await admin.list_group_offsets(group)
                lag = sum(max(0, end - (offsets[tp].offset if tp in offsets else 0)) for tp, end in ends.items())
                told += [f"group {group} is {lag} records behind"] if lag else []
            return ", ".join(told)

        what = "every group has committed what was there after the last fault"
        await until(behind, what, GROUPS_TIMEOUT_S, holds=operator.not_, poll_s=_POLL_S)
        self._tell(f"groups {', '.join(groups)} have read and committed everything")

    async def _harm(
        self, cluster: AsyncLocalCluster, fleet: Fleet, network: CuttableNetwork | None, admin: AdminClient
    ) -> None:
        options, result = self._options, self.result
        log = NemesisLog(self._report / "nemesis.jsonl", result.started_at, self._tell)
        schedule = make_schedule(options.seed, options.duration_s, shape_of(options, cuts=network is not None))
        history = History(self._report / "history" / OPERATORS_HISTORY, process=OPERATOR)
        executor = Executor(cluster, fleet, admin, network, log, duration_s=options.duration_s, history=history)
        try:
            async with asyncio.TaskGroup() as group:
                guard = group.create_task(executor.guard())
                await executor.run(schedule)
                await asyncio.sleep(result.started_at + options.duration_s - time.monotonic())
                guard.cancel()
            if options.client == FENCEPOST:
                await cluster.start(*cluster.nodes, timeout_s=RESTART_TIMEOUT_S)
                for words in await executor.elect_in_the_end(options.partitions):
                    self._tell(f"unclean election in the end, {words}")
        except* (FencepostError, CommandFailed) as errors:
            result.problems += [f"the faults ended early: {error}" for error in leaves(errors)]
        finally:
            result.happened, result.skipped = log.happened, log.skipped
            result.problems += executor.problems
            log.close()
            history.close()

    async def _read(self, cluster: AsyncLocalCluster, fleet: Fleet) -> None:
        if fleet.resumed_file.exists():
            lines = fleet.resumed_file.read_text().splitlines()
            told = [ResumeAnswer.from_line(line) for line in lines if line.endswith("}")]
            self._resumed = ResumedCheck(told, self._overruled())
        self._tell("reading everything, and checking the history and every replica's files")
        self.result.records_in_log = await read_everything(
            cluster.bootstrap,
            TOPIC,
            self._report / "history" / "final.jsonl",
            lambda record: self._resumed.add(record.partition, record.offset, (record.value or b"").decode()),
        )
        self.result.problems += self._resumed.finish()
        self.result.resumed = len(self._resumed.told)

    def _overruled(self) -> list[Overruled]:
        """The unclean elections that were ordered."""
        operations = map(from_line, (self._report / "history" / OPERATORS_HISTORY).read_text().splitlines())
        return [
            Overruled(operation.partition, operation.time_ns, operation.start_offset)
            for operation in operations
            if (operation.op, operation.type) == ("elect", "invoke")
        ]

    # ---- The verdict ----

    def _gather_logs(self, cluster: AsyncLocalCluster) -> None:
        for node in cluster.nodes:
            if (log := cluster.member(node).log_file).exists():
                shutil.copy(log, self._report / "logs" / f"{party_of(node)}.log")

    async def _judge(self) -> None:
        """The log, and what must have happened for the verdict to mean anything."""
        result = self.result
        self.phase = "judging"
        await self._check_log()
        await asyncio.to_thread(self._look_for_accidents)
        if not result.happened:
            result.problems.append("no fault was carried out")
        if groups_of(self._options.client) and result.history is not None and not result.history.commits:
            result.problems.append("no member of a group has committed anything")
        own_only = self._options.client == FENCEPOST  # others do not show sequence numbers
        if own_only and result.history is not None and result.history.stamped < result.history.acked:
            result.problems.append(
                f"the sequence numbers of {result.history.stamped} sends are known, not of all that were acknowledged"
            )
        if result.history is not None and result.history.final_reads != self._options.partitions:
            result.problems.append(f"{result.history.final_reads} partitions were read whole, not all")
        if result.records_in_files != result.records_in_log:
            result.problems.append(
                f"{result.records_in_files} records in the segment files, {result.records_in_log} were read"
            )

    async def _check_log(self) -> None:
        """Every replica's files, as their brokers left them, and what all clients recorded."""
        result, found = self.result, ExactlyOnce(TOPIC)
        files = sorted((self._report / "history").glob("*.jsonl"))
        measure = Measure(round(result.started_at * 1e9))
        if self._cluster is not None and self._settled is not None:
            found = await judge(self._cluster, TOPIC, settled=self._settled, history=files, on_operation=measure.add)
        else:
            await asyncio.to_thread(judge_history, found, files, on_operation=measure.add)
        result.findings, result.history, result.measure = found.files, found.history, measure
        result.replicas_checked, result.records_in_files = found.replicas_checked, found.records
        if found.history is None:
            result.problems += found.problems

    def _look_for_accidents(self) -> None:
        """No process of ours may have met what its code does not foresee. Clients of others log what they like."""
        foreign = {role.party for role in roles(0, self._options.client) if role.client != FENCEPOST}
        for log in sorted((self._report / "logs").glob("*.log")):
            if log.name.partition(".")[0] in foreign:
                continue
            lines = log.read_text(errors="replace").splitlines()
            accidents = [line for line in lines if line.startswith("Traceback") or "InvariantBroken" in line]
            if accidents:
                self.result.problems.append(f"logs/{log.name} has {len(accidents)} tracebacks or broken invariants")
