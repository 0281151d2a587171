"""One controller among several: it follows the store as a standby, takes over, decides, and steps down.

**Standing by.** The standby watches the log and the leader key, so its image is that of the active controller, and
keeps a stream to the active one.

- *The leader key is gone* (a clean stop, an expired lease): create it.
- *The stream breaks*: probe. A refused connection, or another process there, means that the active one is dead now:
  take its place, in a transaction compared with the very leadership that it held.
- *Silence* means nothing here: its lease decides (3 s by default).

**Deciding** is a `Reign`, made for one leadership. It ends when a commit or a confirmation finds another leader, or
when the lease is over, by etcd's word or by this process's clock: the controller *steps down*. Callers get
NOT_CONTROLLER, the lease is given up, and it stands by again. No lost leadership ends the process.

Safety does not rest on any of this (`store/etcd/__init__.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fencepost_controller.config import ControllerConfig
from fencepost_controller.opening import MAX_WAIT_S
from fencepost_controller.probe import PAUSES, ProbeVerdict, probe
from fencepost_controller.reign import Counts, Reign
from fencepost_controller.store.etcd.calls import EtcdRefused, EtcdUnreachable
from fencepost_controller.store.etcd.layout import Leader
from fencepost_controller.store.etcd.leadership import Leadership, Lease
from fencepost_controller.store.etcd.reader import MetadataReader, Standing
from fencepost_controller.store.etcd.shared import SharedMetadata
from fencepost_controller.store.etcd.term import Term
from fencepost_proto.protocol.errors import FencepostError, NotController
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.runtime.failure import Failure
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.cancellation import CallCancelled, own_cancellation_only
from fencepost_proto.transport.wire import incarnation_service, new_incarnation

log = logging.getLogger(__name__)

RETRY = Backoff(first_s=0.02, most_s=0.5, jitter=(0.5, 1.0))  # pauses between attempts to reach the store
STREAM_AGAIN_S = 0.1  # between two streams to an active controller that is there

Spawn = Callable[[Coroutine[object, object, None], str], asyncio.Task[None]]


class Candidacy:
    """`start` once the controller listens; `run` is its task."""

    def __init__(
        self,
        config: ControllerConfig,
        host: Host,
        store: SharedMetadata,
        *,
        failure: Failure,
        counts: Counts,
        set_reign: Callable[[Reign | None], None],
    ) -> None:
        self.incarnation = new_incarnation(host.random)
        self._config = config
        self._host = host
        self._etcd = store.etcd
        self._failure = failure
        self._counts = counts
        self._set_reign = set_reign
        self._reader = MetadataReader(store.etcd, store.keys)
        self._lease = Lease(store.etcd, config.leader_lease_s, self._lease_lost)
        self._leadership = Leadership(store.etcd, store.keys, self._reader, self._lease, host.random)
        self._me = Leader(config.controller_id, "", self.incarnation)
        self._term: Term | None = None
        self._lost: asyncio.Future[str] | None = None  # of the reign that lasts
        # The image was followed, or made, under a controller that has heard the brokers (`opening.py`).
        self._is_warm = False
        self._followed = (0, 0.0)  # the revision of the leadership that is followed, and since when
        self._stopping = False

    @property
    def image(self) -> MetadataImage:
        """As far as this controller has followed the store."""
        return self._reader.image

    @property
    def active(self) -> Leader | None:
        """The other controller that is active, as far as this one knows."""
        leader = self._reader.leader
        return leader if leader is not None and leader.incarnation != self.incarnation else None

    def start(self, address: str, spawn: Spawn) -> None:
        """This controller listens at host:port."""
        self._me = Leader(self._config.controller_id, self._config.advertised_address or address, self.incarnation)
        spawn(self._lease.run(), "lease")
        spawn(self.run(), "candidacy")

    def begin_to_stop(self) -> None:
        """The process ends: the reign is ended by the controller."""
        self._stopping = True

    async def close(self) -> None:
        """After the tasks' end: give up the leadership, so that another controller takes over at once."""
        if self._term is not None:
            await self._term.close()
        await self._lease.give_up()
        await self._etcd.close()

    async def run(self) -> None:
        """Stand by and decide, in turns; a task for the process's life. Raises StoreError, MetadataWentBack."""
        time = asyncio.get_running_loop().time
        failures, trouble = 0, ""
        while True:
            began, has_failed = time(), False
            try:
                await self._once()
                trouble = ""
            except (EtcdRefused, EtcdUnreachable) as error:
                has_failed = True
                if str(error) != trouble:
                    trouble = str(error)
                    log.warning("the store cannot be used now reason=%s", error)
            # Also where it was not active for long, or another one was faster.
            failures = int(has_failed) if time() - began > RETRY.most_s else failures + 1
            if failures:
                await asyncio.sleep(RETRY.jittered_pause_s(failures, self._host.random))

    async def _once(self) -> None:
        """Stand by until no one is active; then take over, and decide while it lasts."""
        standing = await self._reader.catch_up()
        dead = await self._until_vacant(standing)
        term = await self._leadership.take_over(self._me, dead)
        if term is not None:
            await self._decide(term)

    # ---- Standing by ----

    async def _until_vacant(self, standing: Standing) -> Leader | None:
        """Follow the store until a controller is needed. Returns whose leadership is to be taken over, because it is
        certainly dead; None: no one has it.

        Raises EtcdUnreachable, EtcdRefused: the watch has broken. StoreError, MetadataWentBack.
        """
        changed = asyncio.Event()  # the leader
        follower = asyncio.create_task(self._follow(standing, changed))
        try:
            while True:
                active = self._reader.leader
                self._look_whether_warm(active)
                if active is None:
                    return None
                if active.incarnation == self.incarnation:
                    return active  # of this process, which has stepped down
                changed.clear()
                news = asyncio.create_task(changed.wait())
                death = asyncio.create_task(self._until_dead(active))
                try:
                    await asyncio.wait((follower, news, death), return_when=asyncio.FIRST_COMPLETED)
                    if follower.done():
                        await follower
                    if death.done() and not changed.is_set():
                        await death
                        self._look_whether_warm(None)
                        return active
                finally:
                    for task in (news, death):
                        task.cancel()
                    await asyncio.wait((news, death))
        finally:
            follower.cancel()
            await asyncio.wait((follower,))

    def _look_whether_warm(self, active: Leader | None) -> None:
        """The leader is, or has become, `active`. One that has decided about brokers, or that was followed for as long as
        a start waits for them, has heard them: had the store gone back before that, it would have ended."""
        revision, since = self._followed
        now = asyncio.get_running_loop().time()
        had_time = now - since >= min(self._config.session_timeout_ms / 1000, MAX_WAIT_S)
        if revision and (had_time or self._reader.decided == revision):
            self._is_warm = True
        if active is None or active.revision != revision:
            self._followed = (active.revision, now) if active is not None else (0, 0.0)

    async def _follow(self, standing: Standing, changed: asyncio.Event) -> None:
        reader = self._reader
        leader = standing.leader
        async for _ in reader.follow(standing):
            if reader.leader != leader:
                leader = reader.leader
                changed.set()
        raise EtcdUnreachable("the watch ended")

    async def _until_dead(self, active: Leader) -> None:
        """Keep a stream to the active controller; return once it is certainly dead."""
        pauses, time = PAUSES.pauses_s(), asyncio.get_running_loop().time
        while True:
            began = time()
            stood = await self._stream_to(active)
            if stood and time() - began > STREAM_AGAIN_S:  # one that stands and breaks at once is no better than none
                pauses = PAUSES.pauses_s()
            verdict = await probe(self._host.wire, active.address, active.incarnation)
            if verdict is ProbeVerdict.DEAD:
                log.warning(
                    "the active controller is gone controller=%d address=%s", active.controller_id, active.address
                )
                return
            await asyncio.sleep(STREAM_AGAIN_S if verdict is ProbeVerdict.ALIVE else next(pauses))

    async def _stream_to(self, active: Leader) -> bool:
        """Until it breaks. Returns whether it ever stood."""
        stood = False
        channel = self._host.wire.connect(active.address)
        try:
            with own_cancellation_only():
                request = health_pb2.HealthCheckRequest(service=incarnation_service(active.incarnation))
                stub = health_pb2_grpc.HealthStub(channel)
                async for answer in stub.Watch(request):  # type: ignore[attr-defined]  # missing in its types
                    stood = True
                    if answer.status != health_pb2.HealthCheckResponse.SERVING:
                        break  # another process is there, or it is about to stop
        except (grpc.aio.AioRpcError, CallCancelled) as error:
            log.debug("the stream to the active controller broke reason=%s", error)
        finally:
            await channel.close()
        return stood

    # ---- Deciding ----

    async def _decide(self, term: Term) -> None:
        """One reign, to its end."""
        log.warning(
            "became the active controller controller=%d epoch=%d version=%d warm=%s",
            self._config.controller_id, term.epoch, self.image.version, self._is_warm,
        )  # fmt: skip
        self._lost = lost = asyncio.get_running_loop().create_future()
        self._term = term
        reign = Reign(
            self._config,
            self._host,
            self._failure,
            None,
            self._counts,
            shared=term,
            epoch=term.epoch,
            on_image=self._reader.take,
            on_lost=self._lose,
        )
        try:
            await reign.start(self.image, is_warm=self._is_warm)
            if not lost.done():
                self._set_reign(reign)
            reason = await lost
        except FencepostError as error:
            reason = str(error)
        self._lost = None
        self._set_reign(None)
        self._is_warm = self._is_warm or reign.sessions.opening.is_over
        log.warning("stepped down controller=%d epoch=%d reason=%s", self._config.controller_id, term.epoch, reason)
        await reign.step_down(
            NotController(f"controller {self._config.controller_id} is not active any more: {reason}")
        )
        await term.close()
        self._term = None
        await self._lease.give_up()

    def _lose(self, reason: str) -> None:
        if self._lost is not None and not self._lost.done() and not self._stopping:
            self._lost.set_result(reason)

    def _lease_lost(self) -> None:
        self._lose("the lease is lost")
