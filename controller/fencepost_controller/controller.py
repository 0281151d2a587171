"""The controller: its parts, the order in which they start, and the order in which they end.

Start: take the image from the store, give the cluster its id where it has none, and only then listen. A broker that was live
before has a full session timeout to register again.

End: notify the brokers, refuse new commands, carry out those that wait, stop. A kill at any moment loses nothing that was
answered: an answer is sent after its commit.

What no part can handle (a broken invariant, a task that failed) is the controller's `failure` and ends the whole.
"""

from __future__ import annotations

import asyncio
import logging

import grpc

from fencepost_controller.commands import Commands
from fencepost_controller.config import ControllerConfig
from fencepost_controller.decisions.cluster import FormCluster
from fencepost_controller.decisions.elections import RestorePreferredLeaders
from fencepost_controller.decisions.producers import ExpireNames
from fencepost_controller.election_counts import ElectionCounts
from fencepost_controller.failed_replicas import FailedReplicas
from fencepost_controller.fences import Fences
from fencepost_controller.metrics import ControllerMetrics
from fencepost_controller.random_id import random_id
from fencepost_controller.recovery import new_lineage_id
from fencepost_controller.services.servicers import AdminService, ControllerService
from fencepost_controller.session_registry import SessionRegistry
from fencepost_controller.store import Store
from fencepost_proto.protocol.errors import NotController, RetriableError
from fencepost_proto.protocol.metadata import Changes, MetadataImage, Partition
from fencepost_proto.protocol.v1 import controller_pb2, controller_pb2_grpc
from fencepost_proto.runtime.failure import Failure
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.metrics.service import MetricsService
from fencepost_proto.runtime.running_time import RunningTime
from fencepost_proto.runtime.tasks import Tasks
from fencepost_proto.transport.answering import Answering
from fencepost_proto.transport.wire import RunningServer, serve

log = logging.getLogger(__name__)

STOP_GRACE_S = 1.0  # for answers under way
NAME_CLOCK_STEPS = 64  # how finely the expiration time of names is divided
MIN_NAME_CLOCK_STEP_MS, MAX_NAME_CLOCK_STEP_MS = 100, 3_600_000  # a commit each
MAX_LOGGED = 50  # partitions of one commit, a line each: logging must not hold up the next

_SERVICES = [
    controller_pb2.DESCRIPTOR.services_by_name["Controller"].full_name,
    controller_pb2.DESCRIPTOR.services_by_name["Admin"].full_name,
]


class Controller:
    """Made, started and stopped once, inside one running event loop."""

    def __init__(self, config: ControllerConfig, host: Host, store: Store) -> None:
        self.config = config
        self.address = ""  # host:port, once started
        host = host.with_carrier(config.carrier)
        self._host = host
        self._store = store
        self.failure = Failure("controller")
        self._tasks = Tasks(self.failure.report)
        failed = FailedReplicas()
        self._commands = Commands(store, failed, self._committed)
        self._sessions = SessionRegistry(
            wire=host.wire,
            config=config,
            commands=self._commands,
            failed=failed,
            on_applied=self._check_fences,
            on_went_back=self._went_back,
            spawn=self._tasks.spawn,
        )
        self._fences = Fences(lambda: self.image, self._sessions.applied)
        self._committing: asyncio.Task[None] | None = None
        self._server: RunningServer | None = None
        self._answering = Answering(self.failure.report)
        self._elections = ElectionCounts()
        self._metrics: MetricsService | None = None  # where `metrics_listen` is set

    @property
    def metrics_address(self) -> str:
        """host:port where /metrics is, once started; empty: nowhere."""
        return self._metrics.address if self._metrics is not None else ""

    @property
    def image(self) -> MetadataImage:
        """All metadata, as committed."""
        return self._commands.image

    # ---- Start ----

    async def start(self) -> None:
        """Returns when the controller listens. Raises StoreError, StorageError, or OSError for an occupied port.

        Whatever it raises, `stop` is still to be called.
        """
        await self._commands.load()
        self._elections.start(self.image)
        self._committing = self._tasks.spawn(self._commands.run(), "commands")
        await self._commands.submit(FormCluster(random_id(self._host.random), new_lineage_id(self._host.random)))
        self._sessions.start()
        self._tasks.spawn(self._sessions.watch(), "watch sessions")
        self._tasks.spawn(self._restore_preferred_leaders(), "restore preferred leaders")
        self._tasks.spawn(self._expire_names(), "expire names of producers")
        self._server = await serve(self._host.wire, self.config.listen, _SERVICES, self._add_services)
        self.address = self._server.address
        if self.config.metrics_listen:
            metrics = ControllerMetrics(self._commands, self._sessions, self._elections, self._answering.counts)
            self._metrics = MetricsService(self.config.metrics_listen, "controller", metrics.families, self._tasks)
            await self._metrics.start()
        log.info(
            "started address=%s cluster_id=%s version=%d brokers=%d partitions=%d",
            self.address,
            self.image.cluster_id,
            self.image.version,
            len(self.image.brokers),
            len(self.image.partitions),
        )

    def _add_services(self, server: grpc.aio.Server) -> None:
        answering = self._answering
        service = ControllerService(self._commands, self._sessions, self._fences, self.config, answering)
        admin = AdminService(
            self._commands, self._sessions.opening, self._host.random, self.config.min_segment_bytes, answering
        )
        controller_pb2_grpc.add_ControllerServicer_to_server(service, server)
        controller_pb2_grpc.add_AdminServicer_to_server(admin, server)

    # ---- While it runs ----

    def _committed(self, image: MetadataImage, changes: Changes) -> None:
        self._elections.add(image, changes)
        self._sessions.publish(changes)
        self._fences.check()
        changed = [entity for entity in changes.values() if isinstance(entity, Partition)]
        for partition in changed[:MAX_LOGGED]:
            _log_partition(partition)
        for partition in changed:
            if not partition.isr and not partition.eligible:
                _log_lost(partition)
        if len(changed) > MAX_LOGGED:
            log.info("more partitions changed count=%d version=%d", len(changed) - MAX_LOGGED, image.version)

    def _went_back(self, error: BaseException) -> None:
        """No waiting command is decided any more; every caller gets the reason as its answer."""
        reason = NotController(str(error))
        self._commands.abandon(reason)
        self._sessions.end_all(reason)
        self._fences.close(reason)
        self.failure.report(error)

    def _check_fences(self) -> None:
        self._fences.check()

    async def _restore_preferred_leaders(self) -> None:
        while True:
            await asyncio.sleep(self.config.preferred_leader_interval_ms / 1000)
            try:
                moved = (await self._commands.submit(RestorePreferredLeaders(self._sessions.settled()))).answer
            except RetriableError as error:
                log.warning("could not restore preferred leaders reason=%s", error)
            else:
                if moved:
                    log.info("preferred leaders restored partitions=%d", moved)

    async def _expire_names(self) -> None:
        expiration_ms = self.config.producer_name_expiration_ms
        step_ms = min(max(expiration_ms // NAME_CLOCK_STEPS, MIN_NAME_CLOCK_STEP_MS), MAX_NAME_CLOCK_STEP_MS)
        step_s = step_ms / 1000
        running = RunningTime(2 * step_s)
        told_ms = running.advance(asyncio.get_running_loop().time())
        while True:
            await asyncio.sleep(step_s)
            now_ms = running.advance(asyncio.get_running_loop().time())
            try:
                command = ExpireNames(now_ms - told_ms, expiration_ms, self.config.max_producer_names)
                expired = (await self._commands.submit(command)).answer
            except RetriableError as error:
                log.warning("could not look for names to expire reason=%s", error)
            else:
                told_ms = now_ms
                if expired:
                    log.info("names of producers expired count=%d left=%d", expired, len(self.image.producers))

    # ---- End ----

    async def stop(self, clean: bool) -> None:
        """End every part. Commands that wait are carried out; without `clean`, no one waits for the answers.

        May be called after a start that failed or was cancelled.
        """
        log.info("shutting down")
        error = NotController("the controller is stopping")
        self._sessions.end_all(error)
        self._fences.close(error)
        self._commands.close()
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S if clean else 0)
        if self._metrics is not None:
            await self._metrics.stop()
        if self._committing is not None and not self._committing.done():
            await asyncio.wait([self._committing])
        await self._tasks.close()
        await asyncio.get_running_loop().run_in_executor(None, self._store.close)
        if clean and not self.failure.happened:
            log.info("stopped clean")


def _log_partition(partition: Partition) -> None:
    """One line for each change: a failover can be followed in them."""
    log.info(
        "partition changed topic_id=%s partition=%d leader=%d leader_epoch=%d isr=%s eligible=%s partition_epoch=%d "
        "replicas=%s",
        partition.topic_id,
        partition.index,
        partition.leader,
        partition.leader_epoch,
        list(partition.isr),
        list(partition.eligible),
        partition.partition_epoch,
        list(partition.replicas),
    )


def _log_lost(partition: Partition) -> None:
    """Notify the operator: nothing that the controller knows makes one of the replicas the right leader."""
    log.error(
        "partition needs an unclean election topic_id=%s partition=%d last_known_isr=%s replicas=%s: whoever held all that "
        "was acknowledged may have lost some of it; 'fencepost topic elect TOPIC PARTITION --unclean' compares the logs",
        partition.topic_id,
        partition.index,
        list(partition.last_known_isr),
        list(partition.replicas),
    )
