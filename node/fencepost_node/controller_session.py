"""The session with the controller: one stream that says this broker is alive, and brings it metadata.

Up go the registration and then heartbeats; down come metadata changes, in version order. Each change is applied here
(replicas, then image and clients' feed) and then acknowledged at once by a heartbeat with its version: the controller's
fence for named producers waits for that (G9). A change may concern thousands of partitions, so it is applied in turns, and
heartbeats go on meanwhile: they report the version before it, and by a rising `progress` that the work goes on. What breaks
off in between (the stream, and with it this session) is made whole by the image that the next session begins with.

**When the stream breaks** the broker goes on serving what it leads, and registers again, with the same incarnation, as
soon as it can. The controller knows by the incarnation that this is the same process, which has lost nothing, and lets
it keep its broker epoch. If it was declared dead meanwhile, the image that follows shows that it leads nothing any more.
In both cases a whole image comes first, so nothing is missed.

**The metadata version that the broker knows** stays in its folder (`known_metadata.py`), and every registration reports
it: a controller whose store has been put back from a backup sees by it that it is behind, and serves no one. While it is
so, or is away, the broker goes on as it does with a broken stream.

**Where there are several controllers** the broker asks one after the other until one registers it; a standby says who
is active. A controller that is paused or cut off says nothing, so it is asked for a sign of life before a
registration, and while the session stands; where none comes, the broker looks for another active one. A session under
an older controller epoch than one that was seen is refused or ended.

**When the registration is refused** because another process holds this broker id, or because this is not the cluster
that the data folder belongs to, no repetition helps: `run` raises, and the process ends. Everything else is retried.

**At shutdown** `hand_over` asks for this broker's leaderships to be given to others and waits, within a bound, until
they are; `goodbye` says that what follows is the end of the process, so that no one waits for its timeout.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

import grpc

from fencepost_node.controller_link import ControllerLink
from fencepost_node.folders.data_folder import DataFolder
from fencepost_node.folders.known_metadata import KnownMetadata
from fencepost_node.metadata_feed import MetadataFeed
from fencepost_proto.protocol import errors, features
from fencepost_proto.protocol.metadata import MetadataImage, PartitionKey
from fencepost_proto.protocol.v1 import common_pb2, controller_pb2
from fencepost_proto.runtime.applying import apply_in_turns
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.turns import Turns
from fencepost_proto.transport.cancellation import CallCancelled, own_cancellation_only
from fencepost_proto.transport.wire import new_incarnation

log = logging.getLogger(__name__)

RETRY = Backoff(first_s=0.05, most_s=0.5, jitter=(0.5, 1.0))  # pauses between attempts to hold a session
NEXT_CONTROLLER = Backoff(first_s=0.01, most_s=0.01, jitter=(0.5, 1.0))  # before another controller is asked
CHECK_INTERVAL_S = 0.5  # between signs of life that are asked of one of several controllers
MAX_FAILED_CHECKS = 2  # in a row
REGISTRATION_TIMEOUT_S = 30.0  # the controller may have to find out whether another process with this id is dead
GOODBYE_TIMEOUT_S = 1.0
MAX_WAIT_FOR_CONTROLLER_S = 1.0
HEARTBEAT_INTERVAL_S = (0.01, 60.0)  # bounds on what the controller may ask for

# No repetition of a registration helps against these.
REFUSALS = (errors.DuplicateBrokerRegistration, errors.InconsistentClusterId)

SessionCall: TypeAlias = grpc.aio.StreamStreamCall[controller_pb2.SessionRequest, controller_pb2.SessionResponse]


class Replicas(Protocol):
    """What the session needs of the replica manager."""

    @property
    def failed_replicas(self) -> Sequence[PartitionKey]: ...

    @property
    def damaged(self) -> Mapping[PartitionKey, str]: ...

    async def apply_in_turns(
        self, image: MetadataImage, broker_epoch: int, changed: Collection[PartitionKey] | None, turns: Turns
    ) -> None: ...


class SessionBroken(errors.RetriableError):
    """The controller ended the stream, or said something out of order."""

    code = errors.ErrorCode.NOT_CONTROLLER


class ControllerSession:
    """One process's session, over all its streams. `run` is its task; the rest may be called from any other."""

    def __init__(
        self,
        *,
        host: Host,
        broker_id: int,
        address: str,
        kafka_address: str = "",  # empty: it serves no Kafka clients
        link: ControllerLink,
        folder: DataFolder,
        known: KnownMetadata,
        replicas: Replicas,
        feed: MetadataFeed,
    ) -> None:
        self.incarnation = new_incarnation(host.random)
        self.image = MetadataImage()
        self.was_ready = asyncio.Event()  # once: registered, with metadata applied
        self._random = host.random
        self._broker_id = broker_id
        self._address = address
        self._kafka_address = kafka_address
        self._link = link
        self._folder = folder
        self._known = known
        self._replicas = replicas
        self._feed = feed
        self._turns = Turns()  # of applying metadata
        self._wants_shutdown = False
        self._shutdown_allowed = asyncio.Event()
        self._leaving = False
        self._left = asyncio.Event()
        self._registered = False  # on the present stream
        self._trouble = ""  # why there is no session, as last logged

    @property
    def registered(self) -> bool:
        """There is a session with the controller now."""
        return self._registered

    async def run(self) -> None:
        """Hold a session until `goodbye`. Raises one of REFUSALS, or what went wrong in applying metadata."""
        failures, time = 1, asyncio.get_running_loop().time
        try:
            while not self._leaving:
                hint, began = "", time()
                try:
                    with own_cancellation_only():
                        await self._hold()
                except REFUSALS:
                    raise
                except (grpc.aio.AioRpcError, errors.FencepostError, CallCancelled) as error:
                    self._log_trouble(error)
                    hint = _active_controller(error)
                if self._leaving:
                    break
                if self._registered and time() - began > RETRY.most_s:  # sessions that break at once are no success
                    failures = 0
                self._registered = False
                if self._link.move_on(hint):
                    await asyncio.sleep(NEXT_CONTROLLER.jittered_pause_s(1, self._random))
                    continue
                failures += 1
                await asyncio.sleep(RETRY.jittered_pause_s(failures, self._random))
        finally:
            self._left.set()

    async def hand_over(self, max_wait_s: float) -> bool:
        """Ask for the leaderships to be given to others. False where that was not done in time."""
        self._wants_shutdown = True
        if not self._registered:  # the controller is away; it may be back in a moment, and may not
            max_wait_s = min(max_wait_s, MAX_WAIT_FOR_CONTROLLER_S)
        self._link.request_heartbeat()
        try:
            async with asyncio.timeout(max_wait_s):
                await self._shutdown_allowed.wait()
        except TimeoutError:
            return False
        return True

    async def goodbye(self) -> None:
        """End the session permanently, notifying the controller where it can be reached. `run` returns."""
        self._leaving = True
        self._link.request_heartbeat()
        try:
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                await self._left.wait()
        except TimeoutError:
            log.info("the controller did not take the goodbye in time controller=%s", self._link.address)

    # ---- One stream ----

    async def _hold(self) -> None:
        """One stream from registration to its end."""
        if self._link.has_several:
            await self._link.check_alive()
        call = self._link.controller.Session()
        try:
            async with asyncio.TaskGroup() as group:
                # Also while the registration waits: a controller that is paused then is not waited for.
                watching = group.create_task(self._watch_controller()) if self._link.has_several else None
                registered = await self._register(call)
                group.create_task(self._send_heartbeats(call, registered.heartbeat_interval_ms / 1000))
                await self._receive(call, registered.controller_epoch)
                if watching is not None:
                    watching.cancel()
        except ExceptionGroup as group_error:
            raise _gravest(group_error) from None
        finally:
            call.cancel()

    async def _register(self, call: SessionCall) -> controller_pb2.Registered:
        known = self._known.newest
        register = controller_pb2.Register(
            broker_id=self._broker_id,
            incarnation=self.incarnation,
            cluster_id=self._folder.cluster_id,
            address=self._address,
            kafka_address=self._kafka_address,
            may_have_lost_tail=self._folder.may_have_lost_tail,
            damaged_replicas=_references(sorted(self._replicas.damaged)),
            folder_epoch=self._folder.broker_epoch,
            folder_is_copy=self._folder.is_copy,
            known_version=known.version,
            known_lineage_id=known.lineage_id,
            oldest_lineage_id=self._known.image.lineage.oldest_id,
            feature_level=features.NEWEST,
        )
        try:
            async with asyncio.timeout(REGISTRATION_TIMEOUT_S):
                await _write(call, controller_pb2.SessionRequest(register=register))
                answer = await _read(call)
        except TimeoutError:
            raise SessionBroken(f"no answer to the registration in {REGISTRATION_TIMEOUT_S:g} s") from None
        if answer.WhichOneof("kind") == "error":
            raise errors.from_proto(answer.error)
        if answer.WhichOneof("kind") != "registered":
            raise SessionBroken(f"{answer.WhichOneof('kind')!r} in answer to the registration")
        registered = answer.registered
        self._link.check_epoch(registered.controller_epoch)
        if registered.metadata_version < known.version:
            raise SessionBroken(
                f"the controller is at metadata version {registered.metadata_version}; "
                f"broker {self._broker_id} knows {known.version}"
            )
        if registered.broker_epoch < self._link.broker_epoch:
            raise errors.InvariantBroken(
                f"broker epoch went back from {self._link.broker_epoch} to {registered.broker_epoch}"
            )
        # On disk before its first use: from here on this folder belongs to that cluster, and holds what is done under that
        # epoch.
        try:
            await asyncio.to_thread(self._folder.registered, registered.cluster_id, registered.broker_epoch)
        except OSError as error:  # a full disk may have room again; the same incarnation gets the same epoch
            raise SessionBroken(f"the registration cannot be recorded in the data folder: {error}") from error
        self._known.learn(registered.metadata_version, registered.lineage_id)
        self._link.broker_epoch = registered.broker_epoch
        self._registered = True
        self._link.serves()
        self._trouble = ""
        log.info(
            "registered cluster_id=%s broker_epoch=%d incarnation=%s controller=%s",
            registered.cluster_id,
            registered.broker_epoch,
            self.incarnation,
            self._link.address,
        )
        return registered

    async def _send_heartbeats(self, call: SessionCall, interval_s: float) -> None:
        """One at once, then one whenever there is something to report, and at least every interval."""
        shortest_s, longest_s = HEARTBEAT_INTERVAL_S
        interval_s = min(max(interval_s, shortest_s), longest_s)
        wanted = self._link.heartbeat_wanted
        while not self._leaving:
            wanted.clear()
            await _write(call, controller_pb2.SessionRequest(heartbeat=self._heartbeat()))
            try:
                async with asyncio.timeout(interval_s):
                    await wanted.wait()
            except TimeoutError:
                continue
        await _write(call, controller_pb2.SessionRequest(goodbye=controller_pb2.Goodbye()))
        await call.done_writing()

    def _ready(self) -> bool:
        """May this broker be unfenced? The broker epoch is the version of its registration: that is to be applied."""
        return self._registered and self.image.version >= self._link.broker_epoch

    def _heartbeat(self) -> controller_pb2.Heartbeat:
        return controller_pb2.Heartbeat(
            applied_version=self.image.version,
            ready=self._ready(),
            progress=self._turns.steps,
            want_shutdown=self._wants_shutdown,
            failed_replicas=_references(self._replicas.failed_replicas),
        )

    async def _watch_controller(self) -> None:
        """Ask the controller for signs of life; one that gives none is paused or cut off. Raises SessionBroken."""
        failures = 0
        while not self._leaving:
            await asyncio.sleep(CHECK_INTERVAL_S)
            try:
                await self._link.check_alive()
                failures = 0
            except errors.FencepostError as error:
                failures += 1
                if failures >= MAX_FAILED_CHECKS and not self._leaving:
                    raise SessionBroken(f"the controller gives no sign of life: {error}") from error

    async def _receive(self, call: SessionCall, controller_epoch: int) -> None:
        while True:
            try:
                response = await _read(call)
            except (SessionBroken, grpc.aio.AioRpcError):
                if self._leaving:
                    return  # the controller ends the stream after a goodbye
                raise
            self._link.check_epoch(controller_epoch)
            match response.WhichOneof("kind"):
                case "metadata":
                    await self._apply(response.metadata)
                case "shutdown_allowed":
                    self._shutdown_allowed.set()
                case "error":
                    raise errors.from_proto(response.error)
                case kind:
                    raise SessionBroken(f"{kind!r} in the middle of a session")

    async def _apply(self, delta: common_pb2.MetadataDelta) -> None:
        """Take one change, or a whole image, everywhere in this process."""
        known = self.image.version
        if delta.version < known or (delta.version == known and not delta.image):
            raise errors.InvariantBroken(f"metadata version {delta.version} came after {known}")
        image, named = await apply_in_turns(self.image, delta, self._turns)
        self._known.applies(image, delta)  # before anything rests on it
        changed = None if delta.image else named
        try:
            await self._replicas.apply_in_turns(image, self._link.broker_epoch, changed, self._turns)
        except errors.FencepostError as error:  # not a reason to try again: a part of it may stand
            raise errors.InvariantBroken(f"metadata version {delta.version} was not applied: {error}") from error
        self.image = image  # only now: heartbeats acknowledge its version
        self._feed.publish(image, delta)
        if self._ready():
            self.was_ready.set()
        self._link.request_heartbeat()

    def _log_trouble(self, error: grpc.aio.AioRpcError | errors.FencepostError | CallCancelled) -> None:
        """Once for each kind of trouble: a controller that is away is met at every attempt."""
        text = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else str(error)
        if not self._leaving and text != self._trouble:
            log.warning("no session with the controller=%s reason=%s", self._link.address, text)
            self._trouble = text


def _active_controller(error: Exception) -> str:
    """Who is active, as a standby says; empty: it does not."""
    leader = error.current_leader if isinstance(error, errors.NotController) else None
    return leader.address if leader is not None else ""


def _references(keys: Iterable[PartitionKey]) -> list[common_pb2.PartitionRef]:
    return [common_pb2.PartitionRef(topic_id=topic_id, partition=partition) for topic_id, partition in keys]


async def _write(call: SessionCall, request: controller_pb2.SessionRequest) -> None:
    try:
        await call.write(request)
    except asyncio.InvalidStateError as error:  # how gRPC says that the stream has ended
        raise SessionBroken("the stream ended") from error


async def _read(call: SessionCall) -> controller_pb2.SessionResponse:
    response = await call.read()
    if not isinstance(response, controller_pb2.SessionResponse):
        raise SessionBroken("the controller ended the stream")
    return response


def _gravest(group: ExceptionGroup[Exception]) -> Exception:
    """The one that decides: a broken stream is often met by reader and writer at once; it hides nothing else."""
    expected = (SessionBroken, grpc.aio.AioRpcError)
    return min(group.exceptions, key=lambda error: isinstance(error, expected))
