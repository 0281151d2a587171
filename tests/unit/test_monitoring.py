"""Alert rules, dashboard and docs name the metrics that there are; promtool checks them where it is installed."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.asynchronous import asynchronous
from tests.unit.controller_cluster import running as running_controller
from tests.unit.fake_controller import fake_controller
from tests.unit.test_broker import broker_of
from tests.unit.test_metrics import LISTEN, scrape_text

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "docs" / "monitoring"
ALERTS = MONITORING / "alerts.yml"
NAME = re.compile(r"\b(fencepost|process)_\w+")
OF_A_HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


@asynchronous
async def test_rules_dashboard_and_docs_name_the_metrics_that_there_are(tmp_path: Path) -> None:
    async with (
        running_controller(**LISTEN) as controller,
        fake_controller() as scripted,
        broker_of(scripted, tmp_path, **LISTEN) as running,
    ):
        texts = [await scrape_text(address) for address in (controller.metrics_address, running.broker.metrics_address)]
    there_are = {line.split()[2] for text in texts for line in text.decode().splitlines() if line.startswith("# TYPE ")}

    def named_in(text: str) -> set[str]:
        return {OF_A_HISTOGRAM.sub("", found.group()) for found in NAME.finditer(text)}

    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(queries) > 30
    assert named_in(" ".join(queries)) <= there_are
    expressions = re.findall(r"expr: (?:>\n)?(.*(?:\n {10}.*)*)", ALERTS.read_text())
    assert len(expressions) == ALERTS.read_text().count("- alert:")
    assert named_in(" ".join(expressions)) <= there_are
    explained = named_in((ROOT / "docs" / "OPERATIONS.md").read_text())
    packages = {"fencepost_node", "fencepost_controller"}
    assert {name for name in there_are if name.startswith("fencepost_")} == explained - packages


def test_the_dashboard_is_what_its_generator_makes() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generators" / "dashboard.py"], capture_output=True, text=True, check=True
    )
    assert (MONITORING / "dashboard.json").read_text() == done.stdout, "run ./scripts/docs"


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed")
    return found


def test_promtool_takes_the_rules_and_they_fire(promtool: str) -> None:
    subprocess.run([promtool, "check", "rules", ALERTS], check=True)
    subprocess.run([promtool, "test", "rules", ROOT / "tests" / "unit" / "alerts_story.yml"], check=True)


@asynchronous
async def test_promtool_finds_nothing_wrong_with_the_metrics(promtool: str, tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path, **LISTEN) as running:
        await running.leads(partitions=2)
        text = await scrape_text(running.broker.metrics_address)
    done = await asyncio.to_thread(
        subprocess.run, [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
