"""What a local cluster's etcd says: its members' health, and which controller is active under which epoch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from fencepost_testing.member import (
    ACTIVE_CONTROLLER,
    CONTROLLER,
    POLL_S,
    ClusterError,
    Member,
    Node,
    Settings,
    is_etcd,
    numbered,
)
from fencepost_testing.waiting import until

LOOK_TIMEOUT_S: Final = 1.0
_PREFIX_SETTING: Final = "etcd_prefix"


@dataclass(frozen=True, slots=True)
class MemberHealth:
    """What one member of etcd says of itself."""

    leads: bool
    has_leader: bool  # without one nothing is committed
    version: str
    size_bytes: int  # of its database
    errors: tuple[str, ...] = ()  # alarms: no room, damage

    @property
    def role(self) -> str:
        return "leader" if self.leads else "follower" if self.has_leader else ""

    @property
    def trouble(self) -> str:
        """Why it does not serve; empty: it does."""
        return "; ".join(self.errors) if self.has_leader else "it knows no leader: there is no majority"


@dataclass(frozen=True, slots=True)
class ActiveController:
    """Who holds the leader key."""

    controller_id: int
    epoch: int


@dataclass(slots=True)
class EtcdState:
    """By the members that answer."""

    members: dict[str, MemberHealth] = field(default_factory=dict)
    active: ActiveController | None = None  # as the member with the newest revision knows it

    @property
    def leader(self) -> str | None:
        """The member that leads, as it says itself."""
        return next((name for name, health in self.members.items() if health.leads), None)

    def active_controller(self, members: Mapping[Node, Member]) -> str | None:
        """The controller that holds the leader key, if it runs."""
        holder = "" if self.active is None else numbered(CONTROLLER, self.active.controller_id)
        return holder if holder in members and members[holder].running() else None


async def read_etcd(members: Mapping[Node, Member], settings: Settings, timeout_s: float = LOOK_TIMEOUT_S) -> EtcdState:
    """Ask all of etcd's members that run, at the same time, each for what it has itself: so a member that is cut off from
    the others answers too. `members`: of the whole cluster; `settings`: the controllers'."""
    from fencepost_controller.config import ControllerConfig
    from fencepost_controller.store.etcd.layout import Keys

    prefix = settings.get(_PREFIX_SETTING, ControllerConfig.__dataclass_fields__[_PREFIX_SETTING].default)
    keys = Keys(str(prefix).encode())
    asked = {str(node): member.address for node, member in members.items() if is_etcd(node) and member.running()}
    answers = await asyncio.gather(*(_ask(address, keys, timeout_s) for address in asked.values()))
    state, newest = EtcdState(), -1
    for name, answer in zip(asked, answers, strict=True):
        if answer is None:
            continue
        health, revision, active = answer
        state.members[name] = health
        if revision > newest:
            newest, state.active = revision, active
    return state


async def wait_decides(
    members: Mapping[Node, Member],
    settings: Settings,
    target: str,
    timeout_s: float,
    late: Callable[[str], Exception],
) -> Node:
    """ACTIVE_CONTROLLER or ETCD_LEADER: a process that runs, once there is one. Raises ClusterError where the cluster has
    no etcd that could have a leader, and what `late` makes of the message."""
    if not any(map(is_etcd, members)):
        if target == ACTIVE_CONTROLLER:
            return CONTROLLER
        raise ClusterError(f"{target}: this cluster has one controller and no etcd")

    async def look() -> Node | None:
        state = await read_etcd(members, settings)
        return state.active_controller(members) if target == ACTIVE_CONTROLLER else state.leader

    return await until(look, f"{target} runs", timeout_s, poll_s=POLL_S, error=late)


async def _ask(address: str, keys: Any, timeout_s: float) -> tuple[MemberHealth, int, ActiveController | None] | None:
    from aetcd import rpc

    from fencepost_controller.store.etcd.layout import decode_leader, decode_number

    async with grpc.aio.insecure_channel(address) as channel:
        with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
            async with asyncio.timeout(timeout_s):
                said = await rpc.MaintenanceStub(channel).Status(rpc.StatusRequest())
                kv = rpc.KVStub(channel)
                held = await kv.Range(rpc.RangeRequest(key=keys.leader, serializable=True))
                base = await kv.Range(rpc.RangeRequest(key=keys.epoch_base, serializable=True))
            leads = said.leader == said.header.member_id
            health = MemberHealth(leads, said.leader != 0, said.version, said.dbSize, tuple(said.errors))
            active = None
            if held.kvs:
                leader = decode_leader(held.kvs[0].value, held.kvs[0].create_revision, held.kvs[0].lease)
                epoch_base = decode_number(base.kvs[0].value) if base.kvs else 0
                active = ActiveController(leader.controller_id, epoch_base + leader.revision)
            return health, held.header.revision, active
    return None
