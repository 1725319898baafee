"""The table, the sentence and the page say what the records say."""

from __future__ import annotations

import base64
import collections
import hashlib
import io
import json
import re

import pytest
from rich.console import Console

from probed_runs import long_training, own, probed_run, steps_of
from stepscope.errors import UsageError
from stepscope.report import print_directions, render_report, sharpness_rows, summary, summary_sentence, write_report
from stepscope.report.direction_tables import step_tables
from stepscope.report.vega import vega_script
from synthetic_records import (
    CONFIGURATION,
    CONTEXT,
    DIRECTIONS,
    HOSTILE,
    hostile_run,
    record,
    run_directory,
    synthetic_records,
)


def ratios(rows):
    return {row.direction: row.sharpness for row in rows}


# The table


def test_sharpness_is_a_ratio_to_sgd_with_its_sign():
    records = [
        record("sgd", 1, "adam", sharpness=2.0, correlation=-0.5, best_step=3.0, best_decrease=0.1),
        record("sgd", 1, "sgd", sharpness=8.0, correlation=-0.25, best_step=None, best_decrease=0.2),
        record("sgd", 1, "muon", sharpness=-1.0),
        record("sgd", 1, "lion"),
        record("adam", 1, "sgd", sharpness=1000.0),
    ]
    adam, sgd, muon, lion = sharpness_rows(records, "sgd")
    assert (adam.direction, adam.sharpness, adam.correlation, adam.best_step, adam.best_decrease) == (
        "adam", 0.25, -0.5, 3.0, 0.1,
    )  # fmt: skip
    assert (sgd.sharpness, sgd.best_step, sgd.baseline, sgd.relative) == (1.0, None, "sharpness", True)
    assert muon.sharpness == -0.125
    assert (lion.sharpness, lion.seeds) == (None, 0)
    assert adam.sharpness_spread is None


def test_negative_sgd_is_replaced_by_its_robust_sharpness_and_marked():
    records = [
        record("sgd", 1, "sgd", sharpness=-2.0, sharpness_robust=8.0),
        record("sgd", 1, "adam", sharpness=4.0),
        record("sgd", 2, "sgd", sharpness=-2.0, sharpness_robust=None),
        record("sgd", 2, "adam", sharpness=4.0),
    ]
    rows = sharpness_rows(records, "sgd")
    assert [(row.step, row.direction, row.sharpness, row.baseline) for row in rows] == [
        (1, "sgd", -0.25, "robust"),
        (1, "adam", 0.5, "robust"),
        (2, "sgd", -1.0, "negative"),
        (2, "adam", 2.0, "negative"),
    ]


@pytest.mark.parametrize("sgd", [[], [record("sgd", 1, "sgd")], [record("sgd", 1, "sgd", sharpness=0.0)]])
def test_without_a_baseline_numbers_are_absolute(sgd):
    (row,) = [r for r in sharpness_rows([*sgd, record("sgd", 1, "adam", sharpness=4.0)], "sgd") if r.seeds][-1:]
    assert (row.sharpness, row.relative, row.baseline) == (4.0, False, "none")


def test_seeds_have_a_mean_and_a_spread_and_can_be_chosen():
    records = [
        record("sgd", 1, name, seed=seed, sharpness=value, best_decrease=value)
        for seed, (sgd, adam) in enumerate([(10.0, 1.0), (10.0, 3.0), (2.0, 1.0)])
        for name, value in (("sgd", sgd), ("adam", adam))
    ]
    row = sharpness_rows(records, "sgd")[1]
    assert row.seeds == 3
    assert row.sharpness == pytest.approx((0.1 + 0.3 + 0.5) / 3)
    assert row.sharpness_spread == pytest.approx(0.2)
    assert row.best_decrease_spread == pytest.approx(2 / 3**0.5)
    assert ratios(sharpness_rows(records, "sgd", seed=1)) == {"sgd": 1.0, "adam": 0.3}
    # A seed without SGD has no ratio and must not be averaged with ratios.
    more = [*records, record("sgd", 1, "adam", seed=3, sharpness=500.0)]
    assert sharpness_rows(more, "sgd")[1].sharpness == row.sharpness


def test_the_later_of_two_measurements_counts_and_steps_are_in_order():
    decreases = ((60, 60.0), (20, 20.0), (60, 7.0))
    records = [record("sgd", step, "sgd", sharpness=1.0, best_decrease=decrease) for step, decrease in decreases]
    assert [(row.step, row.best_decrease) for row in sharpness_rows(records, "sgd")] == [(20, 20.0), (60, 7.0)]


# The sentence


def point(step, *, trajectory="sgd", seed=0, decrease=None, **sharpness):
    decrease = decrease or {}
    return [
        record(trajectory, step, name.replace("_", " "), seed=seed, sharpness=value, best_decrease=decrease.get(name))
        for name, value in sharpness.items()
    ]


def test_the_sentence_when_sgd_is_sharpest_everywhere():
    records = point(1, sgd=8.0, adam=2.0, muon=1.0, decrease={"sgd": 0.1, "adam": 0.3, "muon": 0.2}) + point(
        2, sgd=6.0, adam=1.0, decrease={"sgd": 0.5, "adam": 0.6}
    )
    assert summary_sentence(records) == (
        "With one seed, SGD had the largest directional sharpness of all unclipped directions at all 2 measured"
        " points (trajectory and step), Adam's was lower than SGD's by a median factor of 5, and adam had the best"
        " local decrease at all 2 points."
    )


def test_the_sentence_when_sgd_is_not_the_sharpest():
    records = point(1, sgd=2.0, adam=8.0, decrease={"sgd": 0.1, "adam": 0.0}) + point(2, sgd=-1.0, adam=3.0)
    assert summary_sentence(records) == (
        "With one seed, SGD had the largest directional sharpness of all unclipped directions at none of the 2"
        " measured points (trajectory and step), Adam's was higher than SGD's by a factor of 4 over the 1 of 2 points"
        " where both were positive, and sgd had the best local decrease."
    )


def test_clipped_directions_do_not_take_part_in_the_comparison():
    sentence = summary_sentence(point(1, sgd=2.0, sgd_clip=50.0, adam=1.0))
    assert sentence == (
        "With one seed, SGD had the largest directional sharpness of all unclipped directions at the only measured"
        " point (trajectory and step), and Adam's was lower than SGD's by a factor of 2."
    )
    assert "did not have the largest" in summary_sentence(point(1, sgd=2.0, muon=3.0))


def test_the_sentence_takes_the_median_and_the_largest():
    records = [*point(1, sgd=4.0, adam=2.0, muon=8.0), *point(2, sgd=9.0, adam=3.0), *point(3, sgd=90.0, adam=1.0)]
    sentence = summary_sentence(records)
    assert "directions at 2 of 3 measured points" in sentence, "SGD between two others is not the largest"
    assert "by a median factor of 3." in sentence


def test_the_sentence_counts_seeds_and_ties():
    records = [
        *point(1, seed=0, sgd=2.0, adam=1.0, decrease={"sgd": 2.0, "adam": 1.0}),
        *point(1, seed=1, sgd=1.0, adam=2.0, decrease={"sgd": 1.0, "adam": 2.0}),
    ]
    assert summary_sentence(records) == (
        "Over 2 seeds, SGD had the largest directional sharpness of all unclipped directions at 1 of 2 measured points"
        " (trajectory, step and seed), Adam's was lower than SGD's by a median factor of 1.25, and sgd and adam had"
        " the best local decrease equally often (at 1 of 2 points each)."
    )


def test_the_sentence_says_no_more_than_was_measured():
    assert summary_sentence([]) == "Nothing has been measured yet."
    assert summary_sentence(point(1, adam=1.0)) == (
        "With one seed, 1 direction was measured at 1 point (trajectory and step)."
    )
    assert summary_sentence(point(1, adam=1.0, muon=2.0) + point(2, adam=1.0)) == (
        "With one seed, 2 directions were measured at 2 points (trajectory and step)."
    )
    partly = summary_sentence(point(1, sgd=2.0, adam=1.0) + point(2, adam=1.0))
    assert "at the only measured point where it was compared (trajectory and step)" in partly
    lost = summary_sentence(point(1, sgd=2.0, muon=1.0, decrease={"sgd": -0.1, "muon": 0.0}))
    assert lost.endswith("and no direction lowered the loss.")


def test_a_new_clause_is_one_function_in_one_row(tmp_path, monkeypatch):
    """It is in the sentence, and so on the page and in the terminal."""

    def flattest(records):
        return f"{min(records, key=lambda record: record.sharpness).direction} had the flattest direction"

    monkeypatch.setattr(summary, "CLAUSES", (*summary.CLAUSES, flattest))
    records = point(1, sgd=2.0, adam=1.0)
    assert summary_sentence(records).endswith(", and adam had the flattest direction.")
    page = write_report(run_directory(tmp_path / "run", records), tmp_path / "page.html")
    assert "adam had the flattest direction." in page.read_text()


@pytest.mark.parametrize("name", HOSTILE)
def test_the_sentence_is_one_line(name):
    records = [record("sgd", 1, other, best_decrease=value) for value, other in enumerate(("sgd", name))]
    assert summary_sentence(records).isprintable()


# The terminal


def printed(records, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_directions(records, console)
    return console.file.getvalue()


def test_the_terminal_tables_fit_and_are_complete():
    """One for each of 2 trajectories × 3 steps, with all four columns."""
    records = synthetic_records()
    lines = printed(records).splitlines()
    assert max(map(len, lines)) <= 80
    for name in DIRECTIONS:
        assert sum(line.strip().startswith(f"{name}  ") for line in lines) == 6, name
    tables = step_tables(records, "sgd")
    for title, table in tables.items():
        place = next(i for i, line in enumerate(lines) if line.strip() == f"sgd trajectory, {title}")
        shown = next(line for line in lines[place:] if line.strip().startswith("adam  ")).split()[1:]
        assert shown == [*next(row for row in table.rows if row[0] == "adam")[1:]]
    assert list(tables) == ["step 20†", "step 60", "step 120"]
    assert sum("† SGD's sharpness is negative there" in line for line in lines) == 1


@pytest.mark.parametrize("width", [60, 80])
def test_a_number_that_has_no_room_is_folded_and_never_cut_off(width):
    records = synthetic_records(seeds=(0, 1, 2), steps=(60,), trajectories=["sgd"])
    lines = printed(records, width).splitlines()
    assert max(map(len, lines)) <= width
    shown = collections.Counter(" ".join(lines).split())
    (table,) = step_tables(records, "sgd").values()
    assert shown >= collections.Counter(" ".join(map(" ".join, table.rows)).split())


def test_what_stands_out_is_the_largest_of_several_and_what_is_negative():
    records = point(1, sgd=2.0, adam=-1.0, decrease={"sgd": 0.1, "adam": 0.3}) + point(2, sgd=2.0, decrease={"sgd": 1})
    several, alone = (table.marks for table in step_tables(records, "sgd").values())
    ratio, decrease = "sharpness / |SGD|", "best decrease"
    assert several == {("sgd", ratio): "largest", ("adam", ratio): "negative", ("adam", decrease): "best"}
    assert alone == {}
    lost = step_tables(point(1, sgd=2.0, adam=1.0, decrease={"sgd": -0.1, "adam": 0.0}), "sgd")["step 1"]
    assert lost.marks == {("sgd", ratio): "largest"}


def test_the_terminal_shows_names_as_they_are_and_obeys_none():
    text = printed([record("[bold]t", 1, name, sharpness=1.0) for name in HOSTILE], width=200)
    assert "[red]x[/]" in text
    assert "[bold]t" in text
    assert "\x1b" not in text
    assert "†" not in text
    assert printed([]) == ""


# The page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    run_directory(path / "run", synthetic_records())
    return write_report(path / "run", path / "out" / "report.html").read_text()


def test_the_page_says_what_was_run_and_found(page):
    assert "<h1>T5, 2 layers on English and French sentence pairs</h1>" in page
    assert summary_sentence(synthetic_records()).replace("'", "&#39;") in page
    for fact in ("CC-BY-4.0", CONTEXT["source"]["sha256"], "20, 60, 120", "1\u202f240\u202f064"):
        assert f"<dd>{fact}</dd>" in page
    assert page.count("<tr data-row=") == 2 * len(DIRECTIONS)
    assert "<output>step 120</output>" in page
    assert '"step 20\\u2020"' in page
    assert "uᵀHu" in page


def test_the_page_asks_for_nothing_from_elsewhere(page):
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"<link|<iframe|<img|\ssrc=|\shref=|url\(|@import|//", markup)
    specs = json.loads(re.search(r'id="chart-specs">(.*?)</script>', page, flags=re.DOTALL)[1])
    assert len(specs) == 2 * 3
    text = json.dumps(specs).replace("https://vega.github.io/schema/", "")  # the format's name, never requested
    assert "//" not in text
    assert '"url"' not in text
    assert '"href"' not in text


def test_only_the_pages_own_scripts_may_run(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'unsafe-eval' 'sha256-")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert scripts[0] == vega_script()
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_nothing_that_a_user_named_becomes_markup(tmp_path):
    page = write_report(hostile_run(tmp_path / "run"), tmp_path / "page.html").read_text()
    page = page.replace(vega_script(), "")
    assert page.count("<script") == page.count("</script>") == 5
    assert "<img" not in page
    assert "<svg onload" not in page
    assert "\u2028" not in re.search(r'id="chart-specs">(.*?)</script>', page, flags=re.DOTALL)[1]
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 4


def test_a_run_without_measurements_has_a_page(tmp_path):
    page = write_report(run_directory(tmp_path / "run", []), tmp_path / "page.html").read_text()
    assert "Nothing measured yet" in page
    assert "CC-BY-4.0" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    "records",
    [
        [record("sgd", 1, "sgd")],
        [record("sgd", 1, "adam", sharpness=1.0), record("sgd", 2, "sgd", best_decrease=1.0)],
        [record("sgd", 1, "sgd", landscape={"steps": [], "losses": []})],
    ],
)
def test_missing_fields_leave_gaps_not_errors(tmp_path, records):
    run = run_directory(tmp_path / "run", records, context=None, configuration={})
    assert "</html>" in write_report(run, tmp_path / "page.html").read_text()
    printed(records)


def test_a_long_training_has_a_page_of_less_than_two_megabytes():
    records, steps = long_training()
    assert len(records) == 1200
    page = render_report({"configuration": CONFIGURATION, "context": CONTEXT}, records, steps)
    assert len(page.encode()) < 1_700_000, "and there is room for more"


def test_a_probes_page_begins_with_what_was_trained_and_explains_no_more_than_it_has(tmp_path):
    run = probed_run(tmp_path / "run", steps=steps_of(20))
    page = write_report(run, tmp_path / "page.html").read_text()
    assert page == write_report(run, tmp_path / "again.html").read_text()
    assert "<h1>Net, trained by SGD</h1>" in page
    top = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page.partition("<main>")[0]))
    assert top["Model"] == "Net, 1,200 parameters"
    assert top["Learning rate"] == "0.1, constant"
    assert top["Batch"] == "64 examples"
    assert top["Last measured"] == "step 24 of 100"
    terms = re.findall(r"<dt>(.*?)</dt><dd><code>", page.partition("How to read this")[2])
    assert terms == ["actual / predicted", "critical multiple"]
    assert "Highlight" not in page
    with_directions = probed_run(tmp_path / "other", own(5), steps_of(20))
    more = write_report(with_directions, tmp_path / "more.html").read_text().partition("How to read this")[2]
    more = more.partition("What was run")[0]
    assert "directional sharpness" in more
    assert "clipping" not in more
    assert "†" not in more


def test_a_direction_without_descent_says_so():
    curve = {"steps": [0, 1], "losses": [1, 2], "status": "no descent"}
    records = [record("sgd", 1, "sgd", sharpness=1.0, best_step=0.0, best_decrease=0.0, landscape=curve)]
    (table,) = step_tables(records, "sgd").values()
    assert table.rows == (("sgd", "1.00", "–", "–", "no descent"),)


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UsageError, match="is not a run directory"):
        write_report(tmp_path, tmp_path / "page.html")
    run = run_directory(tmp_path / "run", [])
    (tmp_path / "directory").mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*directory: Is a directory") as error:
        write_report(run, tmp_path / "directory")
    assert str(error.value).isprintable()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["directory", "run"]
