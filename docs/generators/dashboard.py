"""Prints docs/monitoring/dashboard.json, a dashboard for Grafana over what brokers and controller tell Prometheus.

./scripts/docs runs it. A panel is a title, a unit of Grafana's, and queries with the legend of each.
"""

from __future__ import annotations

import json
from typing import Any

COLUMNS = 3
WIDTH, HEIGHT = 24 // COLUMNS, 8

Panel = tuple[str, str, list[tuple[str, str]]]


def quantile(q: float, family: str, by: str = "instance", where: str = "") -> str:
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({family}_bucket{{{where}}}[$__rate_interval])))"


def rate(counter: str, by: str = "instance") -> str:
    return f"sum by ({by}) (rate({counter}[$__rate_interval]))"


ROWS: dict[str, list[Panel]] = {
    "Is it well?": [
        ("Partitions without a leader", "none", [("fencepost_controller_offline_partitions", "offline")]),
        (
            "Under-replicated partitions and failed replicas",
            "none",
            [
                ("fencepost_controller_under_replicated_partitions", "under-replicated"),
                ("fencepost_controller_failed_replicas", "failed replicas"),
            ],
        ),
        (
            "Brokers, and whether they have a controller",
            "none",
            [
                ("fencepost_controller_brokers", "{{state}}"),
                ("fencepost_has_controller", "session of {{instance}}"),
            ],
        ),
        (
            "Elections",
            "ops",
            [
                (rate("fencepost_controller_elections_total"), "elections"),
                (rate("fencepost_controller_unclean_elections_total"), "unclean"),
                (rate("fencepost_controller_lost_leaders_total"), "leaders lost"),
            ],
        ),
        (
            "Changes of in-sync sets",
            "ops",
            [
                (rate("fencepost_controller_isr_shrinks_total"), "shrinks"),
                (rate("fencepost_controller_isr_expands_total"), "expands"),
            ],
        ),
        (
            "Metadata commits, p99",
            "s",
            [(quantile(0.99, "fencepost_controller_commit_duration_seconds"), "commit")],
        ),
    ],
    "Producers": [
        ("Appended", "Bps", [(rate("fencepost_appended_bytes_total"), "{{instance}}")]),
        ("Batches appended", "ops", [(rate("fencepost_appended_batches_total"), "{{instance}}")]),
        ("Repeats recognised", "ops", [(rate("fencepost_repeated_batches_total"), "{{instance}}")]),
        (
            "Batches refused, and appended but not committed in time",
            "ops",
            [
                (rate("fencepost_refused_batches_total", "error"), "{{error}}"),
                (rate("fencepost_unsure_batches_total", "error"), "in time: {{error}}"),
            ],
        ),
        ("Producers remembered", "none", [("fencepost_producers", "{{instance}}")]),
        (
            "Produce, p50 and p99",
            "s",
            [
                (quantile(0.5, "fencepost_request_duration_seconds", "protocol", 'api="Produce"'), "p50 {{protocol}}"),
                (quantile(0.99, "fencepost_request_duration_seconds", "protocol", 'api="Produce"'), "p99 {{protocol}}"),
            ],
        ),
    ],
    "Replication and disks": [
        (
            "Behind, in records",
            "none",
            [("max by (follower) (fencepost_replication_lag_records)", "broker {{follower}}")],
        ),
        ("Behind, in seconds", "s", [("max by (follower) (fencepost_replication_lag_seconds)", "broker {{follower}}")]),
        ("Stored as a follower", "Bps", [(rate("fencepost_followed_bytes_total"), "{{instance}}")]),
        ("Syncs, p99", "s", [(quantile(0.99, "fencepost_fsync_duration_seconds"), "{{instance}}")]),
        ("Size of the logs", "bytes", [("fencepost_size_bytes", "{{instance}}")]),
        (
            "Partitions led",
            "none",
            [("fencepost_led_partitions", "{{instance}}"), ("fencepost_replicas", "replicas on {{instance}}")],
        ),
    ],
    "Requests and processes": [
        (
            "Requests",
            "reqps",
            [(rate("fencepost_request_duration_seconds_count", "protocol, api"), "{{protocol}} {{api}}")],
        ),
        ("Requests refused", "reqps", [(rate("fencepost_refused_requests_total", "api, error"), "{{api}} {{error}}")]),
        (
            "Connections and streams",
            "none",
            [
                ("fencepost_kafka_connections", "Kafka, {{instance}}"),
                ("fencepost_client_connections", "Fencepost, {{instance}}"),
                ("fencepost_client_streams", "{{method}}, {{instance}}"),
            ],
        ),
        ("Event loop late by, p99", "s", [(quantile(0.99, "fencepost_event_loop_lag_seconds"), "{{instance}}")]),
        (
            "Memory",
            "bytes",
            [("process_resident_memory_bytes * on (instance) group_left fencepost_build_info", "{{instance}}")],
        ),
        ("CPU", "percentunit", [(rate("process_cpu_seconds_total"), "{{instance}}")]),
    ],
    "By partition": [
        (
            "High watermark, records a second",
            "ops",
            [
                (
                    "max by (topic, partition) (deriv(fencepost_partition_high_watermark[$__rate_interval]))",
                    "{{topic}}-{{partition}}",
                )
            ],
        ),
        (
            "Behind, in records",
            "none",
            [("max by (topic, partition) (fencepost_partition_lag_records)", "{{topic}}-{{partition}}")],
        ),
        (
            "Under-replicated",
            "none",
            [("max by (topic, partition) (fencepost_partition_under_replicated) > 0", "{{topic}}-{{partition}}")],
        ),
    ],
}


def panels() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        made.append({"id": len(made) + 1, "type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y += 1
        for number, panel in enumerate(row):
            x, line = number % COLUMNS * WIDTH, number // COLUMNS
            made.append(_panel(len(made) + 1, panel, x, y + line * HEIGHT))
        y += -(-len(row) // COLUMNS) * HEIGHT
    return made


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    title, unit, queries = panel
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + at), "datasource": source, "expr": expression, "legendFormat": legend}
            for at, (expression, legend) in enumerate(queries)
        ],
    }


def dashboard() -> dict[str, Any]:
    return {
        "title": "Fencepost",
        "uid": "fencepost",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": panels(),
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
