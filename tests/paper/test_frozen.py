"""What is shown of the stored records of the reproduction is what was shown when `frozen.json` was written.

The verdicts are kept where they are stored, in `docs/reproduction/claims.json`.
"""

import json
from pathlib import Path

import pytest

from stepscope.paper.experiments.command_lines import EXPERIMENTS
from stepscope.paper.experiments.run_files import read_runs

STORED = Path(__file__).parents[2] / "docs" / "reproduction"
FROZEN = json.loads((Path(__file__).parent / "frozen.json").read_text())


def as_json(table):
    return {
        "title": table.title,
        "headers": list(table.headers),
        "rows": [list(row) for row in table.rows],
        "note": table.note,
    }


@pytest.fixture(scope="module")
def runs():
    return {run.name: run for run in read_runs(STORED)}


def test_the_same_runs_are_read(runs):
    assert list(runs) == list(FROZEN["runs"])


@pytest.mark.parametrize("name", FROZEN["runs"])
def test_the_tables_numbers_and_figures_of_each_run_are_the_same(runs, name):
    run, frozen = runs[name], FROZEN["runs"][name]
    kind = EXPERIMENTS[run.experiment].load()
    assert {table.name: as_json(table) for table in kind.tables(run.records)} == frozen["tables"]
    headers, rows = kind.numbers(run.records)
    assert [list(headers), *map(list, rows)] == frozen["numbers"]
    names = [figure.name for figure in kind.figures(run.records)]
    assert [name for name in names if not name.endswith("-overshoot")] == frozen["figures"], (
        "a chart of probes came since"
    )


@pytest.mark.parametrize("name", FROZEN["runs"])
def test_a_chart_of_each_kind_is_valid_and_drawn_as_it_is_when_every_part_is_validated(runs, name):
    pytest.importorskip("altair")
    run = runs[name]
    of_each_kind = {figure.draw.func: figure for figure in EXPERIMENTS[run.experiment].load().figures(run.records)}
    for figure in of_each_kind.values():
        specification = figure.specification()
        assert specification is None or specification == figure.draw().to_dict()
