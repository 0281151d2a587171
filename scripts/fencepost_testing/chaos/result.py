"""What a chaos run found out, and whether the log is exact."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fencepost_testing.chaos.faults import Nemesis
from fencepost_testing.chaos.measure import Measure, Outage, Silence, outages
from fencepost_testing.chaos.nemesis_log import Happened
from fencepost_testing.history_check import Verdict, count
from fencepost_testing.kafka_clients import FENCEPOST
from fencepost_testing.log_check.findings import Findings, Kind


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """What a run is asked for."""

    seed: int = 0
    duration_s: float = 60.0
    brokers: int = 3
    partitions: int = 4
    rate: float = 300.0  # records a second, of all producers together
    cuts: bool = True  # cut the network, where that can be done
    client: str = FENCEPOST  # whose clients; MIXED: of all
    controllers: int = 1  # several have an etcd


@dataclass(slots=True)
class ChaosResult:
    """Everything that the verdict is made of. Times are seconds since the run's start."""

    options: ChaosOptions
    started_at: float = 0.0  # of time.monotonic()
    faults_end_s: float = 0.0
    cuts_by: str = ""  # how the network was cut
    no_cuts_because: str = ""  # empty: the network could be cut
    happened: list[Happened] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    healed_in_s: float = -1.0  # from the last fault's end to writes in every partition
    clients: int = 0  # processes
    resumed: int = 0  # answers that named producers got, and that the final log was held to
    records_in_log: int = 0
    records_in_files: int = 0
    replicas_checked: int = 0
    fenced_clients: int = 0
    history: Verdict | None = None
    measure: Measure | None = None
    findings: Findings = field(default_factory=Findings)  # of the replicas' files
    problems: list[str] = field(default_factory=list)
    no_pictures_because: str = ""
    elapsed_s: float = 0.0

    @property
    def exact(self) -> bool:
        return self.history is not None and self.history.clean and self.findings.clean and not self.problems

    @property
    def faults(self) -> Counter[str]:
        return Counter(happened.fault.kind.value for happened in self.happened)

    @property
    def lost(self) -> int:
        return self._count(Kind.LOST)

    @property
    def duplicated(self) -> int:
        return self._count(Kind.DUPLICATED)

    @property
    def reordered(self) -> int:
        return self._count(Kind.REORDERED)

    def _count(self, kind: Kind) -> int:
        return self.findings.counts[kind] + (count(self.history, kind) if self.history else 0)

    @property
    def wrong(self) -> dict[str, int]:
        """Every kind of thing that is wrong, and how often."""
        counts: Counter[str] = Counter()
        if self.history is not None:
            counts.update({anomaly.value: count for anomaly, count in self.history.counts.items() if count})
        counts.update({f"replica files: {kind.value}": n for kind, n in self.findings.counts.items() if n})
        return dict(counts)

    def longest_unavailability(self) -> Silence | None:
        return self.measure.longest_unavailability if self.measure else None

    @property
    def outages(self) -> list[Outage]:
        return outages(self.measure.noticeable) if self.measure else []

    def during(self, silence: Silence | Outage) -> list[Happened]:
        """The faults that may have to do with it, those that cover most of it first. (Clients are no brokers' hindrance.)"""

        def covered_s(happened: Happened) -> float:
            began_s, ended_s = happened.began_at - self.started_at, happened.ended_at - self.started_at
            return min(ended_s, silence.ended_s) - max(began_s, silence.began_s)

        found = [
            happened
            for happened in self.happened
            if happened.fault.nemesis not in (Nemesis.CLIENTS, Nemesis.MEMBERS) and covered_s(happened) > 0
        ]
        return sorted(found, key=covered_s, reverse=True)

    def _told(self, outage: Outage) -> dict[str, Any]:
        return {
            "from_s": round(outage.began_s, 3),
            "to_s": round(outage.ended_s, 3),
            "longest_s": round(outage.longest_s, 3),
            "partitions": outage.partitions,
            "faults": [f"{happened.fault.kind} {', '.join(happened.targets)}" for happened in self.during(outage)],
        }

    def to_json(self, report: str) -> dict[str, Any]:
        history, measure, silence = self.history, self.measure, self.longest_unavailability()
        return {
            "exact": self.exact,
            "seed": self.options.seed,
            "duration_s": self.options.duration_s,
            "brokers": self.options.brokers,
            "controllers": self.options.controllers,
            "partitions": self.options.partitions,
            "client": self.options.client,
            "commits": history.commits if history else 0,
            "faults": sum(self.faults.values()),
            "faults_by_kind": dict(sorted(self.faults.items())),
            "skipped_by_kind": dict(sorted(self.skipped.items())),
            "network_cuts": self.no_cuts_because == "",
            "network_cuts_by": self.cuts_by,
            "no_network_cuts_because": self.no_cuts_because,
            "operations": measure.operations if measure else 0,
            "sends": history.sends if history else 0,
            "acknowledged": history.acked if history else 0,
            "failed": history.failed if history else 0,
            "unknown": history.unknown if history else 0,
            "records_read": history.records_read if history else 0,
            "records_in_log": self.records_in_log,
            "lost": self.lost,
            "unclean_elections": history.elections if history else 0,
            "lost_as_told": history.lost_as_told if history else 0,
            "duplicated": self.duplicated,
            "reordered": self.reordered,
            "wrong": self.wrong,
            "replicas_checked": self.replicas_checked,
            "named_producers_resumed": self.resumed,
            "clients": self.clients,
            "clients_fenced": self.fenced_clients,
            "longest_unavailability_s": round(silence.duration_s, 3) if silence else None,
            "unavailable": [self._told(outage) for outage in self.outages],
            "healed_in_s": round(self.healed_in_s, 3),
            "latency_ms": {
                name: round(measure.latency_ms(share), 1)
                for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0))
            }
            if measure and measure.latency
            else {},
            "problems": [*self.problems, *self.findings.examples],
            "findings": [finding.to_json() for finding in history.findings] if history else [],
            "elapsed_s": round(self.elapsed_s, 2),
            "report": report,
        }
