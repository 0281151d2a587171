"""The live page in a real browser, as a visitor uses it: by its buttons and its words, with the mouse and the keyboard.

It needs Playwright (`pip install playwright`) and a Chromium, the system's or Playwright's own (`playwright install
chromium`); the check for accessibility also npm, by which it gets axe-core. Where a test is skipped, what is missing is
named.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fencepost_testing.local_cluster import LocalCluster
from fencepost_testing.waiting import until_sync
from tests.integration.etcd_processes import ETCD, NO_ETCD

pytestmark = pytest.mark.long
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")

START_MS = 90_000  # four processes, on a busy machine
WAIT_MS = 60_000
WAIT_S = WAIT_MS / 1000
SOON_S = 0.2  # from an event to the screen, where the machine is not busy
BUSY_SOON_S = 2.0
SMOOTH_MS = 16  # of a browser's time for a patch of a thousand partitions, ten of which come in a second
BUSY_SMOOTH_MS = 90
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 1000}


class Server:
    """`fencepost ui`, as a command."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "fencepost_cli", "ui", "--no-browser", "--data-dir", str(folder), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = re.search(r"http://\S+", self.process.stdout.readline())
        assert found is not None
        self.url = found.group()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        system = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        own = Path(driver.chromium.executable_path)
        if system is None and not own.exists():
            pytest.skip("no Chromium here: install the system's, or 'playwright install chromium'")
        options: dict[str, Any] = {} if own.exists() else {"executable_path": system}
        launched = driver.chromium.launch(args=["--no-sandbox"] if os.geteuid() == 0 else [], **options)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests: the first one starts its cluster."""
    started = Server(tmp_path_factory.mktemp("ui") / "none")
    yield started
    assert started.stop() == 0


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page, opened; nothing that it does may be an error of its script or against its policy."""
    context = browser.new_context(viewport=DESKTOP, color_scheme="light", reduced_motion="reduce")
    opened = context.new_page()
    problems: list[str] = []
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.set_default_timeout(WAIT_MS)
    opened.goto(server.url)
    playwright.expect(opened.locator("#link")).to_have_text("Live")
    start = opened.get_by_role("button", name="Start three brokers")
    if start.is_visible():
        start.click()
    playwright.expect(opened.locator(".node[data-state=running]")).to_have_count(4, timeout=START_MS)
    yield opened
    context.close()
    assert not problems


def leader_of(page: Any) -> str:
    """The broker that leads the partition that is shown."""
    found = re.search(r"broker (\d+) leads", page.locator("#producers > p").inner_text())
    assert found is not None
    return found[1]


def epoch_of(page: Any) -> int:
    found = re.search(r"under epoch (\d+)", page.locator("#producers > p").inner_text())
    assert found is not None
    return int(found[1])


def chips(page: Any, broker: str) -> list[str]:
    """The batches that a replica is shown to remember of the first producer."""
    cells = page.locator(f"#producers table >> nth=0 >> tr[data-broker='{broker}'] .chip")
    return [re.sub(" repeat recognised", "", text) for text in cells.all_inner_texts()]


def test_a_leader_is_killed_by_its_button_and_the_producers_state_is_carried_over(page: Any) -> None:
    page.get_by_role("button", name="Send records").click()
    playwright.expect(page.locator("#load-told")).to_contain_text("acknowledged")
    page.locator("#pick").select_option("live-0")
    until_sync(lambda: page.locator("#producers .chip").count() >= 3, "batches are shown", WAIT_S)
    leader = leader_of(page)
    epoch = epoch_of(page)
    heading = page.locator("#producers h3").first.inner_text()

    page.get_by_role("button", name=f"Kill broker {leader}").click()
    playwright.expect(page.locator("#said")).to_have_text(f"You killed broker {leader} (SIGKILL)")
    page.wait_for_selector(f".node[data-node='{leader}'][data-state=down]")
    playwright.expect(page.locator("#producers > p")).to_contain_text(f"under epoch {epoch + 1}", timeout=WAIT_MS)
    assert leader_of(page) != leader
    assert page.locator("#producers h3").first.inner_text() == heading  # the same producer, under the same epoch
    playwright.expect(page.locator(f"#producers tr[data-broker='{leader}']").first).to_contain_text("down (as it was)")
    log = page.get_by_role("log")
    playwright.expect(log).to_contain_text(f"You killed broker {leader}")
    playwright.expect(log).to_contain_text(f"under epoch {epoch + 1}")
    before = chips(page, leader_of(page))
    assert before
    until_sync(lambda: chips(page, leader_of(page)) != before, "the new leader gets the next batches", WAIT_S)

    page.get_by_role("button", name="Lose the next acknowledgement").click()
    playwright.expect(log.locator("[data-kind=repeat]").first).to_contain_text("recognised a repeat in live-")
    page.get_by_role("button", name=f"Start broker {leader}").click()
    page.wait_for_selector(f".node[data-node='{leader}'][data-state=running]", timeout=START_MS)
    page.get_by_role("button", name="Stop sending records").click()
    page.get_by_role("button", name="Heal").click()
    playwright.expect(page.locator("#faults li")).to_have_count(0)


def test_the_story_is_read_step_by_step(page: Any) -> None:
    playwright.expect(page.locator(".node[data-state=running]")).to_have_count(4, timeout=START_MS)
    page.get_by_label("Wait for me after each step").check()
    page.get_by_role("button", name="Run the story").click()
    steps = page.locator("#steps > li")
    for number in range(10):
        playwright.expect(steps.nth(number)).to_have_attribute("data-state", "done", timeout=START_MS)
        if number == 6:
            playwright.expect(page.locator("#producers .chip.repeat")).to_contain_text("5–9 @ 5 repeat recognised")
        if number < 9:
            assert steps.nth(number + 1).get_attribute("data-state") == "waiting"
            page.get_by_role("button", name="Next step").click()
    playwright.expect(steps.nth(6)).to_contain_text("Nothing is appended; the answer is the original's, offset 5")
    playwright.expect(steps.nth(9)).to_contain_text("sequences 0 to 14 at offsets 0 to 14")
    rows = page.locator("#producers tbody tr")
    for row in range(3):
        playwright.expect(rows.nth(row).locator(".chip")).to_contain_text(["0–4 @ 0", "5–9 @ 5", "10–14 @ 10"])
    playwright.expect(page.get_by_role("log").locator("[data-kind=repeat]").first).to_contain_text("sequences 5 to 9")


def test_the_storys_partition_is_shown_though_the_page_hears_of_the_story_first(page: Any) -> None:
    """What brokers say, and what the story says, come by ways of their own."""
    shown = page.evaluate("""() => {
        const partition = (topic) => ({topic, index: 0, leader: 1, epoch: 0, replicas: [1], isr: [1], size: 0, start: 0,
            producerCount: 1, producers: {7: {epoch: {1: 0}, fence: 0, batches: {1: [[0, 4, 0]]}}},
            of: {1: [5, 5, true, 0, ""]}});
        const redraw = () => {
            for (const part of ["pick", "producers", "story"]) drawings[part]();
            return $("pick").value;
        };
        patch({partitions: {"busy-0": partition("busy")}});
        redraw();
        patch({story: {...state.story, running: true, partition: "told-0"}});
        redraw();
        patch({partitions: {"told-0": partition("told")}});
        return redraw();
    }""")
    assert shown == "told-0"


def test_it_is_used_by_the_keyboard_alone(page: Any) -> None:
    page.reload()  # the fixture's click has moved the focus
    playwright.expect(page.locator(".node[data-state=running]")).to_have_count(4)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"
    target = page.get_by_role("button", name=re.compile("Pause broker"))
    for _ in range(60):
        page.keyboard.press("Tab")
        if (page.evaluate("document.activeElement.getAttribute('aria-label')") or "").startswith("Pause broker"):
            break
    name = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert name is not None
    assert target.count()
    broker = name.split()[-1]
    page.keyboard.press("Enter")
    page.wait_for_selector(f".node[data-node='{broker}'][data-state=paused]")
    page.get_by_role("button", name=f"Resume broker {broker}").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f".node[data-node='{broker}'][data-state=running]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_schemes(page: Any, scheme: str) -> None:
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme=scheme)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 384) is (scheme == "dark")


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core."""
    folder = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which brings axe-core")
    done = subprocess.run(
        ["npm", "install", "--silent", "--no-save", "axe-core@4"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    source = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        pytest.skip(f"npm has no axe-core: {done.stderr.strip()[:200]}")
    return source.read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_anyone_out(page: Any, axe: str, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.evaluate(axe + "; undefined")
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    found = [
        f"{each['id']}: {each['help']}: {[node['html'][:120] for node in each['nodes'][:3]]}"
        for each in result["violations"]
    ]
    assert found == []
    assert len(result["passes"]) > 15


def test_what_happens_is_on_the_screen_in_no_time(page: Any) -> None:
    """From a broker's own time of an election to its line in the page, on the clock of the one machine."""
    page.evaluate("""() => {
        window.lateness = [];
        new MutationObserver((changes) => {
            for (const change of changes) for (const line of change.addedNodes) {
                const number = Number(line.dataset.number);
                const event = state.events.find((each) => each.number === number);
                if (event) window.lateness.push(Date.now() - event.time_ms);
            }
        }).observe(document.getElementById("log"), {childList: true});
    }""")
    page.get_by_role("button", name="Send records").click()
    playwright.expect(page.locator("#load-told")).to_contain_text("acknowledged")
    repeats = page.locator("#log [data-kind=repeat]")
    for _ in range(3):
        before = repeats.count()
        page.get_by_role("button", name="Lose the next acknowledgement").click()
        playwright.expect(repeats).not_to_have_count(before, timeout=WAIT_MS)
    page.get_by_role("button", name="Stop sending records").click()
    lateness = sorted(page.evaluate("window.lateness"))
    assert lateness[len(lateness) // 2] <= (SOON_S if os.getloadavg()[0] < 2 else BUSY_SOON_S) * 1000, lateness


def test_a_thousand_partitions_stay_smooth(page: Any) -> None:
    """What a browser has to do for a patch of all of a thousand partitions: far less than the time between two of them."""
    took_ms = page.evaluate("""() => {
        const partition = (index, offset) => ({topic: "many", index, leader: index % 3 + 1, epoch: 1, replicas: [1, 2, 3],
            isr: [1, 2, 3], size: 0, start: 0, producerCount: 1, producers: {},
            of: {1: [offset, offset, true, 1, ""], 2: [offset, offset, false, 1, ""], 3: [offset, offset, false, 1, ""]}});
        const took = [];
        for (let offset = 1; offset <= 20; offset++) {
            const partitions = {};
            for (let index = 0; index < 1000; index++) partitions[`many-${index}`] = partition(index, offset);
            $("table").scrollTop = offset * 900;
            const began = performance.now();
            patch({partitions});
            for (const part of ["partitions", "nodes", "producers"]) drawings[part]();
            document.body.getBoundingClientRect();
            took.push(performance.now() - began);
        }
        return took;
    }""")
    assert min(took_ms[1:]) < (SMOOTH_MS if os.getloadavg()[0] < 2 else BUSY_SMOOTH_MS), took_ms
    assert "(100" in page.locator("#count").inner_text()
    assert page.locator("#rows > div").count() < 60
    page.get_by_label("Find").fill("many-99")
    playwright.expect(page.locator("#count")).to_contain_text("(11 of 10")


@pytest.mark.skipif(ETCD is None, reason=NO_ETCD)
def test_who_is_active_of_several_controllers(browser: Any, tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "cluster", controllers=3) as cluster:
        server = Server(cluster.directory)
        context = browser.new_context(viewport=DESKTOP, reduced_motion="reduce")
        opened = context.new_page()
        opened.set_default_timeout(WAIT_MS)
        opened.goto(server.url)
        playwright.expect(opened.locator(".node[data-state=running]")).to_have_count(9, timeout=START_MS)
        active = opened.locator(".node", has_text=re.compile("· active"))
        playwright.expect(active).to_have_count(1)
        playwright.expect(opened.locator(".node", has_text=re.compile("· standby"))).to_have_count(2)
        playwright.expect(opened.locator(".node", has_text=re.compile("· leader$|· leader[^s]"))).to_have_count(1)
        killed = active.get_attribute("data-node")
        opened.get_by_role("button", name=f"Kill {killed}").click()
        opened.wait_for_selector(f".node[data-node='{killed}'][data-state=down]")
        playwright.expect(active).not_to_have_attribute("data-node", killed)
        playwright.expect(opened.get_by_role("log")).to_contain_text(f"You killed {killed}")
        context.close()
        assert server.stop() == 0


def test_a_page_of_another_site_can_do_nothing(browser: Any, server: Server, tmp_path: Path) -> None:
    other = tmp_path / "evil.html"
    other.write_text("<!doctype html><title>another site</title><p>hello")
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(other.as_uri())
    for request in (
        f"fetch('{server.url}api/do', {{method: 'POST', mode: 'no-cors', body: '{{}}'}}).then(a => a.type)",
        f"fetch('{server.url}events').then(a => a.status)",
    ):
        answer = opened.evaluate(f"{request}.catch(error => 'refused: ' + error.message)")
        assert answer in ("opaque",) or str(answer).startswith("refused"), answer
    opened.set_content(f"<iframe src='{server.url}'></iframe>")
    opened.wait_for_timeout(500)
    assert not any(frame.locator("#story").count() for frame in opened.frames[1:])
    context.close()
