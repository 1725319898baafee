"""The pages of a reproduction and of its experiments, in a browser."""

from __future__ import annotations

import pytest

from experiment_records import removal
from stepscope.paper.experiments.run_files import write_page
from synthetic_records import DIRECTIONS, run_directory

pytest.importorskip("playwright")
from browsers import opened, serious


@pytest.mark.browser
def test_a_reproduction_draws_every_chart_and_shares_one_highlight(browser, made):
    """Charts of directions follow the bar; those that show none are left alone."""
    tab, events = opened(browser, made[0] / "report.html")
    assert tab.locator(".chart svg.marks").count() == 9
    assert tab.locator(".failed").count() == 0
    tab.click(f"[data-direction='{list(DIRECTIONS).index('adam')}']")
    # Sharpness, decrease and concentration have a row for adam that stays, and 13 others; of two trainings none is it.
    tab.wait_for_function("document.querySelectorAll('tr.faded').length === 3 * 13 + 3")
    tab.click("[data-all]")
    tab.wait_for_function("document.querySelectorAll('tr.faded').length === 0")
    assert events == []


@pytest.mark.browser
def test_a_page_without_directions_draws_its_charts(browser, tmp_path):
    removals = [removal("attention", 4.0, 3.0)]
    run_directory(tmp_path / "run", removals, {}, {"experiment": "robustness"})
    tab, events = opened(browser, write_page(tmp_path / "run", tmp_path / "page.html"))
    assert tab.locator(".chart svg.marks").count() == 1
    assert tab.locator(".failed").count() == 0
    assert events == []


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 1440), ("light", 390)])
def test_axe_finds_nothing_serious_in_a_reproduction(browser, made, scheme, width):
    pytest.importorskip("axe_playwright_python")
    tab, events = opened(
        browser, made[0] / "report.html", color_scheme=scheme, viewport={"width": width, "height": 900}
    )
    assert serious(tab) == []
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    ladder = tab.locator("#claims .chart svg.marks").bounding_box()
    assert ladder["height"] > 11 * 46, "each of its parts has the room that it needs"
    assert events == []
