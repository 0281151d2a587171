"""What clients may take of a broker at the same time: streams, connections, and memory for answers that they have not read.

**Streams.** `ClientLimits.admit` admits one stream of a connection, or refuses it with UNAVAILABLE, which clients try again.
A connection counts while it has a stream that was admitted.

**Memory.** gRPC takes an answer off our hands only when its client reads, so an answer occupies memory from the moment it
is made until its write returns. `AnswerBudget` is asked before an answer is made, for its size:

- a connection that holds nothing gets room for one answer of the least useful size, whatever the others hold (but one
  batch at least, whose size only its reading tells). So a client that reads is always served, if slowly;
- beyond that a connection may hold a quarter of what is free, its own included. So no number of connections that do not
  read takes all, and the first ones take most;
- a connection that holds as much as that waits until some of it has been written. Clients that read are in no one's way
  but their own;
- all together hold no more than OVERDRAFT times the memory that is set: beyond it the connection that has not been without
  an unread answer for the longest time is closed, for it reads the least. Where the carrier cannot close a connection
  (`carrier = "grpc"`), those that hold nothing wait until some is written.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from fencepost_proto.protocol import errors

MAX_CONNECTIONS = 2_000  # with streams, of one broker
MAX_STREAMS_OF_A_CONNECTION = 512  # of one method
MAX_STREAMS = 8_000  # of one method
OVERDRAFT = 4  # so many times the memory for answers
_SHARE = 4  # of what is free, one part is for one connection

CloseConnection = Callable[[str, str], bool]  # of a peer, for a reason; False: it cannot be closed from this side


class TooManyStreams(errors.RetriableError):
    """This broker serves as many streams or connections as it may."""

    code = errors.ErrorCode.NETWORK_EXCEPTION


class ClientLimits:
    """Of one broker. A peer is a connection, as gRPC names it."""

    def __init__(self, answer_bytes: int, close_connection: CloseConnection) -> None:
        self.answers = AnswerBudget(answer_bytes, close_connection)
        self._of_method: Counter[str] = Counter()
        self._of_peer: Counter[str] = Counter()  # streams of all methods
        self._of_both: Counter[tuple[str, str]] = Counter()

    @property
    def connection_count(self) -> int:
        """Connections with streams that were admitted."""
        return len(self._of_peer)

    @property
    def streams(self) -> Mapping[str, int]:
        """How many are open now, by method."""
        return self._of_method

    def admit(self, method: str, peer: str) -> AbstractContextManager[None]:
        """Count one stream as long as the returned context lasts. Raises TooManyStreams."""
        if peer not in self._of_peer and len(self._of_peer) >= MAX_CONNECTIONS:
            raise TooManyStreams(f"{len(self._of_peer)} connections have streams; at most {MAX_CONNECTIONS} may")
        if self._of_both[method, peer] >= MAX_STREAMS_OF_A_CONNECTION:
            raise TooManyStreams(f"{MAX_STREAMS_OF_A_CONNECTION} {method} streams of one connection are the most")
        if self._of_method[method] >= MAX_STREAMS:
            raise TooManyStreams(f"{MAX_STREAMS} {method} streams are the most")
        self._count(method, peer, 1)
        return self._until_it_ends(method, peer)

    @contextmanager
    def _until_it_ends(self, method: str, peer: str) -> Iterator[None]:
        try:
            yield
        finally:
            self._count(method, peer, -1)

    def _count(self, method: str, peer: str, change: int) -> None:
        self._of_method[method] += change
        self._of_peer[peer] += change
        self._of_both[method, peer] += change
        if not self._of_both[method, peer]:
            del self._of_both[method, peer]
        if not self._of_peer[peer]:
            del self._of_peer[peer]


class AnswerBudget:
    """Bytes of answers that have been made and not been written."""

    def __init__(self, max_bytes: int, close_connection: CloseConnection) -> None:
        self.used_bytes = 0
        self._max_bytes = max_bytes
        self._most_bytes = OVERDRAFT * max_bytes
        self._close_connection = close_connection
        self._held: Counter[str] = Counter()  # by peer, in the order in which they have begun to hold something
        self._closed: dict[str, None] = {}  # of these, connections that have been told to close
        self._released: dict[str, asyncio.Event] = {}  # by peer: it is waited for
        self._any_released: asyncio.Event | None = None  # likewise

    @property
    def holders(self) -> Mapping[str, int]:
        """Bytes by connection."""
        return self._held

    def allowance(self, peer: str, least: int) -> int:
        """How many bytes more the peer may hold now; 0: none."""
        held = self._held.get(peer, 0)
        share = (self._max_bytes - self.used_bytes + held) // _SHARE
        return max(share - held, 0 if held or self.used_bytes > self._most_bytes else least)

    def take(self, peer: str, size_bytes: int) -> None:
        """An answer of that size is made, or has become larger by that."""
        self.used_bytes += size_bytes
        self._held[peer] += size_bytes
        if not self._held[peer]:
            del self._held[peer]
        if size_bytes > 0 and self._overdraft_bytes > 0:
            self._close_slowest(peer)

    def release(self, peer: str, size_bytes: int) -> None:
        """It has been written, or given up."""
        self.used_bytes -= size_bytes
        self._held[peer] -= size_bytes
        if not self._held[peer]:
            del self._held[peer]
            self._closed.pop(peer, None)
        if (released := self._released.pop(peer, None)) is not None:
            released.set()
        if self._any_released is not None:
            self._any_released.set()
            self._any_released = None

    async def wait(self, peer: str, least: int) -> int:
        """Return once the peer may hold `least` more; how many it may.

        Of a peer that holds something, only that is waited for. So the waiting caller sets a time, and asks again.
        """
        while (allowance := self.allowance(peer, least)) < least:
            if peer in self._held:
                await self._released.setdefault(peer, asyncio.Event()).wait()
            else:
                await self._next_release()
        return allowance

    async def wait_for_all(self, size_bytes: int) -> None:
        """Return once an answer of that size fits beside all the others, or there are none. For answers that are large
        and seldom asked for: they get nothing in any case."""
        while self.used_bytes and self.used_bytes + size_bytes > self._max_bytes:
            await self._next_release()

    async def _next_release(self) -> None:
        if self._any_released is None:
            self._any_released = asyncio.Event()
        await self._any_released.wait()

    @property
    def _overdraft_bytes(self) -> int:
        """Without what those hold that are closing."""
        closing = sum(self._held[peer] for peer in self._closed)
        return self.used_bytes - closing - self._most_bytes

    def _close_slowest(self, newest: str) -> None:
        """Those that have held something for the longest time, one after the other, but not the one that takes now."""
        for peer in list(self._held):
            if peer == newest or self._overdraft_bytes <= 0:
                return
            if peer not in self._closed:
                reason = f"{self.used_bytes} bytes of answers are unread, and its own for the longest time"
                if self._close_connection(peer, reason):
                    self._closed[peer] = None
