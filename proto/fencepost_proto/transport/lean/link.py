"""One connection of the lean carrier, and the calls on it: what both ends have in common.

**Calls.** The client begins a call (START); messages go both ways; the client's HALF_CLOSE ends its own. What ends a
call, and what each side makes of it:

- *The server answers* (STATUS): it is the last that comes, so it takes hold at the client when all messages are read.
- *The client gives up* (CANCEL: `cancel`, a deadline, a task that is cancelled while it awaits the call, a call that no
  one holds any more): the client's end is over at once, the handler's task is cancelled.
- *The connection is lost*, whoever closed it: every call on it is over on both sides. At the client: UNAVAILABLE, and
  what was not read is lost. At the server: as after CANCEL.
- *The deadline* counts on both sides, so it holds where one of them is not there any more.

STATUS and CANCEL may cross. Each side forgets a call with what it sends last; frames of a forgotten call are dropped,
and their bytes count as consumed. Numbers of calls are never used again, so no frame reaches another call.

**Cancellation.** Nothing here waits but for futures that this file makes. A reader takes its message only after it was
woken, so a cancelled read loses none; a writer takes its credit in the same step in which its frames are queued, so a
cancelled write has sent everything or nothing. A task that is cancelled gets its CancelledError, and only such a task
does: a call that was cancelled is an AioRpcError with CANCELLED.

**Flow control.** Each side says in its HELLO how much it takes: of one call, and of all calls of the connection. A
message costs its size and MESSAGE_COST_BYTES. The receiver returns (WINDOW) what was consumed, once that is a quarter
of a window: for the call, and for call 0 what all consumed. A message may begin

- while the call's credit is above 0 (so a message that is larger than what is left still goes), and
- while the connection's is; or the call has at least three quarters of its own. So calls that no one reads do not hold
  up those that are read, whose answers they may be waiting for.

So a connection holds at most its window, a quarter of a window of each call, and one message of each. The receiver
checks the same rule, and ends a connection that breaks it. A writer also waits while more than WRITE_HIGH_BYTES are
with the transport: until its message is on its way, not only until it is queued.

**Writing.** uvloop's transports are given each message at once, and write it at once unless they are behind. On other
loops, whose transports would do the same, what is queued in one turn is written at its end, in one write.

**Time.** Nothing heard for KEEPALIVE_S: a PING. Still nothing KEEPALIVE_TIMEOUT_S later: the peer is gone. The same
bound goes to TCP for what is not confirmed. A process that was itself stopped judges only after another wait.

**Bounds**: `frames.py`; MAX_CALLS of a connection, those included whose handlers have not ended after a CANCEL;
FRAMES_IN_A_TURN and MESSAGES_IN_A_TURN between turns of the loop. Whatever breaks a rule ends the connection, never the
process.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from contextvars import copy_context
from typing import Final, cast

from fencepost_proto.protocol.request_limits import MAX_MESSAGE_BYTES
from fencepost_proto.transport.lean import frames
from fencepost_proto.transport.lean.frames import Frame, Hello, MalformedFrame

log = logging.getLogger(__name__)

MAX_CALLS: Final = 4_096  # of one connection
CALL_WINDOW_BYTES: Final = 4 * 1024 * 1024
CONNECTION_WINDOW_BYTES: Final = 16 * 1024 * 1024
MAX_WINDOW_BYTES: Final = 1024 * 1024 * 1024  # that a peer may offer
MESSAGE_COST_BYTES: Final = 64  # of a message in addition to its size
WRITE_HIGH_BYTES: Final = 256 * 1024
WRITE_LOW_BYTES: Final = 64 * 1024
MAX_UNWRITTEN_BYTES: Final = 64 * 1024 * 1024  # more than messages alone can be: the peer does not read
FRAMES_IN_A_TURN: Final = 512  # taken before others get a turn on the loop: a millisecond or so
MESSAGES_IN_A_TURN: Final = 64  # read or written by one call without waiting, likewise
HELLO_TIMEOUT_S: Final = 5.0
KEEPALIVE_S: Final = 10.0
KEEPALIVE_TIMEOUT_S: Final = 2.0
_MESSAGES: Final = (frames.MESSAGE, frames.PART)
_LATE_S = 0.5  # a timer that fires so late shows that this process was stopped

_TCP_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)  # of Linux


class OtherProtocol(Exception):
    """The peer does not speak this protocol. The message has what it said instead."""


class CallEnd:
    """One call at one side. The side's own class says what its end means (`_over_error`)."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.number = 0  # on its connection; 0: it has none yet
        self.link: Link | None = None
        self.arrived: deque[bytes] = deque()
        self.credit = 0  # bytes that the peer still takes
        self.outstanding = 0  # bytes that have come and were not returned
        self._untold = 0  # of these, consumed
        self._parts: list[bytes] = []  # of a message that is not complete
        self._parts_bytes = 0
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._in_a_row = 0  # messages read or written without waiting

    # ---- What the side says ----

    @property
    def is_over(self) -> bool:
        """Nothing more can be read or written."""
        raise NotImplementedError

    @property
    def no_more_messages(self) -> bool:
        """No message comes after those that have arrived."""
        raise NotImplementedError

    def over_error(self) -> BaseException:
        """What a write on a call that is over raises."""
        raise NotImplementedError

    def lost(self, reason: str) -> None:
        """The connection is lost."""
        raise NotImplementedError

    # ---- Life ----

    def join(self, link: Link, number: int) -> None:
        """Take part in a connection."""
        self.link, self.number = link, number
        self.credit = link.peer.call_window_bytes
        link.calls[number] = self

    def leave(self) -> None:
        """Take part no more: what has arrived is dropped, who waits is woken."""
        link = self.link
        if link is not None and link.calls.pop(self.number, None) is not None:
            dropped = self._parts_bytes + sum(len(data) + MESSAGE_COST_BYTES for data in self.arrived)
            link.consumed(dropped)
        self.arrived.clear()
        self._parts.clear()
        self._parts_bytes = 0
        self.wake_reader()
        self.wake_writer()

    def wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def wake_writer(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    # ---- Reading ----

    def take(self, kind: int, payload: bytes) -> None:
        """A message, or a part of one, has come. Raises MalformedFrame."""
        link = self.link
        assert link is not None
        if not self._parts:
            self._check_room(link)
        cost = len(payload) + (MESSAGE_COST_BYTES if kind == frames.MESSAGE else 0)
        self.outstanding += cost
        link.came(cost)
        if kind == frames.PART or self._parts:
            self._parts.append(payload)
            self._parts_bytes += len(payload)
            if self._parts_bytes > MAX_MESSAGE_BYTES:
                raise MalformedFrame(f"a message of more than {MAX_MESSAGE_BYTES} bytes")
            if kind == frames.PART:
                if not payload:
                    raise MalformedFrame("an empty part of a message")
                return
            payload = b"".join(self._parts)
            self._parts.clear()
            self._parts_bytes = 0
        self.arrived.append(payload)
        self.wake_reader()

    def _check_room(self, link: Link) -> None:
        """The rule by which a message may begin."""
        if self.outstanding >= CALL_WINDOW_BYTES:
            raise MalformedFrame(f"a message on call {self.number}, of which {self.outstanding} bytes are not consumed")
        if link.outstanding >= CONNECTION_WINDOW_BYTES and self.outstanding > CALL_WINDOW_BYTES // 4:
            raise MalformedFrame(f"a message on a connection of which {link.outstanding} bytes are not consumed")

    async def next_message(self) -> bytes | None:
        """None: no more comes. One task at a time."""
        while not self.arrived:
            if self.no_more_messages:
                return None
            if self._reader is not None:
                raise asyncio.InvalidStateError("another task reads this call")
            self._reader = self.loop.create_future()
            self._in_a_row = 0
            try:
                await self._reader
            finally:
                self._reader = None
        self._in_a_row += 1
        if self._in_a_row >= MESSAGES_IN_A_TURN:
            self._in_a_row = 0
            await asyncio.sleep(0)
            if not self.arrived:  # the call is over meanwhile
                return None
        data = self.arrived.popleft()
        self._consume(len(data) + MESSAGE_COST_BYTES)
        return data

    def _consume(self, cost: int) -> None:
        link = self.link
        assert link is not None
        self._untold += cost
        if self._untold >= CALL_WINDOW_BYTES // 4:
            link.send(frames.window(self.number, self._untold))
            self.outstanding -= self._untold
            self._untold = 0
        link.consumed(cost)

    # ---- Writing ----

    async def send_message(self, data: bytes) -> None:
        """Returns when the message is on its way. Raises the side's error where the call is over. One task at a time."""
        link = self.link
        if self._writer is not None:
            raise asyncio.InvalidStateError("another task writes on this call")
        while not self.is_over and link is not None and not link.has_room(self):
            await self._wait(link)
        if self.is_over or link is None:
            raise self.over_error()
        self.spend(link, data)
        link.send(*frames.message(self.number, data))
        while link.is_full and not self.is_over:
            await self._wait(link)
        self._in_a_row += 1
        if self._in_a_row >= MESSAGES_IN_A_TURN:
            self._in_a_row = 0
            await asyncio.sleep(0)

    def spend(self, link: Link, data: bytes) -> None:
        """Account for a message that is sent now."""
        cost = len(data) + MESSAGE_COST_BYTES
        self.credit -= cost
        link.credit -= cost

    async def _wait(self, link: Link) -> None:
        self._writer = self.loop.create_future()
        link.blocked[self] = None
        self._in_a_row = 0
        try:
            await self._writer
        finally:
            self._writer = None
            link.blocked.pop(self, None)


class Link(asyncio.Protocol):
    """One connection at one side."""

    def __init__(self) -> None:
        self.peer = Hello(0, 0)  # what the other side takes
        self.peer_name = ""
        self.calls: dict[int, CallEnd] = {}
        self.blocked: dict[CallEnd, None] = {}  # wait to write
        self.credit = 0  # bytes that the peer still takes, of all calls
        self.outstanding = 0  # bytes that have come and were not returned
        self.is_full = False  # the transport has enough
        self.greeted = False  # the peer's HELLO has come
        self.over = False
        self._untold = 0
        self._loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = self._loop.create_future()  # its transport has ended
        self._context = copy_context()  # a call may be given up from anywhere, also by the garbage collector
        self._reader = frames.FrameReader()
        self._held_bytes = 0  # by the reader, as last told
        self._transport: asyncio.Transport | None = None
        self._transport_gathers = False  # it takes a message's pieces in one call of the system, as uvloop's do
        self._queued: list[bytes | memoryview] = []
        self._queued_bytes = 0
        self._flush_is_due = False
        self._turn_is_due = False
        self._magic = b""
        self._heard_at = 0.0
        self._pinged_at: float | None = None  # and nothing has come since: a time says no more than milliseconds
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # ---- What the side says ----

    def take(self, frame: Frame) -> None:
        """A frame that only this side understands. Raises MalformedFrame."""
        raise NotImplementedError

    def was_greeted(self) -> None:
        """Calls may begin."""

    def ended(self, error: Exception) -> None:
        """The connection is lost; the calls on it know."""

    def came(self, cost: int) -> None:
        """So many bytes have come and are to be consumed."""
        self.outstanding += cost

    def held(self, change: int) -> None:
        """So many bytes more have come that are no frames yet; negative: fewer."""

    @property
    def needs_peer(self) -> bool:
        """Whether to find out that the peer is gone."""
        return True

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.over:  # given up while it was made
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        name = transport.get_extra_info("peername")
        self.peer_name = f"lean:{name[0]}:{name[1]}" if isinstance(name, tuple) else f"lean:{name}"
        sock = transport.get_extra_info("socket")
        if sock is not None and _TCP_USER_TIMEOUT is not None:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(KEEPALIVE_TIMEOUT_S * 1000))
        self._transport_gathers = type(transport).__module__.startswith("uvloop")
        self._heard_at = self._loop.time()
        self._set_timer(HELLO_TIMEOUT_S)
        self.send(frames.hello(Hello(CALL_WINDOW_BYTES, CONNECTION_WINDOW_BYTES)))

    def data_received(self, data: bytes) -> None:
        if self.over:
            return
        self._heard_at, self._pinged_at = self._loop.time(), None
        if len(self._magic) < len(frames.MAGIC):
            data = self._take_magic(data)
        self._reader.feed(data)
        if not self._turn_is_due:
            self._take_frames()
        self._note_held()

    def _note_held(self) -> None:
        """More bytes are held that are no frames yet, or fewer."""
        change = self._reader.held_bytes - self._held_bytes
        if change and not self.over:
            self._held_bytes += change
            self.held(change)

    def _take_magic(self, data: bytes) -> bytes:
        """What comes behind it."""
        missing = len(frames.MAGIC) - len(self._magic)
        self._magic += data[:missing]
        if not frames.MAGIC.startswith(self._magic):
            self.end(OtherProtocol(f"the peer does not speak the lean protocol: it began with {self._magic!r}"))
            return b""
        return data[missing:]

    def _take_frames(self) -> None:
        self._turn_is_due = False
        if self.over:
            return
        try:
            taken = self._reader.take(FRAMES_IN_A_TURN)
            for frame in taken:
                if self.over:
                    return
                self._take(frame)
        except MalformedFrame as error:
            self.end(error)
            return
        if len(taken) == FRAMES_IN_A_TURN:  # there may be more
            self._turn_is_due = True
            if self._transport is not None and not self.over:
                self._transport.pause_reading()
            self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._take_frames()
        self._note_held()
        if not self._turn_is_due and self._transport is not None and not self.over:
            self._transport.resume_reading()

    def _take(self, frame: Frame) -> None:
        kind, number, payload = frame
        if not self.greeted:
            if kind != frames.HELLO:
                raise MalformedFrame(f"a frame of kind {kind} before the HELLO")
            self._take_hello(frames.read_hello(payload))
        elif kind in _MESSAGES:
            call = self.calls.get(number)
            if call is not None:
                call.take(kind, payload)
            else:
                self.came(cost := len(payload) + (MESSAGE_COST_BYTES if kind == frames.MESSAGE else 0))
                self.consumed(cost)
        elif kind == frames.WINDOW:
            self._take_window(number, frames.read_window(payload))
        elif kind == frames.PING:
            self.check_unwritten()
            self.send(frames.frame(frames.PONG, 0, payload))
        elif kind != frames.PONG:
            self.take(frame)

    def _take_hello(self, said: Hello) -> None:
        if not (
            0 < said.call_window_bytes <= MAX_WINDOW_BYTES and 0 < said.connection_window_bytes <= MAX_WINDOW_BYTES
        ):
            raise MalformedFrame(f"windows of {said.call_window_bytes} and {said.connection_window_bytes} bytes")
        self.peer = said
        self.credit = said.connection_window_bytes
        self.greeted = True
        self._set_timer(KEEPALIVE_S)
        self.was_greeted()

    def _take_window(self, number: int, size_bytes: int) -> None:
        if number == 0:
            self.credit += size_bytes
            if self.credit > self.peer.connection_window_bytes:
                raise MalformedFrame(f"{self.credit} bytes of credit; {self.peer.connection_window_bytes} were offered")
            self._wake_blocked()
        elif (call := self.calls.get(number)) is not None:
            call.credit += size_bytes
            if call.credit > self.peer.call_window_bytes:
                raise MalformedFrame(f"{call.credit} bytes of credit; {self.peer.call_window_bytes} were offered")
            if call in self.blocked and self.has_room(call):
                call.wake_writer()

    def eof_received(self) -> None:
        """The transport closes: whoever has closed its half reads no answers."""

    def connection_lost(self, error: Exception | None) -> None:
        self._finish(error if error is not None else ConnectionError("the peer closed the connection"))
        if not self.gone.done():
            self.gone.set_result(None)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._wake_blocked()

    def check_unwritten(self) -> None:
        """Before an answer that no flow control bounds. Raises MalformedFrame for a peer that asks and does not read."""
        if self.unwritten_bytes > MAX_UNWRITTEN_BYTES:
            raise MalformedFrame(f"the peer asks, and does not read {self.unwritten_bytes} bytes of answers")

    # ---- Writing ----

    def send(self, *pieces: bytes | memoryview) -> None:
        """Queue whole frames; they are written at the end of this turn of the loop."""
        if self.over:
            return
        if self._transport_gathers:
            assert self._transport is not None
            if not self._transport.is_closing():  # broken, and `connection_lost` is to come
                self._transport.writelines(pieces)
            return
        self._queued += pieces
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush, context=self._context)
        if len(pieces) > 1:
            self._queued_bytes += len(pieces[1])
            if self._queued_bytes > WRITE_HIGH_BYTES:
                self._write()

    def _flush(self) -> None:
        self._flush_is_due = False
        self._write()

    def _write(self) -> None:
        if self._queued and self._transport is not None and not self.over:
            queued, self._queued, self._queued_bytes = self._queued, [], 0
            self._transport.write(b"".join(queued))

    @property
    def transport(self) -> asyncio.Transport | None:
        """None: the connection is not made yet."""
        return self._transport

    @property
    def unwritten_bytes(self) -> int:
        """Given to the transport, and not taken by the system yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def has_room(self, call: CallEnd) -> bool:
        """May a message of the call begin now?"""
        if self.is_full or call.credit <= 0:
            return False
        return self.credit > 0 or call.credit * 4 >= self.peer.call_window_bytes * 3

    def _wake_blocked(self) -> None:
        for call in list(self.blocked):
            call.wake_writer()

    def consumed(self, cost: int) -> None:
        """So many bytes of any calls were consumed, or dropped."""
        self._untold += cost
        if self._untold >= CONNECTION_WINDOW_BYTES // 4 and not self.over:
            self.send(frames.window(0, self._untold))
            self.outstanding -= self._untold
            self._untold = 0

    # ---- Time ----

    def _set_timer(self, after_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._loop.time() + after_s
        self._timer = self._loop.call_at(self._timer_at, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self.over:
            return
        if now - self._timer_at > _LATE_S:
            self._set_timer(KEEPALIVE_TIMEOUT_S)  # what has come meanwhile is read first
        elif not self.greeted:
            self.end(ConnectionError(f"no HELLO within {HELLO_TIMEOUT_S:g} s"))
        elif self._pinged_at is not None:
            self.end(ConnectionError(f"nothing came for {now - self._heard_at:.1f} s"))
        elif (silent_s := now - self._heard_at) < KEEPALIVE_S or not self.needs_peer:
            self._set_timer(max(KEEPALIVE_S - silent_s, KEEPALIVE_TIMEOUT_S))
        else:
            self._pinged_at = now
            self.send(frames.frame(frames.PING, 0))
            self._set_timer(KEEPALIVE_TIMEOUT_S)

    # ---- The end ----

    def end(self, error: Exception) -> None:
        """Break the connection: something is wrong with it."""
        if not self.over:
            self._finish(error)
            if self._transport is not None:
                self._transport.abort()

    def close(self) -> None:
        """Write what is queued, then close."""
        if not self.over:
            self._write()
            self._finish(ConnectionError("this side closed the connection"))
            if self._transport is not None:
                self._transport.close()

    def abort(self) -> None:
        """Let go of it at once, after `close`."""
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, error: Exception) -> None:
        if self.over:
            return
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._queued.clear()
        self.held(-self._held_bytes)
        for call in list(self.calls.values()):
            call.lost(str(error) or type(error).__name__)
        self.calls.clear()
        self.ended(error)
