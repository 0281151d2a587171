"""A client's view of its cluster: the newest metadata, the leader of each partition, and a channel to each broker.

Two brokers push metadata (`metadata_watch`). The newest version received from either is the client's `image`, so it never
goes back. Two, because one may be paused, or cut off from the controller, while its stream stays up.

An error may name a partition's leader, often before the metadata does: `learn` keeps such a hint until the image has reached
its leader epoch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import grpc

from fencepost.errors import NoBrokerAnswered
from fencepost.loop_guard import LoopGuard
from fencepost.metadata_watch import MetadataWatch, report_bug
from fencepost_proto.protocol.errors import (
    CurrentLeader,
    FencepostError,
    InconsistentClusterId,
    InvalidConfig,
    NetworkException,
    RequestTimedOut,
    UnknownTopicOrPartition,
    raise_for,
)
from fencepost_proto.protocol.metadata import MetadataImage, PartitionKey, Topic
from fencepost_proto.protocol.v1 import broker_pb2_grpc, controller_pb2_grpc
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.tasks import Tasks
from fencepost_proto.transport.client_ids import DEFAULT_CLIENT_ID, check_client_id, named
from fencepost_proto.transport.rpc_errors import Answer, rpc_errors

log = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
TOPIC_WAIT_S = 2.0  # a topic just created may not have reached the watched brokers yet
MAX_CHANNELS = 64  # beyond it, channels to addresses that no broker has any more are closed
MAX_CALL_ATTEMPTS = 3  # brokers asked in turn by one call
LEADER_ATTEMPT_S = 5.0  # for one answer of a leader, before asking who leads now
LEADER_BACKOFF = Backoff(first_s=0.05, most_s=1.0)  # before the same leader is asked again


Listener = Callable[[MetadataImage], None]
Request = TypeVar("Request")
Response = TypeVar("Response")
LeaderAnswer = TypeVar("LeaderAnswer", bound=Answer)


def parse_bootstrap(bootstrap: str | Sequence[str]) -> list[str]:
    """The addresses (host:port) in a list or a comma-separated string. Raises InvalidConfig naming a bad one."""
    parts = bootstrap.split(",") if isinstance(bootstrap, str) else bootstrap
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise InvalidConfig(f"bootstrap={bootstrap!r}: host:port is expected, as text or a list of it")
    addresses = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not addresses:
        raise InvalidConfig("bootstrap names no broker: host:port is expected")
    for address in addresses:
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            raise InvalidConfig(f"bootstrap address {address!r} is not host:port")
    return addresses


class ClusterClient:
    """The connection of one client to its cluster. `start` it before use, `close` it after."""

    def __init__(self, bootstrap: str | Sequence[str], host: Host, client_id: str = DEFAULT_CLIENT_ID) -> None:
        """`client_id`: goes with each call. Raises InvalidConfig."""
        self.guard = LoopGuard("client")
        self._client_id = check_client_id(client_id)
        self._host = host
        self._bootstrap = parse_bootstrap(bootstrap)
        self._image = MetadataImage()
        self._hints: dict[PartitionKey, CurrentLeader] = {}
        self._listeners: list[Listener] = []
        self._channels: dict[str, grpc.aio.Channel] = {}  # least recently used first
        self._closing = Tasks(report_bug)  # of channels that are not needed any more
        self._watch = MetadataWatch(self.channel, self.addresses, self._accept_image)
        self._order = host.random.sample(self._bootstrap, len(self._bootstrap))

    # ---- Life ----

    async def start(self) -> None:
        """Return when the first image has come. Raises NoBrokerAnswered, with the reason of each address, where none
        comes."""
        self.guard.bind()
        self.channel(self._order[0])  # raises where none can be made: in a forked child
        self._watch.start()
        try:
            await self.wait_until(lambda image: bool(image.cluster_id), START_TIMEOUT_S)
        except TimeoutError:
            reasons = "; ".join(self._watch.failure(address) or f"broker {address}: silence" for address in self._order)
            await self.close()
            raise NoBrokerAnswered(f"no broker answered within {START_TIMEOUT_S:.0f} s: {reasons}") from None
        except asyncio.CancelledError:
            await self.close()
            raise

    async def close(self) -> None:
        """End the watches and close every channel, which ends every call under way. May be called twice."""
        if self.guard.forked:
            return
        self.guard.check()
        await self._watch.close()
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()
        await self._closing.join()

    # ---- What is known ----

    @property
    def image(self) -> MetadataImage:
        """The newest metadata that any watched broker has sent."""
        return self._image

    def add_listener(self, callback: Listener) -> None:
        """`callback` is called with every new image; it must not raise."""
        self._listeners.append(callback)

    def remove_listener(self, callback: Listener) -> None:
        self._listeners.remove(callback)

    async def wait_until(self, condition: Callable[[MetadataImage], bool], timeout_s: float) -> MetadataImage:
        """The first image, from the present one on, for which `condition` holds. Raises TimeoutError."""
        self.guard.check()
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
        """The topic of that name; waits for one that was just created. Raises UnknownTopicOrPartition."""
        try:
            image = await self.wait_until(lambda image: name in image.topic_ids, TOPIC_WAIT_S)
        except TimeoutError:
            raise UnknownTopicOrPartition(f"topic {name!r} is not in the cluster") from None
        return image.topics[image.topic_ids[name]]

    def leader(self, key: PartitionKey) -> CurrentLeader | None:
        """The known leader with the highest leader epoch; leader_id -1: there is none now. None: no such partition."""
        partition = self._image.partitions.get(key)
        if partition is None:
            return None
        hint = self._hints.get(key)
        return hint if hint is not None else self._image.current_leader(partition)

    def learn(self, key: PartitionKey, hint: CurrentLeader) -> bool:
        """Remember the leader that an error's `current_leader` names. False: the known one is as new."""
        known = self.leader(key)
        if known is None or hint.leader_epoch <= known.leader_epoch:
            return False
        self._hints[key] = hint
        return True

    # ---- Calls ----

    def addresses(self) -> list[str]:
        """Of every broker that may answer, the best first: watched ones that send messages, live ones, the others."""
        live = [broker.address for _, broker in sorted(self._image.brokers.items()) if not broker.fenced]
        watched = self._watch.watched()
        others = [address for address in (*live, *self._order) if address not in watched]
        return list(dict.fromkeys([*self._watch.speaking(), *others, *watched]))

    def channel(self, address: str) -> grpc.aio.Channel:
        """The one channel to host:port, kept until `close`."""
        channel = self._channels.pop(address, None)
        if channel is None:
            self._retire_channels()
            channel = named(self._host.wire.connect(address), self._client_id)
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
        """Ask the broker at `address`; without an address any broker, and another one if the first does not answer.

        `timeout_s` is for each attempt. Raises NetworkException, RequestTimedOut, and the other errors of `rpc_errors`; the
        caller reads the answer's own `error` field. Without an address the request may be carried out twice.
        """
        self.guard.check()
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
        """`ask_leader` by a method of the Broker service."""
        return await self.ask_leader(
            key, lambda channel: method(broker_pb2_grpc.BrokerStub(channel)), request, timeout_s=timeout_s
        )

    async def ask_leader(
        self,
        key: PartitionKey,
        method: Callable[[grpc.aio.Channel], grpc.aio.UnaryUnaryMultiCallable[Request, LeaderAnswer]],
        request: Callable[[CurrentLeader], Request],
        *,
        timeout_s: float,
    ) -> LeaderAnswer:
        """Ask the partition's leader, and its successors, until one answers without a retriable error.

        `request` makes the request for one leader (and its epoch). The request may be carried out more than once.
        Raises an error that is not retriable at once, UnknownTopicOrPartition where the partition is gone, and after
        `timeout_s` the last retriable error.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        last: FencepostError = RequestTimedOut(f"partition {self._name(key)} has had no leader for {timeout_s:g} s")
        asked: CurrentLeader | None = None
        refusals = 0  # of the one that was asked last, in a row
        while (left_s := deadline - loop.time()) > 0:
            leader = self.leader(key)
            if leader is None:
                raise UnknownTopicOrPartition(f"partition {self._name(key)} is not in the cluster")
            if leader.address:
                try:
                    answer = await self.call(
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
            refusals = refusals + 1 if leader == asked else 1
            asked = leader
            pause_s = LEADER_BACKOFF.pause_s(refusals)
            await self._wait_for_another_leader(key, leader, min(deadline - loop.time(), pause_s))
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

    def _name(self, key: PartitionKey) -> str:
        """The partition's name for messages: with the topic's name where it is known, else with its id."""
        topic = self._image.topics.get(key[0])
        return f"{topic.name if topic else key[0]}-{key[1]}"

    async def _wait_for_another_leader(self, key: PartitionKey, leader: CurrentLeader, timeout_s: float) -> None:
        try:
            await self.wait_until(lambda image: self.leader(key) != leader, timeout_s)
        except TimeoutError:
            return  # ask the same one again

    def _retire_channels(self) -> None:
        """Make room for one more channel: close one whose address no broker has any more."""
        if len(self._channels) < MAX_CHANNELS:
            return
        needed = {*self.addresses(), *(hint.address for hint in self._hints.values())}
        for address in self._channels:
            if address not in needed:
                self._closing.spawn(self._channels.pop(address).close(), f"close-{address}")
                return

    def _accept_image(self, image: MetadataImage, address: str) -> int:
        """Make `image` the client's if it is newer. Returns the newest version. Raises InconsistentClusterId."""
        known = self._image
        if image.cluster_id != known.cluster_id and known.cluster_id:
            raise InconsistentClusterId(
                f"broker {address} belongs to cluster {image.cluster_id!r}, not {known.cluster_id!r}"
            )
        if not image.cluster_id or image.version <= known.version:
            return known.version
        self._image = image
        self._hints = {
            key: hint
            for key, hint in self._hints.items()
            if key in image.partitions and image.partitions[key].leader_epoch < hint.leader_epoch
        }
        for listener in tuple(self._listeners):
            listener(image)
        return image.version
