"""What many connections of Kafka's clients cost one broker: those that are idle, and those that do not read their answers.

One broker, one partition with some records. First many connections, each of which asks what a client asks at its start and
is silent from then on. Then slow readers: each asks for records again and again, and reads nothing. Meanwhile another
client sends one small request after the other, to see whether it is kept waiting.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from fencepost import AdminClient, Producer
from fencepost_cli.small_batches import cpu_s
from fencepost_proto.kafka.codec import encode_request
from fencepost_proto.kafka.messages.api_versions import ApiVersionsRequest
from fencepost_proto.kafka.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from fencepost_proto.kafka.messages.metadata import MetadataRequest, MetadataRequestTopic
from fencepost_proto.transport.streams import split_address
from fencepost_testing.failures import CommandFailed
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.waiting import until
from fencepost_testing.workload import percentile

CONNECTIONS = 2_000
SLOW_READERS = 200
REQUESTS_OF_A_SLOW_READER = 50  # on their way at once; each of its answers is as large as Kafka's clients ask for
IDLE_S = 10.0
SLOW_S = 10.0
LOG_BYTES = 32 * 1024 * 1024  # more than a broker keeps in memory of a log's end, so that the disk is read too
FETCH_BYTES = 1024 * 1024
ASK_EVERY_S = 0.02
LEAST_ASKED = 100
_TOPIC = "records"
_RECORD_BYTES = 8 * 1024
_AT_ONCE = 100  # connections that are being opened
_RECEIVE_BUFFER_BYTES = 16 * 1024  # of a slow reader: the rest stays with the broker
_SAMPLE_S = 0.1
_SPARE_FILES = 256
_MEGABYTE = 1_000_000
_API_VERSIONS, _METADATA, _FETCH = (18, 3), (3, 12), (1, 12)  # API keys and versions


@dataclass(frozen=True, slots=True)
class ConnectionsResult:
    idle_connections: int
    slow_readers: int
    rss_before_mb: float
    rss_idle_mb: float
    idle_connection_kb: float  # each
    idle_cpu_percent: float  # of a core
    rss_slow_most_mb: float
    rss_after_mb: float  # once all of them are closed
    ask_ms_p50: float  # of a small request while the slow readers do not read
    ask_ms_p99: float
    ask_ms_first: float  # while the system's buffers for what they do not read are still being filled

    def to_json(self) -> dict[str, Any]:
        return {name: round(value, 2) for name, value in asdict(self).items()}


async def measure_connections(folder: Path, tell: Callable[[str], None]) -> ConnectionsResult:
    _raise_file_limit(CONNECTIONS + SLOW_READERS + _SPARE_FILES)
    async with AsyncLocalCluster(folder, brokers=1, faults=False) as cluster:
        tell(f"filling a log with {LOG_BYTES / _MEGABYTE:.0f} MB")
        await _fill(cluster)
        address = cluster.member(1).kafka_address
        process = psutil.Process(cluster.pid(1))
        before = process.memory_info().rss
        tell(f"{CONNECTIONS} idle connections, {IDLE_S:g} s")
        async with _idle_connections(address):
            cpu_before = cpu_s([process.pid])
            await asyncio.sleep(IDLE_S)
            idle_cpu_percent = 100 * (cpu_s([process.pid]) - cpu_before) / IDLE_S
            idle = process.memory_info().rss
        tell(f"{SLOW_READERS} clients that do not read, {SLOW_S:g} s")
        async with _slow_readers(address):
            most, first_s, asked_s = await _while_slow(process, address)
        await _settle(process)
        return ConnectionsResult(
            idle_connections=CONNECTIONS,
            slow_readers=SLOW_READERS,
            rss_before_mb=before / _MEGABYTE,
            rss_idle_mb=idle / _MEGABYTE,
            idle_connection_kb=(idle - before) / CONNECTIONS / 1000,
            idle_cpu_percent=idle_cpu_percent,
            rss_slow_most_mb=most / _MEGABYTE,
            rss_after_mb=process.memory_info().rss / _MEGABYTE,
            ask_ms_p50=percentile(asked_s, 0.50) * 1000,
            ask_ms_p99=percentile(asked_s, 0.99) * 1000,
            ask_ms_first=first_s * 1000,
        )


async def _fill(cluster: AsyncLocalCluster) -> None:
    async with AdminClient(cluster.bootstrap) as admin:
        await admin.create_topic(_TOPIC, partitions=1, replication_factor=1, min_insync_replicas=1)
    value = bytes(_RECORD_BYTES)
    async with Producer(cluster.bootstrap) as producer:
        for _ in range(LOG_BYTES // _RECORD_BYTES):
            await producer.send(_TOPIC, value)
        await producer.flush()


def _raise_file_limit(needed: int) -> None:
    """Raises CommandFailed where the system does not allow this process as many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        if hard not in (resource.RLIM_INFINITY,) and hard < needed:
            raise CommandFailed(f"{needed} open files are needed, and {hard} are the most here (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


# ---- Connections ----

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _request(api: tuple[int, int], message: object) -> bytes:
    return b"".join(bytes(chunk) for chunk in encode_request(*api, 1, "bench", message))


async def _ask(stream: Stream, request: bytes) -> None:
    reader, writer = stream
    writer.write(request)
    await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))


@asynccontextmanager
async def _idle_connections(address: str) -> AsyncIterator[Sequence[Stream]]:
    first = [
        _request(_API_VERSIONS, ApiVersionsRequest(client_software_name="bench", client_software_version="1")),
        _request(_METADATA, MetadataRequest(topics=[MetadataRequestTopic(name=_TOPIC)])),
    ]
    streams: list[Stream] = []
    room = asyncio.Semaphore(_AT_ONCE)

    async def open_one() -> None:
        async with room:
            stream = await asyncio.open_connection(*split_address(address))
            streams.append(stream)
            for request in first:
                await _ask(stream, request)

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CONNECTIONS):
                tasks.create_task(open_one())
        yield streams
    finally:
        for _, writer in streams:
            writer.close()


@asynccontextmanager
async def _slow_readers(address: str) -> AsyncIterator[None]:
    """Sockets that send what they can, and never read."""
    partitions = [FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=FETCH_BYTES)]
    fetch = FetchRequest(
        max_wait_ms=500, min_bytes=1, max_bytes=FETCH_BYTES, topics=[FetchTopic(topic=_TOPIC, partitions=partitions)]
    )
    requests = _request(_FETCH, fetch) * REQUESTS_OF_A_SLOW_READER
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    try:
        for _ in range(SLOW_READERS):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            sock.setblocking(False)
            sockets.append(sock)
            await loop.sock_connect(sock, split_address(address))
            await loop.sock_sendall(sock, requests)
        yield
    finally:
        for sock in sockets:
            sock.close()


async def _while_slow(process: psutil.Process, address: str) -> tuple[int, float, list[float]]:
    """The most resident bytes meanwhile; how long the first small request of another client took, and how long the others
    did, the quickest first."""
    request = _request(_API_VERSIONS, ApiVersionsRequest(client_software_name="bench", client_software_version="1"))
    stream = await asyncio.open_connection(*split_address(address))
    most, sampled_at = 0, 0.0
    asked_s: list[float] = []
    end = time.monotonic() + SLOW_S
    while (now := time.monotonic()) < end or len(asked_s) < LEAST_ASKED:
        await _ask(stream, request)
        asked_s.append(time.monotonic() - now)
        if now - sampled_at >= _SAMPLE_S:
            most, sampled_at = max(most, process.memory_info().rss), now
        await asyncio.sleep(ASK_EVERY_S)
    stream[1].close()
    return most, asked_s[0], sorted(asked_s[1:])


async def _settle(process: psutil.Process) -> None:
    """Return once the broker has noticed that these connections have gone."""
    await until(
        lambda: len(process.net_connections("tcp")), "the connections' end", holds=lambda left: left < SLOW_READERS
    )
