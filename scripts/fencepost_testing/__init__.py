"""A cluster of real processes on this machine that tests can use and break, and the checks of what it stored.

    import asyncio

    from fencepost import AdminClient, Consumer, Producer
    from fencepost_testing import AsyncLocalCluster

    async def main() -> None:
        async with AsyncLocalCluster(brokers=3) as cluster, AdminClient(cluster.bootstrap) as admin:
            await admin.create_topic("orders", partitions=1, replication_factor=3, min_insync_replicas=2)
            async with Producer(cluster.bootstrap) as producer:
                await producer.send_and_wait("orders", b"one pint")
                await cluster.kill(("orders", 0))  # its leader
                await producer.send_and_wait("orders", b"two pints")  # to the next leader, which knows the producer
            async with Consumer(cluster.bootstrap, "orders") as consumer:
                print([(await anext(consumer)).value for _ in range(2)])

    asyncio.run(main())

Without an event loop it is `with LocalCluster(brokers=3) as cluster:`, with methods of the same names.

The cluster is in a temporary folder, which is removed at the end; `LocalCluster(directory)` keeps its data. Its processes
end with the block, and with the program, whatever ends that.

- `local_cluster`, `async_cluster`: the cluster, its processes, topics, ports and settings
- `pytest_plugin`: fixtures for pytest
- `waiting`, `topic_waits`: waits that end at a deadline and say what they waited for
- `workload`, `failover`: records with a ledger of what was sent, and the kill of a leader under them
- `exactly_once`, above `history_check` and `replica_check`: is each record in the log exactly once and in order?
- `chaos`: faults by a schedule, on processes, disks, data folders and networks
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fencepost_testing.exactly_once import ExactlyOnce, NotExactlyOnce, check_history
    from fencepost_testing.local_cluster import CONTROLLER, AsyncLocalCluster, ClusterError, LocalCluster
    from fencepost_testing.waiting import NotInTime

__all__ = [
    "CONTROLLER",
    "AsyncLocalCluster",
    "ClusterError",
    "ExactlyOnce",
    "LocalCluster",
    "NotExactlyOnce",
    "NotInTime",
    "check_history",
]

_MODULES = {
    "ExactlyOnce": "exactly_once",
    "NotExactlyOnce": "exactly_once",
    "NotInTime": "waiting",
    "check_history": "exactly_once",
}


def __getattr__(name: str) -> Any:
    """Imported when they are asked for: a command line that needs no cluster should not wait for what one needs."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'local_cluster')}")
    return getattr(module, name)
