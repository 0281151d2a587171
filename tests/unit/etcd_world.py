"""An etcd in memory behind a real port, and controllers' stores on it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from fencepost_controller.store.etcd.calls import Etcd
from fencepost_controller.store.etcd.client import EtcdAccess, EtcdClient
from fencepost_controller.store.etcd.layout import Keys, Leader
from fencepost_controller.store.etcd.leadership import Leadership, Lease
from fencepost_controller.store.etcd.reader import MetadataReader
from fencepost_controller.store.etcd.shared import SharedMetadata
from fencepost_controller.store.etcd.term import Term
from fencepost_proto.transport.wire import GrpcWire
from tests.fake_etcd import EtcdCluster, EtcdMember, expire_leases

PREFIX = b"/a-cluster/"


class EtcdWorld:
    """One cluster of one or several members, each behind a port of its own."""

    def __init__(self) -> None:
        self.cluster = EtcdCluster(asyncio.get_running_loop().time)
        self.members: list[EtcdMember] = []
        self.addresses: list[str] = []
        self.keys = Keys(PREFIX)
        self._clients: list[Etcd] = []

    @property
    def member(self) -> EtcdMember:
        return self.members[0]

    def client(self) -> EtcdClient:
        client = EtcdClient(GrpcWire(), EtcdAccess(tuple(self.addresses)))
        self._clients.append(client)
        return client

    def shared(self) -> SharedMetadata:
        return SharedMetadata(self.client(), self.keys)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


@asynccontextmanager
async def etcd_world(members: int = 1) -> AsyncIterator[EtcdWorld]:
    world, servers = EtcdWorld(), []
    for _ in range(members):
        member, server = EtcdMember(world.cluster), grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        member.add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        world.members.append(member)
        world.addresses.append(f"127.0.0.1:{port}")
        servers.append(server)
    expiry = asyncio.create_task(expire_leases(world.cluster))
    try:
        yield world
    finally:
        expiry.cancel()
        await world.close()
        for server in servers:
            await server.stop(0)


class Candidate:
    """What a controller uses of the store, without the controller."""

    def __init__(self, etcd: Etcd, keys: Keys, number: int = 1, ttl_s: int = 20) -> None:
        self.etcd = etcd
        self.me = Leader(number, f"controller-{number}:9090", f"incarnation {number}")
        self.reader = MetadataReader(etcd, keys)
        self.lost = 0
        self.lease = Lease(etcd, ttl_s, self._on_lost)
        self.leadership = Leadership(etcd, keys, self.reader, self.lease, random.Random(number))
        self._keeping = asyncio.create_task(self.lease.run())

    def _on_lost(self) -> None:
        self.lost += 1

    async def win(self, dead: Leader | None = None) -> Term:
        term = await self.leadership.take_over(self.me, dead)
        assert term is not None
        return term

    async def close(self) -> None:
        self._keeping.cancel()
        await asyncio.wait([self._keeping])


@asynccontextmanager
async def candidate(world: EtcdWorld, number: int = 1, ttl_s: int = 20) -> AsyncIterator[Candidate]:
    one = Candidate(world.client(), world.keys, number, ttl_s)
    try:
        yield one
    finally:
        await one.close()
