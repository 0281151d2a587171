"""Takes docs/live-page.png: the live page after its story, on a cluster of its own. `./scripts/docs --page` runs it.

It needs Playwright and a Chromium; tests/integration/test_ui_in_browser.py says how to get them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE = Path(__file__).parents[1] / "live-page.png"
WIDTH, HEIGHT = 1280, 1130
STORY_MS = 180_000


def main() -> None:
    from playwright.sync_api import expect, sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        command = [sys.executable, "-m", "fencepost_cli", "ui", "--no-browser", "--data-dir", f"{folder}/none"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None
        system = shutil.which("chromium") or shutil.which("google-chrome")
        own = Path(driver.chromium.executable_path).exists()
        browser = driver.chromium.launch(args=["--no-sandbox"], executable_path=None if own else system)
        try:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
            page.goto(found.group())
            page.get_by_role("button", name="Start three brokers").click()
            expect(page.locator(".node[data-state=running]")).to_have_count(4, timeout=STORY_MS)
            page.get_by_label("Wait for me after each step").check()
            page.get_by_role("button", name="Run the story").click()
            steps = page.locator("#steps > li")
            for number in range(7):  # to the repeat that is recognised, with the killed broker still down
                expect(steps.nth(number)).to_have_attribute("data-state", "done", timeout=STORY_MS)
                if number < 6:
                    page.get_by_role("button", name="Next step").click()
            expect(page.locator(".chip.repeat")).to_have_count(1)
            page.screenshot(path=PICTURE)
        finally:
            browser.close()
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
