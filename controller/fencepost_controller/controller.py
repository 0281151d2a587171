"""The controller: its parts, the order in which they start, and the order in which they end.

With a store of its own (SQLite) it decides from its start to its end. Start: take the image from the store, give the
cluster its id where it has none, and only then listen. A broker that was live before has a full session timeout to
register again.

With a shared store (etcd) it listens first, as a standby, and decides while it is the active one (`candidacy.py`).

End: notify the brokers, refuse new commands, carry out those that wait, stop. A kill at any moment loses nothing that was
answered: an answer is sent after its commit.

What no part can handle (a broken invariant, a task that failed) is the controller's `failure` and ends the whole.
"""

from __future__ import annotations

import asyncio
import logging

import grpc
from grpc_health.v1 import health_pb2

from fencepost_controller.candidacy import Candidacy
from fencepost_controller.commands import CommitCounts
from fencepost_controller.config import ControllerConfig
from fencepost_controller.election_counts import ElectionCounts
from fencepost_controller.metrics import ControllerMetrics, ControllerStanding
from fencepost_controller.reign import Counts, Reign
from fencepost_controller.services.servicers import AdminService, ControllerService, Deciding
from fencepost_controller.store import Store
from fencepost_controller.store.etcd.shared import SharedMetadata
from fencepost_proto.protocol.errors import CurrentLeader, InvariantBroken, NotController
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.v1 import controller_pb2, controller_pb2_grpc
from fencepost_proto.runtime.failure import Failure
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.metrics.service import MetricsService
from fencepost_proto.runtime.tasks import Tasks
from fencepost_proto.transport.answering import Answering
from fencepost_proto.transport.wire import RunningServer, incarnation_service, serve

log = logging.getLogger(__name__)

STOP_GRACE_S = 1.0  # for answers under way

_SERVICES = [
    controller_pb2.DESCRIPTOR.services_by_name["Controller"].full_name,
    controller_pb2.DESCRIPTOR.services_by_name["Admin"].full_name,
]


class Controller:
    """Made, started and stopped once, inside one running event loop."""

    def __init__(self, config: ControllerConfig, host: Host, store: Store | SharedMetadata) -> None:
        self.config = config
        self.address = ""  # host:port, once started
        host = host.with_carrier(config.carrier)
        self._host = host
        self.failure = Failure("controller")
        self._tasks = Tasks(self.failure.report)
        self._counts = Counts(CommitCounts(), ElectionCounts())
        self._reign: Reign | None = None  # None: this controller is a standby
        self._candidacy: Candidacy | None = None
        self._store: Store | None = None
        if isinstance(store, SharedMetadata):
            self._candidacy = Candidacy(
                config, host, store, failure=self.failure, counts=self._counts, set_reign=self._set_reign
            )
        else:
            self._store = store
            self._reign = Reign(config, host, self.failure, store, self._counts)
        self._server: RunningServer | None = None
        self._answering = Answering(self.failure.report)
        self._metrics: MetricsService | None = None  # where `metrics_listen` is set

    @property
    def metrics_address(self) -> str:
        """host:port where /metrics is, once started; empty: nowhere."""
        return self._metrics.address if self._metrics is not None else ""

    @property
    def image(self) -> MetadataImage:
        """All metadata, as committed; of a standby: as far as it has followed."""
        if self._reign is not None:
            return self._reign.image
        return self._candidacy.image if self._candidacy is not None else MetadataImage()

    @property
    def is_active(self) -> bool:
        """It decides; else it is a standby."""
        return self._reign is not None

    @property
    def epoch(self) -> int:
        """The controller epoch; 0: it is a standby, or the only controller."""
        return self._reign.epoch if self._reign is not None else 0

    def reign(self) -> Reign:
        """What decides here. Raises NotController, with the active one's address where it is known."""
        if self._reign is not None:
            return self._reign
        if self._candidacy is None:
            raise InvariantBroken("a controller with a store of its own that does not decide")
        active = self._candidacy.active
        if active is None:
            raise NotController("this controller is a standby, and no controller is active")
        raise NotController(
            f"this controller is a standby; controller {active.controller_id} at {active.address} is active",
            current_leader=CurrentLeader(active.controller_id, -1, active.address),
        )

    def _set_reign(self, reign: Reign | None) -> None:
        self._reign = reign

    # ---- Start ----

    async def start(self) -> None:
        """Returns when the controller listens. Raises StoreError, StorageError, or OSError for an occupied port.

        Whatever it raises, `stop` is still to be called.
        """
        if self._reign is not None:
            await self._reign.start()
        self._server = await serve(self._host.wire, self.config.listen, _SERVICES, self._add_services)
        self.address = self._server.address
        if self._candidacy is not None:
            # Standbys ask for this very process, as the controller does of brokers.
            service = incarnation_service(self._candidacy.incarnation)
            await self._server.health.set(service, health_pb2.HealthCheckResponse.SERVING)
        if self.config.metrics_listen:
            metrics = ControllerMetrics(
                self._standing, self._counts.commits, self._counts.elections, self._answering.counts
            )
            self._metrics = MetricsService(self.config.metrics_listen, "controller", metrics.families, self._tasks)
            await self._metrics.start()
        image = self.image
        log.info(
            "started address=%s cluster_id=%s version=%d brokers=%d partitions=%d",
            self.address,
            image.cluster_id,
            image.version,
            len(image.brokers),
            len(image.partitions),
        )
        if self._candidacy is not None:
            self._candidacy.start(self.address, self._tasks.spawn)

    def _add_services(self, server: grpc.aio.Server) -> None:
        deciding = Deciding(self.reign, self._answering)
        service = ControllerService(deciding, self.config)
        admin = AdminService(deciding, self._host.random, self.config.min_segment_bytes)
        controller_pb2_grpc.add_ControllerServicer_to_server(service, server)
        controller_pb2_grpc.add_AdminServicer_to_server(admin, server)

    def _standing(self) -> ControllerStanding:
        reign = self._reign
        return ControllerStanding(
            self.image,
            self.epoch,
            reign.sessions if reign is not None else None,
            reign.commands.waiting if reign is not None else 0,
        )

    # ---- End ----

    async def stop(self, clean: bool) -> None:
        """End every part. Commands that wait are carried out; without `clean`, no one waits for the answers.

        May be called after a start that failed or was cancelled.
        """
        log.info("shutting down")
        if self._candidacy is not None:
            self._candidacy.begin_to_stop()
        reign = self._reign
        if reign is not None:
            reign.begin_to_end(NotController("the controller is stopping"))
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S if clean else 0)
        if self._metrics is not None:
            await self._metrics.stop()
        if reign is not None:
            await reign.end()
        await self._tasks.close()
        if self._candidacy is not None:
            await self._candidacy.close()
        if self._store is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._store.close)
        if clean and not self.failure.happened:
            log.info("stopped clean")
