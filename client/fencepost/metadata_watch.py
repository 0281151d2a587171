"""Follows the cluster's metadata at two brokers at once, and changes to another broker when one fails.

Each watch receives an image and then every change from one broker (WatchMetadata), and keeps its own image, since a change
builds on what that broker sent before. A watch leaves its broker when the stream breaks, when the broker is silent, or when
it stays behind what the other one has sent. It goes on at the broker whose last failure is longest ago.

A change may concern thousands of partitions. It is decoded in turns, so that the application's event loop goes on, and once
for all watches that receive the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import NamedTuple

import grpc

from fencepost_proto.protocol.errors import FencepostError, InvalidRequest, NetworkException, UnknownServerError
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc, common_pb2
from fencepost_proto.runtime.applying import apply_in_turns
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.runtime.tasks import Tasks
from fencepost_proto.runtime.turns import Turns
from fencepost_proto.transport.rpc_errors import rpc_errors

log = logging.getLogger(__name__)

WATCHED_BROKERS = 2
SILENCE_S = 3.0  # without a message, or behind another broker: then a watch fails (brokers send one every second)
QUIET_S = 1.5  # without a message: then other brokers are asked first
RETRY = Backoff(first_s=0.1, most_s=1.0)  # pauses between attempts to watch a broker from which no message comes
NO_BROKER_S = 0.1  # while there is no broker to watch


class WatchFailure(NamedTuple):
    """Why and when the watch of a broker last failed."""

    at: float
    reason: str
    in_a_row: int  # failures since its last message

    @property
    def retry_at(self) -> float:
        return self.at + RETRY.pause_s(self.in_a_row)


NEVER = WatchFailure(float("-inf"), "", 0)


class _Decoded(NamedTuple):
    """The last result: `delta` (its digest), applied to `before` (None: it is an image), made `after`."""

    before: MetadataImage | None
    delta: bytes
    after: MetadataImage


class SharedDecoding:
    """Decodes what the watches receive, one message at a time. A message that two of them receive is decoded once, and both
    get the same image object."""

    def __init__(self) -> None:
        self._turns = Turns()
        self._one_at_a_time = asyncio.Lock()
        self._last: _Decoded | None = None

    async def apply(self, image: MetadataImage, delta: common_pb2.MetadataDelta) -> MetadataImage:
        """As `MetadataImage.apply`."""
        if delta.version == image.version and not (delta.image or delta.changed or delta.deleted_keys):
            return image  # so brokers say that they are there, one message a second to each watch
        before = None if delta.image else image
        async with self._one_at_a_time:
            digest = hashlib.sha256(delta.SerializeToString(deterministic=True)).digest()
            last = self._last
            if last is not None and last.before is before and last.delta == digest:
                return last.after
            after = (await apply_in_turns(image, delta, self._turns)).image
            self._last = _Decoded(before, digest, after)
            return after


class MetadataWatch:
    """Follows brokers between `start` and `close`.

    `candidates`: the addresses that may be followed, the best first. `accept` is called with each image and the address that
    it came from; it returns the newest version received from any broker, or raises FencepostError: then the watch leaves
    the broker.
    """

    def __init__(
        self,
        channel: Callable[[str], grpc.aio.Channel],
        candidates: Callable[[], list[str]],
        accept: Callable[[MetadataImage, str], int],
    ) -> None:
        self._channel = channel
        self._candidates = candidates
        self._accept = accept
        self._decoding = SharedDecoding()
        self._tasks = Tasks(report_bug)
        self._started = False
        self._watching: dict[int, str] = {}  # watch number -> address
        self._heard: dict[str, float] = {}  # watched address -> when its last message came
        self._failures: dict[str, WatchFailure] = {}  # address -> the last one

    def start(self) -> None:
        """Raises InvalidRequest the second time."""
        if self._started:
            raise InvalidRequest("the cluster client has been started before")
        self._started = True
        for number in range(WATCHED_BROKERS):
            self._tasks.spawn(self._watch(number), f"watch-{number}")

    async def close(self) -> None:
        """May be called twice."""
        await self._tasks.close()

    def watched(self) -> list[str]:
        """The addresses of the brokers that are followed now."""
        return [address for _, address in sorted(self._watching.items())]

    def speaking(self) -> list[str]:
        """Those of `watched` from which a message came within QUIET_S."""
        recent_s = asyncio.get_running_loop().time() - QUIET_S
        return [address for address in self.watched() if self._heard.get(address, recent_s) > recent_s]

    def failure(self, address: str) -> str:
        """Why the broker's watch last failed; empty: it has not."""
        return self._failures.get(address, NEVER).reason

    async def _watch(self, number: int) -> None:
        """Follow one broker after another, never one that the other watch follows, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            address = self._next_to_watch(number)
            if address is None:
                await asyncio.sleep(NO_BROKER_S)
                continue
            self._watching[number] = address
            try:
                if (failure := self._failures.get(address)) is not None:
                    await asyncio.sleep(failure.retry_at - loop.time())
                await self._follow(address)
            except FencepostError as error:
                in_a_row = 1 if address in self._heard else self._failures.get(address, NEVER).in_a_row + 1
                if in_a_row == 1:  # a dead broker is logged once
                    log.info("metadata watch broke address=%s reason=%s", address, error.message)
                self._failures[address] = WatchFailure(loop.time(), error.message, in_a_row)
            finally:
                del self._watching[number]
                self._heard.pop(address, None)

    def _next_to_watch(self, number: int) -> str | None:
        """The broker whose last failure is longest ago, of those that no other watch follows; None: there is none."""
        taken = {address for other, address in self._watching.items() if other != number}
        candidates = [address for address in self._candidates() if address not in taken]
        self._failures = {a: f for a, f in self._failures.items() if a in candidates or a in taken}
        return min(candidates, key=lambda address: self._failures.get(address, NEVER).at, default=None)

    async def _follow(self, address: str) -> None:
        """Receive one broker's changes until its stream breaks. Always raises the reason."""
        loop = asyncio.get_running_loop()
        stub = broker_pb2_grpc.BrokerStub(self._channel(address))
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
                    image = await self._decoding.apply(image or MetadataImage(), delta)
                except ValueError as error:
                    raise UnknownServerError(f"metadata at version {delta.version} is unreadable: {error}") from error
                self._heard[address] = loop.time()
                newest_version = self._accept(image, address)
                if image.version >= newest_version:
                    newest_at = loop.time()
                elif loop.time() - newest_at > SILENCE_S:
                    raise NetworkException(f"stale: version {image.version}, another broker has {newest_version}")
        finally:
            call.cancel()


def report_bug(error: BaseException) -> None:
    """For tasks that handle every expected error: what comes out of one is a bug."""
    log.critical("a task of the cluster client failed", exc_info=error)
