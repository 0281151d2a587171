"""`python -m fencepost_cli.onlooker PAGE METRICS...`: who looks at a cluster in `watched_bench`, as a process of its own.

It reads the events of the page at host:port as a browser would, and scrapes every process's metrics once a second. When
its standard input ends it writes how many scrapes and lines of events there were.
"""

from __future__ import annotations

import http.client
import select
import sys
import threading
from collections.abc import Sequence
from typing import Final

SCRAPE_EVERY_S: Final = 1.0
_TIMEOUT_S: Final = 60.0


class Onlooker:
    """Counts what it has seen."""

    def __init__(self) -> None:
        self.scrapes = 0
        self.events = 0

    def scrape(self, address: str) -> None:
        connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
        connection.request("GET", "/metrics")
        assert connection.getresponse().read()
        connection.close()
        self.scrapes += 1

    def read_events(self, address: str) -> None:
        """Until the page ends."""
        connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
        connection.request("GET", "/events")
        answer = connection.getresponse()
        while answer.readline():
            self.events += 1
        connection.close()


def main(page: str, metrics: Sequence[str]) -> None:
    onlooker = Onlooker()
    threading.Thread(target=onlooker.read_events, args=(page,), daemon=True).start()
    while not select.select([sys.stdin], [], [], SCRAPE_EVERY_S)[0]:
        for address in metrics:
            onlooker.scrape(address)
    print(onlooker.scrapes, onlooker.events)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
