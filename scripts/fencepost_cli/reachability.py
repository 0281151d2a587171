"""Why a cluster cannot be reached, told apart before a client waits for it: one line, with what to type next.

- nothing listens at an address, or no host has that name: a wrong address, or a cluster that is down;
- nothing comes back from an address: a firewall drops what is sent there, or the machine is down;
- an address is the one for Kafka's clients, which every broker has beside its own;
- everything else is the client's to find out: an address that accepts and does not answer may be that of a busy broker.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum

from fencepost_proto.kafka.apis import APIS
from fencepost_proto.kafka.codec import MalformedFrame, decode_response, encode_request
from fencepost_proto.kafka.messages.api_versions import ApiVersionsRequest

CONNECT_TIMEOUT_S = 1.0
ANSWER_TIMEOUT_S = 0.3
MAX_AT_ONCE = 16  # addresses
_CORRELATION_ID = 7
_MAX_ANSWER_BYTES = 1 << 16


class Found(Enum):
    """What is at an address."""

    SOMETHING = "something listens"
    NOTHING = "nothing listens there"
    NO_HOST = "there is no host of that name"
    SILENT = "nothing comes back from there"
    UNREACHABLE = "it cannot be reached"
    KAFKA = "that port is for Kafka's clients"


def why_unreachable(addresses: Iterable[str]) -> str:
    """In words, where no address can be a broker's own; empty where one may."""
    asked = list(addresses)
    with ThreadPoolExecutor(MAX_AT_ONCE) as threads:
        found = dict(zip(asked, threads.map(look_at, asked), strict=True))
    if Found.SOMETHING in found.values():
        return ""
    told = "; ".join(f"{address}: {what.value}" for address, what in found.items())
    if Found.KAFKA in found.values():
        return f"{told}; 'fencepost cluster status' shows the addresses for Fencepost's own clients"
    if {Found.SILENT, Found.UNREACHABLE} & set(found.values()):
        return (
            f"{told}: see whether that machine runs and a firewall lets connections to the port through, or name other "
            "brokers with --bootstrap"
        )
    return f"{told}: 'fencepost cluster status' shows a local cluster's addresses, 'fencepost cluster up' starts one"


NO_ANSWER = (
    "'fencepost cluster status' shows whether a local cluster's brokers run or are paused; elsewhere look at their logs, or "
    "name other brokers with --bootstrap"
)


def look_at(address: str) -> Found:
    """`address` is host:port; of anything else the client says what is wrong."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return Found.SOMETHING
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S) as connection:
            return Found.KAFKA if _speaks_kafka(connection) else Found.SOMETHING
    except ConnectionRefusedError:
        return Found.NOTHING
    except TimeoutError:
        return Found.SILENT
    except socket.gaierror:
        return Found.NO_HOST
    except (OSError, OverflowError):
        return Found.UNREACHABLE


def _speaks_kafka(connection: socket.socket) -> bool:
    """Whether it answers a request of Kafka's protocol. Silence, or anything else, is no."""
    api = next(api for api in APIS.values() if api.request is ApiVersionsRequest)
    request = ApiVersionsRequest(client_software_name="fencepost", client_software_version="0")
    connection.settimeout(ANSWER_TIMEOUT_S)
    try:
        connection.sendall(b"".join(encode_request(api.key, api.max_version, _CORRELATION_ID, "fencepost", request)))
        head = _read(connection, 4)
        size = int.from_bytes(head, "big")
        if not 0 < size <= _MAX_ANSWER_BYTES:
            return False
        correlation_id, _ = decode_response(api.key, api.max_version, memoryview(_read(connection, size)))
    except (OSError, EOFError, MalformedFrame):
        return False
    return correlation_id == _CORRELATION_ID


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
