"""Faults on links, at the end that calls: a channel whose calls go over a link that may be cut, slow or reset."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self

import grpc

from fencepost_testing.faults.inside import FaultsInside
from fencepost_testing.faults.links import Incoming, Line, Outgoing

RESET_DETAILS: Final = "Connection reset by peer (a fault)"


def reset_error() -> grpc.aio.AioRpcError:
    """What a call ends with whose connection was reset."""
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=RESET_DETAILS
    )


def _late() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata(), details="Deadline Exceeded"
    )


class Link:
    """Both directions between this process and the one that listens at an address, which may be none of the cluster's."""

    def __init__(self, faults: FaultsInside, address: str) -> None:
        self._faults = faults
        self._address = address

    def lines(self) -> tuple[Line, Line]:
        """There, and back."""
        peer = self._faults.party_at(self._address)
        return Line(self._faults, self._faults.party, peer), Line(self._faults, peer, self._faults.party)

    @property
    def faults(self) -> FaultsInside:
        return self._faults

    @property
    def peer(self) -> str:
        return self._faults.party_at(self._address)


class FaultyChannel:
    """Another channel; what is not here is its own."""

    def __init__(self, channel: grpc.aio.Channel, link: Link) -> None:
        self._channel = channel
        self._link = link

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        start = self._channel.unary_unary(*arguments, **options)
        return lambda request, **how: _UnaryCall(start, request, how, self._link)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        start = self._channel.unary_stream(*arguments, **options)
        return lambda *a, **how: _StreamCall(start(*a, **how), self._link)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        start = self._channel.stream_stream(*arguments, **options)
        return lambda *a, **how: _StreamCall(start(*a, **how), self._link)


class _UnaryCall:
    """A call with one request and one answer. While there are no rules it is the channel's own."""

    def __init__(self, start: Callable[..., Any], request: Any, how: dict[str, Any], link: Link) -> None:
        self._start = start
        self._request = request
        self._how = how
        self._there, self._back = link.lines()
        self._call = None if self._has_rules else start(request, **how)

    @property
    def _has_rules(self) -> bool:
        return self._there.has_rules or self._back.has_rules

    def __await__(self) -> Any:
        return self._run().__await__()

    def __getattr__(self, name: str) -> Any:
        if self._call is None:
            self._call = self._start(self._request, **self._how)
        return getattr(self._call, name)

    async def _run(self) -> Any:
        if self._call is not None:
            answer = await self._call
            if not self._has_rules:
                return answer
        try:
            async with asyncio.timeout(self._how.get("timeout")):
                if self._call is None:
                    await self._there.carry(self._request.ByteSize)
                    self._call = self._start(self._request, **self._how)
                    answer = await self._call
                await self._back.carry(answer.ByteSize)
                return answer
        except TimeoutError:
            raise _late() from None


class _StreamCall:
    """A call with any number of answers; the requests are written, if there is more than one."""

    def __init__(self, call: Any, link: Link) -> None:
        there, back = link.lines()
        self._call = call
        self._faults = link.faults
        self._peer = link.peer
        self._was_reset = False
        self._outgoing: Outgoing[Any] = Outgoing(there, self._write)
        self._incoming: Incoming[Any] | None = None
        self._back = back
        call.add_done_callback(lambda _: self._outgoing.close())  # what has come in is read to the end
        link.faults.watch(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def rules_changed(self) -> None:
        """A rule may reset this very call."""
        if not self._was_reset and not self._call.done() and self._faults.is_reset(self._peer):
            self._was_reset = True
            self._call.cancel()

    # ---- Requests ----

    async def write(self, request: Any) -> None:
        await self._outgoing.send(request)

    async def _write(self, request: Any) -> None:
        try:
            await self._call.write(request)
        except (asyncio.CancelledError, asyncio.InvalidStateError):
            self._raise_if_reset()
            raise

    async def done_writing(self) -> None:
        await self._outgoing.flush()
        await self._call.done_writing()

    # ---- Answers ----

    def __aiter__(self) -> Self:
        if self._incoming is None:
            answers = aiter(self._call)
            self._incoming = Incoming(self._back, lambda: self._receive(anext(answers)))
        return self

    async def __anext__(self) -> Any:
        assert self._incoming is not None
        return await self._incoming.next()

    async def read(self) -> Any:
        if self._incoming is None:
            self._incoming = Incoming(self._back, lambda: self._receive(self._call.read()))
        return await self._incoming.next()

    async def _receive(self, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except asyncio.CancelledError:
            self._raise_if_reset()
            raise

    def _raise_if_reset(self) -> None:
        task = asyncio.current_task()
        if self._was_reset and (task is None or not task.cancelling()):
            raise reset_error() from None

    # ---- Ends ----

    def cancel(self) -> bool:
        self._close()
        return bool(self._call.cancel())

    def _close(self) -> None:
        self._outgoing.close()
        if self._incoming is not None:
            self._incoming.close()
