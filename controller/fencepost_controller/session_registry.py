"""The brokers' sessions, and with them who is alive.

**Fast for what is certain.** A stream that ends without a goodbye is followed at once by a probe of the broker's address.
Refused, or answered by another process: dead now, and its partitions have new leaders milliseconds later. Otherwise the
probe is repeated until the broker registers again, or its silence decides.

**Slow for what is not.** Silence for a session timeout means dead, as does no progress with unapplied metadata for as
long; the rules are in `liveness.py`. A broker that is declared dead wrongly finds its session ended, registers again, and is
unfenced again; that costs an election, never safety.

Every broker that is live in the metadata is watched, whether it has a session or not. That is so by three steps: one that
was live at the start is expected, one whose session ends is missed, and so is one that became live only after its session
had ended (the commit that unfences it was under way).

**A registration** of a broker id that another incarnation holds is accepted only when that one is dead: known to be, or
found to be by a probe. While probes give no answer the registration waits, at most until the session timeout has decided.

Heartbeats change nothing in the store. What they ask for (to be unfenced, to shut down, to be spared a failed replica)
becomes one command each, submitted by the session's own `follow` task, so that a slow commit never keeps heartbeats from
being read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from fencepost_controller.broker_session import BrokerSession, MetadataMessages
from fencepost_controller.commands import Commands
from fencepost_controller.config import ControllerConfig
from fencepost_controller.decisions.brokers import (
    NO_EPOCH,
    BeginShutdown,
    FailReplicas,
    FenceBroker,
    RegisterBroker,
    UnfenceBroker,
)
from fencepost_controller.decisions.lineage import KnownHistory, MetadataWentBack, UnknownHistory, check_known_version
from fencepost_controller.failed_replicas import FailedReplicas
from fencepost_controller.liveness import Liveness
from fencepost_controller.opening import MAX_WAIT_S, Opening
from fencepost_controller.probe import PAUSES, ProbeVerdict, probe
from fencepost_controller.seldom import Seldom
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import NO_LEADER, BrokerRegistration, Changes, MetadataImage
from fencepost_proto.protocol.v1 import common_pb2, controller_pb2
from fencepost_proto.transport.wire import Wire

log = logging.getLogger(__name__)

_MOST_NAMED = 20  # of replicas in one line
REFUSED = replace(PAUSES, most_s=2.0)  # pauses between attempts at what the store refuses
REFUSED_LOGGED_EVERY_S = 10.0  # registrations that anyone may send, as often as they like
SETTLE_S = 5.0  # a broker that has been live for this long may get its preferred leaderships back

Spawn = Callable[[Coroutine[object, object, None], str], asyncio.Task[None]]


class SessionRegistry:
    """Every open session, by broker id; at most one for each."""

    def __init__(
        self,
        *,
        wire: Wire,
        config: ControllerConfig,
        commands: Commands,
        failed: FailedReplicas,
        on_applied: Callable[[], None],
        on_went_back: Callable[[BaseException], None],
        spawn: Spawn,
        controller_epoch: int = 0,
    ) -> None:
        """`controller_epoch`: of this leadership; 0: there is one controller only."""
        self._controller_epoch = controller_epoch
        self._wire = wire
        self._config = config
        self._commands = commands
        self._failed = failed
        self._on_applied = on_applied
        self._on_went_back = on_went_back
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self.opening = Opening()
        self.messages = MetadataMessages(lambda: commands.image)
        self._liveness = Liveness(config.session_timeout_ms / 1000, self._loop.time())
        self._sessions: dict[int, BrokerSession] = {}
        self._live_since: dict[int, float] = {}
        self._being_declared_dead: set[int] = set()
        self._being_probed: set[tuple[int, int]] = set()  # broker id and epoch
        self._not_stored: dict[int, Iterator[float]] = {}  # pauses of brokers whose fencing the store refuses
        self._closing = False
        self._refusals = Seldom(REFUSED_LOGGED_EVERY_S)

    @property
    def _image(self) -> MetadataImage:
        return self._commands.image

    def start(self, *, is_warm: bool = False) -> None:
        """The image is loaded: a broker that was live then has a full session timeout to register again.

        `is_warm`: this controller has taken over from another one, and has followed its commits until then. So the
        store has not gone back, and no broker need be heard before anything is decided. The brokers' streams to the
        other one have broken, as far as anyone can know; so each broker is probed at once, and one whose port refuses
        is dead now.
        """
        now = self._loop.time()
        live = [broker for broker in self._image.brokers.values() if not broker.fenced]
        for broker in live:
            self._liveness.expect(broker.id, now)
            self._live_since[broker.id] = now
        self.opening.start([] if is_warm else self._image.brokers.values(), self._config.session_timeout_ms / 1000)
        if is_warm:
            for broker in live:
                self._on_session_lost(broker)

    async def _never_came(self, broker_ids: frozenset[int]) -> None:
        if self._config.session_timeout_ms / 1000 > MAX_WAIT_S:
            return  # they have more time; `watch` will decide
        missing = [broker for broker_id in sorted(broker_ids) if (broker := self._image.brokers.get(broker_id))]
        live = [broker for broker in missing if not broker.fenced and broker.id not in self._sessions]
        await asyncio.gather(
            *(self._declare_dead(broker, "has not come since the controller's start") for broker in live)
        )

    async def watch(self) -> None:
        """Declare overdue brokers dead; a task for the controller's life."""
        self._spawn(self.opening.run(self._never_came), "opening")
        while True:
            await asyncio.sleep(self._liveness.tick_interval_s)
            for broker_id, reason in self._liveness.tick(self._loop.time()):
                broker = self._image.brokers.get(broker_id)
                if broker is None:
                    self._liveness.forget(broker_id)
                elif broker_id not in self._being_declared_dead and self.opening.is_over and not self._closing:
                    self._spawn(self._declare_dead(broker, reason), f"declare broker {broker_id} dead")

    @property
    def session_count(self) -> int:
        """Sessions that are open now."""
        return len(self._sessions)

    @property
    def failed_replica_count(self) -> int:
        """Replicas that their brokers report as failed now."""
        return self._failed.count

    def applied(self) -> dict[int, int]:
        """The metadata version applied by each broker with a session under its current broker epoch."""
        return {
            broker_id: session.applied_version
            for broker_id, session in self._sessions.items()
            if not session.over
            and broker_id in self._image.brokers
            and self._image.brokers[broker_id].broker_epoch == session.broker_epoch
        }

    def settled(self) -> frozenset[int]:
        """Brokers that have been live for some time and have a session, so that they would learn of a leadership now."""
        now = self._loop.time()
        return frozenset(
            broker.id
            for broker in self._image.brokers.values()
            if not broker.fenced
            and broker.id in self._sessions
            and now - self._live_since.get(broker.id, now) >= SETTLE_S
        )

    def publish(self, changes: Changes) -> None:
        """Metadata has been committed: what changed with the newest version."""
        delta = self.messages.delta(self._image.version, changes)
        for session in self._sessions.values():
            session.publish(delta)
        live = [i for i in self._sessions if i in self._image.brokers and not self._image.brokers[i].fenced]
        self._liveness.published(self._image.version, live, self._loop.time())
        for broker in [entity for entity in changes.values() if isinstance(entity, BrokerRegistration)]:
            self._broker_changed(broker)
        removed = [key for key, entity in changes.items() if entity is None and key.startswith("brokers/")]
        for broker_id in sorted(int(key.removeprefix("brokers/")) for key in removed):
            self._broker_removed(broker_id)

    def _broker_changed(self, broker: BrokerRegistration) -> None:
        if broker.fenced:
            self._live_since.pop(broker.id, None)
            return
        self._live_since.setdefault(broker.id, self._loop.time())
        if broker.id not in self._sessions and not self._liveness.watches(broker.id):
            self._liveness.expect(broker.id, self._loop.time())
            self._on_session_lost(broker)

    def _broker_removed(self, broker_id: int) -> None:
        """Only one that is fenced can be; it may just be registering nevertheless."""
        session = self._sessions.pop(broker_id, None)
        if session is not None:
            session.end(errors.BrokerIdNotRegistered(f"broker {broker_id} has been removed from the cluster"))
        self._liveness.forget(broker_id)
        self._live_since.pop(broker_id, None)
        self._failed.keep_only(broker_id, NO_EPOCH)
        self._not_stored.pop(broker_id, None)

    def end_all(self, error: errors.FencepostError) -> None:
        """The controller stops. No one is declared dead for the streams that end now."""
        self._closing = True
        for session in self._sessions.values():
            session.end(error)

    # ---- One session's life ----

    async def register(self, register: controller_pb2.Register) -> BrokerSession:
        """Begin a session. Raises the FencepostError that refuses it."""
        if self._closing:
            raise errors.NotController("the controller is stopping")
        command = _command_of(register)
        await self._check_known(register)
        command.check(self._image)
        known = self._image.brokers.get(command.broker_id)
        is_same = known is not None and known.incarnation == command.incarnation  # as the process that is watched
        rejoins = is_same and self.opening.is_over
        broker = await self._register_when_open(command, known, is_same=is_same)
        if broker.id not in self._image.brokers:  # removed in the moment since
            raise errors.NetworkException(f"broker {broker.id} has been removed while it registered")
        session = self._begin(broker)
        # That the process that is watched has another session is no sign of life, nor of progress: only heartbeats are, or
        # one that can register and do nothing more would keep its leaderships indefinitely.
        if not (rejoins and self._liveness.watches(broker.id)):
            self._liveness.expect(broker.id, self._loop.time())
        if not broker.fenced:
            self._liveness.published(self._image.version, [broker.id], self._loop.time())  # it may have missed some
        log.info(
            "broker registered broker=%d broker_epoch=%d incarnation=%s address=%s fenced=%s may_have_lost_tail=%s",
            broker.id,
            broker.broker_epoch,
            broker.incarnation,
            broker.address,
            broker.fenced,
            register.may_have_lost_tail,
        )
        return session

    async def _register_when_open(
        self, command: RegisterBroker, known: BrokerRegistration | None, *, is_same: bool
    ) -> BrokerRegistration:
        opening, broker_id = self.opening, command.broker_id
        tells_of_loss = known is not None and command.tells_of_loss(known) and not opening.is_over
        if is_same and not opening.is_over and self._liveness.watches(broker_id):
            self._liveness.expect(broker_id, self._loop.time())  # it is there, also where its stream breaks now
        with opening.loss() if tells_of_loss else nullcontext():
            with self._waiting(broker_id) if is_same else nullcontext():
                opening.heard(broker_id)
                await (opening.wait_for_losses() if tells_of_loss else opening.wait())
            return await self._register(command)

    def _begin(self, broker: BrokerRegistration) -> BrokerSession:
        """A session of this registration, in place of the one before."""
        before = self._sessions.get(broker.id)
        if before is not None:
            before.end(errors.NetworkException(f"broker {broker.id} has begun another session"))
        self._failed.keep_only(broker.id, broker.broker_epoch)
        greeting = controller_pb2.Registered(
            broker_epoch=broker.broker_epoch,
            cluster_id=self._image.cluster_id,
            session_timeout_ms=self._config.session_timeout_ms,
            heartbeat_interval_ms=self._config.heartbeat_interval_ms,
            metadata_version=self._image.version,
            lineage_id=self._image.lineage.current_id,
            controller_epoch=self._controller_epoch,
        )
        session = BrokerSession(broker, self._image.version, greeting)
        # What was told may not have been acted on; or an earlier controller was told, and its successor was not told that
        # the replica serves again.
        was_told = self._failed.has_reported(broker.id, broker.broker_epoch)
        session.replicas_failed = was_told or self._waits_for(broker.id)
        if self._closing:
            session.end(errors.NotController("the controller is stopping"))
        self._sessions[broker.id] = session
        return session

    @contextmanager
    def _waiting(self, broker_id: int) -> Iterator[None]:
        """It is for this controller that a broker's registration waits."""
        self._liveness.waits(broker_id, self._loop.time())
        try:
            yield
        except asyncio.CancelledError:  # its stream broke meanwhile
            broker = self._image.brokers.get(broker_id)
            if broker is not None and not broker.fenced and broker_id not in self._sessions:
                self._on_session_lost(broker)
            raise
        finally:
            self._liveness.waits_no_more(broker_id, self._loop.time())

    async def _check_known(self, register: controller_pb2.Register) -> None:
        """Raises UnknownHistory; or NotController where the store has gone back: then this process ends."""
        try:
            check_known_version(
                self._image,
                KnownHistory(
                    register.broker_id,
                    register.cluster_id,
                    register.known_version,
                    register.known_lineage_id,
                    register.oldest_lineage_id,
                ),
            )
        except UnknownHistory as error:
            if self._refusals.is_due(self._loop.time()):
                log.error("registration refused reason=%s more_since_the_last=%d", error, self._refusals.skipped())
            raise
        except MetadataWentBack as error:
            await self._commands.confirm()  # or another controller decides, and this one is behind, not its store
            self._closing = True
            self._on_went_back(error)
            raise errors.NotController(str(error)) from None

    async def _register(self, command: RegisterBroker) -> BrokerRegistration:
        while True:
            replaces = await self._replaceable(command)
            known = self._image.brokers.get(command.broker_id)
            try:
                with self._waiting(command.broker_id):
                    broker = (await self._commands.submit(replace(command, replaces=replaces))).answer
            except errors.DuplicateBrokerRegistration as error:  # another one came before it, which may be dead by now
                log.info("registration again reason=%s", error)
                continue
            if (
                known is not None
                and known.incarnation != command.incarnation
                and (problem := command.folder_problem(known))
            ):
                log.warning(
                    "data folder may lack acknowledged records, broker leaves every in-sync set broker=%d because=%s",
                    broker.id,
                    problem,
                )
            return broker

    def _waits_for(self, broker_id: int) -> bool:
        """Whether a partition has no leader, and this broker is one of those that may be elected."""
        partitions = (self._image.partitions[key] for key in self._image.hosted_by(broker_id))
        return any(p.leader == NO_LEADER and broker_id in (*p.isr, *p.eligible) for p in partitions)

    def heartbeat(self, session: BrokerSession, heartbeat: controller_pb2.Heartbeat) -> None:
        """Raises InvalidRequest for what cannot be."""
        if heartbeat.applied_version > self._image.version:
            raise errors.InvalidRequest(
                f"broker {session.broker_id} has applied metadata version {heartbeat.applied_version}, and there are only "
                f"{self._image.version}: this controller's store has lost metadata, or is of another cluster"
            )
        if self._sessions.get(session.broker_id) is not session:
            return
        now = self._loop.time()
        self._liveness.heard(session.broker_id, heartbeat.applied_version, now, heartbeat.progress)
        session.ready = heartbeat.ready
        session.wants_shutdown = heartbeat.want_shutdown
        self._take_failed(session, heartbeat.failed_replicas)
        session.news.set()
        if heartbeat.applied_version != session.applied_version:
            session.applied_version = heartbeat.applied_version
            self._on_applied()

    def _take_failed(self, session: BrokerSession, refs: Sequence[common_pb2.PartitionRef]) -> None:
        """A heartbeat names all replicas that are failed now; one that it names no more serves again."""
        known = self._failed.of(session.broker_id, session.broker_epoch)
        failed = frozenset((ref.topic_id, ref.partition) for ref in refs) & self._image.partitions.keys()
        if failed == known:
            return
        self._failed.report(session.broker_id, session.broker_epoch, failed)
        session.replicas_failed = True
        for what, keys in (("replicas failed", failed - known), ("replicas recovered", known - failed)):
            if keys:
                names = ",".join(sorted(f"{topic_id}-{index}" for topic_id, index in keys)[:_MOST_NAMED])
                log.warning("%s broker=%d count=%d replicas=%s", what, session.broker_id, len(keys), names)

    async def follow(self, session: BrokerSession) -> None:
        """Submit what the session's heartbeats ask for; a task for the session's life."""
        refused: Iterator[float] | None = None  # pauses, while the store or the queue refuses
        while True:
            await session.news.wait()
            session.news.clear()
            try:
                await self._act(session)
            except errors.StaleBrokerEpoch as error:
                session.end(error)
                return
            except errors.RetriableError as error:  # the next heartbeat asks again
                if refused is None:
                    log.warning("could not follow a heartbeat broker=%d reason=%s", session.broker_id, error)
                    refused = REFUSED.pauses_s()
                await asyncio.sleep(next(refused))
            else:
                refused = None

    async def _act(self, session: BrokerSession) -> None:
        who = (session.broker_id, session.broker_epoch)
        if session.replicas_failed:
            session.replicas_failed = False
            try:
                await self._commands.submit(FailReplicas(*who))
            except errors.RetriableError:
                session.replicas_failed = True
                raise
        broker = self._image.brokers.get(session.broker_id)
        if broker is None:  # it has been removed, and its session has ended by that
            return
        if session.wants_shutdown:
            if not broker.fenced and not broker.shutting_down:
                await self._commands.submit(BeginShutdown(*who))
                log.info("broker shuts down broker=%d", session.broker_id)
            session.allow_shutdown()  # whatever another replica can lead is led by it, by the same commit
        elif broker.fenced and session.ready and session.applied_version >= session.start_version and not session.over:
            await self._commands.submit(UnfenceBroker(*who))
            log.info("broker unfenced broker=%d broker_epoch=%d", *who)

    async def goodbye(self, session: BrokerSession) -> None:
        """The process ends: dead now. Done even where the caller does not wait for it."""
        if self._sessions.get(session.broker_id) is not session:
            return
        broker = self._image.brokers[session.broker_id]
        await asyncio.shield(self._spawn(self._declare_dead(broker, "goodbye"), f"goodbye of broker {broker.id}"))

    def stream_ended(self, session: BrokerSession) -> None:
        """However it ended. Where no one expected it, find out why."""
        session.end()
        if self._sessions.get(session.broker_id) is not session:
            return
        del self._sessions[session.broker_id]
        broker = self._image.brokers[session.broker_id]
        if broker.fenced:
            self._liveness.forget(broker.id)
        else:
            self._on_session_lost(broker)

    # ---- Dead brokers ----

    def _on_session_lost(self, broker: BrokerRegistration) -> None:
        """Start probing a broker that is live in the metadata and has no session (any more)."""
        if self._closing:
            return
        log.info("session broke broker=%d broker_epoch=%d", broker.id, broker.broker_epoch)
        if (broker.id, broker.broker_epoch) not in self._being_probed:
            self._spawn(self._probe_until_known(broker), f"probe broker {broker.id}")

    async def _probe_until_known(self, broker: BrokerRegistration) -> None:
        """Once things are decided, probe the broker's address, with growing pauses, until one of these is known:

        - it has registered again;
        - it is dead: the connection was refused, or another process answered. It is fenced at once;
        - it was fenced for its silence (`watch`).
        """
        probed, pauses = (broker.id, broker.broker_epoch), PAUSES.pauses_s()
        self._being_probed.add(probed)
        try:
            await self.opening.wait()
            while self._is_missed(broker):
                address = self._image.brokers[broker.id].address  # it may have another one since
                verdict = await probe(self._wire, address, broker.incarnation)
                if verdict is ProbeVerdict.DEAD and self._is_missed(broker):
                    await self._declare_dead(broker, "its process is gone")
                if self._is_missed(broker):
                    await asyncio.sleep(next(pauses))
        finally:
            self._being_probed.discard(probed)

    def _is_missed(self, broker: BrokerRegistration) -> bool:
        now = self._image.brokers.get(broker.id)
        if now is None:
            return False
        is_same = now.broker_epoch == broker.broker_epoch and not now.fenced
        return is_same and broker.id not in self._sessions and not self._closing

    async def _declare_dead(self, broker: BrokerRegistration, reason: str) -> None:
        """Fence it and end its session. Where the store refuses, it is tried again, with growing pauses."""
        self._being_declared_dead.add(broker.id)
        try:
            session = self._sessions.get(broker.id)
            if session is not None and session.broker_epoch == broker.broker_epoch:
                del self._sessions[broker.id]
                session.end(errors.RequestTimedOut(f"broker {broker.id} was declared dead: {reason}"))
            committed = await self._commands.submit(FenceBroker(broker.id, broker.broker_epoch))
        except errors.FencepostError as error:
            if broker.id not in self._not_stored:
                log.error("could not fence broker=%d reason=%s", broker.id, error)
            await asyncio.sleep(next(self._not_stored.setdefault(broker.id, REFUSED.pauses_s())))
            return
        finally:
            self._being_declared_dead.discard(broker.id)
        self._not_stored.pop(broker.id, None)
        now = self._image.brokers.get(broker.id)
        if broker.id not in self._sessions and (now is None or now.fenced):
            self._liveness.forget(broker.id)
        if committed.answer:
            log.info("broker fenced broker=%d broker_epoch=%d reason=%s", broker.id, broker.broker_epoch, reason)

    async def _replaceable(self, register: RegisterBroker) -> int:
        """The broker epoch of the registration that this one may replace. Raises DuplicateBrokerRegistration, or
        RequestTimedOut where it is not known whether the id is in use."""
        give_up_at = self._loop.time() + 2 * self._config.session_timeout_ms / 1000
        pauses = PAUSES.pauses_s()
        while True:
            if self._closing:
                raise errors.NotController("the controller is stopping")
            known = self._image.brokers.get(register.broker_id)
            if known is None or known.incarnation == register.incarnation:
                return NO_EPOCH
            if known.fenced and known.id not in self._sessions:
                return known.broker_epoch
            verdict = await probe(self._wire, known.address, known.incarnation)
            if verdict is ProbeVerdict.DEAD:
                return known.broker_epoch
            if verdict is ProbeVerdict.ALIVE:
                await self._commands.confirm()  # the broker's process ends with this refusal
                raise errors.DuplicateBrokerRegistration(
                    f"broker id {known.id} is in use by the process at {known.address} (incarnation {known.incarnation})"
                )
            if self._loop.time() >= give_up_at:  # the store is slow, or this controller was paused
                raise errors.RequestTimedOut(
                    f"it is not known yet whether broker {known.id} at {known.address} is alive"
                )
            await asyncio.sleep(next(pauses))


def _command_of(register: controller_pb2.Register) -> RegisterBroker:
    return RegisterBroker(
        broker_id=register.broker_id,
        incarnation=register.incarnation,
        cluster_id=register.cluster_id,
        address=register.address,
        kafka_address=register.kafka_address,
        may_have_lost_tail=register.may_have_lost_tail,
        damaged=tuple((ref.topic_id, ref.partition) for ref in register.damaged_replicas),
        folder_epoch=register.folder_epoch,
        folder_is_copy=register.folder_is_copy,
        feature_level=register.feature_level,
    )
