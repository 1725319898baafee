"""The stored records of the reproduction say what they said when `frozen.json` was written, value by value."""

import json
from pathlib import Path

import pytest

from stepscope.paper.claims import claims_json, claims_table, departures_table, judge, parts_table
from stepscope.paper.report.figures import figures_of, numbers_of, tables_of
from stepscope.paper.runs import read_runs

STORED = Path(__file__).parents[2] / "docs" / "reproduction"
FROZEN = json.loads((Path(__file__).parent / "frozen.json").read_text())
RUNS = {run.name: run for run in read_runs(STORED)}


def as_json(table):
    return {
        "title": table.title,
        "headers": list(table.headers),
        "rows": [list(row) for row in table.rows],
        "note": table.note,
    }


@pytest.fixture(scope="module")
def claims():
    return judge(list(RUNS.values()))


@pytest.mark.parametrize("number", range(12))
def test_each_claim_has_the_same_verdict_and_statistics(claims, number):
    assert json.loads(json.dumps(claims_json(claims)[number])) == FROZEN["claims"][number]


def test_the_tables_of_the_claims_are_the_same(claims):
    assert [as_json(table(claims)) for table in (claims_table, parts_table, departures_table)] == FROZEN["claim tables"]


def test_the_same_runs_are_read():
    assert list(RUNS) == list(FROZEN["runs"])


@pytest.mark.parametrize("name", FROZEN["runs"])
def test_the_tables_numbers_and_figures_of_each_run_are_the_same(name):
    run, frozen = RUNS[name], FROZEN["runs"][name]
    assert {table.name: as_json(table) for table in tables_of(run.experiment, run.records)} == frozen["tables"]
    headers, rows = numbers_of(run.experiment, run.records)
    assert [list(headers), *map(list, rows)] == frozen["numbers"]
    assert [figure.name for figure in figures_of(run.experiment, run.records)] == frozen["figures"]
