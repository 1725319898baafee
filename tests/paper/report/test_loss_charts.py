"""Figures and page of a convergence experiment: what they draw, and that names from elsewhere do no harm."""

from dataclasses import replace

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from experiment_records import experiment, training
from stepscope import UsageError
from stepscope.paper.experiments.command_lines import EXPERIMENTS
from stepscope.paper.experiments.run_files import render_run, write_figures
from stepscope.paper.report.loss_charts import differences, losses_over_rates, losses_over_steps
from stepscope.report.vega import save
from synthetic_records import run_directory

EVIL = "</script><img src=x onerror=alert(1)>[red]"


@pytest.fixture
def records():
    found = experiment([2.0, 2.1, 2.2], [3.0, 3.1, 3.3])
    for k, rate in enumerate((0.25, 0.5, 1.0)):
        for name in ("sgd", "sgd clip 10%"):
            found += training(name, 99, (6.0, 5.0, 4.0 - k), phase="search", lr=rate)
    found += training("sgd", 99, (6.0, 9.0, None), phase="search", lr=2.0)
    return found


def values(chart):
    """All rows that a chart draws."""
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def test_curves_are_means_over_seeds(records):
    rows = values(losses_over_steps(records, "code"))
    ends = {row["direction"]: row["loss"] for row in rows if row["step"] == 10}
    assert ends == {"sgd": pytest.approx(9.4 / 3, rel=1e-4), "sgd clip 10%": 2.1}  # charts hold five digits


def test_the_search_is_drawn_where_it_trained_to_the_end(records):
    rows = {(row["direction"], row["rate"], row["loss"]) for row in values(losses_over_rates(records, "code"))}
    assert rows == {(name, 0.25 * 2**k, 4.0 - k) for name in ("sgd", "sgd clip 10%") for k in range(3)}


def test_differences_have_their_intervals(records):
    (row,) = [row for row in values(differences(records, "code")) if "pair" in row]
    assert (row["pair"], row["verdict"]) == ("sgd clip 10%", "faster")
    assert row["low"] < row["mean"] < row["high"] < 0


@pytest.mark.parametrize("draw", [losses_over_steps, losses_over_rates, differences])
def test_figures_are_vectors(records, tmp_path, draw):
    assert save(draw(records, "code"), tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(UsageError, match="'poetry'"):
        draw(records, "poetry")


def test_the_page_and_the_terminal_show_the_tables(records, capsys):
    run = {"configuration": {"experiment": "convergence"}, "context": {"tasks": {"code": {"model": {"title": "GPT"}}}}}
    page = render_run(run, records)
    EXPERIMENTS["convergence"].load().show(run, records)
    terminal = capsys.readouterr().out
    for text in (page, terminal):
        for table in EXPERIMENTS["convergence"].load().tables(records):
            assert table.title in text
            assert all(cell in text for row in table.rows for cell in row)
        assert "Of 1 comparisons with the original, 1 are faster" in text
    assert "Convergence: GPT" in page
    assert page.count('<tr data-row="sgd clip 10%">') == 2, "the rows follow the bar"
    assert page.count('<td class="best">') == 1, "the lowest loss stands out"
    assert "A seed draws the same weights" in page, "how to read it"


def test_figures_beside_the_records(records, tmp_path):
    records = [replace(record, task="../../up") for record in records]
    run_directory(tmp_path, records, {}, {"experiment": "convergence"})
    written = write_figures(tmp_path)
    names = ("variants-against-their-originals", "losses-while-training", "losses-against-learning-rates")
    assert [path.name for path in written] == [f"up-{name}.pdf" for name in names]
    assert all(path.parent == tmp_path for path in written)


def test_nothing_finished_is_a_page_that_says_so():
    run = {"configuration": {"experiment": "convergence"}, "context": {}}
    assert "Nothing measured yet" in render_run(run, [])


def test_a_figure_that_cannot_be_written_is_said(records, tmp_path):
    run_directory(tmp_path, records, {}, {"experiment": "convergence"})
    (tmp_path / "code-losses-while-training.pdf").mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        write_figures(tmp_path)
