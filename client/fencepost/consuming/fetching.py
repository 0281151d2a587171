"""Keeps a Fetch stream to each leader that a consumer reads from.

A `FetchStream` lives as long as what it fetches stays the same. It asks, waits for the answer, gives it to the core and asks
again at once, so that the next answer is on its way while the application reads the last one. It ends by raising.

The `Router` keeps one stream for each leader's address, and replaces it when its routes change: a new leader, a seek,
another assignment. It wakes up when the cluster's metadata, the core or a stream has changed, so a partition is fetched
from its new leader as soon as that one is known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fencepost.cluster import ClusterClient
from fencepost.consuming.consumer_core import RETRY_BACKOFF_S, Ask, ConsumerCore, FetchRoute
from fencepost.consuming.partition import TopicPartition
from fencepost.log_queries import RESPONSE_MARGIN_S, exchange, learn_from, list_offset
from fencepost_proto.protocol.errors import FencepostError, InvariantBroken
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.runtime.tasks import Tasks

log = logging.getLogger(__name__)

RETRY = Backoff(first_s=RETRY_BACKOFF_S, most_s=0.5)  # pauses before a broker whose stream broke is tried again
RESOLVE_TIMEOUT_S = 30.0  # for an answer to ListOffsets; then it is asked again


class FetchStream:
    """One Fetch stream to `address` for the partitions of `routes`."""

    def __init__(
        self,
        core: ConsumerCore,
        cluster: ClusterClient,
        address: str,
        routes: frozenset[FetchRoute],
        on_delivered: Callable[[bool], None],
    ) -> None:
        self.routes = routes
        self.answered = False  # the broker has answered on it
        self.room = asyncio.Event()  # the buffer may have room again
        self._core = core
        self._cluster = cluster
        self._address = address
        self._on_delivered = on_delivered

    async def run(self) -> None:
        """Fetch until the stream breaks. Raises the reason, or is cancelled."""
        loop = asyncio.get_running_loop()
        call = broker_pb2_grpc.BrokerStub(self._cluster.channel(self._address)).Fetch()
        try:
            while True:
                self.room.clear()
                ask = self._core.ask(self.routes, loop.time())
                if ask.partitions:
                    timeout_s = ask.wait_s + RESPONSE_MARGIN_S
                    answer = await exchange(call, ask.request(), timeout_s, self._address)
                    self.answered = True
                    await self._deliver(ask, answer)
                else:
                    await _wait(self.room, ask.wait_s)
        finally:
            call.cancel()

    async def _deliver(self, ask: Ask, answer: broker_pb2.FetchResponse) -> None:
        loop = asyncio.get_running_loop()
        for fetched in answer.partitions:
            self._core.accept_answer(ask.asked, fetched, loop.time(), self._address)
            self._on_delivered(learn_from(self._cluster, fetched))
            await asyncio.sleep(0)  # a large answer must not block the event loop


class Router:
    """Keeps the streams for the core's routes. `run` is one of the consumer's tasks."""

    def __init__(
        self,
        core: ConsumerCore,
        cluster: ClusterClient,
        arrived: Callable[[], None],
        moved: Callable[[TopicPartition, int], None],
    ) -> None:
        self._core = core
        self._cluster = cluster
        self._arrived = arrived  # the application may have records to read, or an error
        self._moved = moved  # a position is known that the application did not choose
        self._news = asyncio.Event()
        self._routed_version = -1  # of the core, when last routed
        self._tasks = Tasks(self._task_failed)
        self._bug: BaseException | None = None  # of a task
        self._streams: dict[str, tuple[FetchStream, asyncio.Task[None]]] = {}
        self._retry_at: dict[str, float] = {}  # addresses whose stream broke
        self._failures: dict[str, int] = {}  # in a row, of streams to an address
        # Partitions whose start is not known yet and which are logged, by generation.
        self._warned_unknown: dict[tuple[TopicPartition, int], None] = {}
        self._resolving: dict[tuple[TopicPartition, int], asyncio.Task[None]] = {}  # by generation

    def look_again(self) -> None:
        """The core may have changed: wake up if its routes have."""
        if self._core.routes_version != self._routed_version:
            self.wake()

    def wake(self) -> None:
        """Routes may have changed, or the buffer may have room."""
        self._news.set()
        for stream, _ in self._streams.values():
            stream.room.set()

    async def run(self) -> None:
        """Keep the streams until cancelled. Raises only bugs."""
        loop = asyncio.get_running_loop()
        self._cluster.add_listener(self._on_image)
        try:
            while True:
                self._news.clear()
                self._routed_version = self._core.routes_version
                self._reap(loop.time())
                if self._bug is not None:
                    raise self._bug
                wanted = self._core.routes(self._cluster.leader)
                await self._stop_streams_unlike(wanted)
                self._start_streams(wanted, loop.time())
                self._resolve_positions()
                self._arrived()  # a partition may have failed
                again_at = [at for address, at in self._retry_at.items() if address in wanted]
                await _wait(self._news, min(again_at) - loop.time() if again_at else None)
        finally:
            self._cluster.remove_listener(self._on_image)
            await self._tasks.close()

    def _task_failed(self, error: BaseException) -> None:
        """A stream ends with the reason why it broke, which `_reap` looks at; everything else is a bug."""
        if not isinstance(error, FencepostError):
            self._bug = error
            self._news.set()

    def _on_delivered(self, led_elsewhere: bool) -> None:
        while self._core.parted:
            tp, position, offset = self._core.parted.popleft()
            log.warning(
                "records read are lost to an unclean election, reading goes back topic=%s partition=%d from=%d to=%d",
                tp.topic, tp.partition, position, offset,
            )  # fmt: skip
            self._moved(tp, offset)
        if led_elsewhere:
            self.wake()
        self.look_again()
        self._arrived()

    def _on_image(self, _: object) -> None:
        self.wake()

    def _reap(self, now_s: float) -> None:
        """Remember which streams have ended, and when their brokers may be tried again."""
        self._retry_at = {address: at for address, at in self._retry_at.items() if at > now_s}
        for address, (stream, task) in list(self._streams.items()):
            if task.done():
                del self._streams[address]
                error = task.exception()
                if not isinstance(error, FencepostError):
                    raise error or InvariantBroken("a fetch stream ended without an error")
                failures = 1 if stream.answered else self._failures.get(address, 0) + 1
                if failures == 1:  # a dead broker is logged once
                    log.info("fetch stream broke address=%s reason=%s", address, error.message)
                self._failures[address] = failures
                self._retry_at[address] = now_s + RETRY.pause_s(failures)
        for position, task in list(self._resolving.items()):
            if task.done():
                del self._resolving[position]

    async def _stop_streams_unlike(self, wanted: dict[str, frozenset[FetchRoute]]) -> None:
        unlike = [a for a, (stream, _) in self._streams.items() if wanted.get(a) != stream.routes]
        tasks = [self._streams.pop(address)[1] for address in unlike]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_streams(self, wanted: dict[str, frozenset[FetchRoute]], now_s: float) -> None:
        for address, routes in sorted(wanted.items()):
            if address not in self._streams and self._retry_at.get(address, now_s) <= now_s:
                stream = FetchStream(self._core, self._cluster, address, routes, self._on_delivered)
                task = self._tasks.spawn(stream.run(), f"fetch-{address}")
                task.add_done_callback(lambda _: self.wake())
                self._streams[address] = (stream, task)

    def _resolve_positions(self) -> None:
        for tp, key, marker, generation in self._core.unresolved():
            if (tp, generation) not in self._resolving:
                resolving = self._resolve(tp, key, marker, generation)
                task = self._tasks.spawn(resolving, f"resolve-{tp.topic}-{tp.partition}")
                task.add_done_callback(lambda _: self.wake())
                self._resolving[tp, generation] = task

    async def _resolve(self, tp: TopicPartition, key: PartitionKey, marker: int, generation: int) -> None:
        try:
            offset, _ = await list_offset(self._cluster, key, marker, RESOLVE_TIMEOUT_S)
        except FencepostError as error:
            if not error.retriable:
                self._core.fail(tp, generation, error)
            elif (tp, generation) not in self._warned_unknown:
                self._warned_unknown[tp, generation] = None
                log.warning("start not known yet topic=%s partition=%d reason=%s", tp.topic, tp.partition, error)
        else:
            self._warned_unknown.pop((tp, generation), None)
            if self._core.resolve(tp, generation, offset):
                self._moved(tp, offset)


async def _wait(event: asyncio.Event, timeout_s: float | None) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
