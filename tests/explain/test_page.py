"""The page, in a real browser: it needs nothing but itself, and it shows every figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import MISSING, browser, installed, requested

from drawplate.backendbase import Fallback
from drawplate.explain.charts import SITES, near
from drawplate.explain.page import page
from drawplate.explain.report import Explanation
from tests.explain.test_words import SMALL, WORST, explanation

WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all."""
    if not installed():
        pytest.skip(MISSING)
    with browser() as driver:
        yield driver


def open_(driver: Any, file: Path, width: int = 1100) -> None:
    """Show the page in a window of this width, and wait until its charts are drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(file.as_uri())
    WebDriverWait(driver, WAIT_SECONDS).until(lambda d: d.execute_script("return document.body.dataset.drawn"))


def marks(driver: Any, chart: str, kind: str) -> list[Any]:
    """What is drawn for the data; legends and axes are not."""
    return driver.find_elements("css selector", f"#{chart} .mark-{kind}.role-mark:not(.legend) path")


@pytest.mark.parametrize("width", [1100, 380])
def test_everything_is_drawn_from_the_file_alone(chromium: Any, found: Explanation, tmp_path: Path, width: int) -> None:
    file = tmp_path / "page.html"
    file.write_text(page(found), encoding="utf-8")
    open_(chromium, file, width)
    assert chromium.get_log("browser") == []
    assert [url for url in requested(chromium) if not url.startswith("data:")] == [file.as_uri()]
    count = len(found.parts)
    assert found.curve is not None
    assert len(marks(chromium, "ranking", "rect")) == min(count, SITES)
    assert [len(marks(chromium, name, "rect")) for name in ("layers", "harm", "bits")] == [count] * 3
    points = len(near(found.curve)) + 3  # of the curve; and the artifact: expected, its weights, all of it
    assert len(marks(chromium, "curve", "symbol")) + len(marks(chromium, "curve", "line")) == points + 1
    assert len(chromium.find_elements("css selector", "#parts tbody tr")) == count
    wide = chromium.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0  # nothing sticks out
    heights = [mark.size["height"] for mark in marks(chromium, "layers", "rect")]
    assert sum(heights) > 150  # they fill the chart


def test_it_says_the_verdict_and_what_is_missing_is_left_out(chromium: Any, tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script>"
    found = explanation(WORST, *SMALL, verdict=("one is <b>bad</b>",), notes=(hostile,))
    file = tmp_path / "page.html"
    file.write_text(page(found), encoding="utf-8")
    open_(chromium, file)
    assert chromium.get_log("browser") == []
    assert [li.text for li in chromium.find_elements("css selector", ".verdict li")] == ["one is <b>bad</b>"]
    titles = [h.text for h in chromium.find_elements("css selector", "h2")]
    assert titles == [
        "Half of the harm is in one of 10 weights",
        "Layer 0 does most: 67 % of all harm",
        "Where the harm is: layers across, weights down",
        "Every weight takes 4.5 bits, scales included",
        "Every weight",
    ]
    assert hostile in chromium.find_element("css selector", "main").text


def test_fallbacks_and_expected_harm_are_shown(found: Explanation) -> None:
    text = page(explanation(WORST, *(SMALL[0],), fallbacks=(Fallback("aten.gelu", 3, 0.0, 0.125, "no kernel"),)))
    assert "<td>aten.gelu</td>" in text
    assert "12 %" in text
    assert 'class="expected"' not in text
    assert 'class="expected"' in page(explanation(WORST.__class__(**{**vars(SMALL[0]), "won_back": None})))
