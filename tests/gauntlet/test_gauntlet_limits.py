"""The gauntlet's rows about what a process may take and whom it listens to, on real processes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from fencepost import AdminClient, Producer
from fencepost_proto.protocol.metadata import BrokerRegistration
from fencepost_testing.cluster_metadata import read_image
from fencepost_testing.local_cluster import CONTROLLER, AsyncLocalCluster, to_toml
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous, run

TIMEOUT_S = 90.0
MIB = 1024 * 1024


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no resident memory")


async def brokers_with(broker_id: int, bootstrap: str) -> Mapping[int, BrokerRegistration]:
    """As clients are told, once that one is among them."""
    what = f"broker {broker_id} in the metadata"
    image = await until(
        lambda: read_image(bootstrap, timeout_s=5), what, 60, holds=lambda image: broker_id in image.brokers
    )
    return image.brokers


@asynchronous
async def test_memory_per_partition(tmp_path: Path) -> None:
    """redpanda issue 3329, pulsar issue 5751: every partition keeps memory of its own, for ever.

    Here the newest batches of all partitions share one budget. A megabyte goes into each of 60 partitions. Some of it comes
    before the broker knows that it leads them: what it remembers of such a refusal must not hold the refused records.
    """
    partitions, tail_bytes = 60, 4 * MIB

    cluster = AsyncLocalCluster(tmp_path / "cluster", brokers=1, broker_overrides={"tail_bytes": tail_bytes})
    async with cluster, AdminClient(cluster.bootstrap) as admin:
        await admin.create_topic("orders", partitions=partitions, replication_factor=1)
        async with Producer(cluster.bootstrap, batch_size=300_000) as producer:
            await producer.send_and_wait("orders", b"first", partition=0)
            before = resident_bytes(cluster.pid(1))
            for partition in range(partitions):
                for _ in range(4):
                    await producer.send("orders", bytes(MIB // 4), partition=partition)
            await producer.flush()
        (folders,) = [cluster.member(1).directory]
        stored = sum(file.stat().st_size for file in folders.glob("orders-*/*.log"))
        assert stored > partitions * MIB  # it happened: 60 MB were appended, in every partition its part
        assert len(list(folders.glob("orders-*"))) == partitions
        grown = resident_bytes(cluster.pid(1)) - before
        assert grown < tail_bytes + 24 * MIB, f"{grown / MIB:.0f} MiB more for {partitions} partitions"


def test_wildcard_advertised(tmp_path: Path) -> None:
    """wurstmeister/kafka-docker issue 153: a broker that listens on 0.0.0.0 tells its clients to connect to 0.0.0.0.

    Here it does not start; with an address to tell, that is what clients are told.
    """

    async def starts(name: str, **settings: str | int) -> asyncio.subprocess.Process:
        config = tmp_path / f"{name}.toml"
        config.write_text(
            to_toml({"broker_id": 1, "data_dir": str(tmp_path / "broker"), "listen": "0.0.0.0:0", **settings})
        )
        command = (sys.executable, "-m", "fencepost_node", str(config))
        return await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)

    async def scenario() -> None:
        cluster = AsyncLocalCluster(tmp_path / "cluster", brokers=1)
        async with cluster:
            controller = cluster.member(CONTROLLER).address
            for settings, named in (
                ({}, "insecure_listen = true"),
                ({"insecure_listen": True}, "advertised_address"),
                (
                    {"insecure_listen": True, "advertised_address": "0.0.0.0:9092"},
                    "advertised_address = '0.0.0.0:9092'",
                ),
            ):
                process = await starts("refused", controller=controller, **settings)
                _, said = await process.communicate()
                assert process.returncode == 2
                assert named in said.decode()
                assert "0.0.0.0" in said.decode()
            process = await starts(
                "advertised", controller=controller, broker_id=2, insecure_listen=True, advertised_address="127.0.0.1:0"
            )
            try:
                brokers = await brokers_with(2, cluster.bootstrap)
                assert brokers[2].address.startswith("127.0.0.1:")
                assert not brokers[2].address.endswith(":0")
                async with AdminClient(brokers[2].address) as admin:  # and there it answers
                    await admin.create_topic("orders", partitions=1, replication_factor=1)
            finally:
                process.terminate()
                await process.communicate()
            assert process.returncode == 0

    run(scenario(), TIMEOUT_S)
