"""Is the process that held a session still there? One question to its health service, with a short deadline.

Two answers are certain. A refused connection: the process is dead. NOT_FOUND, by a health service that does not know its
incarnation: another process has taken the port. Anything else says nothing, and the session timeout decides: silence,
and a connection that the kernel took for a process that never answers (it may be paused, or cut off from here); a
connection that is reset (it may be ending, and the next probe is refused; or something on the way did it); a network out
of reach; an answer that is no broker's (UNIMPLEMENTED is also what gRPC makes of a proxy's 404).
"""

from __future__ import annotations

from enum import Enum, auto

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.transport.wire import Wire, connection_refused, incarnation_service

PROBE_TIMEOUT_S = 0.5
# Between probes: a process that is just ending resets the connection, and is gone a moment later.
PAUSES = Backoff(first_s=0.005, most_s=0.1)


class ProbeVerdict(Enum):
    ALIVE = auto()
    DEAD = auto()
    UNKNOWN = auto()


async def probe(wire: Wire, address: str, incarnation: str) -> ProbeVerdict:
    """Ask the process at host:port whether it is that incarnation of a broker."""
    channel = wire.connect(address)
    try:
        request = health_pb2.HealthCheckRequest(service=incarnation_service(incarnation))
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(request, timeout=PROBE_TIMEOUT_S)  # type: ignore[attr-defined]  # missing in its types
    except grpc.aio.AioRpcError as error:
        certain = connection_refused(error) or error.code() is grpc.StatusCode.NOT_FOUND
        return ProbeVerdict.DEAD if certain else ProbeVerdict.UNKNOWN
    else:
        return ProbeVerdict.ALIVE
    finally:
        await channel.close()
