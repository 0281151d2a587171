"""What a chaos run and its client processes say to each other: a file at the start, an exit code at the end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fencepost_proto.runtime.host import Host
from fencepost_testing.cluster_file import STATE_FILE
from fencepost_testing.faults.board import FOLDER, Board
from fencepost_testing.faults.inside import FaultsInside
from fencepost_testing.faults.lossy_wire import lossy_host
from fencepost_testing.faults.wire import host_with_faults
from fencepost_testing.kafka_clients import FENCEPOST

EXIT_FENCED = 3


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What a client process reads from its file."""

    process: str  # its name in the history
    kind: str  # producer, consumer, member
    bootstrap: str
    topic: str
    partitions: int
    history_file: str
    seed: int
    rate: float = 0.0  # producers: records a second
    keys: int = 0  # producers: different keys; every fourth record has none
    rewinds: bool = False  # consumers: now and then read again what has been read
    resumed_file: str = ""  # named producers: where to report what the predecessor got into the log
    settings: dict[str, Any] | None = None  # of the Producer
    client: str = FENCEPOST  # whose client it is
    kafka_bootstrap: str = ""  # for Kafka's clients
    group: str = ""  # members
    kip_848: bool = False  # members: of a group of that protocol
    drop_acks: float = 0.0  # producers: the probability that an acknowledgement is lost (`lossy_wire`)
    party: str = ""  # whom the links of the cluster's faults name, where they cut this process off
    cluster: str = ""  # … and the cluster's folder; empty: they do not

    def host(self) -> Host:
        """What the client runs on. In the running event loop."""
        host = lossy_host(drop_acks=self.drop_acks)
        if not self.cluster:
            return host
        folder = Path(self.cluster)
        faults = FaultsInside(Board(folder / FOLDER), self.party, cluster_file=folder / STATE_FILE)
        faults.listen()
        return host_with_faults(host, faults)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> ClientConfig:
        return ClientConfig(**json.loads(path.read_text()))
