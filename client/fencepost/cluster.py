"""What a client knows of its cluster: the newest metadata, who leads what, and a channel to each broker.

Two brokers are watched at once (WatchMetadata): each sends an image first and then every change as it applies it. Each
watch keeps its own image, since changes build on what that broker sent before; the newest version of all is the
client's `image`, so that it never goes back. When a watch breaks, its place is taken by another broker at once: the one
whose last failure is longest ago. Two watches, because one broker may be silent (paused) or stale (cut off from the
controller) while its stream stays up; brokers repeat an empty change about once a second, so silence means something.

Errors tell where a partition's leader is, often before the watch does: `learn` keeps such a hint until the image has
caught up with its leader epoch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import grpc

from fencepost_proto.errors import (
    CurrentLeader,
    FencepostError,
    InconsistentClusterId,
    InvalidConfig,
    InvalidRequest,
    NetworkException,
    RequestTimedOut,
    UnknownServerError,
    UnknownTopicOrPartition,
    raise_for,
)
from fencepost_proto.host import Host
from fencepost_proto.metadata import MetadataImage, PartitionKey, Topic
from fencepost_proto.v1 import broker_pb2, broker_pb2_grpc, common_pb2, controller_pb2_grpc

log = logging.getLogger(__name__)

WATCHED_BROKERS = 2
SILENCE_S = 3.0  # without a word, or behind another broker, for so long: a watch is broken (brokers speak every second)
QUIET_S = 1.5  # without a word for so long: others are asked first
RETRY_BACKOFF_S = 0.1  # between two attempts to watch the same broker
START_TIMEOUT_S = 10.0
TOPIC_WAIT_S = 2.0  # a topic just created may not have reached the watched brokers yet
MAX_CHANNELS = 64  # beyond it, channels to addresses that no broker has any more are closed
MAX_CALL_ATTEMPTS = 3  # brokers asked in turn by one call
LEADER_ATTEMPT_S = 5.0  # for one answer of a leader, before asking who leads now
LEADER_RETRY_BACKOFF_S = 0.05  # unless news of another leader comes earlier


class Answer(Protocol):
    """Every response that says in `error` whether the request was refused."""

    @property
    def error(self) -> common_pb2.Error: ...


Listener = Callable[[MetadataImage], None]
Request = TypeVar("Request")
Response = TypeVar("Response")
LeaderAnswer = TypeVar("LeaderAnswer", bound=Answer)


def parse_bootstrap(bootstrap: str | Sequence[str]) -> list[str]:
    """The addresses (host:port) in a list or a comma-separated string. Raises InvalidConfig naming a bad one."""
    parts = bootstrap.split(",") if isinstance(bootstrap, str) else bootstrap
    addresses = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not addresses:
        raise InvalidConfig("bootstrap names no broker: host:port is expected")
    for address in addresses:
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            raise InvalidConfig(f"bootstrap address {address!r} is not host:port")
    return addresses


def error_of(error: grpc.aio.AioRpcError, address: str) -> FencepostError:
    """What a failed call means here: most often, that the broker is gone."""
    code, text = error.code(), f"broker {address}: {error.details()}"
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return RequestTimedOut(text)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED | grpc.StatusCode.ABORTED:
            return NetworkException(text)
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.UNIMPLEMENTED | grpc.StatusCode.RESOURCE_EXHAUSTED:
            return InvalidRequest(text)
        case _:
            return UnknownServerError(f"{code.name}: {text}")


@contextmanager
def rpc_errors(address: str) -> Iterator[None]:
    """Errors of this project for what gRPC raises inside. gRPC raises CancelledError for a call that the other side
    cancelled; here that means a broken call, and only this task's own cancellation passes as one."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_of(error, address) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise NetworkException(f"broker {address}: the call was cancelled") from None


class Cluster:
    """The cluster as this client sees it. `start` before use, `close` after."""

    def __init__(self, bootstrap: str | Sequence[str], host: Host) -> None:
        self._host = host
        self._bootstrap = parse_bootstrap(bootstrap)
        self._image = MetadataImage()
        self._hints: dict[PartitionKey, CurrentLeader] = {}
        self._listeners: list[Listener] = []
        self._channels: dict[str, grpc.aio.Channel] = {}  # least recently asked for first
        self._closing: set[asyncio.Task[None]] = set()
        self._watches: list[asyncio.Task[None]] = []
        self._watching: dict[int, str] = {}  # watch number -> address
        self._heard: dict[str, float] = {}  # watched address -> when it last spoke
        self._failures: dict[str, tuple[float, str]] = {}  # address -> when its watch last broke, and why
        self._order = host.random.sample(self._bootstrap, len(self._bootstrap))

    # ---- Life ----

    async def start(self) -> None:
        """Returns with the first image. Raises NetworkException naming the addresses where no broker has one."""
        if self._watches:
            raise InvalidRequest("the cluster client has been started before")
        for number in range(WATCHED_BROKERS):
            task = asyncio.create_task(self._watch(number), name=f"watch-{number}")
            task.add_done_callback(_report_bug)
            self._watches.append(task)
        try:
            await self.wait_until(lambda image: bool(image.cluster_id), START_TIMEOUT_S)
        except TimeoutError:
            told = "; ".join(f"{address}: {self._failures.get(address, (0, 'silence'))[1]}" for address in self._order)
            await self.close()
            raise NetworkException(f"no broker answered within {START_TIMEOUT_S:.0f} s: {told}") from None
        except asyncio.CancelledError:
            await self.close()
            raise

    async def close(self) -> None:
        """Ends the watches and every channel, and with them every call under way. May be called twice."""
        for task in self._watches:
            task.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)  # a bug in one has been logged as it ended
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()
        await asyncio.gather(*self._closing)

    # ---- What is known ----

    @property
    def image(self) -> MetadataImage:
        """The newest metadata that any watched broker has sent."""
        return self._image

    def add_listener(self, callback: Listener) -> None:
        """`callback` is called with each new image; it must not raise."""
        self._listeners.append(callback)

    def remove_listener(self, callback: Listener) -> None:
        self._listeners.remove(callback)

    async def wait_until(self, condition: Callable[[MetadataImage], bool], timeout_s: float) -> MetadataImage:
        """The first image, from the present one on, for which `condition` holds. Raises TimeoutError."""
        if condition(self._image):
            return self._image
        reached: asyncio.Future[MetadataImage] = asyncio.get_running_loop().create_future()

        def look(image: MetadataImage) -> None:
            if not reached.done() and condition(image):
                reached.set_result(image)

        self.add_listener(look)
        try:
            async with asyncio.timeout(timeout_s):
                return await reached
        finally:
            self.remove_listener(look)

    async def topic(self, name: str) -> Topic:
        """The topic of that name; waits for one just created. Raises UnknownTopicOrPartition."""
        try:
            image = await self.wait_until(lambda image: name in image.topic_ids, TOPIC_WAIT_S)
        except TimeoutError:
            raise UnknownTopicOrPartition(f"topic {name!r} is not in the cluster") from None
        return image.topics[image.topic_ids[name]]

    def leader(self, key: PartitionKey) -> CurrentLeader | None:
        """The newest leader known, by leader epoch; leader_id -1 where there is none now. None: no such partition."""
        partition = self._image.partitions.get(key)
        if partition is None:
            return None
        hint = self._hints.get(key)
        return hint if hint is not None else self._image.current_leader(partition)

    def learn(self, key: PartitionKey, hint: CurrentLeader) -> bool:
        """Take a leader from an error's `current_leader`. False: what is known is as new."""
        known = self.leader(key)
        if known is None or hint.leader_epoch <= known.leader_epoch:
            return False
        self._hints[key] = hint
        return True

    # ---- Calls ----

    def addresses(self) -> list[str]:
        """Of every broker that may answer, the likeliest first: watched ones that speak, those that live, the others."""
        recent_s = asyncio.get_running_loop().time() - QUIET_S
        live = [broker.address for _, broker in sorted(self._image.brokers.items()) if not broker.fenced]
        watched = [address for _, address in sorted(self._watching.items())]
        speaking = [address for address in watched if self._heard.get(address, recent_s) > recent_s]
        others = [address for address in (*live, *self._order) if address not in watched]
        return list(dict.fromkeys([*speaking, *others, *watched]))

    def channel(self, address: str) -> grpc.aio.Channel:
        """The one channel to host:port, kept until `close`."""
        channel = self._channels.pop(address, None)
        if channel is None:
            self._retire_channels()
            channel = self._host.wire.connect(address)
        self._channels[address] = channel
        return channel

    async def call(
        self,
        method: Callable[[grpc.aio.Channel], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        *,
        address: str | None = None,
        timeout_s: float,
    ) -> Response:
        """Ask the broker at `address`; without one, any broker, and another where the first is gone or silent.

        `timeout_s` is for each attempt. Raises NetworkException, RequestTimedOut and what `error_of` tells; the
        answer's own `error` field is the caller's to read. Without an address the request must be one that may be
        carried out twice.
        """
        candidates = [address] if address is not None else self.addresses()[:MAX_CALL_ATTEMPTS]
        last: FencepostError | None = None
        for candidate in candidates:
            try:
                with rpc_errors(candidate):
                    return await method(self.channel(candidate))(request, timeout=timeout_s)
            except (NetworkException, RequestTimedOut) as error:
                last = error
        assert last is not None  # there is always an address to ask: bootstrap's
        raise last

    async def call_broker(
        self,
        method: Callable[[broker_pb2_grpc.BrokerAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        *,
        address: str | None = None,
        timeout_s: float,
    ) -> Response:
        """`call` of the Broker service: `call_broker(lambda broker: broker.ListOffsets, request, …)`."""
        return await self.call(
            lambda channel: method(broker_pb2_grpc.BrokerStub(channel)), request, address=address, timeout_s=timeout_s
        )

    async def call_leader(
        self,
        key: PartitionKey,
        method: Callable[[broker_pb2_grpc.BrokerAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Request, LeaderAnswer]],
        request: Callable[[CurrentLeader], Request],
        *,
        timeout_s: float,
    ) -> LeaderAnswer:
        """Ask the partition's leader, whoever that becomes, until it answers without a retriable error.

        `request` makes the request for one leader (and its epoch). The request may be carried out more than once.
        Raises what the leader refuses for good, UnknownTopicOrPartition where the partition is gone, and after
        `timeout_s` the last retriable error.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        last: FencepostError = RequestTimedOut(f"partition {key[0]}-{key[1]} has had no leader for {timeout_s} s")
        while (left_s := deadline - loop.time()) > 0:
            leader = self.leader(key)
            if leader is None:
                raise UnknownTopicOrPartition(f"partition {key[0]}-{key[1]} is not in the cluster")
            if leader.address:
                try:
                    answer = await self.call_broker(
                        method, request(leader), address=leader.address, timeout_s=min(left_s, LEADER_ATTEMPT_S)
                    )
                    raise_for(answer.error)
                    return answer
                except FencepostError as error:
                    if not error.retriable:
                        raise
                    last = error
                    if error.current_leader is not None:
                        self.learn(key, error.current_leader)
            await self._wait_for_another_leader(key, leader, min(deadline - loop.time(), LEADER_RETRY_BACKOFF_S))
        raise last

    async def call_admin(
        self,
        method: Callable[[controller_pb2_grpc.AdminAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        *,
        address: str | None = None,
        timeout_s: float,
    ) -> Response:
        """`call` of the Admin service, which every broker relays to the controller."""
        return await self.call(
            lambda channel: method(controller_pb2_grpc.AdminStub(channel)),
            request,
            address=address,
            timeout_s=timeout_s,
        )

    # ---- Inside ----

    async def _wait_for_another_leader(self, key: PartitionKey, leader: CurrentLeader, timeout_s: float) -> None:
        try:
            await self.wait_until(lambda image: self.leader(key) != leader, timeout_s)
        except TimeoutError:
            return  # ask the same one again

    def _retire_channels(self) -> None:
        """Make room for one more channel by closing one to where no broker is any more."""
        if len(self._channels) < MAX_CHANNELS:
            return
        needed = {*self.addresses(), *(hint.address for hint in self._hints.values())}
        for address in self._channels:
            if address not in needed:
                task = asyncio.create_task(self._channels.pop(address).close(), name=f"close-{address}")
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
                return

    async def _watch(self, number: int) -> None:
        """Follow one broker after another, never one that another watch follows, for as long as the client lives."""
        loop = asyncio.get_running_loop()
        while True:
            address = self._next_to_watch(number)
            if address is None:
                await asyncio.sleep(RETRY_BACKOFF_S)
                continue
            self._watching[number] = address
            try:
                failed_at, _ = self._failures.get(address, (-RETRY_BACKOFF_S, ""))
                await asyncio.sleep(failed_at + RETRY_BACKOFF_S - loop.time())
                await self._follow(address)
            except FencepostError as error:
                if self._failures.get(address, (0.0, ""))[1] != error.message:  # a dead broker is told of once
                    log.info("metadata watch broke address=%s reason=%s", address, error.message)
                self._failures[address] = (loop.time(), error.message)
            finally:
                del self._watching[number]
                self._heard.pop(address, None)

    def _next_to_watch(self, number: int) -> str | None:
        """The broker whose last failure is longest ago, of those that no other watch follows."""
        taken = {address for other, address in self._watching.items() if other != number}
        candidates = [address for address in self.addresses() if address not in taken]
        self._failures = {a: f for a, f in self._failures.items() if a in candidates or a in taken}
        return min(candidates, key=lambda address: self._failures.get(address, (float("-inf"), ""))[0], default=None)

    async def _follow(self, address: str) -> None:
        """Take one broker's changes until its stream breaks; always raises, and says why."""
        loop = asyncio.get_running_loop()
        stub = broker_pb2_grpc.BrokerStub(self.channel(address))
        call = stub.WatchMetadata(broker_pb2.WatchMetadataRequest())
        deltas = aiter(call)
        image: MetadataImage | None = None
        newest_at = loop.time()
        try:
            while True:
                try:
                    with rpc_errors(address):
                        async with asyncio.timeout(SILENCE_S):
                            delta = await anext(deltas)
                except StopAsyncIteration:
                    raise NetworkException("the broker ended the stream") from None
                except TimeoutError:
                    raise NetworkException(f"silent for {SILENCE_S} s") from None
                if image is None and not delta.image:
                    raise NetworkException(f"the stream began with a change to version {delta.version}, not an image")
                try:
                    image = (image or MetadataImage()).apply(delta)
                except ValueError as error:
                    raise UnknownServerError(f"metadata at version {delta.version} is unreadable: {error}") from error
                self._heard[address] = loop.time()
                self._take(image, address)
                if image.version >= self._image.version:
                    newest_at = loop.time()
                elif loop.time() - newest_at > SILENCE_S:
                    raise NetworkException(f"stale: version {image.version}, another has {self._image.version}")
        finally:
            call.cancel()

    def _take(self, image: MetadataImage, address: str) -> None:
        """Make `image` the client's where it is newer. Raises InconsistentClusterId for one of another cluster."""
        known = self._image
        if image.cluster_id != known.cluster_id and known.cluster_id:
            raise InconsistentClusterId(
                f"broker {address} belongs to cluster {image.cluster_id!r}, not {known.cluster_id!r}"
            )
        if not image.cluster_id or image.version <= known.version:
            return
        self._image = image
        self._hints = {
            key: hint
            for key, hint in self._hints.items()
            if key in image.partitions and image.partitions[key].leader_epoch < hint.leader_epoch
        }
        for listener in tuple(self._listeners):
            listener(image)


def _report_bug(watch: asyncio.Task[None]) -> None:
    if not watch.cancelled() and watch.exception() is not None:
        log.critical("metadata watch ended task=%s", watch.get_name(), exc_info=watch.exception())
