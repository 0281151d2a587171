"""What operators do with a real etcd: TLS and users, replace a member, restore a snapshot. The commands are those of
docs/OPERATIONS.md."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from fencepost import AdminClient, Producer
from fencepost_controller.store.etcd.calls import EtcdRefused, EtcdUnreachable, Get, Put
from fencepost_controller.store.etcd.client import EtcdAccess, EtcdClient
from fencepost_controller.store.etcd.layout import Keys
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.metadata import MetadataImage, NextProducerId
from fencepost_proto.runtime.process import EXIT_WENT_BACK
from fencepost_proto.transport.wire import GrpcWire
from fencepost_testing.waiting import until_sync
from tests.asynchronous import asynchronous, run
from tests.integration.etcd_processes import (
    ETCD,
    ETCDCTL,
    NO_ETCDCTL,
    WAIT_S,
    Processes,
    processes,
    wait_serves,
)
from tests.unit.etcd_world import Candidate
from tests.unit.test_etcd_store import BEGUN, commit

OPENSSL = shutil.which("openssl")

pytestmark = [
    pytest.mark.skipif(ETCD is None or ETCDCTL is None, reason=NO_ETCDCTL),
    pytest.mark.timeout(120),
]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Processes]:
    with processes(tmp_path) as group:
        yield group


def command(*words: str, may_fail: bool = False) -> str:
    """What it prints; nothing where it fails and may."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert may_fail or done.returncode == 0, f"{' '.join(words)}: {done.stdout} {done.stderr}"
    return done.stdout if done.returncode == 0 else ""


def etcdctl(group: Processes, *words: str, may_fail: bool = False) -> str:
    to = (str(ETCDCTL), f"--endpoints={group.endpoints[0]}")
    return command("env", "ETCDCTL_API=3", *to, *words, may_fail=may_fail)


# ---- TLS and users ----


def certificates(folder: Path) -> None:
    """An authority, and certificates of a server and a client that it has signed."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    at = {name: str(folder / name) for name in ("ca.pem", "ca.key", "extensions")}
    Path(at["extensions"]).write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    ca = ["-out", at["ca.pem"], "-keyout", at["ca.key"]]
    command("openssl", "req", "-x509", *key, *ca, "-days", "2", "-subj", "/CN=authority")
    for name in ("server", "client"):
        request = f"{folder}/{name}.csr"
        command("openssl", "req", *key, "-keyout", f"{folder}/{name}.key", "-out", request, "-subj", f"/CN={name}")
        signed_by = ["-CA", at["ca.pem"], "-CAkey", at["ca.key"], "-CAcreateserial", "-extfile", at["extensions"]]
        command("openssl", "x509", "-req", "-in", request, *signed_by, "-out", f"{folder}/{name}.pem", "-days", "2")


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
def test_a_controller_uses_tls_and_a_user_of_etcd_through_a_restart_of_etcd(group: Processes, tmp_path: Path) -> None:
    certificates(tmp_path)
    ca, cert, key = (str(tmp_path / name) for name in ("ca.pem", "client.pem", "client.key"))
    server = ["--cert-file", f"{tmp_path}/server.pem", "--key-file", f"{tmp_path}/server.key"]
    group.start_etcd(1, *server, "--trusted-ca-file", ca, "--client-cert-auth", scheme="https")
    tls = [f"--cacert={ca}", f"--cert={cert}", f"--key={key}"]
    for words in (
        ("user", "add", "root:admin"),
        ("user", "grant-role", "root", "root"),
        ("role", "add", "fencepost"),
        ("role", "grant-permission", "fencepost", "readwrite", "/fencepost/", "--prefix"),
        ("user", "add", "fencepost:secret"),
        ("user", "grant-role", "fencepost", "fencepost"),
        ("auth", "enable"),
    ):
        etcdctl(group, *tls, *words)
    password_file = tmp_path / "password"
    password_file.write_text("secret\n")
    access = {"etcd_ca_file": ca, "etcd_cert_file": cert, "etcd_key_file": key}
    user = {"etcd_user": "fencepost", "etcd_password_file": str(password_file)}
    group.start_controllers(1, **access, **user)
    run(check_access(group.endpoints[0], *(Path(path).read_bytes() for path in (ca, cert, key))))
    member = group.etcd[0]
    member.kill()  # and with it the token that the controller has
    member.start()
    wait_serves(member, 2)
    group.start_brokers(1)  # their registration is a commit


async def check_access(endpoint: str, ca: bytes, certificate: bytes, key: bytes) -> None:
    async def outcome(access: EtcdAccess, at: bytes) -> str:
        client = EtcdClient(GrpcWire(), access)
        try:
            await client.transact([], [Put(at, b"1"), Get(at)])
        except EtcdRefused as refused:
            return f"refused: {refused}"
        except EtcdUnreachable as unreachable:
            return f"unreachable: {unreachable}"
        finally:
            await client.close()
        return "done"

    def access(password: str = "secret") -> EtcdAccess:
        return EtcdAccess((endpoint,), ca, certificate, key, user="fencepost", password=password)

    assert await outcome(access(), b"/fencepost/test/a") == "done"
    assert "permission denied" in await outcome(access(), b"/another/a")
    assert "authentication failed" in await outcome(access("wrong"), b"/fencepost/test/a")
    assert "unreachable" in await outcome(
        replace(access(), certificate=None, private_key=None), b"/fencepost/test/a"
    ), "without a certificate"
    assert "unreachable" in await outcome(
        replace(access(), ca=None, certificate=None, private_key=None), b"/fencepost/test/a"
    ), "without TLS"


# ---- A member is lost ----


@asynchronous
async def test_a_lost_member_is_replaced_while_a_controller_commits(group: Processes) -> None:
    await asyncio.to_thread(group.start_etcd, 3)
    keys = Keys(b"/replaced/")
    client = EtcdClient(GrpcWire(), EtcdAccess(tuple(group.endpoints)))
    one = Candidate(client, keys, ttl_s=int(WAIT_S))  # while members of a busy machine elect, no one renews it
    try:
        term = await one.win()
        image = await commit(term, MetadataImage(), *BEGUN)
        await asyncio.to_thread(replace_member, group)
        image = await commit(term, image, NextProducerId(1_000))
        await asyncio.to_thread(group.etcd[1].kill)  # the new one is needed for a majority now
        image = await commit(term, image, NextProducerId(2_000))
        other = EtcdClient(GrpcWire(), EtcdAccess((group.endpoints[3],)))
        two = Candidate(other, keys, 2)
        await two.reader.catch_up()
        assert two.reader.image == image
        await two.close()
        await other.close()
    finally:
        await one.close()
        await client.close()


def replace_member(group: Processes) -> None:
    """The third, whose machine is lost, by another one."""
    lost = group.etcd[2]
    lost.kill()

    def is_removed() -> bool:
        listed = etcdctl(group, "member", "list", may_fail=True).splitlines()
        for number in [line.split(",")[0] for line in listed if ", n2," in line]:
            etcdctl(group, "member", "remove", number, may_fail=True)
            return False
        return bool(listed)

    until_sync(is_removed, "etcd has a leader again, if the lost one led, and lets it go", WAIT_S)
    peer = group.port()
    words = ("member", "add", "n3", f"--peer-urls=http://127.0.0.1:{peer}")
    what = "etcd takes another member: the others have been connected for 5 s"
    added = until_sync(lambda: etcdctl(group, *words, may_fail=True), what, WAIT_S)
    (peers,) = [line.split('"')[1] for line in added.splitlines() if line.startswith("ETCD_INITIAL_CLUSTER=")]
    group.start_new_member(peers, peer)


# ---- A snapshot is restored ----


def test_a_restored_snapshot_is_an_older_store_until_it_is_recovered(group: Processes, tmp_path: Path) -> None:
    group.start_etcd(1)
    group.start_controllers(1)
    group.start_brokers(1)
    (controller,), (member,) = group.controllers, group.etcd
    asyncio.run(produce(group, "before"))
    etcdctl(group, "snapshot", "save", str(tmp_path / "backup.db"))
    asyncio.run(produce(group, "since"))
    member.kill()
    shutil.rmtree(member.folder / "data")
    peers = group.peers
    command(
        "env", "ETCDCTL_API=3", str(ETCDCTL), "snapshot", "restore", str(tmp_path / "backup.db"), "--name", "n0",
        "--data-dir", str(member.folder / "data"), "--initial-cluster", peers,
        "--initial-advertise-peer-urls", peers.partition("=")[2],
    )  # fmt: skip
    member.start()
    wait_serves(member, 2)
    asyncio.run(
        ask_for_a_change(group)
    )  # the active one notices by its next commit; one that starts, by the first broker
    assert controller.popen is not None
    assert controller.popen.wait(WAIT_S) == EXIT_WENT_BACK
    assert controller.lines("has gone back: it is at metadata version")
    config = str(controller.folder / "config.toml")
    recover = ["-m", "fencepost_cli", "controller", "recover", "--config", config]
    told = command(sys.executable, *recover, "--bootstrap", group.broker_addresses[0])
    assert "metadata version" in told
    controller.start()
    until_sync(lambda: len(controller.lines("broker unfenced")) == 2, "the broker is live again", WAIT_S)
    asyncio.run(produce(group, "after"))
    assert asyncio.run(topics(group)) == {"before", "since", "after"}


async def produce(group: Processes, topic: str) -> None:
    async with AdminClient(group.broker_addresses) as admin, Producer(group.broker_addresses) as producer:
        await admin.create_topic(topic, partitions=1, replication_factor=1)
        await producer.send_and_wait(topic, b"1")


async def ask_for_a_change(group: Processes) -> None:
    async with AdminClient(group.broker_addresses) as admin:
        with suppress(FencepostError, TimeoutError):
            async with asyncio.timeout(5):
                await admin.create_topic("refused", partitions=1, replication_factor=1)


async def topics(group: Processes) -> set[str]:
    async with AdminClient(group.broker_addresses) as admin:
        return set(await admin.list_topics())
