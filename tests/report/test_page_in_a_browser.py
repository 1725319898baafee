"""The page in a browser: what it draws, and that it asks for nothing."""

from __future__ import annotations

import json
import re
import threading
from functools import partial

import pytest

from probed_runs import CONFIGURATION, hostile_training, in_full, probed_run, steps_of
from stepscope.paper.experiments.run_files import page_of
from stepscope.report import write_report
from stepscope.report.direction_tables import step_tables
from stepscope.report.watch import PageServer, version_of
from stepscope.runs import DirectionRecord, RunDirectory
from synthetic_records import DIRECTIONS, HOSTILE, hostile_run, run_directory, synthetic_records

pytest.importorskip("playwright")
from browsers import opened, parts, serious, walk


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_draws_every_chart_and_shares_one_highlight(browser, tmp_path, scheme):
    run_directory(tmp_path / "run", synthetic_records(trajectories=["sgd"]))
    path = write_report(tmp_path / "run", tmp_path / "page.html")
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
    tab, events = opened(browser, write_report(tmp_path / "run", tmp_path / "page.html"))
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
    path = write_report(hostile_run(tmp_path / "run"), tmp_path / "page.html")
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
        browser, write_report(tmp_path / "run", tmp_path / "p.html"), viewport={"width": 390, "height": 800}
    )
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.locator(".chart svg.marks").count() == 3
    assert tab.locator(".chart .role-legend").count() == 0, "the bar is the legend"
    assert events == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1440])
def test_the_charts_of_a_probe_are_drawn_and_names_of_layers_do_nothing(browser, tmp_path, width):
    hostile = " ".join(HOSTILE)
    run = probed_run(tmp_path / "run", in_full(5, hostile) + in_full(10, hostile), steps_of())
    tab, events = opened(browser, write_report(run, tmp_path / "page.html"), viewport={"width": width, "height": 900})
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


@pytest.mark.browser
def test_marks_are_lighter_on_a_dark_page_and_as_they_were_on_paper(browser, tmp_path):
    run = probed_run(tmp_path / "run", steps=steps_of())
    tab, events = opened(browser, write_report(run, tmp_path / "page.html"), color_scheme="dark")
    fill = "getComputedStyle(document.querySelector('.chart svg .mark-symbol path[fill=\"#2a6fbb\"]')).fill"
    assert tab.evaluate(fill) == "rgb(91, 158, 230)"
    tab.emulate_media(media="print")
    assert tab.evaluate(fill) == "rgb(42, 111, 187)"
    assert events == []


VIEWS = [("light", 1440), ("dark", 1440), ("light", 390)]


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("kind", ["probe", "no record", "hostile names"])
def test_axe_finds_nothing_serious(browser, tmp_path, kind):
    """Contrast, names, roles, keyboard: what a program can check of them."""
    pytest.importorskip("axe_playwright_python")
    if kind == "hostile names":
        run = hostile_training(tmp_path / "run")
    else:
        records, steps = (in_full(5) + in_full(10), steps_of()) if kind == "probe" else ([], [])
        run = probed_run(tmp_path / "run", records, steps)
    path = write_report(run, tmp_path / "page.html")
    for scheme, width in VIEWS:
        tab, events = opened(browser, path, color_scheme=scheme, viewport={"width": width, "height": 900})
        assert serious(tab) == [], (scheme, width)
        if "highlight" in parts(tab):
            tab.locator("[data-direction]").first.click()
            assert serious(tab) == [], "what isn't picked can still be read"
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert events == []
        tab.close()


@pytest.mark.browser
def test_a_page_is_used_by_the_keyboard_alone(browser, tmp_path):
    run = probed_run(tmp_path / "run", in_full(5) + in_full(10), steps_of())
    tab, events = opened(browser, write_report(run, tmp_path / "page.html"))
    assert parts(tab) == {"highlight", "slider", "header", "csv", "latex"}
    walk(tab)
    assert tab.locator(".panel output").inner_text() == "step 5"
    assert "tabular" in tab.locator("textarea").input_value()
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
