"""Free ports on loopback that stay this cluster's while its processes come and go.

A port is reserved by a socket that is bound to it and never listens. Where both sides set SO_REUSEADDR (gRPC's servers
do), Linux lets a server listen on a port so held, while no one who asks for *any* port is given it. So a restarted
broker finds its port free, however many other clusters run beside it. Other systems give no such guarantee: there the
socket is closed at once and the port is merely likely to stay free.
"""

from __future__ import annotations

import socket
import sys

LOOPBACK = "127.0.0.1"


class PortReservation:
    """One port; held until `release` on Linux."""

    def __init__(self, port: int = 0) -> None:
        """Port 0: any free one. Raises OSError where the given port is taken."""
        self._socket: socket.socket | None = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((LOOPBACK, port))
        except OSError:
            self.release()
            raise
        self.port = int(self._socket.getsockname()[1])
        if sys.platform != "linux":
            self.release()

    def release(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def reserve_ports(count: int, first: int | None) -> list[PortReservation]:
    """`first` and those that follow, or any. Raises OSError naming one that is taken; then none is held."""
    held: list[PortReservation] = []
    for number in range(count):
        port = 0 if first is None else first + number
        try:
            held.append(PortReservation(port))
        except (OSError, OverflowError) as error:
            for reservation in held:
                reservation.release()
            raise OSError(f"port {port} of {LOOPBACK} cannot be had: {error}") from error
    return held
