"""The wire of one simulated process: the production code's seam to the network."""

from __future__ import annotations

from typing import cast

import grpc

from tests.simulation.network import Network
from tests.simulation.process import SimProcess
from tests.simulation.rpc_client import SimChannel
from tests.simulation.rpc_server import SimServer


class SimWire:
    """Implements fencepost_proto.transport.wire.Wire."""

    def __init__(self, network: Network, process: SimProcess) -> None:
        self._network = network
        self._process = process

    def connect(self, address: str) -> grpc.aio.Channel:
        self._process.check_alive()
        return cast(grpc.aio.Channel, SimChannel(self._network, self._process, address))

    def server(self) -> grpc.aio.Server:
        self._process.check_alive()
        return cast(grpc.aio.Server, SimServer(self._network, self._process))

    def bind(self, server: grpc.aio.Server, listen: str) -> int:
        return cast(SimServer, server).listen(listen)
