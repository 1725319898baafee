"""A chart is a function in one place: with its decorator it is on the page of a run, and in print."""

from __future__ import annotations

import json
import re

from stepscope.paper.report.directions import direction_figures
from stepscope.report import figures, render_report
from stepscope.report.vega import alt, finish, plot
from synthetic_records import synthetic_records


def test_a_chart_is_one_function(monkeypatch):
    monkeypatch.setattr(figures, "CHARTS", list(figures.CHARTS))

    @figures.of_trajectory("toy")
    def toy(records, trajectory):
        return finish(plot([{"x": len(records)}]).mark_bar().encode(alt.X("x:Q")), f"Toy of {trajectory}")

    @figures.of_step("model")
    def toy_of_step(records, trajectory, step):
        return finish(plot([{"x": step}]).mark_bar().encode(alt.X("x:Q")), f"Toy of {trajectory} at {step}")

    records = synthetic_records(trajectories=["sgd"])
    printed = {figure.name: figure.on_page for figure in direction_figures(records)}
    assert [printed[name] for name in ("sgd-toy", "sgd-model-at-step-60", "sgd-model-at-step-120")] == [1, 0, 1]
    page = render_report({}, records)
    specs = json.loads(re.search(r'id="chart-specs">(.*?)</script>', page, flags=re.DOTALL)[1])
    titles = [spec["title"] for spec in specs.values()]
    for title in ("Toy of sgd", "Toy of sgd at 20", "Toy of sgd at 120"):
        assert titles.count(title) == 1
    assert all(f'<div class="chart" id="{place}">' in page for place in specs)
