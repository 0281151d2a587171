"""One look at a broker, for waiting and for showing. Clients of the cluster use `fencepost.AdminClient`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import grpc

from fencepost_proto.protocol.metadata import BrokerRegistration, MetadataImage
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc
from fencepost_proto.transport.wire import GrpcWire

_NO_TOPIC = "."  # the name of none


async def newest_image(addresses: Iterable[str], *, timeout_s: float) -> MetadataImage | None:
    """The newest metadata that one of these brokers has; None: none of them answers. All are asked at the same time."""
    images = await asyncio.gather(*(read_image(address, timeout_s=timeout_s) for address in addresses))
    return max((image for image in images if image is not None), key=lambda image: image.version, default=None)


async def read_image(address: str, *, timeout_s: float) -> MetadataImage | None:
    """What the broker at `address` knows; None where it does not answer in time."""
    return await _read(address, broker_pb2.MetadataRequest(), timeout_s)


async def read_brokers(address: str, *, timeout_s: float) -> Mapping[int, BrokerRegistration] | None:
    """The brokers that the one at `address` knows, by id; None where it does not answer in time. Of thousands of partitions
    nothing is sent."""
    image = await _read(address, broker_pb2.MetadataRequest(topic_names=[_NO_TOPIC]), timeout_s)
    return None if image is None else image.brokers


async def _read(address: str, request: broker_pb2.MetadataRequest, timeout_s: float) -> MetadataImage | None:
    async with GrpcWire().connect(address) as channel:
        try:
            answer = await broker_pb2_grpc.BrokerStub(channel).Metadata(request, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError:
            return None
    return MetadataImage().apply(answer.image)


async def read_log_dirs(address: str, *, timeout_s: float) -> broker_pb2.DescribeLogDirsResponse | None:
    """Every replica on the broker at `address`; None where it does not answer in time."""
    async with GrpcWire().connect(address) as channel:
        try:
            return await broker_pb2_grpc.BrokerStub(channel).DescribeLogDirs(
                broker_pb2.DescribeLogDirsRequest(), timeout=timeout_s, wait_for_ready=True
            )
        except grpc.aio.AioRpcError:
            return None
