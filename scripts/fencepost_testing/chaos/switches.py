"""Links that can be cut without root: by a fault switch in the processes' gRPC layer (`faulty_wire`).

Each process has a loopback address of its own. Started with the switch, it calls every peer not at the peer's port but
at one of the same address that is the caller's alone, where this run listens and passes on what is said. Cutting the link
from A to B holds back what A sends to B, on open connections too, until the link is mended; nothing is ever damaged. That is
what a broken cable does to TCP, which sends again once the cable is mended. A connection is opened only while both
directions are whole. The end of a connection is held back like data.

One thing is less true than a network: where a process is gone its kernel refuses connections, which the other side takes
as certain; here it is a connection that breaks at once, and the session timeout decides.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from fencepost_testing.chaos.faults import Link, Party
from fencepost_testing.chaos.network import NetworkUnavailable
from fencepost_testing.cluster_folder import PLACE_PORT
from fencepost_testing.faulty_wire import FAULT_PORT
from fencepost_testing.processes import NetworkPlace

MAX_PARTIES = 200
_FIRST_CALLER_PORT = 10_000
_NUMBERS = 1 << 14  # of networks: 127.64.0.0/10, of which no one else makes use
_ATTEMPTS = 20
_CHUNK_BYTES = 1 << 16


class SwitchedNetwork:
    """Make one with `make`, and `close` it once the processes in it are gone."""

    def __init__(self, number: int, parties: Sequence[Party]) -> None:
        self._number = number
        self._index = {party: index for index, party in enumerate(parties, 1)}
        self._listening: list[asyncio.Server] = []
        self._relays: set[asyncio.Task[None]] = set()
        self._cuts: Counter[Link] = Counter()  # how many cuts hold each link
        self._whole: defaultdict[Link, asyncio.Event] = defaultdict(_set_event)

    @classmethod
    async def make(cls, parties: Sequence[Party], servers: Sequence[Party]) -> SwitchedNetwork:
        """`servers`: those of the parties that are called by others. Raises NetworkUnavailable."""
        if len(parties) > MAX_PARTIES:
            raise NetworkUnavailable(f"{len(parties)} processes: at most {MAX_PARTIES} fit into one network")
        refused: OSError | None = None
        for number in random.SystemRandom().sample(range(_NUMBERS), _ATTEMPTS):
            network = cls(number, parties)
            try:
                await network._listen(servers)
            except OSError as error:  # another network has this number, or there are no such addresses (macOS)
                refused = error
                network.close()
                if sys.platform != "linux":
                    break
            else:
                return network
        raise NetworkUnavailable(f"no loopback addresses for fault switches: {refused}")

    def close(self) -> None:
        for server in self._listening:
            server.close()
        for relay in self._relays:
            relay.cancel()

    # ---- Who is where ----

    def place(self, party: Party) -> NetworkPlace:
        environment = {FAULT_PORT: str(self._port_of(party))}
        return NetworkPlace(self._host(party), environment=environment, entry=("fencepost_testing.faulty_process",))

    def _host(self, party: Party) -> str:
        return f"127.{64 + self._number // 256}.{self._number % 256}.{self._index[party]}"

    def _port_of(self, caller: Party) -> int:
        return _FIRST_CALLER_PORT + self._index[caller]

    # ---- Cutting ----

    async def cut(self, links: Iterable[Link]) -> None:
        """What the first of each link sends to the second is held back from now on."""
        for link in links:
            self._cuts[link] += 1
            self._whole[link].clear()

    async def mend(self, links: Iterable[Link]) -> None:
        """Undo a `cut` of the same links; one that is cut by another cut too stays cut."""
        for link in links:
            self._cuts[link] -= 1
            if self._cuts[link] == 0:
                self._whole[link].set()

    # ---- Passing on ----

    async def _listen(self, servers: Sequence[Party]) -> None:
        for server in servers:
            for caller in self._index:
                if caller != server:
                    self._listening.append(await self._listen_for(caller, server))

    async def _listen_for(self, caller: Party, server: Party) -> asyncio.Server:
        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            relay = asyncio.get_running_loop().create_task(self._connection(caller, server, reader, writer))
            self._relays.add(relay)
            relay.add_done_callback(self._relays.discard)

        return await asyncio.start_server(connected, self._host(server), self._port_of(caller))

    async def _connection(
        self, caller: Party, server: Party, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        there, back = (caller, server), (server, caller)
        answers = None
        try:
            await self._wait_whole(there, back)
            try:
                replies, answers = await asyncio.open_connection(self._host(server), PLACE_PORT)
            except OSError:  # no one is there
                return
            await asyncio.gather(self._relay(reader, answers, there), self._relay(replies, writer, back))
        finally:
            for end in (writer, answers):
                if end is not None:
                    end.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
        """Until the sender ends the connection or the receiver is gone."""
        try:
            while data := await reader.read(_CHUNK_BYTES):
                await self._wait_whole(link)
                if writer.is_closing():  # the receiver has gone meanwhile; uvloop would raise no OSError
                    return
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        await self._wait_whole(link)
        writer.close()

    async def _wait_whole(self, *links: Link) -> None:
        """Until all are whole at once."""
        while any(self._cuts[link] for link in links):
            for link in links:
                await self._whole[link].wait()


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
