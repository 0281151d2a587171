"""One broker: its parts, the order in which they start, and the order in which they end.

Start: see in the data folder what the last end was; recover the logs; listen; open the session with the controller, which
brings the metadata that gives every replica its role.

Clean end: hand the leaderships over, stop serving, say goodbye, close the logs (synced, with snapshots), write the
clean-shutdown marker. Each step only after the one before it: the controller never gets a goodbye from a broker that
still serves, no metadata comes for logs that are being closed, and the marker is never there without synced logs.

What no part can handle (a broken invariant, a task that failed) is the broker's `failure` and ends the whole. A broker
that has found its own state wrong does nothing more with it; `stop(clean=False)` only lets go.
"""

from __future__ import annotations

import asyncio
import logging

import grpc
from grpc_health.v1 import health_pb2

from fencepost_node.client_limits import ClientLimits, CloseConnection
from fencepost_node.config import BrokerConfig
from fencepost_node.controller_link import ControllerLink
from fencepost_node.controller_session import ControllerSession
from fencepost_node.coordinators.group_coordinators import GroupCoordinators
from fencepost_node.folders.data_folder import DataFolder
from fencepost_node.folders.known_metadata import KnownMetadata
from fencepost_node.grpc.admin import AdminRelay
from fencepost_node.grpc.broker_service import BrokerService, RecoveryService, ReplicationService
from fencepost_node.grpc.describe_producers import ProducerLists
from fencepost_node.grpc.group_service import GroupService
from fencepost_node.kafka.context import KafkaBroker
from fencepost_node.kafka.listener import KafkaListener
from fencepost_node.kafka.metadata_answers import MetadataAnswers
from fencepost_node.log.disk import Disk
from fencepost_node.metadata_feed import MetadataFeed
from fencepost_node.metrics import BrokerMetrics
from fencepost_node.producers.new_producers import NewProducers
from fencepost_node.producers.producer_ids import ProducerIds
from fencepost_node.replica_manager import ReplicaManager
from fencepost_proto.protocol.errors import InvalidRequest, InvariantBroken
from fencepost_proto.protocol.v1 import (
    broker_pb2,
    broker_pb2_grpc,
    controller_pb2,
    controller_pb2_grpc,
    groups_pb2,
    groups_pb2_grpc,
    replication_pb2,
    replication_pb2_grpc,
)
from fencepost_proto.runtime.failure import Failure
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.metrics.service import MetricsService
from fencepost_proto.runtime.tasks import Tasks
from fencepost_proto.transport.answering import Answering
from fencepost_proto.transport.wire import RunningServer, incarnation_service, serve

log = logging.getLogger(__name__)

MARK_INTERVAL_S = 1.0  # between renewals of the data folder's origin mark: copies that are older are recognised
STOP_GRACE_S = 0.2  # for answers under way; long-lived streams never end by themselves

_SERVICES = [
    broker_pb2.DESCRIPTOR.services_by_name["Broker"].full_name,
    replication_pb2.DESCRIPTOR.services_by_name["Replication"].full_name,
    groups_pb2.DESCRIPTOR.services_by_name["Groups"].full_name,
    controller_pb2.DESCRIPTOR.services_by_name["Admin"].full_name,
    controller_pb2.DESCRIPTOR.services_by_name["Recovery"].full_name,
]


class Broker:
    """Made, started and stopped once, inside one running event loop."""

    def __init__(self, config: BrokerConfig, host: Host, disk: Disk) -> None:
        self.config = config
        self.address = ""  # host:port, once started
        self.recovery_seconds = 0.0
        self.stopped = False
        host = host.with_carrier(config.carrier)
        self._host = host
        self._disk = disk
        self.failure = Failure("broker")
        self._tasks = Tasks(self.failure.report)
        self._folder = DataFolder(disk, config.data_dir, config.broker_id)
        self._known = KnownMetadata(disk, config.data_dir)
        self._link = ControllerLink(host, config.controller, config.broker_id, self._known.learn)
        self._ids = ProducerIds(self._link.allocate_producer_ids, self._tasks)
        self._feed = MetadataFeed()
        self.limits = ClientLimits(config.client_answer_bytes, self._close_connection)
        self._manager = ReplicaManager(host, disk, config, self._link, self.failure.report)
        self._manager.on_failed_replica = self._link.request_heartbeat
        self._manager.on_lost_leader = self._feed.look_again
        self.groups = GroupCoordinators(
            host, config, self._manager, self._feed, link=self._link, on_failure=self.failure.report
        )
        self._close_peer: CloseConnection = lambda _, __: False  # of the server
        self._new_producers: NewProducers | None = None
        self._server: RunningServer | None = None
        self._kafka: KafkaListener | None = None  # where `kafka_listen` is set
        self._session: ControllerSession | None = None
        self._answering = Answering(self.failure.report)
        self._metrics: MetricsService | None = None  # where `metrics_listen` is set

    @property
    def manager(self) -> ReplicaManager:
        return self._manager

    # ---- Start ----

    async def start(self) -> None:
        """Returns when the broker listens and looks for its controller.

        Raises DataFolderError, StorageError, OSError (the disk, or an occupied port). Whatever it raises, `stop` is
        still to be called.
        """
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._folder.open)
        await asyncio.to_thread(self._known.open)
        began = loop.time()
        await self._manager.open_logs(power_lost=self._folder.may_have_lost_tail, was_clean=self._folder.was_clean)
        self.recovery_seconds = loop.time() - began
        self._manager.start()
        self.groups.start()
        self._server = await serve(self._host.wire, self.config.listen, _SERVICES, self._add_services)
        self.address = self._server.address
        if self.config.kafka_listen:
            self._kafka = KafkaListener(self._kafka_broker())
            await self._kafka.start()
        if self.config.metrics_listen:
            families = self._broker_metrics().families
            self._metrics = MetricsService(self.config.metrics_listen, "broker", families, self._tasks)
            await self._metrics.start()
        log.info(
            "started address=%s kafka=%s metrics=%s clean=%s may_have_lost_tail=%s copy=%s recovery_s=%.3f",
            self.address,
            self.kafka_address,
            self.metrics_address,
            self._folder.was_clean,
            self._folder.may_have_lost_tail,
            self._folder.is_copy,
            self.recovery_seconds,
        )
        self._session = ControllerSession(
            host=self._host,
            broker_id=self.config.broker_id,
            address=_advertised(self.config.advertised_address, self.address),
            kafka_address=_advertised(self.config.kafka_advertised, self.kafka_address),
            link=self._link,
            folder=self._folder,
            known=self._known,
            replicas=self._manager,
            feed=self._feed,
        )
        # The controller's probe asks for this very process, not for any process that listens here.
        await self._server.health.set(
            incarnation_service(self._session.incarnation), health_pb2.HealthCheckResponse.SERVING
        )
        self._tasks.spawn(self._session.run(), "session")
        self._tasks.spawn(self._renew_mark(), "origin-mark")
        self._tasks.spawn(self._known.persist(), "persist metadata")
        self._tasks.spawn(self._fetch_first_ids(self._session), "first-producer-ids")

    async def _fetch_first_ids(self, session: ControllerSession) -> None:
        await session.was_ready.wait()
        await self._ids.fetch_first()

    @property
    def kafka_address(self) -> str:
        """host:port for Kafka's clients, once started; empty: none is listened on."""
        return self._kafka.address if self._kafka is not None else ""

    @property
    def metrics_address(self) -> str:
        """host:port where /metrics is, once started; empty: nowhere."""
        return self._metrics.address if self._metrics is not None else ""

    def _broker_metrics(self) -> BrokerMetrics:
        return BrokerMetrics(
            manager=self._manager,
            limits=self.limits,
            answered=self._answering.counts,
            sync_times=self._disk.sync_times,
            kafka_connections=lambda: self._kafka.connection_count if self._kafka is not None else 0,
            has_session=lambda: self._session is not None and self._session.registered,
        )

    def _kafka_broker(self) -> KafkaBroker:
        return KafkaBroker(
            config=self.config,
            manager=self._manager,
            feed=self._feed,
            ids=self._ids,
            link=self._link,
            limits=self.limits,
            new_producers=self._admission(),
            metadata=MetadataAnswers(),
            groups=self.groups,
            listen=self._host.listen,
            on_failure=self.failure.report,
        )

    def _admission(self) -> NewProducers:
        """Of new producers, on whichever port they come."""
        if self._new_producers is None:
            now = asyncio.get_running_loop().time
            self._new_producers = NewProducers(self.config.max_new_producers_per_second, now)
        return self._new_producers

    async def wait_ready(self) -> None:
        """Returns once the broker has registered and applied metadata; it may take as long as the controller is away."""
        if self._session is None:
            raise InvariantBroken("wait_ready before start")
        await self._session.was_ready.wait()

    async def _renew_mark(self) -> None:
        trouble = ""
        while True:
            await asyncio.sleep(MARK_INTERVAL_S)
            try:
                await asyncio.to_thread(self._folder.renew_mark)
            except OSError as error:
                if str(error) != trouble:
                    trouble = str(error)
                    log.warning("origin mark cannot be renewed folder=%s error=%s", self.config.data_dir, error)

    def _add_services(self, server: grpc.aio.Server) -> None:
        answering = self._answering
        service = BrokerService(
            broker_id=self.config.broker_id,
            recovery_seconds=self.recovery_seconds,
            manager=self._manager,
            feed=self._feed,
            ids=self._ids,
            link=self._link,
            answering=answering,
            limits=self.limits,
            lists=ProducerLists(self._tasks, self.limits.answers),
            new_producers=self._admission(),
            max_delivery_timeout_ms=min(self.config.max_delivery_timeout_ms, self.config.producer_expiration_ms),
        )
        broker_pb2_grpc.add_BrokerServicer_to_server(service, server)
        replication_pb2_grpc.add_ReplicationServicer_to_server(ReplicationService(self._manager, answering), server)
        # These two only where one port is shared by two carriers: who is behind the relay, and an end to a connection.
        real_peer = getattr(server, "real_peer", lambda peer: peer)
        self._close_peer = getattr(server, "close_peer", self._close_peer)
        groups = GroupService(self._manager, self.groups, answering, real_peer)
        groups_pb2_grpc.add_GroupsServicer_to_server(groups, server)
        recovery = RecoveryService(self._manager, self._known, self._held_head, answering)
        controller_pb2_grpc.add_RecoveryServicer_to_server(recovery, server)
        controller_pb2_grpc.add_AdminServicer_to_server(AdminRelay(self._link, answering), server)

    def _close_connection(self, peer: str, reason: str) -> bool:
        return (self._kafka is not None and self._kafka.close_peer(peer, reason)) or self._close_peer(peer, reason)

    def _held_head(self) -> controller_pb2.HeldHead:
        """Raises InvalidRequest while there is a session with a controller."""
        if self._session is not None and self._session.registered:
            raise InvalidRequest(
                f"broker {self.config.broker_id} has a session with the controller at {self._link.address}: "
                "nothing is to be recovered"
            )
        return controller_pb2.HeldHead(
            broker_id=self.config.broker_id,
            cluster_id=self._folder.cluster_id,
            address=self.address,
            broker_epoch=self._folder.broker_epoch,
            known_version=self._known.newest.version,
            known_lineage_id=self._known.newest.lineage_id,
            image_version=self._known.image.version,
            controller_epoch=self._link.controller_epoch,
        )

    # ---- End ----

    async def stop(self, clean: bool) -> None:
        """End every part, once. With `clean`, lose nothing; without, as much like a kill as a running process can.

        May be called after a start that failed or was cancelled; then nothing is marked clean.
        """
        session = self._session if clean else None
        if session is not None:
            log.info("shutting down")
            if not await session.hand_over(self.config.controlled_shutdown_max_wait_ms / 1000):
                log.warning("leaderships were not handed over in time")
        self._feed.close()
        grace_s = STOP_GRACE_S if session is not None else 0
        if self._server is not None:
            await self._server.stop(grace_s)
        if self._kafka is not None:
            await self._kafka.stop(grace_s)
        if self._metrics is not None:
            await self._metrics.stop()
        if session is not None:
            await session.goodbye()
        await self._tasks.close()
        await self.groups.close()
        await self._manager.close(clean=session is not None)
        if session is not None:
            await asyncio.to_thread(self._known.write, self._known.turn())
        self._known.close()
        if session is not None and not self.failure.happened:
            if self._manager.failed_replicas:  # their logs are not synced
                log.warning(
                    "stopped, not marked clean: replicas have failed replicas=%s", self._manager.failed_replicas
                )
            else:
                await asyncio.to_thread(self._folder.mark_clean)
                log.info("stopped clean")
        self._folder.close()
        await self._link.close()
        self.stopped = True


def _advertised(advertised: str, listens_at: str) -> str:
    """What others are to connect to: host:port as configured (port 0: the real one), or where it listens."""
    if not advertised:
        return listens_at
    host, _, port = advertised.rpartition(":")
    return advertised if int(port) else f"{host}:{listens_at.rpartition(':')[2]}"
