"""The configuration of one broker process: what a broker's TOML file may say. Units stand in the names."""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_proto.protocol.request_limits import MAX_MESSAGE_BYTES
from fencepost_proto.runtime.config import LOG_LEVELS, check_listen, check_settings, setting

KIB = 1024
MIB = 1024 * KIB
DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """Checked when it is made: raises ConfigError naming key and value."""

    broker_id: int = setting(minimum=0, maximum=2**31 - 1)
    data_dir: str = setting(minimum=1)
    controller: str = setting(address=True)  # host:port
    listen: str = setting("127.0.0.1:0", address=True)  # port 0: any free one
    advertised_address: str = setting(
        "", address=True, optional=True
    )  # told to clients and brokers; port 0: the real one
    insecure_listen: bool = setting(False)  # may other machines reach `listen`? Nothing authenticates them
    log_level: str = setting("INFO", choices=LOG_LEVELS)

    # Replication
    replica_lag_time_max_ms: int = setting(5_000, minimum=100)  # a follower behind for longer leaves the in-sync set
    replication_window_bytes: int = setting(8 * MIB, minimum=64 * KIB)  # pushed and not acknowledged, per follower
    tail_bytes: int = setting(8 * MIB, minimum=0)  # newest batches kept in memory, of all partitions together

    # The log
    snapshot_interval_bytes: int = setting(64 * MIB, minimum=1)  # appended between snapshots: bounds recovery time
    producer_expiration_ms: int = setting(7 * DAY_MS, minimum=1)  # an idle producer's state is forgotten after this
    max_new_producers_per_second: int = setting(50, minimum=1)  # that one connection may bring, after a burst of 1,000
    max_delivery_timeout_ms: int = setting(
        600_000, minimum=1
    )  # no producer may retry for longer; none is forgotten sooner
    retention_check_interval_ms: int = setting(30_000, minimum=10)
    scrub_interval_ms: int = setting(7 * DAY_MS, minimum=0)  # between readings of every stored byte; 0: none
    scrub_bytes_per_second: int = setting(10 * MIB, minimum=64 * KIB)  # how fast they go
    max_open_files: int = setting(0, minimum=0)  # of logs, at a time; 0: by what the system allows (ulimit -n)
    stray_retention_ms: int = setting(7 * DAY_MS, minimum=1)  # of a log that the metadata does not know

    # Clients
    max_request_bytes: int = setting(8 * MIB, minimum=1 * KIB, maximum=MAX_MESSAGE_BYTES)  # one ProduceRequest
    client_answer_bytes: int = setting(64 * MIB, minimum=MIB)  # answers made and not yet taken by their clients, in all
    max_fetch_bytes: int = setting(8 * MIB, minimum=1 * KIB, maximum=MAX_MESSAGE_BYTES)  # one FetchResponse

    # Shutdown
    controlled_shutdown_max_wait_ms: int = setting(5_000, minimum=0)  # for others to take the leaderships over

    def __post_init__(self) -> None:
        check_settings(self)
        check_listen(self.listen, self.insecure_listen, self.advertised_address)
