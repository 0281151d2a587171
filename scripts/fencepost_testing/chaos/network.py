"""A small network of its own for a run: each process in a network namespace, all on one bridge, and links that can be cut.

Needs Linux, root and `ip` (iproute2). Where that is not so, `Network.make` says why, and a run goes on without cuts.

Every namespace knows the hardware address of every other by a permanent entry in its neighbour table. Cutting the link
from A to B points A's entry for B at an address that no one has: what A sends to B is lost without a word, as on a broken
cable, in that direction only, for open connections too. This machine itself has an address on the bridge and is never
cut off: it is where the run looks from.

All names begin with "fp" and a number that no other network on this machine has at the time; only what this run made is
removed, by a janitor process that outlives it however it ends.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from fencepost_testing.chaos.faults import Link, Party
from fencepost_testing.processes import NetworkPlace

MAX_PARTIES = 200
_NUMBERS = (
    512  # of networks: two networks of 256 subnets each, 198.18.0.0/15, reserved for tests of this kind (RFC 2544)
)
_ATTEMPTS = 20
_HOST_BYTE = 254
_NOBODYS_BYTE = 0
_CHECK_TIMEOUT_S = 5.0
_CHECK_PORT = 9


class NetworkUnavailable(Exception):
    """Why links cannot be cut here, in words for the report."""


class Network:
    """Make one with `make`, and `close` it once the processes in it are gone."""

    def __init__(self, number: int, parties: Sequence[Party], janitor: subprocess.Popen[bytes]) -> None:
        self._number = number
        self._index = {party: index for index, party in enumerate(parties, 1)}
        self._janitor = janitor
        self._cuts: Counter[Link] = Counter()  # how many cuts hold each link

    @classmethod
    def make(cls, parties: Sequence[Party]) -> Network:
        """Raises NetworkUnavailable."""
        if sys.platform != "linux":
            raise NetworkUnavailable("network namespaces need Linux")
        if shutil.which("ip") is None:
            raise NetworkUnavailable("network namespaces need the command ip (iproute2)")
        if os.geteuid() != 0:
            raise NetworkUnavailable("network namespaces need root")
        if len(parties) > MAX_PARTIES:
            raise NetworkUnavailable(f"{len(parties)} processes: at most {MAX_PARTIES} fit into one network")
        janitor = subprocess.Popen(
            [sys.executable, "-I", "-m", "fencepost_testing.chaos.janitor"],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        network = cls(_claim_number(janitor), parties, janitor)
        try:
            network._build()
            network._check()
        except BaseException:
            network.close()
            raise
        return network

    def close(self) -> None:
        """Everything that was made is removed when this returns."""
        _finish(self._janitor)

    # ---- Who is where ----

    def place(self, party: Party) -> NetworkPlace:
        return NetworkPlace(self._address(self._index[party]), ("ip", "netns", "exec", self._namespace(party)))

    @property
    def name(self) -> str:
        return _name(self._number)

    def _namespace(self, party: Party) -> str:
        return f"{self.name}-{party}"

    def _port_of_bridge(self, party: Party) -> str:
        return f"{self.name}v{self._index[party]}"

    def _address(self, index: int) -> str:
        return f"198.{18 + self._number // 256}.{self._number % 256}.{index}"

    def _hardware_address(self, index: int) -> str:
        return f"02:fe:{self._number // 256:02x}:{self._number % 256:02x}:00:{index:02x}"

    # ---- Making it ----

    def _build(self) -> None:
        bridge = self.name
        for party in self._index:
            _ip("netns", "add", self._namespace(party))
            _tell(self._janitor, f"netns {self._namespace(party)}")
        here = [
            f"link set {bridge} address {self._hardware_address(_HOST_BYTE)}",
            f"address add {self._address(_HOST_BYTE)}/24 dev {bridge}",
            f"link set {bridge} up",
        ]
        for party, index in self._index.items():
            port = self._port_of_bridge(party)
            _tell(self._janitor, f"link {port}")
            here += [
                f"link add {port} type veth peer name eth0 address {self._hardware_address(index)} "
                f"netns {self._namespace(party)}",
                f"link set {port} master {bridge} up",
                self._neighbour(index, device=bridge),
            ]
        _ip("-batch", "-", batch=here)
        for party, index in self._index.items():
            there = ["link set lo up", f"address add {self._address(index)}/24 dev eth0", "link set eth0 up"]
            there += [self._neighbour(other) for other in (*self._index.values(), _HOST_BYTE) if other != index]
            _ip("-n", self._namespace(party), "-batch", "-", batch=there)

    def _neighbour(self, index: int, *, cut: bool = False, device: str = "eth0") -> str:
        """The command for an entry in a neighbour table."""
        hardware_address = self._hardware_address(_NOBODYS_BYTE if cut else index)
        return f"neighbour replace {self._address(index)} lladdr {hardware_address} dev {device} nud permanent"

    def _check(self) -> None:
        """Two namespaces and this machine reach each other: a firewall may forbid what could be set up."""
        one, other = list(self._index)[:2]
        address = self.place(one).host
        serve = (
            "import socket, sys; s = socket.create_server((sys.argv[1], int(sys.argv[2]))); print(flush=True); "
            f"s.settimeout({_CHECK_TIMEOUT_S}); s.accept(); s.accept()"
        )
        call = f"import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), {_CHECK_TIMEOUT_S})"
        arguments = (address, str(_CHECK_PORT))
        with subprocess.Popen(
            [*self.place(one).prefix, sys.executable, "-I", "-c", serve, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as server:
            try:
                assert server.stdout is not None
                server.stdout.readline()
                called = subprocess.run(
                    [*self.place(other).prefix, sys.executable, "-I", "-c", call, *arguments],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=False,
                )
                if called.returncode:
                    raise NetworkUnavailable("network namespaces on one bridge do not reach each other here")
                socket.create_connection((address, _CHECK_PORT), _CHECK_TIMEOUT_S).close()
            except OSError as error:
                raise NetworkUnavailable(f"this machine does not reach a network namespace: {error}") from error
            finally:
                server.kill()

    # ---- Cutting ----

    async def cut(self, links: Iterable[Link]) -> None:
        """What the first of each link sends to the second is lost from now on."""
        fresh = []
        for link in links:
            self._cuts[link] += 1
            if self._cuts[link] == 1:
                fresh.append(link)
        await self._set(fresh, cut=True)

    async def mend(self, links: Iterable[Link]) -> None:
        """Undo a `cut` of the same links; one that is cut by another cut too stays cut."""
        mended = []
        for link in links:
            self._cuts[link] -= 1
            if self._cuts[link] == 0:
                mended.append(link)
        await self._set(mended, cut=False)

    async def _set(self, links: Sequence[Link], *, cut: bool) -> None:
        by_sender: dict[Party, list[str]] = {}
        for sender, receiver in links:
            by_sender.setdefault(sender, []).append(self._neighbour(self._index[receiver], cut=cut))
        await asyncio.gather(
            *(
                asyncio.to_thread(_ip, "-n", self._namespace(sender), "-batch", "-", batch=lines)
                for sender, lines in by_sender.items()
            )
        )


def _name(number: int) -> str:
    return f"fp{number:03x}"


def _claim_number(janitor: subprocess.Popen[bytes]) -> int:
    """A number that no one's bridge has; ours has it from now on."""
    numbers = random.SystemRandom().sample(range(_NUMBERS), _ATTEMPTS)
    error: NetworkUnavailable | None = None
    for number in numbers:
        try:
            _ip("link", "add", _name(number), "type", "bridge")
        except NetworkUnavailable as refused:
            error = refused
        else:
            _tell(janitor, f"link {_name(number)}")
            return number
    _finish(janitor)
    assert error is not None
    raise error


def _tell(janitor: subprocess.Popen[bytes], line: str) -> None:
    assert janitor.stdin is not None
    os.write(janitor.stdin.fileno(), f"{line}\n".encode())


def _finish(janitor: subprocess.Popen[bytes]) -> None:
    assert janitor.stdin is not None
    janitor.stdin.close()
    janitor.wait()


def _ip(*arguments: str, batch: Sequence[str] | None = None) -> None:
    done = subprocess.run(
        ["ip", *arguments],
        input=None if batch is None else "\n".join(batch) + "\n",
        stdin=subprocess.DEVNULL if batch is None else None,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise NetworkUnavailable(f"ip {' '.join(arguments)}: {said[0] if said else f'exit code {done.returncode}'}")
