"""The metrics of one process: its port, and the little that is measured only for them."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Awaitable
from functools import cache

from fencepost_proto.runtime.config import ConfigError
from fencepost_proto.runtime.metrics.exposition import Families, exposition
from fencepost_proto.runtime.metrics.families import Family, gauge, histogram
from fencepost_proto.runtime.metrics.listener import MetricsListener
from fencepost_proto.runtime.metrics.loop_lag import measure_loop_lag
from fencepost_proto.runtime.tasks import Tasks
from fencepost_proto.transport.latencies import Latencies

LIBRARY = "prometheus_client"


class MetricsService:
    """Made, started and stopped once. Until the first scrape it costs a port."""

    def __init__(self, listen_at: str, kind: str, families: Families, tasks: Tasks) -> None:
        """`kind`: of the process. Raises ConfigError where the library is not installed."""
        if importlib.util.find_spec(LIBRARY) is None:
            raise ConfigError(
                f"metrics_listen = {listen_at!r}: prometheus-client is not installed: pip install 'fencepost[server]'"
            )
        self._kind = kind
        self._of_component = families
        self._tasks = tasks
        self._lag = Latencies()
        self._listener = MetricsListener(listen_at, self.text)
        self._listener.on_first_scrape = self._first_scrape

    @property
    def address(self) -> str:
        return self._listener.address

    async def start(self) -> None:
        """Raises OSError where the port is occupied."""
        await self._listener.start()

    async def stop(self) -> None:
        await self._listener.stop()

    def text(self) -> Awaitable[bytes]:
        return exposition(self._families)

    def _first_scrape(self) -> None:
        self._tasks.spawn(measure_loop_lag(self._lag), "loop lag")

    async def _families(self) -> AsyncIterator[Family]:
        built = gauge("fencepost_build_info", "1, with the version that runs and the kind of process.")
        built.add(1, version=_version(), kind=self._kind)
        yield built
        yield histogram(
            "fencepost_event_loop_lag_seconds",
            "How late a timer of the event loop was, four times a second from the first scrape on.",
            self._lag,
        )
        async for family in self._of_component():
            yield family


@cache
def _version() -> str:
    """Of the package that this process has imported, whatever is installed over it later."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fencepost")
    except PackageNotFoundError:
        return "unknown"
