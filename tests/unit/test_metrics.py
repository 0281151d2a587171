"""What a broker and the controller tell Prometheus, read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fencepost_controller.election_counts import ElectionCounts
from fencepost_node.config import BrokerConfig
from fencepost_node.metrics import BrokerMetrics
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import BrokerRegistration, Entity, MetadataImage, Partition
from fencepost_proto.runtime.config import ConfigError
from fencepost_proto.runtime.metrics import service as service_module
from fencepost_proto.runtime.metrics.exposition import exposition
from fencepost_proto.runtime.metrics.families import Family, counter, gauge, histogram
from fencepost_proto.runtime.metrics.listener import check_request
from fencepost_proto.transport.latencies import BOUNDS_S, Latencies
from tests.asynchronous import asynchronous
from tests.unit.controller_cluster import running as running_controller
from tests.unit.fake_controller import fake_controller
from tests.unit.test_broker import BROKER_ID, TOPIC, batch, broker_of, config_of, produce_batch

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]
LISTEN: dict[str, Any] = {"metrics_listen": "127.0.0.1:0"}


def parsed(text: bytes) -> Samples:
    """Values by sample name and labels. Raises ValueError for what Prometheus does not read."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            known = samples.setdefault(sample.name, {})
            assert labels not in known, f"{sample.name} {labels} twice"
            known[labels] = sample.value
    return samples


async def scrape(address: str) -> Samples:
    return parsed(await scrape_text(address))


async def scrape_text(address: str) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head, _, body = (await asyncio.wait_for(reader.read(), 30)).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 200 "), head
    return body


def labels(**values: str | int) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in values.items()))


# ---- The text ----


@asynchronous
async def test_the_text_is_what_prometheus_reads_whatever_stands_in_a_label() -> None:
    names = ["orders", 'a"b', "back\\slash", "two\nlines", "", "ü"]
    latencies = Latencies()
    for seconds in (0.0, BOUNDS_S[0], BOUNDS_S[0] + 1e-9, 3.0, 1e9):
        latencies.add(seconds)
    by_topic = gauge("fencepost_a", 'Help with a \\ and\ntwo lines and "quotes".')
    for number, name in enumerate(names):
        by_topic.add(number, topic=name)

    async def families() -> AsyncIterator[Family]:
        yield by_topic
        yield counter("fencepost_b_total", "Plain.", 7)
        yield histogram("fencepost_c_seconds", "Times.", latencies)
        yield counter("fencepost_d_total", "Nothing yet.")

    text = await exposition(families)
    samples = parsed(text)
    assert samples["fencepost_a"] == {labels(topic=name): number for number, name in enumerate(names)}
    assert samples["fencepost_b_total"] == {(): 7}
    buckets = {dict(key)["le"]: count for key, count in samples["fencepost_c_seconds_bucket"].items()}
    assert (buckets["0.0005"], buckets["0.001"], buckets["2.5"], buckets["5"], buckets["+Inf"]) == (2, 3, 3, 4, 5)
    assert list(buckets.values()) == sorted(buckets.values())
    assert samples["fencepost_c_seconds_count"] == {(): 5}
    assert samples["fencepost_c_seconds_sum"][()] == pytest.approx(1e9 + 3 + 2 * BOUNDS_S[0])
    assert samples["process_resident_memory_bytes"][()] > 1_000_000
    assert "process_open_fds" in samples


def test_a_process_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "LIBRARY", "no_such_library")

    async def families() -> AsyncIterator[Family]:
        yield gauge("fencepost_x", "X.", 1)

    with pytest.raises(ConfigError, match=r"metrics_listen = '127\.0\.0\.1:9100'.*pip install 'fencepost\[server\]'"):
        service_module.MetricsService("127.0.0.1:9100", "broker", families, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "told"), [("nowhere", "must be host:port"), ("0.0.0.0:9100", "can be reached from other machines")]
)
def test_metrics_are_not_offered_to_other_machines_by_accident(value: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"metrics_listen = '{value}'.*{told}"):
        config_of(tmp_path, "127.0.0.1:1", metrics_listen=value)
    if told != "must be host:port":
        assert isinstance(config_of(tmp_path, "127.0.0.1:1", metrics_listen=value, insecure_listen=True), BrokerConfig)
        assert check_request(b"GET /metrics HTTP/1.1\r\nHost: prometheus.example", needs_loopback=False) == "GET"


# ---- A broker ----


@asynchronous
async def test_a_broker_counts_what_it_appends_recognises_and_refuses(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path, **LISTEN) as running:
        address = running.broker.metrics_address
        before = await scrape(address)
        assert before["fencepost_has_controller"] == {(): 1}
        assert before["fencepost_replicas"] == {(): 0}
        await running.leads(partitions=2)
        sent = batch([b"a", b"b"], (9, 0, 0))
        await running.produce(produce_batch(sent))
        (repeat,) = await running.produce(produce_batch(sent))
        (gap,) = await running.produce(produce_batch(batch([b"c"], (9, 0, 7))))
        assert (repeat.duplicate, gap.error.code) == (True, ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER)
        after = await scrape(address)

        assert after["fencepost_appended_batches_total"] == {(): 1}
        assert after["fencepost_appended_bytes_total"] == {(): len(sent)}
        assert after["fencepost_repeated_batches_total"] == {(): 1}
        assert after["fencepost_refused_batches_total"] == {labels(error="OUT_OF_ORDER_SEQUENCE_NUMBER"): 1}
        assert after["fencepost_producers"] == {(): 1}
        assert after["fencepost_leaderships_total"] == {(): 2}
        assert after["fencepost_request_duration_seconds_count"][labels(protocol="lean", api="Produce")] == 2
        first, second = labels(topic="orders", partition=0), labels(topic="orders", partition=1)
        for name, values in {
            "log_end_offset": (2, 0),
            "high_watermark": (2, 0),
            "size_bytes": (len(sent), 0),
            "leader": (1, 1),
            "leader_epoch": (0, 0),
            "producers": (1, 0),
            "under_replicated": (0, 0),
            "lag_records": (0, 0),
        }.items():
            assert after[f"fencepost_partition_{name}"] == {first: values[0], second: values[1]}, name


@asynchronous
async def test_a_partition_whose_follower_is_not_there_is_under_replicated(tmp_path: Path) -> None:
    follower = BrokerRegistration(2, "127.0.0.1:1", 1, "f", fenced=True)
    async with fake_controller() as controller, broker_of(controller, tmp_path, known=[follower], **LISTEN) as running:
        await running.leads()
        await running.metadata(Partition(TOPIC, 0, (BROKER_ID, 2), (BROKER_ID,), BROKER_ID, 0, 1))
        await running.produce(produce_batch(batch([b"a", b"b"])))
        samples = await scrape(running.broker.metrics_address)
        assert samples["fencepost_under_replicated_partitions"] == {(): 1}
        assert samples["fencepost_partition_under_replicated"] == {labels(topic="orders", partition=0): 1}
        assert samples["fencepost_partition_in_sync_replicas"] == {labels(topic="orders", partition=0): 1}
        assert samples["fencepost_partition_lag_records"] == {labels(topic="orders", partition=0): 2}
        assert samples["fencepost_replication_lag_records"] == {labels(follower=2): 2}


@asynchronous
async def test_metrics_by_partition_are_bounded_and_the_totals_count_all(tmp_path: Path) -> None:
    settings = {"metrics_max_partitions": 2, **LISTEN}
    async with fake_controller() as controller, broker_of(controller, tmp_path, **settings) as running:
        await running.leads(partitions=5)
        samples = await scrape(running.broker.metrics_address)
        assert len(samples["fencepost_partition_log_end_offset"]) == 2
        assert samples["fencepost_replicas"] == {(): 5}
        assert samples["fencepost_led_partitions"] == {(): 5}
        assert samples["fencepost_replicas_without_metrics"] == {(): 3}


@asynchronous
async def test_a_scrape_of_a_thousand_partitions_lets_others_run_meanwhile(tmp_path: Path) -> None:
    """Counted in turns, not in milliseconds: between two of them no more is done than of some hundred samples."""
    partitions = 1_000
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        await running.leads(partitions=1)
        manager = running.broker.manager
        (replica,) = manager.replicas.values()
        for index in range(1, partitions):
            manager.replicas[TOPIC, index] = replica
        turns, done = 0, False

        async def others() -> None:
            nonlocal turns
            while not done:
                await asyncio.sleep(0)
                turns += 1

        def no_connections() -> int:
            return 0

        metrics = BrokerMetrics(
            manager=manager,
            limits=running.broker.limits,
            answered=running.broker._answering.counts,
            sync_times=Latencies(),
            kafka_connections=no_connections,
            has_session=lambda: True,
        )
        other = asyncio.create_task(others())
        text = b"".join([f.name.encode() async for f in metrics.families()])
        collected = turns
        body = await exposition(metrics.families)
        done = True
        await other
        for index in range(1, partitions):
            del manager.replicas[TOPIC, index]
        assert text
        assert body.count(b"fencepost_partition_high_watermark{") == partitions
        assert collected >= partitions * 2 // 64 - 2
        assert turns >= 2 * collected


# ---- The controller ----


def changed(image: MetadataImage, *entities: Entity) -> tuple[MetadataImage, Mapping[str, Entity | None]]:
    changes: dict[str, Entity | None] = {entity.key: entity for entity in entities}
    return image.with_changes(image.version + 1, changes), changes


def test_elections_and_changes_of_in_sync_sets_are_counted() -> None:
    def partition(leader: int, isr: tuple[int, ...], index: int = 0) -> Partition:
        return Partition(TOPIC, index, (1, 2, 3), isr, leader, 0, 0)

    image = MetadataImage()
    counts = ElectionCounts()

    def commit(*entities: Entity) -> tuple[int, int, int, int, int]:
        nonlocal image
        image, changes = changed(image, *entities)
        counts.add(image, changes)
        return (
            counts.elections,
            counts.unclean_elections,
            counts.lost_leaders,
            counts.isr_shrinks,
            counts.isr_expands,
        )

    assert commit(partition(1, (1, 2, 3)), partition(2, (2, 3), 1)) == (0, 0, 0, 0, 0)  # they are new
    assert commit(partition(2, (2, 3))) == (1, 0, 0, 1, 0)  # its leader has died
    assert commit(partition(2, (2, 3, 1))) == (1, 0, 0, 1, 1)
    assert commit(partition(-1, (2,))) == (1, 0, 1, 2, 1)
    assert commit(partition(3, (3,))) == (2, 1, 1, 3, 2)  # an operator ordered it
    assert commit(partition(3, (3,))) == (2, 1, 1, 3, 2)
    started = ElectionCounts()
    started.start(image)
    image, changes = changed(image, partition(1, (1, 3)))
    started.add(image, changes)
    assert (started.elections, started.isr_expands) == (1, 1)  # of one that was there before this process began


@asynchronous
async def test_the_controller_tells_of_its_cluster() -> None:
    async with running_controller(**LISTEN) as controller:
        samples = await scrape(controller.metrics_address)
        assert samples["fencepost_controller_offline_partitions"] == {(): 0}
        assert samples["fencepost_controller_brokers"] == {labels(state="serving"): 0, labels(state="fenced"): 0}
        assert samples["fencepost_controller_metadata_version"] == {(): controller.image.version}
        assert samples["fencepost_controller_commit_duration_seconds_count"][()] >= 1
        again = await scrape(controller.metrics_address)
        assert again["fencepost_event_loop_lag_seconds_count"][()] >= 0
