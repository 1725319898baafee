"""A chart is a function in one place: with its decorator it is on the page of a run, and in print."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace

import pytest

from stepscope import UsageError
from stepscope.paper.report.directions import direction_figures
from stepscope.report import figures, render_report
from stepscope.report.vega import alt, finish, plot, save, vega_script
from synthetic_records import HOSTILE, record, synthetic_records, with_coordinates


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
    assert [titles.count(title) for title in ("Toy of sgd", "Toy of sgd at 20", "Toy of sgd at 120")] == [1, 0, 1]
    assert all(f'<div class="chart" id="{place}">' in page for place in specs)


def drawn(chart, records, trajectory, step):
    return chart.draw(records, trajectory, *(() if chart.of == "trajectory" else (step,)))


EVERY = pytest.mark.parametrize("chart", figures.CHARTS, ids=lambda chart: chart.title)


@EVERY
@pytest.mark.parametrize(
    "records",
    [
        [],
        [record("sgd", 1, "sgd")],
        [record("sgd", 1, "sgd", landscape={"steps": [], "losses": []})],
        [record("sgd", 1, "sgd", landscape={"steps": [0, 1], "losses": [None, 2]})],
        [record("sgd", 1, "sgd", top={"x": {"norm": 1}})],
        [record("sgd", 1, "sgd", magnitudes={"zeros": 9, "lowest": -1, "per_decade": 2, "counts": [0, 0]})],
        with_coordinates(synthetic_records(steps=(1,), trajectories=["adam"])),
    ],
)
def test_what_was_not_measured_is_said(chart, records):
    with pytest.raises(UsageError, match=r"no .* on trajectory 'sgd'"):
        drawn(chart, records, "sgd", 1)


@EVERY
def test_figures_are_vectors_and_closed_to_names_and_to_the_network(chart, tmp_path):
    evil, names = HOSTILE[1], itertools.cycle((*HOSTILE, "\ud800"))
    kept = ("sgd", "adam", "adafactor")
    records = [
        replace(
            each, trajectory=evil, sharpness=abs(each.sharpness),
            direction=each.direction if each.direction in kept else f"own {next(names)}",
        )
        for each in with_coordinates(synthetic_records(seeds=(0, 1), trajectories=["sgd"]))
    ]  # fmt: skip
    figure = drawn(chart, records, evil, 20)
    assert save(figure, tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    page = save(figure, tmp_path / "figure.html").read_text()
    assert page.count("<script>") == page.count("</script>") == 2
    ours = page.replace(vega_script(), "")
    assert "<img" not in ours
    assert "http" not in ours.replace("https://vega.github.io/schema/", ""), "a schema is a name, not a request"


def test_the_script_of_a_page_is_made_once_and_again_where_it_is_damaged(tmp_path, monkeypatch):
    converter, made = pytest.importorskip("vl_convert"), []
    monkeypatch.setattr(converter, "javascript_bundle", lambda **_: (made.append(1), "let é = 1")[1])
    monkeypatch.setenv("STEPSCOPE_CACHE", str(tmp_path / "cache"))
    scripts = [vega_script.__wrapped__(), vega_script.__wrapped__()]
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    scripts.append(vega_script.__wrapped__())
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("STEPSCOPE_CACHE", str(tmp_path / "file"))
    scripts.append(vega_script.__wrapped__())
    assert set(scripts) == {"let é = 1"}
    assert len(made) == 3
