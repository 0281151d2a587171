"""The port for Kafka's clients, and the bounds on all of its connections together.

- `kafka_max_connections` at a time; one more is closed at once.
- Bytes of frames that are not complete yet: HELD_BYTES. Above that the connection whose frame began first is closed, for it
  is the one that brings the least: who sends a frame in one go does not wait here.
- A frame is complete FRAME_WITHIN_S after its first byte, and a connection on which nothing comes or goes for
  `kafka_max_idle_ms` is closed, as Kafka does.
"""

from __future__ import annotations

import asyncio
import logging

from fencepost_node.kafka.connection import ConnectionCalls, KafkaConnection
from fencepost_node.kafka.context import KafkaBroker
from fencepost_proto.runtime.turns import Turns
from fencepost_proto.transport.streams import Listening

log = logging.getLogger(__name__)

HELD_BYTES = 64 * 1024 * 1024  # of frames that are not complete; a frame of the largest size fits in any case
FRAME_WITHIN_S = 30.0
SWEEP_INTERVAL_S = 5.0
CLOSE_POLL_S = 0.01


class KafkaListener:
    """Made, started and stopped once."""

    def __init__(self, broker: KafkaBroker) -> None:
        self.broker = broker
        self.address = ""  # host:port, once started
        self._connections: dict[KafkaConnection, None] = {}  # in the order of their beginning
        self._held_bytes = 0
        self._listening: Listening | None = None
        self._sweep: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises OSError where the port is occupied, or the address is not this machine's."""
        calls = ConnectionCalls(self.opened, self.closed, self.held)
        address = self.broker.config.kafka_listen
        self._listening = await self.broker.listen(address, lambda: KafkaConnection(self.broker, calls))
        self.address = self._listening.address
        self._sweep = asyncio.get_running_loop().create_task(self._sweep_for_ever(), name="kafka-sweep")

    async def stop(self, grace_s: float) -> None:
        """Accept no more; let what was taken be answered within `grace_s`; close every connection."""
        if self._listening is not None:
            self._listening.close()
        deadline = asyncio.get_running_loop().time() + grace_s
        while asyncio.get_running_loop().time() < deadline:
            if all(connection.is_answered for connection in self._connections):
                break
            await asyncio.sleep(CLOSE_POLL_S)
        connections = list(self._connections)
        for connection in connections:
            connection.close("")
        await asyncio.sleep(0)  # what is written goes out
        tasks = [connection.ended for connection in connections if connection.ended is not None]
        for connection in connections:
            connection.abort()
        if self._sweep is not None:
            self._sweep.cancel()
            tasks.append(self._sweep)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def connection_count(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def close_peer(self, peer: str, reason: str) -> bool:
        """Let go of a connection and of what is not written to it; False: there is none with that name."""
        for connection in self._connections:
            if connection.context.peer == peer:
                connection.close(reason)
                connection.abort()
                return True
        return False

    # ---- For connections ----

    def opened(self, connection: KafkaConnection) -> bool:
        if len(self._connections) >= self.broker.config.kafka_max_connections:
            return False
        self._connections[connection] = None
        return True

    def closed(self, connection: KafkaConnection) -> None:
        self._connections.pop(connection, None)

    def held(self, connection: KafkaConnection, change: int) -> None:
        self._held_bytes += change
        if self._held_bytes > max(HELD_BYTES, self.broker.config.kafka_max_request_bytes):
            oldest = min(
                (other for other in self._connections if other.frame_began_at is not None and not other.is_closing),
                key=lambda other: other.frame_began_at or 0.0,
                default=None,
            )
            if oldest is not None:
                oldest.close(f"requests of {self._held_bytes} bytes are incomplete, and its own for the longest time")

    # ---- Time ----

    async def _sweep_for_ever(self) -> None:
        turns = Turns()
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            for connection in list(self._connections):
                self._look_at(connection)
                await turns.step()

    def _look_at(self, connection: KafkaConnection) -> None:
        now = asyncio.get_running_loop().time()
        idle_ms = self.broker.config.kafka_max_idle_ms
        began = connection.frame_began_at
        if began is not None and now - began > FRAME_WITHIN_S:
            connection.close(f"a request is incomplete after {FRAME_WITHIN_S:g} s")
        elif (now - connection.active_at) * 1000 > idle_ms and connection.is_idle:
            connection.close(f"nothing came or went for {idle_ms} ms (kafka_max_idle_ms)")
