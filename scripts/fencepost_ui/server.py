"""Runs the live page: one port on loopback, until it is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from fencepost_proto.runtime.event_loop import new_event_loop
from fencepost_testing.local_http import TOKEN_BYTES, config_of
from fencepost_testing.ports import LOOPBACK
from fencepost_ui.app import make_app
from fencepost_ui.page import Page

STOP_WITHIN_S: Final = 5  # for requests under way


def run_page(directory: Path, bootstrap: str, sock: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. `ready` is given the page's URL."""
    ended_in_order = contextlib.suppress(KeyboardInterrupt)  # the server hands the signal on
    with ended_in_order, asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(Page(directory, bootstrap), sock, ready))


async def serve(page: Page, sock: socket.socket, ready: Callable[[str], None]) -> None:
    """Raises what a part of the page has failed with."""
    port = sock.getsockname()[1]
    token = secrets.token_urlsafe(TOKEN_BYTES)
    config = config_of(make_app(page, lambda: port, token), "on", STOP_WITHIN_S)
    loop = asyncio.get_running_loop()
    server = _Server(
        config,
        lambda: ready(f"http://{LOOPBACK}:{port}/"),
        lambda: loop.call_soon_threadsafe(page.hub.close),
    )
    await server.serve(sockets=[sock])
    if page.failure is not None:
        raise page.failure


class _Server(uvicorn.Server):
    """Says when it is ready, and when it was asked to end: pages hold their streams open until then."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], ending: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready
        self._ending = ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._ending()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()
