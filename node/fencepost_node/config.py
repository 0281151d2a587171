"""The configuration of one broker process: what a broker's TOML file may say. Units stand in the names."""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_proto.protocol.request_limits import MAX_MESSAGE_BYTES
from fencepost_proto.runtime.config import LOG_LEVELS, ConfigError, check_listen, check_settings, setting
from fencepost_proto.transport.carriers.carrier_wire import CARRIERS

KIB = 1024
MIB = 1024 * KIB
DAY_MS = 24 * 3600 * 1000
MAX_DEFAULT_PARTITIONS = 1_000  # as many as a topic may have
MAX_DEFAULT_REPLICATION_FACTOR = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """Checked when it is made: raises ConfigError naming key and value."""

    broker_id: int = setting(
        minimum=0, maximum=2**31 - 1, doc="Number of this broker in its cluster. It belongs to the data folder."
    )
    data_dir: str = setting(minimum=1, doc="Folder with the logs. One process at a time uses it.")
    controller: str = setting(
        addresses=True,
        doc="Address of the controller, host:port; of several, separated by commas: the broker finds the active one.",
    )
    listen: str = setting("127.0.0.1:0", address=True, doc="Address to listen on, host:port. Port 0: any free one.")
    advertised_address: str = setting(
        "",
        address=True,
        optional=True,
        doc="Address to which clients and other brokers connect. Empty: where it listens. Port 0: the real one.",
    )
    insecure_listen: bool = setting(
        False, doc="Whether `listen` may be an address that other machines reach. Nothing authenticates who connects."
    )
    carrier: str = setting(
        "auto",
        choices=CARRIERS,
        doc="How calls travel. auto: by the lean carrier, and by gRPC where a peer speaks only that. lean: no peer is "
        "called by gRPC. grpc: by gRPC only, and nothing else is listened for. All on one port.",
    )
    log_level: str = setting("INFO", choices=LOG_LEVELS, doc="The least severe events that are logged.")

    # Replication
    replica_lag_time_max_ms: int = setting(
        5_000, minimum=100, doc="A follower that has been behind for longer leaves the in-sync set."
    )
    replication_window_bytes: int = setting(
        8 * MIB, minimum=64 * KIB, doc="Pushed to one follower and not yet acknowledged by it."
    )
    tail_bytes: int = setting(8 * MIB, minimum=0, doc="Newest batches kept in memory, of all partitions together.")

    # The log
    snapshot_interval_bytes: int = setting(
        64 * MIB,
        minimum=1,
        doc="Appended to a log between two snapshots of producer state. It bounds what recovery reads.",
    )
    producer_expiration_ms: int = setting(
        7 * DAY_MS, minimum=1, doc="An anonymous producer that has been idle for longer is forgotten."
    )
    max_new_producers_per_second: int = setting(
        50, minimum=1, doc="New producers that one connection may bring, after a burst of 1,000."
    )
    max_delivery_timeout_ms: int = setting(
        600_000,
        minimum=1,
        doc="The longest delivery timeout of a producer. For so long a repeat is recognised, and no producer is forgotten.",
    )
    retention_check_interval_ms: int = setting(
        30_000, minimum=10, doc="Pause between two looks for segments that retention removes."
    )
    scrub_interval_ms: int = setting(
        7 * DAY_MS, minimum=0, doc="Time between two readings of every stored byte. 0: none."
    )
    scrub_bytes_per_second: int = setting(10 * MIB, minimum=64 * KIB, doc="How fast those readings go.")
    max_open_files: int = setting(
        0, minimum=0, doc="Files of logs that are open at a time. 0: by what the system allows (`ulimit -n`)."
    )
    stray_retention_ms: int = setting(
        7 * DAY_MS, minimum=1, doc="How long a log is kept that the metadata does not know."
    )

    # Clients
    max_request_bytes: int = setting(
        8 * MIB, minimum=1 * KIB, maximum=MAX_MESSAGE_BYTES, doc="The largest ProduceRequest."
    )
    client_answer_bytes: int = setting(
        64 * MIB,
        minimum=MIB,
        doc="Answers made and not yet taken by their clients, of all connections together; at four times this the "
        "connection that has not read for the longest time is closed.",
    )
    max_fetch_bytes: int = setting(
        8 * MIB, minimum=1 * KIB, maximum=MAX_MESSAGE_BYTES, doc="The largest FetchResponse."
    )

    # Kafka's clients
    kafka_listen: str = setting(
        "",
        address=True,
        optional=True,
        doc="Address for clients that speak Kafka's protocol, host:port. Empty: none is listened on. Port 0: any free one.",
    )
    kafka_advertised: str = setting(
        "",
        address=True,
        optional=True,
        doc="Address that Kafka's clients are told to connect to. Empty: where it listens for them. Port 0: the real one.",
    )
    auto_create_topics: bool = setting(
        False, doc="Whether a topic that a Kafka client asks for and that does not exist is created."
    )
    default_partitions: int = setting(
        1, minimum=1, maximum=MAX_DEFAULT_PARTITIONS, doc="Of a topic that is created because it was asked for."
    )
    default_replication_factor: int = setting(
        0,
        minimum=0,
        maximum=MAX_DEFAULT_REPLICATION_FACTOR,
        doc="Of a topic that is created because it was asked for. 0: as many as brokers serve, and 3 at most.",
    )
    kafka_max_request_bytes: int = setting(
        16 * MIB, minimum=1 * KIB, maximum=100 * MIB, doc="The largest request of a Kafka client."
    )
    kafka_max_connections: int = setting(
        2_000, minimum=1, doc="Connections of Kafka's clients at a time; one more is closed."
    )
    kafka_max_pending_requests: int = setting(
        256, minimum=1, doc="Requests of one Kafka connection that are taken and not answered; then reading pauses."
    )
    kafka_max_idle_ms: int = setting(
        600_000, minimum=1, doc="A Kafka connection on which nothing comes or goes for longer is closed."
    )

    # Groups
    offsets_topic_partitions: int = setting(
        4,
        minimum=1,
        maximum=MAX_DEFAULT_PARTITIONS,
        doc="Of the topic of groups and offsets, when it is created. A group's coordinator is the leader of one of them.",
    )
    offsets_topic_replication_factor: int = setting(
        3,
        minimum=1,
        maximum=MAX_DEFAULT_REPLICATION_FACTOR,
        doc="Of that topic; with fewer brokers than that, as many as there are.",
    )
    group_initial_rebalance_delay_ms: int = setting(
        3_000, minimum=0, maximum=600_000, doc="How long an empty group that gets a member waits for more of them."
    )
    offsets_retention_ms: int = setting(
        7 * DAY_MS, minimum=1, doc="How long the offsets of a group without members are kept."
    )

    group_consumer_session_timeout_ms: int = setting(
        45_000, minimum=100, doc="A member of a consumer group (KIP-848) that is not heard of for longer is removed."
    )
    group_consumer_heartbeat_interval_ms: int = setting(
        5_000, minimum=10, doc="How often a member of a consumer group (KIP-848) is told to send a heartbeat."
    )

    # Metrics
    metrics_listen: str = setting(
        "",
        address=True,
        optional=True,
        doc="Address on which Prometheus reads /metrics, host:port. Empty: none is listened on. Port 0: any free one.",
    )
    metrics_max_partitions: int = setting(
        1_000,
        minimum=0,
        maximum=100_000,
        doc="Replicas that have metrics of their own, each with about ten of them. 0: none. The totals count all.",
    )

    # Shutdown
    controlled_shutdown_max_wait_ms: int = setting(
        5_000, minimum=0, doc="How long a clean shutdown waits for other brokers to take the leaderships over."
    )

    def __post_init__(self) -> None:
        check_settings(self)
        check_listen(self.listen, self.insecure_listen, self.advertised_address)
        if self.metrics_listen:
            check_listen(self.metrics_listen, self.insecure_listen, keys=("metrics_listen", ""))
        if self.kafka_listen:
            check_listen(
                self.kafka_listen,
                self.insecure_listen,
                self.kafka_advertised,
                keys=("kafka_listen", "kafka_advertised"),
            )
        elif self.kafka_advertised:
            raise ConfigError(f"kafka_advertised = {self.kafka_advertised!r}: there is no kafka_listen to advertise")
