"""The stored records of the reproduction say what they said when `frozen.json` was written, value by value."""

import json
from pathlib import Path

import pytest

from stepscope.paper.claims import claims_grid, claims_json, departures_grid, judge, parts_grid
from stepscope.paper.report.figures import figures_of, numbers_of, tables_of
from stepscope.paper.runs import read_runs

STORED = Path(__file__).parents[2] / "docs" / "reproduction"
FROZEN = json.loads((Path(__file__).parent / "frozen.json").read_text())
RUNS = {run.name: run for run in read_runs(STORED)}


def as_json(grid):
    return {
        "title": grid.title,
        "headers": list(grid.headers),
        "rows": [list(row) for row in grid.rows],
        "note": grid.note,
    }


@pytest.fixture(scope="module")
def claims():
    return judge(list(RUNS.values()))


@pytest.mark.parametrize("number", range(12))
def test_each_claim_has_the_same_verdict_and_statistics(claims, number):
    assert json.loads(json.dumps(claims_json(claims)[number])) == FROZEN["claims"][number]


def test_the_tables_of_the_claims_are_the_same(claims):
    assert [as_json(grid(claims)) for grid in (claims_grid, parts_grid, departures_grid)] == FROZEN["claim tables"]


def test_the_same_runs_are_read():
    assert list(RUNS) == list(FROZEN["runs"])


@pytest.mark.parametrize("name", FROZEN["runs"])
def test_the_tables_numbers_and_figures_of_each_run_are_the_same(name):
    run, frozen = RUNS[name], FROZEN["runs"][name]
    assert {table.name: as_json(table.grid) for table in tables_of(run.experiment, run.records)} == frozen["tables"]
    headers, rows = numbers_of(run.experiment, run.records)
    assert [list(headers), *map(list, rows)] == frozen["numbers"]
    assert [figure.name for figure in figures_of(run.experiment, run.records)] == frozen["figures"]
