"""The live page's server on real processes: its own cluster, the story from its first step to its last, and its buttons."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fencepost_testing.failures import CommandFailed
from fencepost_testing.waiting import until
from fencepost_ui.page import Page

SOON_S = 0.2  # from an event to the message that tells of it
WAIT_S = 40.0


class Browser:
    """What a browser has been told, put together as the page's script does it."""

    def __init__(self, page: Page) -> None:
        self.state: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.told_after_s: list[float] = []  # each event, by the clocks of this machine
        self._messages = page.hub.events()

    async def read(self) -> None:
        """For ever."""
        async for message in self._messages:
            if message.startswith(":"):
                continue
            kind, data = message.strip().split("\n")
            said = json.loads(data.removeprefix("data: "))
            if kind == "event: snapshot":
                self.state = said
                self.events = said["events"]
                continue
            for name in ("partitions", "nodes"):
                self.state[name] |= said.pop(name, {})
            for event in said.pop("events", []):
                self.events.append(event)
                self.told_after_s.append(time.time() - event["time_ms"] / 1000)
            self.state |= said

    def kinds(self) -> set[str]:
        return {event["kind"] for event in self.events}


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[tuple[Page, Browser]]:
    page = Page(directory)
    await page.start()
    browser = Browser(page)
    reading = asyncio.create_task(browser.read())
    try:
        yield page, browser
    finally:
        reading.cancel()
        await page.stop()
        assert page.failure is None


def test_the_story_is_told_on_a_cluster_that_the_page_has_started(run: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "none") as (page, browser):
            await page.start_cluster()
            with pytest.raises(CommandFailed, match="there is a cluster already"):
                await page.start_cluster()
            await until(lambda: len(browser.state.get("nodes", {})) == 4, "every process is shown")
            # Told without pauses the story takes less time than the page may take to open its streams again.
            await until(lambda: page.watch.heard_from == {1, 2, 3}, "every broker is observed")
            page.story.start(0)
            with pytest.raises(CommandFailed, match="is being told already"):
                page.story.start(0)
            await until(lambda: not page.story.is_running, "the story ends", WAIT_S)
            steps = page.story.told()["steps"]
            assert [step["state"] for step in steps] == ["done"] * 10, [s for s in steps if s["state"] == "failed"]
            await until(lambda: browser.state["story"]["steps"][-1]["state"] == "done", "the last step is shown")

            partition = browser.state["partitions"]["story-1-0"]
            ((producer, known),) = partition["producers"].items()
            await until(
                lambda: (
                    list(browser.state["partitions"]["story-1-0"]["producers"][producer]["batches"].values())
                    == [[[0, 4, 0], [5, 9, 5], [10, 14, 10]]] * 3
                ),
                f"every replica is shown with the same batches: {known}",
            )
            assert partition["epoch"] == 1
            (repeat,) = [
                event for event in browser.events if event["kind"] == "repeat" and event["producer"] == producer
            ]
            assert (repeat["node"], repeat["first"]) == (str(partition["leader"]), 5)
            kinds = {"election", "repeat", "process", "isr", "story"}
            await until(lambda: kinds <= browser.kinds(), "the timeline tells of everything")
            assert "You killed" in " ".join(event["text"] for event in browser.events)

            await page.switch_load(True)
            await until(lambda: page.load.acknowledged > 10, "records are acknowledged")
            assert page.load.error == ""
            done = await page.do("lose-ack", "live")
            assert "will be lost" in done
            await until(
                lambda: any(e["kind"] == "repeat" and "live" in e["partition"] for e in browser.events), "a repeat"
            )
            await page.switch_load(False)
            assert sorted(browser.told_after_s)[len(browser.told_after_s) // 2] < SOON_S

            follower = next(broker for broker in partition["replicas"] if broker != partition["leader"])
            await page.do("pause", str(follower))
            await until(lambda: browser.state["nodes"][str(follower)]["state"] == "paused", "the pause is shown")
            await page.do("resume", str(follower))
            await until(lambda: browser.state["nodes"][str(follower)]["state"] == "running", "the end of it is shown")
            await page.do("cut", str(follower))
            await until(lambda: any("cut" in fault for fault in browser.state["faults"]), "the cut is shown")
            assert await page.do("heal", "") == "You removed every fault (2)"
            await until(lambda: browser.state["faults"] == [], "the end of the cut is shown")
            for target in ("9", "-1", "controller2", ""):
                with pytest.raises(CommandFailed, match=f"no process '{target}'"):
                    await page.do("kill", target)
            with pytest.raises(CommandFailed, match="runs already"):
                await page.do("start", str(follower))
        cluster = page.control.cluster()
        assert cluster is None

    run(scenario())
