"""One look at a broker, for waiting and for showing. Clients of the cluster use `fencepost.AdminClient`."""

from __future__ import annotations

import grpc

from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc
from fencepost_proto.transport.wire import GrpcWire


async def read_image(address: str, *, timeout_s: float) -> MetadataImage | None:
    """What the broker at `address` knows; None where it does not answer in time."""
    async with GrpcWire().connect(address) as channel:
        try:
            answer = await broker_pb2_grpc.BrokerStub(channel).Metadata(
                broker_pb2.MetadataRequest(), timeout=timeout_s, wait_for_ready=True
            )
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
