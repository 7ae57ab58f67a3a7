"""A real browser, without a window, in which a test looks at a page: Chromium with its driver, as Debian has them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BROWSER, DRIVER = "chromium", "chromedriver"
MISSING = f"no browser: {BROWSER} and {DRIVER} are not installed (Debian: apt-get install chromium chromium-driver)"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def installed() -> bool:
    """Are the browser and its driver here?"""
    return all(map(shutil.which, (BROWSER, DRIVER)))


@contextmanager
def browser(width: int = 1100, height: int = 1400) -> Iterator[Any]:
    """A selenium driver with a profile of its own, which goes with it. It records the console and the network."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which(BROWSER)  # type: ignore[assignment]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which(DRIVER)))
        try:
            yield driver
        finally:
            driver.quit()


def requested(driver: Any) -> list[str]:
    """The addresses that the page asked for, its own included; what the browser's first tab loads is not its affair."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [s["request"]["url"] for s in sent if s["documentURL"] == driver.current_url]
