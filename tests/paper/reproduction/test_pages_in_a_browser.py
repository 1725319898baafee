"""The page in a browser: what it draws, and that it asks for nothing."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from experiment_records import removal
from stepscope.paper.experiments.run_files import write_page
from stepscope.report.direction_tables import step_tables
from synthetic_records import DIRECTIONS, HOSTILE, hostile_run, run_directory, synthetic_records

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    executable = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if executable is None:
        pytest.skip("no Chromium: none of chromium, google-chrome, chromium-browser is on the PATH")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=FLAGS.split())
        yield launched
        launched.close()


def opened(browser, path, **context):
    """The page once its charts are drawn, and everything that went wrong or went out."""
    tab = browser.new_context(**context).new_page()
    events = []
    tab.on("console", lambda message: events.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: events.append(f"error: {error}"))
    tab.on("dialog", lambda dialog: (events.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda r: None if r.url.startswith("file:") else events.append(f"request: {r.url[:80]}"))
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-charts]", timeout=60_000)
    return tab, events


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_draws_every_chart_and_shares_one_highlight(browser, tmp_path, scheme):
    run_directory(tmp_path / "run", synthetic_records(trajectories=["sgd"]))
    path = write_page(tmp_path / "run", tmp_path / "page.html")
    tab, events = opened(browser, path, color_scheme=scheme)
    assert tab.locator(".chart svg.marks").count() == 3
    assert tab.locator(".failed").count() == 0
    colors = tab.evaluate(
        "[getComputedStyle(document.querySelector('.card')).backgroundColor,"
        " getComputedStyle(document.querySelector('.chart svg')).backgroundColor]"
    )
    assert colors[0] == colors[1], "a chart has the color of its card"

    def clear_minima():
        return tab.evaluate(
            "[...document.querySelectorAll('#chart-0-sgd-landscape .mark-symbol.role-mark path')]"
            ".filter((path) => Number(path.getAttribute('opacity')) > 0.5).length"
        )

    assert clear_minima() == len(DIRECTIONS)
    tab.click("[data-direction='5']")
    tab.wait_for_function("document.querySelectorAll('tr.faded').length === 13")
    tab.wait_for_timeout(200)
    assert clear_minima() == 1
    tab.click("[data-all]")
    tab.wait_for_timeout(200)
    assert clear_minima() == len(DIRECTIONS)
    # A click on one chart's own legend reaches the bar and the other charts.
    tab.locator("[id$=-sgd-sharpness] .role-legend-label text", has_text=re.compile("^muon$")).click()
    tab.wait_for_function("document.querySelectorAll('[aria-pressed=true]').length === 1")
    tab.wait_for_timeout(200)
    assert clear_minima() == 1
    assert events == []


@pytest.mark.browser
def test_a_step_is_chosen_its_table_sorted_and_copied(browser, tmp_path):
    records = synthetic_records(trajectories=["sgd"])
    run_directory(tmp_path / "run", records)
    tab, events = opened(browser, write_page(tmp_path / "run", tmp_path / "page.html"))
    tables = step_tables(records, "sgd")

    def cells():
        rows = "[...document.querySelectorAll('.panel tbody tr')]"
        return [
            *map(tuple, tab.evaluate(f"{rows}.map((row) => [...row.cells].map((cell) => cell.textContent.trim()))"))
        ]

    assert cells() == [*tables["step 120"].rows]
    axes = "document.querySelector('[id$=sgd-landscape] svg').textContent"
    before = tab.evaluate(axes)
    tab.locator(".panel input").focus()
    for _ in range(2):
        tab.keyboard.press("ArrowLeft")
    assert tab.locator(".panel output").inner_text() == "step 20†"
    assert cells() == [*tables["step 20†"].rows]
    assert tab.locator("td.negative").count() == 1, "SGD's sharpness is negative there"
    tab.wait_for_function(f"{axes} !== {json.dumps(before)}")
    order = sorted(DIRECTIONS, key=lambda name: DIRECTIONS[name][1])
    tab.locator(".panel thead button").nth(2).click()
    assert [row[0] for row in cells()] == order
    tab.locator(".panel thead button").nth(2).click()
    assert tab.locator("[aria-sort=descending]").count() == 1
    assert sorted(row[2] for row in cells()) == sorted(row[2] for row in tables["step 20†"].rows)
    assert cells()[0][0] == order[-1]
    for text, kind in (('"direction","sharpness / |SGD|"', "csv"), (r"\begin{tabular}{lrrrr}", "latex")):
        tab.locator(f"[data-copy={kind}]").click()
        shown = tab.locator("textarea").input_value()
        assert text in shown
        assert shown.index("muon") > shown.index("adafactor"), "in the order that is shown"
    assert events == []


@pytest.mark.browser
def test_hostile_names_do_nothing_in_a_browser(browser, tmp_path):
    path = write_page(hostile_run(tmp_path / "run"), tmp_path / "page.html")
    tab, events = opened(browser, path)
    assert tab.locator(".chart svg.marks").count() == 6
    points = tab.locator("[id$=-sharpness]").first.locator(".mark-symbol.role-mark path")
    assert points.count() == len(HOSTILE) + 1
    shown = []
    for index in range(points.count()):
        points.nth(index).hover(force=True)
        tab.wait_for_timeout(100)
        shown.append(tab.locator("#vg-tooltip-element").inner_text())
        assert tab.locator("#vg-tooltip-element img").count() == 0
    assert any("<img src=x onerror=alert(1)>" in text for text in shown), "the tooltip shows the name as text"
    for button in tab.locator("[data-direction]").all():
        button.click()
    assert events == []


@pytest.mark.browser
def test_a_phone_gets_a_page_of_its_width(browser, tmp_path):
    run_directory(tmp_path / "run", synthetic_records(trajectories=["sgd"]))
    tab, events = opened(
        browser, write_page(tmp_path / "run", tmp_path / "p.html"), viewport={"width": 390, "height": 800}
    )
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.locator(".chart svg.marks").count() == 3
    assert tab.locator(".chart .role-legend").count() == 0, "the bar is the legend"
    assert events == []


@pytest.mark.browser
def test_a_reproduction_draws_every_chart_and_shares_one_highlight(browser, made):
    """Charts of directions follow the bar; those that show none are left alone."""
    tab, events = opened(browser, made[0] / "report.html")
    assert tab.locator(".chart svg.marks").count() == 8
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
