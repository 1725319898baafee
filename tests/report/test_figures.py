"""A chart is a function in one place: with its decorator it is on the page of a run."""

from __future__ import annotations

import json
import re

from stepscope.report import figures, render_report
from stepscope.report.vega import alt, finish, plot
from synthetic_records import synthetic_records


def test_a_chart_is_one_function(monkeypatch):
    monkeypatch.setattr(figures, "OF_TRAJECTORY", dict(figures.OF_TRAJECTORY))
    monkeypatch.setattr(figures, "OF_STEP", dict(figures.OF_STEP))

    @figures.of_trajectory("toy")
    def toy(records, trajectory):
        return finish(plot([{"x": len(records)}]).mark_bar().encode(alt.X("x:Q")), f"Toy of {trajectory}")

    @figures.of_step("model")
    def toy_of_step(records, trajectory, step):
        return finish(plot([{"x": step}]).mark_bar().encode(alt.X("x:Q")), f"Toy of {trajectory} at {step}")

    page = render_report({}, synthetic_records(trajectories=["sgd"]))
    specs = json.loads(re.search(r'id="chart-specs">(.*?)</script>', page, flags=re.DOTALL)[1])
    titles = [spec["title"] for spec in specs.values()]
    for title in ("Toy of sgd", "Toy of sgd at 20", "Toy of sgd at 120"):
        assert titles.count(title) == 1
    assert all(f'<div class="chart" id="{place}">' in page for place in specs)
