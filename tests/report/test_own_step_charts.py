"""Charts of the optimizer's own steps: each step has its place, also where it has none on an axis."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chart_rows import all_rows
from probed_runs import EDGE, own, steps_of
from stepscope import UsageError
from stepscope.report.own_step_charts import critical_multiples, losses, own_step_figures, what_came_true
from stepscope.runs import Training


def rows_with(chart, *fields):
    """The rows of a chart that have all of these fields, as tuples."""
    found = [tuple(row[f] for f in fields) for row in all_rows(chart) if all(f in row for f in fields)]
    return list(dict.fromkeys(found))


def at_multiples(*edges):
    steps = steps_of(len(edges))
    return [replace(step, edges={"evaluation": edge}) for step, edge in zip(steps, edges, strict=True)]


def test_where_steps_land_with_brackets_and_nothing_vanishes():
    found = replace(EDGE, critical_multiple=1.5, critical_bracket=(1.4, 1.6))
    beyond = replace(EDGE, critical_multiple=None, critical_bracket=(400.0, None), status="beyond the last")
    uphill = replace(EDGE, critical_multiple=None, critical_bracket=(0.0, 0.125), status="no descent")
    noise = replace(EDGE, critical_multiple=None, critical_bracket=(None, None), status="within noise")
    chart = critical_multiples(at_multiples(found, beyond, uphill, noise, EDGE))
    assert sorted(rows_with(chart, "step", "multiple", "low", "high", "status")) == [
        (5, 1.5, 1.4, 1.6, "found"),
        (6, 400.0, 400.0, 400.0, "beyond all that was tried"),
        (9, 1.5, 1.5, 1.5, "found"),
    ]
    assert rows_with(chart, "step", "row") == [
        (7, "no descent at any length"),
        (8, "within noise"),
    ]
    assert [text for (text,) in rows_with(chart, "text")] == [
        "no descent at any length (1 step)",
        "within noise (1 step)",
    ]
    assert rows_with(chart, "step", "rate") == [(step, 0.1) for step in range(5, 10)], "the learning rate"


def test_a_training_without_any_descent_is_drawn():
    uphill = replace(EDGE, critical_multiple=None, critical_bracket=(0.0, 0.125), status="no descent")
    chart = critical_multiples(at_multiples(uphill, uphill))
    assert "no descent at any length (2 steps)" in json.dumps(chart.to_dict(), allow_nan=False)


def test_what_came_true_and_what_the_verdict_counts():
    steps = steps_of(12, ratio=0.3, length=100)
    steps[0] = replace(steps[0], batch_slope=0.2)
    steps[1] = replace(steps[1], batch_change=None)
    steps[2] = replace(steps[2], batch_change=40.0)
    steps[3] = replace(steps[3], batch_loss=None, batch_slope=None, batch_change=None)
    chart = what_came_true(steps)
    points = rows_with(chart, "step", "part", "shown", "counted")
    assert points[0] == (7, -40.0, -1.0, "yes")
    assert points[1:] == [
        (n, pytest.approx(0.3 + n / 1000), pytest.approx(0.3 + n / 1000), "yes") for n in range(9, 17)
    ]
    assert rows_with(chart, "step", "row") == [
        (5, "no descent: uphill on its own batch"),
        (6, "the loss of the batch isn't finite"),
    ]
    assert chart.to_dict()["title"]["subtitle"][-1].endswith("1 of 9 points beyond it.")
    assert rows_with(what_came_true(steps_of(20)), "from", "to") == [(5, 24)], "the interval of the trust ratio"


def test_the_loss_of_training_and_of_the_evaluation_examples():
    records = [record for step in (5, 20) for record in own(step, loss=2.0)]
    rows = rows_with(losses(steps_of(2), records), "of", "step", "loss")
    assert rows == [
        ("the step's own batch", 5, 2.951),
        ("the step's own batch", 6, 2.9412),
        ("evaluation examples", 5, 2.0),
        ("evaluation examples", 20, 2.0),
    ]


def test_what_was_not_measured_is_said_and_other_trainings_are_left_out():
    bare = [replace(step, edges=None, batch_loss=None, batch_slope=None, batch_change=None) for step in steps_of(2)]
    for draw in (critical_multiples, what_came_true, lambda steps: losses(steps, [])):
        for steps in ([], bare):
            with pytest.raises(UsageError, match="no "):
                draw(steps)
    training = Training({"configuration": {}, "context": {}}, [], steps_of(20))
    assert [figure.specification() is not None for figure in own_step_figures(training, "SGD")] == [True] * 3
    assert [figure.specification() for figure in own_step_figures(training, "Adam")] == [None] * 3
