"""The benchmark, shortened: every figure is measured, and the JSON has the promised fields."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fencepost_cli import bench, many, many_plot, scale, small_batches
from fencepost_cli.bench import Bench, measure_recovery
from fencepost_cli.many import Many
from fencepost_cli.scale import Scale, ScaleResult
from fencepost_cli.scale_plot import draw
from fencepost_cli.testing_bench import measure_testing
from tests.asynchronous import asynchronous

SMALL = ("records_per_s_16kb_batches", "mb_per_s_1kb_16kb_batches", "read_records_per_s")


@asynchronous
async def test_every_figure_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WARM_UP_S": 0.2, "THROUGHPUT_S": 0.5, "LATENCY_S": 0.5, "FAILOVERS": 2}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "CLOSED_LOOP_S", 0.2)
    monkeypatch.setattr(small_batches, "CLOSED_LOOP_WARM_UP_S", 0.1)

    told = json.loads(json.dumps((await Bench(tmp_path / "bench", lambda _: None).run()).to_json()))
    single = (
        "first_ack_s",
        "records_per_s_100b",
        "mb_per_s_1kb",
        "latency_ms_p50",
        "latency_ms_p99",
        "cpu_ms_per_ack",
        *SMALL,
    )
    for field in single:
        assert math.isfinite(told[field]), told
        assert told[field] > 0, told
    assert told["latency_ms_p50"] <= told["latency_ms_p99"]
    for by_producers in (told["closed_loop_acks_per_s"], told["closed_loop_p50_ms"]):
        assert list(by_producers) == ["1", "8", "64"]
        assert all(value > 0 for value in by_producers.values())
    assert len(told["unavailable_ms"]) == 2
    assert len(told["broker_rss_mb"]) == 3
    assert all(value > 0 for value in (*told["unavailable_ms"], *told["broker_rss_mb"]))


def test_the_testing_kit_is_measured() -> None:
    figures = measure_testing(lambda _: None, first_uses=1, turns=1, kills=1, pairs=(1, 1), burst_records=5_000)
    assert [figure.unit for figure in figures] == ["s", "ms", "ms", "ms", "MB", "%", "%"]
    for figure in figures:
        assert len(figure.values) == 1
    assert all(-1_000 < loss < 10_000 for figure in figures[-2:] for loss in figure.values)
    for figure in figures[:-2]:
        assert 0 < figure.values[0] < 100 * figure.goal, str(figure)


@asynchronous
async def test_recovery_is_measured_at_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "RECOVERY_SIZES_MB", (1, 3))
    monkeypatch.setattr(bench, "RECOVERIES", 1)

    small, large = await measure_recovery(tmp_path / "recovery", lambda _: None)
    assert 1 <= small.log_mb < 3 <= large.log_mb
    assert 0 <= small.recovery_s < small.ready_s


@pytest.mark.long
@asynchronous
async def test_kills_and_restarts_with_many_partitions_are_measured_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "IDLE_S", 0.2)
    monkeypatch.setattr(scale, "REST_S", 0.3)

    measured = await Scale(tmp_path / "scale", 60, 1, lambda _: None).run()
    told = json.loads(json.dumps(measured.to_json()))
    assert told["partitions"] == 60
    assert [one["what"] for one in told["disturbances"]] == [
        "one broker killed and started",
        "all brokers killed and started",
        "rolling restart",
    ]
    for one in told["disturbances"]:
        assert one["in_sync_s"] > 0, one
        assert one["writes"] > 0, one
        assert one["declared_dead"] == 0, one
    assert told["up_s"] > 0
    assert ScaleResult.from_json(told).to_json() == told
    draw([measured], tmp_path / "scale.svg")
    assert "</svg>" in (tmp_path / "scale.svg").read_text()


@pytest.mark.long
@asynchronous
async def test_what_grows_with_producers_partitions_and_connections_is_measured_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_batches, "CLOSED_LOOP_WARM_UP_S", 0.1)
    monkeypatch.setattr(many, "SETTLE_S", 0.1)
    monkeypatch.setattr(many, "REST_S", 0.2)
    measured = await Many(tmp_path / "many", lambda _: None).run((1, 3), (3, 70), (0, 30), load_s=0.3)
    assert [(one.what, one.number) for one in measured] == [
        ("producers", 1),
        ("producers", 3),
        ("connections", 0),
        ("connections", 30),
        ("partitions", 3),
        ("partitions", 70),
    ]
    for one in measured:
        assert one.acks_per_s > 0, one
        assert 0 < one.p50_ms <= one.p99_ms, one
        assert one.broker_rss_mb > 0, one
    assert measured[1].broker_connections > measured[0].broker_connections  # each producer has its own
    assert measured[3].broker_connections == measured[2].broker_connections + 30
    told = json.loads(json.dumps([one.to_json() for one in measured]))
    assert told[5]["number"] == 70
    many_plot.draw(measured, tmp_path / "many.png")
    assert (tmp_path / "many.png").read_bytes().startswith(b"\x89PNG")
