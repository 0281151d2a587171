"""Is the process that held a session still there? One question to its health service, with a short deadline.

A refused connection is certain: the process is dead. So is an answer by somebody who does not know its incarnation:
another process has taken the port. A deadline that passes is not: the process may be paused, or cut off from here.
"""

from __future__ import annotations

from enum import Enum, auto

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fencepost_proto.wire import Wire, incarnation_service

PROBE_TIMEOUT_S = 0.5
_CERTAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)


class Verdict(Enum):
    ALIVE = auto()
    DEAD = auto()
    UNKNOWN = auto()


async def probe(wire: Wire, address: str, incarnation: str) -> Verdict:
    """Ask the process at host:port whether it is that incarnation of a broker."""
    channel = wire.connect(address)
    try:
        request = health_pb2.HealthCheckRequest(service=incarnation_service(incarnation))
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(request, timeout=PROBE_TIMEOUT_S)  # type: ignore[attr-defined]  # missing in its types
    except grpc.aio.AioRpcError as error:
        return Verdict.DEAD if error.code() in _CERTAIN else Verdict.UNKNOWN
    else:
        return Verdict.ALIVE
    finally:
        await channel.close()
