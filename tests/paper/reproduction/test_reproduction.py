"""A reproduction's tables, figures and page are its records, and nothing that a user named becomes anything else."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from experiment_records import bound, correlation, removal
from stepscope import UsageError
from stepscope.paper.claims import BESIDE
from stepscope.paper.experiments.command_lines import EXPERIMENTS
from stepscope.paper.experiments.run_files import read, read_runs, render_run, write_page
from stepscope.paper.records import AgreementRecord, CorrelationRecord, LossRecord, Rank, SmoothnessRecord
from stepscope.paper.report.directions import direction_figures, direction_tables
from stepscope.paper.report.ladder_charts import ladder_figure
from stepscope.paper.reproduction import reproduction_page as module
from stepscope.paper.reproduction.reproduction_page import write_reproduction
from stepscope.report import Table, file_name, sharpness_rows
from stepscope.report.vega import vega_script
from synthetic_records import (
    CONFIGURATION,
    DIRECTIONS,
    HOSTILE,
    record,
    run_directory,
    synthetic_records,
)
from synthetic_reproduction import CLAIMS, FIGURES, make

STORED = Path(__file__).parents[3] / "docs" / "reproduction"
VERSION_1 = Path(__file__).parents[1] / "version_1"


def test_everything_is_written_where_it_is_said(made):
    path, _, written, _ = made
    assert len(set(written)) == len(written)
    assert written[-1] == path / "report.html"
    on_disk = {file for folder in ("tables", "figures") for file in (path / folder).iterdir()}
    assert on_disk == set(written[:-1])
    assert all(file.read_bytes().startswith(b"%PDF") for file in written if file.suffix == ".pdf")
    names = {file.name for file in written}
    for each in (
        "claims.tex", "trajectory-code-sharpness-sgd.tex", "trajectory-code-decrease-sgd.csv",
        "trajectory-code-concentration-sgd-step-60.csv", "convergence-losses.tex", "convergence-verdicts.csv",
        "robustness-robust-smoothness.tex", "trajectory-code-sgd-magnitudes-at-step-20.pdf",
        "trajectory-code-sgd-landscape-without-Adafactor-at-step-20.pdf", "convergence-code-losses-while-training.pdf",
        "trajectory-code-sgd-landscape-around-the-minimum-of-sgd-at-step-60.pdf",
        "robustness-sgd-robust-smoothness.pdf",
    ):  # fmt: skip
        assert each in names, each
    assert not any("images" in name for name in names), "nothing of a run that has not begun"


def test_progress_goes_forward_to_the_end(made):
    told = made[3]
    parts = [part for part, _ in told]
    assert parts == sorted(parts)
    assert (parts[0], parts[-1], told[-1][1]) == (0.0, 1.0, "report.html")
    assert any("trajectory-code" in what for _, what in told)


def test_numbers_are_those_of_the_table(made):
    path, records, *_ = made
    with (path / "tables" / "trajectory-code-numbers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = sharpness_rows(records, "sgd")
    assert [(row["step"], row["direction"]) for row in rows] == [(str(row.step), row.direction) for row in expected]
    assert [float(row["mean"]) for row in rows] == [row.sharpness for row in expected]
    assert [float(row["spread"]) for row in rows] == [row.sharpness_spread for row in expected]
    with (path / "tables" / "convergence-numbers.csv").open(newline="") as file:
        losses = [(row["optimizer"], row["seed"], float(row["loss"])) for row in csv.DictReader(file)]
    assert losses[3:] == [("sgd clip 10%", str(seed), loss) for seed, loss in enumerate((2.0, 2.1, 2.2))]


def test_the_page_shows_claims_runs_and_charts_and_links_to_the_files(made):
    page = (made[0] / "report.html").read_text()
    assert page.index("C1 SGD is the sharpest") < page.index('id="run-trajectory-code"')
    places = re.findall(r'<section id="run-([\w-]+)"', page)
    assert places == ["trajectory-code", "trajectory-images", "convergence", "robustness"], "in the paper's order"
    assert "Nothing has been measured yet." in page
    assert "Of 1 comparisons with the original, 1 are faster" in page
    specs = json.loads(re.search(r'id="chart-specs">(.*?)</script>', page, flags=re.DOTALL)[1])
    # The ladder; landscape, sharpness, decrease, magnitudes and concentration of the last step; two of losses; one of
    # smoothness.
    assert len(specs) == 1 + 5 + 2 + 1
    assert sorted(specs) == sorted(re.findall(r'class="chart" id="([\w-]+)"', page))
    assert page.count('<tr data-row="adam">') == 3
    links = re.findall(r'href="([^"]*)"', page)
    assert sum(link.startswith("figures/") for link in links) == sum(f.suffix == ".pdf" for f in made[2])
    assert all((made[0] / unquote(link)).is_file() for link in links if not link.startswith("#"))
    assert {unquote(link) for link in links} >= {str(f.relative_to(made[0])) for f in made[2][:-1]}


def test_the_page_asks_for_nothing_from_elsewhere(made):
    page = (made[0] / "report.html").read_text()
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"<link|<iframe|<img|\ssrc=|url\(|@import|//", markup)
    assert not re.search(r'href="(?!#|figures/|tables/)', markup)
    specs = re.search(r'id="chart-specs">(.*?)</script>', page, flags=re.DOTALL)[1]
    assert "//" not in specs.replace("https://vega.github.io/schema/", "")
    assert page.count(vega_script()) == 1


def test_nothing_that_a_user_named_becomes_markup_or_a_path(tmp_path):
    records = [
        record(
            trajectory, 20, name, loss=1.0, sharpness=1.0 + place, correlation=-0.5, best_step=1.0, best_decrease=0.5,
            landscape={"steps": [0, 1, 2], "losses": [1.0, 0.5, 3.0], "status": name},
        )
        for trajectory in ("../../sgd", HOSTILE[1])
        for place, name in enumerate(["sgd", *HOSTILE])
    ]  # fmt: skip
    context = {"source": {"title": HOSTILE[0], HOSTILE[1]: HOSTILE[0]}, "model": {"title": HOSTILE[1]}}
    out = tmp_path / "in" / "out"
    run_directory(out / "<img src=x>", records, context, {"experiment": HOSTILE[1], "scale": HOSTILE[1]})
    removals = [removal(HOSTILE[1], 4.0, 3.0, trajectory=HOSTILE[1])]
    run_directory(out / "robustness", removals, context, {"experiment": "robustness", "scale": "cpu"})
    claims = [Table(HOSTILE[1], (HOSTILE[1], HOSTILE[0]), ((HOSTILE[1], HOSTILE[0]),), HOSTILE[1])]
    written = write_reproduction(out, read_runs(out), claims)
    page = written[-1].read_text().replace(vega_script(), "")
    assert page.count("<script") == page.count("</script>") == 5
    assert "<img" not in page
    assert len([file for file in written if file.suffix == ".pdf"]) > 8
    assert all(file.parent.parent == out for file in written[:-1])
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]
    assert [entry.name for entry in (tmp_path / "in").iterdir()] == ["out"]


def test_names_of_files_differ_where_names_do():
    records = [record("sgd", 1, "a", landscape=None), record("sgd!", 1, "a"), record("SGD?", 1, "a")]
    names = [figure.name.lower() for figure in direction_figures(records)]
    assert len(set(names)) == len(names)
    assert len(names) == 3 * len(direction_figures(records[:1]))
    tables = direction_tables([replace(each, sharpness=1.0) for each in records])
    assert [table.name for table in tables] == ["sharpness-sgd", "sharpness-sgd-2", "sharpness-SGD-3"]
    assert Path(file_name("../..", "a/b\\c", "é")).name == "a-b-c"


def test_only_what_stands_for_itself_is_on_the_page():
    """The last step's landscape of each trajectory, every step's as files, and Adafactor left out where it is."""
    figures = direction_figures(synthetic_records(steps=(1, 2, 3)))
    shown = [figure.title for figure in figures if figure.on_page and "landscape" in figure.title]
    assert shown == ["landscape at step 3, sgd trajectory", "landscape at step 3, adam trajectory"]
    assert sum("without Adafactor" in figure.title for figure in figures) == 6
    left_out = next(figure for figure in figures if "without Adafactor" in figure.title).draw().to_dict()
    drawn = {row.get("direction") for rows in left_out["datasets"].values() for row in rows} - {None}
    assert drawn == {name for name in DIRECTIONS if not name.startswith("adafactor")}
    others = direction_figures([each for each in synthetic_records(steps=(1,)) if each.direction == "sgd"])
    assert [f.specification() is None for f in others if "landscape" in f.title] == 2 * [False, True, False]


def test_the_figures_of_evidence_are_on_the_page_of_a_single_run():
    records = [correlation("code, all", seed, 0.2, 0.4) for seed in range(3)]
    page = render_run({"configuration": {"experiment": "theory"}, "context": {}}, records)
    assert page.count('class="chart"') == 1
    assert "lie wholly above 0" in page


PLACE = {"trajectory": "sgd", "seed": 0, "step": 1}
LEAST = [
    ("a probe", record("sgd", 1, "sgd")),
    ("trajectory", record("sgd", 1, "sgd")),
    ("agreement", AgreementRecord(run="code", task="code", direction="sgd", **PLACE)),
    ("convergence", LossRecord(run="one", task="code", optimizer="sgd", phase="final", lr=0.1, seed=0, step=1)),
    ("robustness", SmoothnessRecord(batch=0, group="all", cut=4.0, **PLACE)),
    ("theory", CorrelationRecord(group="code, all", diagonal=Rank(), row_norm=Rank(), **PLACE)),
    ("theory", bound(0, clipped=None, plain=None)),
    ("factors", record("sgd", 1, "sgd")),
]


def test_every_experiment_is_among_those_with_the_least_fields():
    assert {kind for kind, _ in LEAST} == {"a probe", *EXPERIMENTS}


@pytest.mark.parametrize(("kind", "least"), LEAST)
def test_missing_fields_leave_gaps_not_errors(tmp_path, kind, least):
    run_directory(tmp_path / "run", [least], None, {"experiment": kind})
    assert "</html>" in write_reproduction(tmp_path, read_runs(tmp_path))[-1].read_text()


@pytest.mark.parametrize("name", ["agreement", "robustness", "theory"])
def test_a_stored_run_of_version_1_is_read_and_has_a_page(tmp_path, name):
    """The tables have the stored numbers, also those whose names have changed since."""
    head, records = read(VERSION_1 / name)
    lines = [json.loads(line) for line in (VERSION_1 / name / "measurements.jsonl").read_text().splitlines()]
    assert (head["schema_version"], len(records)) == (1, len(lines))
    for line, stored in zip(lines, records, strict=True):
        written = stored.as_json()
        assert {stored.renamed.get(key, key): value for key, value in line.items()}.items() <= written.items()
    page = write_page(VERSION_1 / name, tmp_path / "page.html").read_text()
    assert all(
        cell in page for table in EXPERIMENTS[name].load().tables(records) for row in table.rows[:1] for cell in row
    )


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        write_reproduction(tmp_path, read_runs(tmp_path))
    run_directory(tmp_path / "code!", [])
    run_directory(tmp_path / "Code?", [], configuration={**CONFIGURATION, "scale": "smoke"})
    with pytest.raises(UsageError, match="would write the same files: rename one"):
        write_reproduction(tmp_path, read_runs(tmp_path))


def test_a_run_that_would_take_the_place_of_the_claims_is_refused(tmp_path):
    run_directory(tmp_path / "Claims", synthetic_records(steps=(1,)))
    with pytest.raises(UsageError, match="the run 'Claims' would write the files of the claims: rename it"):
        write_reproduction(tmp_path, read_runs(tmp_path), figures=FIGURES)


def test_what_is_no_run_or_a_copy_of_one_is_left_out_with_a_warning(tmp_path, caplog):
    make(tmp_path)
    names = [run.name for run in read_runs(tmp_path)]
    shutil.copytree(tmp_path / "convergence", tmp_path / "copy of convergence")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "run.json").write_text("{}")
    assert [run.name for run in read_runs(tmp_path)] == names
    assert "copy of convergence is left out: it is the same run as convergence" in caplog.text
    assert "foreign is left out: " in caplog.text


def test_what_a_run_left_goes_when_the_run_does_and_nothing_else(made, tmp_path):
    path, _, written, _ = made
    out = shutil.copytree(path, tmp_path / "out")
    before = {out / file.relative_to(path) for file in written}
    (out / "tables" / "mine.csv").write_text("a")
    shutil.rmtree(out / "robustness")
    after = set(write_reproduction(out, read_runs(out), CLAIMS, figures=FIGURES))
    gone = before - after
    assert gone
    assert all(file.name.startswith("robustness") and not file.exists() for file in gone)
    assert all(file.exists() for file in (*after, out / "tables" / "mine.csv"))
    assert all(
        file.read_bytes() == (path / "tables" / file.name).read_bytes() for file in after if file.suffix == ".csv"
    )


def test_figures_are_left_to_an_option_and_said(made, tmp_path):
    """The page shows the same charts, and there are the same tables."""
    make(tmp_path)
    files = write_reproduction(tmp_path, read_runs(tmp_path), CLAIMS, draw=False, figures=FIGURES)
    page, whole = files[-1].read_text(), (made[0] / "report.html").read_text()
    assert [file.name for file in files] == [file.name for file in made[2] if file.suffix != ".pdf"]
    assert not (tmp_path / "figures").exists()
    assert 'href="figures/' not in page
    assert ("report --figures" in page, "report --figures" in whole) == (True, False)
    charts = re.compile(r'id="chart-specs">(.*?)</script>', flags=re.DOTALL)
    assert charts.findall(page) == charts.findall(whole)


def test_a_figure_that_was_drawn_before_stays_unless_its_records_are_newer(made, tmp_path):
    path, _, written, _ = made
    out = shutil.copytree(path, tmp_path / "out")  # with the times of the files
    mine = out / "figures" / "mine.pdf"
    mine.write_bytes(b"%PDF")
    kept = write_reproduction(out, read_runs(out), CLAIMS, draw=False, figures=FIGURES)
    assert {file.relative_to(out) for file in kept} == {file.relative_to(path) for file in written}
    assert (out / "report.html").read_bytes() == (path / "report.html").read_bytes()
    (out / "trajectory-code" / "measurements.jsonl").touch()
    left = write_reproduction(out, read_runs(out), CLAIMS, draw=False, figures=FIGURES)
    gone = set(kept) - set(left)
    assert out / "figures" / "claims-ladder.pdf" in gone, "it is drawn from all records"
    gone.discard(out / "figures" / "claims-ladder.pdf")
    assert len(gone) > 8
    assert "report --figures" in left[-1].read_text()
    assert all("trajectory-code" in file.name and file.suffix == ".pdf" and not file.exists() for file in gone)
    assert all(file.exists() for file in (*left, mine))


def test_a_figure_of_the_claims_stands_at_the_top_and_goes_when_what_stands_beside_is_newer(tmp_path):
    make(tmp_path)
    (tmp_path / BESIDE).mkdir()
    beside = tmp_path / BESIDE / "larger.json"
    beside.write_text("[]")

    def written(*, draw):
        files = write_reproduction(
            tmp_path, read_runs(tmp_path), CLAIMS, draw=draw, figures=[*FIGURES, ladder_figure([])]
        )
        return [file.name for file in files if "ladder" in file.name], files[-1].read_text()

    drawn, page = written(draw=True)
    assert drawn == ["claims-ladder.pdf"]
    top = page[page.index('id="claims"') : page.index('id="run-')]
    assert 'id="chart-0"' in top
    assert 'href="figures/claims-ladder.pdf"' in top
    assert written(draw=False) == (drawn, page)
    os.utime(beside, ns=(time.time_ns() + 10**9,) * 2)
    assert written(draw=False)[0] == []


def test_no_figure_is_promised_of_which_nothing_was_measured(tmp_path):
    """Of Adam alone there is no landscape without Adafactor, and none around SGD's minimum."""
    run_directory(tmp_path / "run", [each for each in synthetic_records(steps=(1,)) if each.direction == "adam"])
    first, again = (
        write_reproduction(tmp_path, read_runs(tmp_path), draw=draw)[-1].read_text() for draw in (True, False)
    )
    assert again == first


def test_a_figure_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    make(tmp_path)
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(UsageError, match="cannot write"):
        write_reproduction(tmp_path, read_runs(tmp_path))
    assert not (tmp_path / module.PAGE).exists()


def test_runs_are_read_by_name(tmp_path):
    make(tmp_path)
    runs = read_runs(tmp_path)
    assert [run.name for run in runs] == ["convergence", "robustness", "trajectory-code", "trajectory-images"]
    assert (runs[2].experiment, runs[2].task, runs[2].scale) == ("trajectory", "code", "cpu")


def test_the_second_path_has_a_table_and_no_figure(tmp_path):
    """Of several tasks, as the trainings are; its title says which of the two it is."""
    at = {"run": "code", "task": "code", "trajectory": "adam", "seed": 0, "step": 15}
    records = [
        AgreementRecord(**at, direction="sgd", sharpness=2.0, independent=2.000001),
        AgreementRecord(**at, direction="adam", sharpness=-0.5, independent=-0.51),
    ]
    configuration = {"experiment": "agreement", "scale": "cpu"}
    context = {"tasks": {"code": {"model": {"title": "A model"}}}}
    run_directory(tmp_path / "agreement", records, context, configuration)
    files = write_reproduction(tmp_path, read_runs(tmp_path))
    page = (tmp_path / module.PAGE).read_text()
    assert "Agreement: A model" in page
    assert "<td>5e-03</td>" in page
    assert not [path for path in files if path.suffix == ".pdf"]
    (table,) = read_csv(tmp_path / "tables", "agreement")
    assert table[1][:5] == ["code", "15", "2", "5e-03", "adam"]


def read_csv(folder, beginning):
    """The rows of each table whose name begins so."""
    return [list(csv.reader(path.read_text().splitlines())) for path in folder.glob(f"{beginning}*.csv")]
