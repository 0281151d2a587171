"""What the HTTP servers for this machine have in common: they listen on loopback only, and hold few connections.

Which requests they refuse is in `own_requests`.
"""

from __future__ import annotations

import socket
from typing import Any, Final, Literal

import uvicorn

from fencepost_testing.failures import CommandFailed
from fencepost_testing.ports import LOOPBACK

MAX_CONNECTIONS: Final = 64
MAX_HEAD_BYTES: Final = 16 * 1024
IDLE_S: Final = 5
TOKEN_BYTES: Final = 24


class PortInUse(CommandFailed):
    """The server cannot listen there."""


def listen(port: int) -> socket.socket:
    """A socket on loopback; port 0: any free one. Raises PortInUse."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((LOOPBACK, port))
        sock.listen()
    except (OSError, OverflowError) as error:
        sock.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise PortInUse(
            f"cannot listen on {LOOPBACK}:{port}: {reason}; choose another port than {port}, or 0 for any that is free"
        ) from error
    return sock


def config_of(app: Any, lifespan: Literal["on", "off"], stop_within_s: int) -> uvicorn.Config:
    """`stop_within_s`: for requests under way, when the server ends."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan=lifespan,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        http="h11",
        ws="none",
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=stop_within_s,
        proxy_headers=False,
    )
