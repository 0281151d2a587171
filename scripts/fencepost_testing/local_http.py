"""What the HTTP servers for this machine have in common: where they listen, by which names they go, and their bounds.

The live page and the control server of tests both can kill processes, so both listen on loopback, refuse what is not
made to their own name, and hold few connections. What proves that a request may do something is each one's own.
"""

from __future__ import annotations

import socket
from typing import Any, Final, Literal

import uvicorn

from fencepost_testing.failures import CommandFailed
from fencepost_testing.ports import LOOPBACK

HOST_NAMES: Final = (LOOPBACK, "localhost", "[::1]")
MAX_CONNECTIONS: Final = 64
MAX_HEAD_BYTES: Final = 16 * 1024
IDLE_S: Final = 5
MAX_SHOWN: Final = 100  # characters of what was refused
TOKEN_BYTES: Final = 24


class PortInUse(CommandFailed):
    """The server cannot listen there."""


class Refused(Exception):
    """A request that is answered with an error: its message says why, and names the value; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


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
            f"cannot listen on {LOOPBACK}:{port}: {reason}; with --port choose another one than port {port} of {LOOPBACK}"
        ) from error
    return sock


def own_hosts(port: int) -> list[str]:
    """What the Host header of a request to a server at this port may be."""
    return [f"{name}:{port}" for name in HOST_NAMES]


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
