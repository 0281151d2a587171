"""`./scripts/interop --suite NAME CHECKOUT`: a suite of others, test by test, against clusters of three."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fencepost_testing.local_cluster import AsyncLocalCluster
from tests.interop.suites import kgo, librdkafka
from tests.interop.suites.leader_kills import kill_leaders
from tests.interop.suites.patient_proxy import patient_proxies
from tests.interop.suites.suite import Choice, Outcome, Stage, State, Suite, run_jobs, summary

SUITES: dict[str, Callable[[Path], Suite]] = {"kgo": kgo.Kgo, "librdkafka": librdkafka.Librdkafka}
NEEDS = {"kgo": kgo.NEEDS, "librdkafka": librdkafka.NEEDS}  # commands
AT_ONCE = 2
_UP_TIMEOUT_S = 120.0
# A new coordinator gives every member a whole session again, and kills every few seconds would keep one for ever that left
# without a goodbye: franz-go's tests ask for the removal of a static member once, and not again where that connection ends.
_SHORT_SESSIONS = {"group_consumer_session_timeout_ms": 4000}


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run a suite. `kill_every_s`: 0 leaves the brokers alone."""

    choice: Choice
    kill_every_s: float = 0.0
    at_once: int = AT_ONCE


async def run_suite(
    name: str, checkout: Path, settings: Settings, folder: Path, tell: Callable[[str], None]
) -> list[Outcome]:
    """Build it, run what is chosen of it, say how each test ended, and at the end the summary.

    Raises CommandFailed where it does not build, or where the cluster does not come up.
    """
    tell(f"{name}: building {checkout}")
    suite = SUITES[name](checkout)
    excluded = suite.excluded(settings.choice)
    outcomes = [
        Outcome(test, State.EXCLUDED, note=reason) for test, reason in excluded.items() if settings.choice.has(test)
    ]
    if unknown := set(excluded) - set(suite.tests()):
        tell(f"{name}: excluded, but not in this checkout: {', '.join(sorted(unknown))}")
    began = time.monotonic()
    for stage in suite.stages(settings.choice, folder):
        outcomes += await _run_stage(stage, settings, folder, tell)
    tell(f"{name}: {time.monotonic() - began:.0f} s; the output of each test is in {folder}")
    for line in summary(outcomes):
        tell(line)
    return outcomes


async def _run_stage(stage: Stage, settings: Settings, folder: Path, tell: Callable[[str], None]) -> list[Outcome]:
    kills = settings.kill_every_s > 0
    settings_of_brokers = dict(stage.broker_settings) | (_SHORT_SESSIONS if kills else {})
    cluster = AsyncLocalCluster(folder / f"cluster-{stage.name}", broker_overrides=settings_of_brokers)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(cluster.close)
        bootstrap = cluster.kafka_bootstrap
        if kills:
            # Connections to a broker that is dead wait until it is back, as where a whole host is down, and not one process
            # of it. Where one is refused while franz-go fetches the offsets of a KIP-848 group, it asks again without a
            # pause, twenty times in milliseconds, and its tests call it a failure.
            bootstrap = await stack.enter_async_context(patient_proxies(cluster))
        await cluster.up(timeout_s=_UP_TIMEOUT_S)
        jobs = stage.jobs(bootstrap)
        tell(f"{stage.name}: {len(jobs)} tests against {bootstrap}")

        def on_outcome(outcome: Outcome) -> None:
            note = f"  {outcome.note}" if outcome.note else ""
            tell(f"{outcome.state:<9} {outcome.test:<52} {outcome.seconds:7.1f} s{note}")

        killing = asyncio.create_task(kill_leaders(cluster, settings.kill_every_s, tell)) if kills else None
        try:
            outcomes = await run_jobs(jobs, settings.at_once, folder, on_outcome)
        finally:
            if killing is not None:
                killing.cancel()
                await asyncio.wait([killing])
        if killing is not None and not killing.cancelled():
            outcomes.append(
                Outcome("leader kills", State.FAILED, note=f"they ended before the tests: {killing.exception()!r}")
            )
        elif killing is None:
            outcomes += [
                Outcome(f"broker {broker}", State.FAILED, note=f"has ended; see {cluster.member(broker).log_file}")
                for broker in cluster.broker_ids
                if not cluster.running(broker)
            ]
        return outcomes
