"""The page in a browser: what it draws, and that it asks for nothing."""

from __future__ import annotations

import json
import re
import shutil
import threading
from dataclasses import replace
from functools import partial

import pytest

from experiment_records import removal
from probed_runs import CONFIGURATION, own, probed_run, steps_of
from stepscope.paper.experiments.run_files import page_of, write_page
from stepscope.report.direction_tables import step_tables
from stepscope.report.watch import PageServer, version_of
from stepscope.runs import DirectionRecord, RecordedLandscape, RunDirectory
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
    empty = "[...document.querySelectorAll('.chart')].filter((chart) => !chart.querySelector('svg .mark-group path'))"
    assert tab.evaluate(f"{empty}.map(({{ id }}) => id)") == [], "every chart shows something"
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
    assert all("correlation" in text and "standard error" not in text for text in shown), "what wasn't measured"
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


def in_full(step, layer="a"):
    """A full measurement that has all that the page of a probe draws."""
    clipped = [replace(own(step)[0], direction=f"own SGD clip {percent}%") for percent in (10, 30)]
    return [
        replace(
            record, sharpness=2.0 + place, slope=-1.0, best_decrease=0.5 + place, within_layer=1.0, cross_layer=1.0,
            layers={layer: 1.0, "b": -0.5}, best_step=1.0, landscape=RecordedLandscape(steps=(0.0, 1.0), losses=(2, 1)),
        )
        for place, record in enumerate((*own(step), *clipped))
    ]  # fmt: skip


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1440])
def test_the_charts_of_a_probe_are_drawn_and_names_of_layers_do_nothing(browser, tmp_path, width):
    hostile = " ".join(HOSTILE)
    run = probed_run(tmp_path / "run", in_full(5, hostile) + in_full(10, hostile), steps_of())
    tab, events = opened(browser, write_page(run, tmp_path / "page.html"), viewport={"width": width, "height": 900})
    drawn = {
        place.partition("-")[2].partition("-")[2]
        for place in tab.evaluate("[...document.querySelectorAll('.chart:has(svg.marks)')].map(({ id }) => id)")
    }
    assert drawn >= {
        "SGD-layers-over-steps",
        "SGD-interaction-of-layers",
        "SGD-slope-against-sharpness",
        "SGD-clip-sweep",
    }
    assert tab.locator(".failed").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert events == []


VIEWS = [("light", 1440), ("dark", 1440), ("light", 390)]


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("kind", ["probe", "no record", "long names", "reproduction"])
def test_axe_finds_nothing_serious(browser, tmp_path, made, kind):
    """Contrast, names, roles, keyboard: what a program can check of them. Names have ten thousand letters in vain."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    layers = {"probe": "a", "long names": "x" * 10_000 + "\u202eright to left"}
    if kind == "reproduction":
        path = made[0] / "report.html"
    else:
        records = in_full(5, layers[kind]) + in_full(10, layers[kind]) if kind in layers else []
        run = probed_run(tmp_path / kind, records, steps_of() if kind in layers else [])
        path = write_page(run, tmp_path / "page.html")
    for scheme, width in VIEWS:
        tab = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-charts], .empty", timeout=60_000)
        found = axe.run(tab).response["violations"]
        assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == [], (scheme, width)
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        tab.close()


@pytest.mark.browser
def test_a_page_is_used_by_the_keyboard_alone(browser, tmp_path):
    """From the top, Tab reaches the highlights, the slider, the headers and the copies; each does what a click does."""
    run = probed_run(tmp_path / "run", in_full(5) + in_full(10), steps_of())
    tab, events = opened(browser, write_page(run, tmp_path / "page.html"))
    reached, wanted = set(), {"0", "range", "header", "csv", "latex"}
    while not reached >= wanted:
        tab.keyboard.press("Tab")
        at = tab.evaluate(
            "document.activeElement.dataset.direction ?? document.activeElement.dataset.copy ?? "
            "document.activeElement.type ?? document.activeElement.tagName"
        )
        if at == "range":
            tab.keyboard.press("ArrowLeft")
            assert tab.locator(".panel output").inner_text() == "step 5"
        elif at == "0":
            tab.keyboard.press("Enter")
            assert tab.locator("[aria-pressed=true]").count() == 1
        elif "header" not in reached and tab.evaluate("document.activeElement.closest('th') !== null"):
            tab.keyboard.press("Enter")
            at = "header"
        elif at == "latex":
            tab.keyboard.press("Enter")
            tab.wait_for_function("document.querySelector('.panel [role=status]').textContent !== ''")
            assert "tabular" in tab.locator("textarea").input_value()
        assert at != "BODY", "past the end of the page"
        reached.add(at)
    assert tab.locator("[aria-sort]").count() == 1
    assert events == []


@pytest.mark.browser
def test_a_page_that_is_watched_shows_new_records_and_stays_where_it_was(browser, tmp_path):
    run = probed_run(tmp_path / "run", in_full(5) + in_full(10), steps_of())
    events = []
    with PageServer(partial(page_of, run), partial(version_of, run)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        tab = browser.new_page()
        tab.on("console", lambda message: events.append(f"console: {message.text}"))
        tab.on("request", lambda r: None if r.url.startswith(server.address) else events.append(r.url[:80]))
        tab.goto(server.address)
        page = tab.frame_locator("iframe")
        page.locator("html[data-charts]").wait_for(timeout=60_000)
        assert page.locator("output").inner_text() == "step 10"
        page.locator("input[type=range]").fill("0")
        page.locator("output").scroll_into_view_if_needed()
        before = tab.frames[1].evaluate("scrollY")
        with RunDirectory.open(run, DirectionRecord, CONFIGURATION) as opened_run:
            opened_run.append(in_full(20))
        page.locator("input[type=range][max='2']").wait_for(timeout=60_000)
        page.locator("html[data-charts]").wait_for(timeout=60_000)
        assert page.locator("output").inner_text() == "step 5"
        assert abs(tab.frames[1].evaluate("scrollY") - before) < 2
        assert events == []
        server.shutdown()
        thread.join()
    tab.get_by_text("No longer served").wait_for(timeout=20_000)
    tab.close()
