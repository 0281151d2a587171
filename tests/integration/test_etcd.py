"""The real etcd: it behaves as the one in memory does, and real controllers on it replace each other."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fencepost import AdminClient, Producer
from fencepost_controller.store import LeadershipLost
from fencepost_controller.store.etcd.calls import (
    Created,
    Delete,
    Etcd,
    EtcdRefused,
    Get,
    Holds,
    Modified,
    Operation,
    Put,
    Txn,
)
from fencepost_controller.store.etcd.client import EtcdAccess, EtcdClient
from fencepost_controller.store.etcd.layout import Keys, Leader
from fencepost_controller.store.etcd.reader import MetadataReader
from fencepost_controller.store.sqlite import SqliteStore
from fencepost_proto.protocol.metadata import MetadataImage, NextProducerId, Topic
from fencepost_proto.transport.wire import GrpcWire
from fencepost_testing.waiting import until, until_sync
from tests.asynchronous import asynchronous
from tests.integration.etcd_processes import ETCD, NO_ETCD, Processes, logged_at, processes
from tests.unit.etcd_world import Candidate, etcd_world
from tests.unit.test_etcd_store import BEGUN, commit

pytestmark = pytest.mark.skipif(ETCD is None, reason=NO_ETCD)

TAKE_OVER_S = 0.3  # kill -9 to the brokers' sessions with the next one …
REPLACED_S = 0.6  # … and to the new leader of a broker that was killed in the same instant; on an idle machine
SLACK = 20  # beside other tests: a pause between attempts may come on top. Alone: sessions after 52 to 128 ms


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One member."""
    with processes(tmp_path_factory.mktemp("etcd")) as group:
        group.start_etcd(1)
        yield group.endpoints[0]


@asynccontextmanager
async def client_of(endpoint: str) -> AsyncIterator[EtcdClient]:
    client = EtcdClient(GrpcWire(), EtcdAccess((endpoint,)))
    yield client
    await client.close()


# ---- The same as in memory ----


async def outcome(etcd: Etcd, compare: list[Created | Modified | Holds], *operations: Operation) -> object:
    try:
        return await etcd.transact(compare, operations)
    except EtcdRefused as refused:
        return str(refused).rpartition("etcdserver: ")[2]


def relative(done: object, base: int) -> object:
    """With revisions counted from `base`, and without lease ids."""
    if not isinstance(done, Txn):
        return done
    found = [
        [(kv.key, kv.value, kv.create_revision - base, kv.mod_revision - base, bool(kv.lease_id)) for kv in some]
        for some in done.found
    ]
    return done.succeeded, done.revision - base, found


async def conversation(etcd: Etcd, prefix: bytes) -> list[object]:
    """What a row of requests comes to."""
    a, b, c = (prefix + name for name in (b"a", b"b", b"c"))
    base = (await etcd.transact([], [Get(a)])).revision
    lease = await etcd.grant(60)
    said: list[object] = []

    async def say(compare: list[Created | Modified | Holds], *operations: Operation) -> Txn | None:
        done = await outcome(etcd, compare, *operations)
        said.append(relative(done, base))
        return done if isinstance(done, Txn) else None

    async with etcd.watch(prefix, prefix + b"\xff", base + 1) as changes:
        await say([Created(a, 0)], Put(a, b"1", lease), Get(a))
        await say([Created(a, 0)], Put(a, b"2"))
        created = await say([Holds(a, b"1")], Put(b, b"x"), Put(c, b"y"), Get(prefix, prefix + b"\xff"))
        assert created is not None
        await say([Holds(a, b"0")], Put(b, b"never"))
        await say([Created(b, created.revision)], Put(b, b"z"), Get(b, prefix + b"\xff", 1))
        await say([Modified(b, created.revision)], Delete(b))
        await say([Created(b, created.revision)], Delete(b, prefix + b"d"), Get(prefix, prefix + b"\xff"))
        await say([], Put(a, b"1"), Delete(a))
        await say([], Put(a, b"1"), Put(a, b"2"))
        await say([], Put(c, b"1", 12345))
        await say([], Put(c, b"x" * 2_000_000))
        await say([], *(Put(prefix + b"m%d" % n, b"") for n in range(129)))
        said.append(await etcd.renew(lease))
        await etcd.revoke(lease)
        said.append(await etcd.renew(lease))
        await say([], Get(a))
        await say([Created(a, 0)], Put(a, b"again"), Get(a))
        seen: list[object] = []
        async for some in changes:
            seen += [(change.key, change.value, change.revision - base) for change in some]
            if any(change.value == b"again" for change in some):
                break
        said.append(seen)
    return said


@asynchronous
async def test_the_real_etcd_answers_as_the_one_in_memory(etcd: str) -> None:
    prefix = b"/conversation/"
    async with client_of(etcd) as real, etcd_world() as world:
        assert await conversation(real, prefix) == await conversation(world.client(), prefix)


@asynchronous
async def test_a_lease_that_no_one_renews_takes_its_key_along(etcd: str) -> None:
    async with client_of(etcd) as real:
        lease = await real.grant(2)
        await real.transact([], [Put(b"/lease/a", b"1", lease)])

        async def is_gone() -> bool:
            return not await real.get(Get(b"/lease/a"))

        await until(is_gone, "the key is gone", 10)
        assert not await real.renew(lease)


@asynchronous
async def test_commits_snapshots_and_take_overs(etcd: str) -> None:
    keys = Keys(b"/store-%d/" % random.getrandbits(32))
    async with client_of(etcd) as first, client_of(etcd) as second:
        one, two = Candidate(first, keys, 1), Candidate(second, keys, 2)
        try:
            term = await one.win()
            image = await commit(term, MetadataImage(), *BEGUN)
            image = await commit(term, image, *[Topic(f"id-{n}", f"{n:04d}" + "x" * 200) for n in range(9_000)])
            await term.write_snapshot(image)
            image = await commit(term, image, NextProducerId(1_000))
            reader = MetadataReader(second, keys)
            await reader.catch_up()
            assert reader.image == image
            await two.win(Leader(1, "", "", term.revision))
            assert two.reader.image == image
            with pytest.raises(LeadershipLost):
                await commit(term, image, NextProducerId(2_000))
        finally:
            await one.close()
            await two.close()


def test_the_command_line_moves_metadata_to_etcd_and_back(etcd: str, tmp_path: Path) -> None:
    configs = {name: tmp_path / f"{name}.toml" for name in ("old", "etcd", "new")}
    for name in ("old", "new"):
        configs[name].write_text(f'data_dir = "{tmp_path / name}"\n')
    (tmp_path / "old").mkdir()
    settings = f'store = "etcd"\ncontroller_id = 1\netcd_endpoints = "{etcd}"\netcd_prefix = "/migrated/"\n'
    configs["etcd"].write_text(f'data_dir = "{tmp_path / "etcd"}"\n{settings}')
    store = SqliteStore(str(tmp_path / "old" / "metadata.sqlite"))
    store.commit(0, 3, {entity.key: entity for entity in (*BEGUN, Topic("id", "a"))})
    held = store.load()
    store.close()
    for source, target in (("old", "etcd"), ("etcd", "new")):
        done = _fencepost("controller", "migrate", "--from", str(configs[source]), "--to", str(configs[target]))
        assert "metadata version 3 is in the new store: 1 topics" in done.stdout, done.stderr
    again = _fencepost("controller", "migrate", "--from", str(configs["old"]), "--to", str(configs["etcd"]))
    assert again.returncode != 0
    assert "the target is not new: it is at metadata version 3" in again.stderr
    copied = SqliteStore(str(tmp_path / "new" / "metadata.sqlite"))
    assert copied.load() == held
    copied.close()


def _fencepost(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fencepost_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# ---- Real controllers ----


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Processes]:
    """Three members of etcd, three controllers, three brokers."""
    with processes(tmp_path) as group:
        group.start_etcd(3)
        group.start_controllers(3, session_timeout_ms=2_000, heartbeat_interval_ms=200)
        group.start_brokers(3)
        yield group


async def leaders(group: Processes) -> list[int]:
    async with AdminClient(group.broker_addresses[1:]) as admin:
        return [p.leader for p in (await admin.describe_topic("t")).partitions]


async def make_topic(group: Processes) -> None:
    async with AdminClient(group.broker_addresses) as admin:
        await admin.create_topic("t", partitions=3, replication_factor=3)

        async def is_in_sync() -> bool:
            topic = await admin.describe_topic("t")
            return all(len(p.isr) == 3 for p in topic.partitions)

        await until(is_in_sync, "every replica is in sync", 30)


async def produce(group: Processes, value: bytes) -> None:
    async with Producer(group.broker_addresses[1:]) as producer:
        for partition in range(3):
            await producer.send_and_wait("t", value, partition=partition)


@pytest.mark.timeout(120)
def test_a_killed_controller_and_a_broker_killed_with_it_are_replaced_at_once(cluster: Processes) -> None:
    asyncio.run(make_topic(cluster))
    old, dead = cluster.active(), cluster.brokers[0]
    followed = min(logged_at(line) for line in old.lines("became the active"))
    until_sync(lambda: old.lines("broker unfenced broker=3"), "the brokers are live", 20)
    until_sync(lambda: _now() - followed > 2.5, "the standbys have followed it for a session timeout", 20)
    killed_at = _now()
    for process in (old, dead):  # the controller first: it is not to see the broker's end
        process.signal(signal.SIGKILL)
    new = cluster.active(killed_at)
    survivors = cluster.brokers[1:]

    def registered_after(line: str) -> bool:
        return logged_at(line) > killed_at

    for broker in survivors:
        until_sync(lambda b=broker: [x for x in b.lines(" registered ") if registered_after(x)], "its session", 20)  # type: ignore[misc]
    sessions = [next(logged_at(x) for x in b.lines(" registered ") if registered_after(x)) for b in survivors]
    replaced = until_sync(lambda: new.lines("broker fenced broker=1"), "the dead broker is replaced", 20)
    assert replaced
    took = logged_at(new.lines("became the active")[-1]) - killed_at
    print(
        f"take-over {took * 1000:.0f} ms, sessions {[round((s - killed_at) * 1000) for s in sessions]} ms, "
        f"broker replaced {(logged_at(replaced[0]) - killed_at) * 1000:.0f} ms"
    )
    assert max(sessions) - killed_at < TAKE_OVER_S * SLACK
    assert logged_at(replaced[0]) - killed_at < REPLACED_S * SLACK
    asyncio.run(produce(cluster, b"after"))
    assert 1 not in asyncio.run(leaders(cluster))


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_paused_controller_is_replaced_and_stands_by_when_it_wakes(cluster: Processes) -> None:
    asyncio.run(make_topic(cluster))
    old = cluster.active()
    paused_at = _now()
    old.signal(signal.SIGSTOP)
    new = cluster.active(paused_at)
    assert new is not old
    for broker in cluster.brokers:
        until_sync(
            lambda b=broker: [x for x in b.lines(" registered ") if logged_at(x) > paused_at],  # type: ignore[misc]
            f"{broker.name} follows the next one",
            20,
        )
    old.signal(signal.SIGCONT)
    until_sync(lambda: old.lines("stepped down"), "it steps down", 20)
    member = cluster.etcd[0]
    member.kill()
    asyncio.run(produce(cluster, b"with two members of etcd"))
    assert old.runs


def _now() -> float:
    return time.time()
