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

from fencepost_testing.failures import CommandFailed
from fencepost_ui.app import make_app
from fencepost_ui.page import Page

LOOPBACK: Final = "127.0.0.1"
MAX_CONNECTIONS: Final = 64
MAX_HEAD_BYTES: Final = 16 * 1024
IDLE_S: Final = 5
STOP_WITHIN_S: Final = 5  # for requests under way
TOKEN_BYTES: Final = 24


class PortInUse(CommandFailed):
    """The page cannot listen there."""


def listen(port: int) -> socket.socket:
    """A socket on loopback; port 0: any free one. Raises PortInUse."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((LOOPBACK, port))
    except OSError as error:
        sock.close()
        raise PortInUse(
            f"cannot listen on {LOOPBACK}:{port}: {error.strerror}; choose another one with --port"
        ) from error
    return sock


def run_page(directory: Path, bootstrap: str, sock: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. `ready` is given the page's URL."""
    with contextlib.suppress(KeyboardInterrupt):  # the server has ended in order, and hands the signal on
        asyncio.run(serve(Page(directory, bootstrap), sock, ready))


async def serve(page: Page, sock: socket.socket, ready: Callable[[str], None]) -> None:
    """Raises what a part of the page has failed with."""
    port = sock.getsockname()[1]
    token = secrets.token_urlsafe(TOKEN_BYTES)
    config = uvicorn.Config(
        make_app(page, lambda: port, token),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        http="h11",
        ws="none",
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=STOP_WITHIN_S,
        proxy_headers=False,
    )
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
