"""What results show of themselves in Python and in a notebook: short, and whatever a user named is text there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stepscope
from stepscope.judging import Finding, Findings
from stepscope.shown import format_number, html_table, text_table
from synthetic_records import HOSTILE

NAMES = ["own SGD", *HOSTILE]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (1.0, "1.00"), (-0.25, "−0.250"), (123.4, "123"), (1.5e-7, "1.50×10⁻⁷"), (-2e9, "−2.00×10⁹")],
)
def test_numbers_are_for_reading(value, text):
    assert format_number(value) == text


def quadratic():
    x = nn.ParameterDict({"w": nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))})
    h = torch.tensor([1.0, 100.0], dtype=torch.float64)
    return stepscope.Objective(x, lambda m, batch: 0.5 * (batch * m["w"] ** 2).sum(), [h], lambda _: 1)


@pytest.fixture(scope="module")
def measured():
    step = {"w": torch.tensor([-1.0, -0.01], dtype=torch.float64)}
    return stepscope.measure(quadratic(), dict.fromkeys(NAMES, step), landscape=True)


def harmless(text):
    return "<script" not in text and "<img" not in text and "<b>" not in text


def test_measurements_are_a_table(measured):
    lines = repr(measured).splitlines()
    assert len(lines) == 1 + len(NAMES)
    assert lines[0].split() == ["sharpness", "correlation", "edge", "ratio", "best", "step", "best", "decrease"]
    assert lines[1].startswith("own SGD ")
    assert "\x1b" not in repr(measured)
    page = measured._repr_html_()
    assert harmless(page)
    assert page.count("<tr>") == 1 + len(NAMES)
    assert isinstance(measured, dict)


def test_one_is_a_line_and_a_table(measured):
    one = measured["own SGD"]
    assert repr(one).startswith("Measurement(loss=804.5, slope=-7, ")
    assert len(repr(one)) < 250
    assert f"<td>{format_number(one.sharpness)}</td>" in one._repr_html_()


def test_an_edge_is_a_line_and_the_losses():
    edge = stepscope.edge(quadratic(), {"w": torch.tensor([-1.0, 0.0], dtype=torch.float64)})
    assert repr(edge).startswith("Edge(status='found', critical_multiple=6, critical_bracket=(")
    assert edge._repr_html_().count("<tr>") == 1 + len(edge.multiples)


def test_a_sweep_is_a_table():
    sweep = stepscope.clip_sweep(quadratic(), fractions=(0.0, 0.5))
    assert repr(sweep).splitlines()[0].split() == ["fraction", "sharpness", "correlation", "best", "decrease"]
    assert sweep._repr_html_().count("<tr>") == 3


def test_an_objective_is_a_line():
    assert repr(quadratic()) == "Objective(ParameterDict, 2 trainable parameters; <lambda> on 1 micro-batch)"


def test_findings_are_paragraphs():
    found = Findings(
        Finding(kind="one_layer", summary=f"One layer: {name}", evidence=name, against="Little.") for name in HOSTILE
    )
    assert repr(found).count("Evidence:") == len(HOSTILE)
    assert "\x1b" not in repr(found)
    page = found._repr_html_()
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("<p><b>One layer: ") == len(HOSTILE)
    assert repr(Findings()) == "no findings"


def test_numbers_go_to_pandas(measured):
    pytest.importorskip("pandas")
    frame = measured.to_pandas()
    assert list(frame.index) == NAMES
    assert frame.loc["own SGD", "sharpness"] == measured["own SGD"].sharpness
    assert "landscape" not in frame


def test_a_table_may_have_no_rows_and_no_headers():
    assert text_table(("a", "b"), []) == "a  b"
    assert html_table((), []) == "<table></table>"
