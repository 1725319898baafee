"""Charts of a probe's full measurements: layers, their interaction, slopes and sharpness, and what clipping does."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

pytest.importorskip("altair")

from stepscope import UsageError
from stepscope.report import own_update_charts as charts
from stepscope.report import render_report
from stepscope.report.vega import save, vega_script
from synthetic_records import HOSTILE, record, synthetic_records

EVERY = ("layers_over_steps", "interaction_of_layers", "slope_against_sharpness", "clip_sweep_over_steps")


def rows_with(chart, *fields):
    """The rows of a chart that have all of these fields, as tuples."""
    datasets = chart.to_dict()["datasets"].values()
    return [tuple(row[f] for f in fields) for rows in datasets for row in rows if all(f in row for f in fields)]


def own(step, direction="own SGD", **given):
    return record("SGD", step, direction, **given)


def every(trajectory="SGD", layer="a", step=5, other="sgd"):
    """Records that have all that is drawn."""
    return [
        record(
            trajectory, step + later, name, sharpness=2.0 + place, slope=-1.0, best_decrease=0.5 + place,
            within_layer=-1.0, cross_layer=3.0 + place, layers={layer: 1.0, "b": 1.0 + place},
        )
        for later in (0, 5)
        for place, name in enumerate(("own SGD", "own SGD clip 10%", "own SGD clip 30%", other))
    ]  # fmt: skip


def test_the_map_has_the_parts_of_layers_by_the_sum_of_their_sizes():
    records = [
        own(5, layers={"a": 3.0, "b": -1.0}),
        own(10, layers={"a": 1.0, "b": None, "c": 1.0}),
        own(10, "sgd", layers={"a": 9.0}),
        own(15, layers={"a": 0.0}),
    ]
    chart = charts.layers_over_steps(records, "SGD")
    assert rows_with(chart, "layer", "step", "share") == [
        ("a", [5, 10], [0.75, 0.5]),
        ("b", [5], [-0.25]),
        ("c", [10], [0.5]),
    ]
    assert chart.to_dict()["encoding"]["color"]["scale"]["domain"] == [-0.75, 0.75]


def test_of_many_layers_the_largest_at_any_step_have_a_row():
    names = [f"layer {n}" for n in range(50)]
    records = [own(5, layers=dict.fromkeys(names, 1.0)), own(10, layers={**dict.fromkeys(names, 1.0), "layer 49": 9.0})]
    chart = charts.layers_over_steps(records, "SGD")
    rows = dict(rows_with(chart, "layer", "share"))
    assert len(rows) == charts.MOST_LAYERS
    assert list(rows)[-2:] == ["layer 49", "11 other layers"]
    assert rows["11 other layers"] == pytest.approx([11 / 50, 11 / 58], abs=5e-4)
    assert chart.to_dict()["encoding"]["y"]["scale"]["domain"] == list(rows)


def test_interaction_is_that_of_the_last_step_that_has_it():
    records = [*every(step=5), own(99, sharpness=1.0)]
    chart = charts.interaction_of_layers(records, "SGD")
    assert rows_with(chart, "direction", "sharpness", "within_layer")[0] == ("own SGD", 2.0, -1.0)
    assert chart.to_dict()["title"]["text"] == "Interaction of layers: SGD trajectory, step 10"


def test_gray_lines_are_those_of_the_same_predicted_decrease():
    records = [
        own(5, sharpness=2.0, slope=-4.0),
        own(5, "sgd", sharpness=50.0, slope=-1.0),
        own(5, "up", sharpness=1.0, slope=1.0),
        own(5, "down", sharpness=-1.0, slope=-1.0),
    ]
    chart = charts.slope_against_sharpness(records, "SGD")
    assert rows_with(chart, "direction", "sharpness", "descent", "decrease") == [
        ("own SGD", 2.0, 4.0, 4.0),
        ("sgd", 50.0, 1.0, 0.01),
    ]
    lines = rows_with(chart, "label", "sharpness", "descent", "decrease")
    assert [label for label, *_ in lines if label] == ["0.01", "0.1", "1", "10"]
    for _, sharpness, descent, decrease in lines:
        assert descent**2 / (2 * sharpness) == pytest.approx(decrease, rel=1e-3)
        assert 0.99 <= sharpness <= 101
        assert 0.49 <= descent <= 8.1
    assert "2 of 4 directions don't descend" in chart.to_dict()["title"]["subtitle"][1]


def test_slopes_are_those_of_the_last_step_with_the_optimizers_own_update():
    others = [record("SGD", step, name, sharpness=step, slope=-1.0) for step in (5, 10) for name in ("sgd", "lion")]
    chart = charts.slope_against_sharpness([own(5, sharpness=7.0, slope=-1.0), *others], "SGD")
    assert rows_with(chart, "direction", "sharpness") == [("own SGD", 7.0), ("sgd", 5), ("lion", 5)]
    assert rows_with(charts.slope_against_sharpness(others, "SGD"), "direction", "sharpness") == [
        ("sgd", 10),
        ("lion", 10),
    ]


def test_the_clip_sweep_is_relative_to_the_unclipped_update_of_the_step():
    records = [
        *every(step=5),
        own(20, "own SGD clip 30%", sharpness=9.0, best_decrease=9.0),  # of a step without the unclipped one
        own(5, "own SGD clip 3% (update)", sharpness=9.0, best_decrease=9.0),
        own(5, "other clip 3%", sharpness=9.0, best_decrease=9.0),
        own(10, "own SGD clip 1%", sharpness=-1.0, best_decrease=0.0),
    ]
    chart = charts.clip_sweep_over_steps(records, "SGD")
    rows = {(of, clipped): ratios for of, clipped, _, ratios in rows_with(chart, "of", "clipped", "step", "ratio")}
    assert rows == {
        ("sharpness", 10.0): [1.5, 1.5],
        ("best decrease", 10.0): [3.0, 3.0],
        ("sharpness", 30.0): [2.0, 2.0],
        ("best decrease", 30.0): [5.0, 5.0],
    }
    assert "2 values aren't positive" in chart.to_dict()["title"]["subtitle"][1]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "records",
    [
        [],
        [own(5)],
        [own(5, layers={"a": 1.0}), own(10, layers={"a": 1.0})],
        [own(5, sharpness=1.0, slope=-1.0), own(5, "sgd", sharpness=0.0, slope=-1.0)],
        [own(5, layers={"a": 0.0, "b": 0.0}), own(10, layers={"a": 1.0, "b": None})],
        [own(5, best_decrease=0.5), own(5, "own SGD clip 10%", best_decrease=1.0), own(5, "own SGD clip ..%")],
        every(trajectory="Adam"),
    ],
)
def test_what_was_not_measured_is_said(name, records):
    with pytest.raises(UsageError, match=r"no .* on trajectory 'SGD'"):
        getattr(charts, name)(records, "SGD")


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("evil", [*HOSTILE, "\ud800"])
def test_they_are_vectors_and_closed_to_names_and_to_the_network(name, evil, tmp_path):
    chart = getattr(charts, name)(every(evil, evil, other=evil), evil)
    assert save(chart, tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    page = save(chart, tmp_path / "figure.html").read_text()
    assert page.count("<script>") == page.count("</script>") == 2
    assert "<img" not in page.replace(vega_script(), "")


def test_the_page_of_a_probe_has_those_that_its_records_have_and_no_other_page_has_any():
    def drawn(records):
        page = render_report({}, records)
        text = page.partition('id="chart-specs">')[2].partition("</script>")[0]
        places = list(json.loads(text or "{}"))
        known = [figure.name for figure in charts.own_update_figures(every(), "SGD")]
        return [name for name, place in itertools.product(known, places) if place.endswith(name)]

    assert len(drawn(every())) == 4
    assert drawn([own(5, sharpness=1.0, slope=-1.0, layers={"a": 1.0, "b": 1.0})]) == []
    assert drawn([replace(r, trajectory="SGD") for r in synthetic_records(trajectories=["sgd"])]) == []
