"""Findings of made records: every kind, every guard, and what must never be said."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import stepscope
from stepscope.cli import main
from stepscope.errors import UsageError
from stepscope.judging import Calibrated, confidence, findings, judge_rate, outlook, trust_ratio
from stepscope.report import write_report
from stepscope.runs import DirectionRecord, RecordedEdge, RunDirectory, StepRecord

HOSTILE = "</script><b>\x1b[31m\u2028"


def training(ratio, *, count=25, steps=100, spread=0.002, lr=0.01):
    """A training whose steps are 1 to `count` times 1%, with a trust ratio near `ratio`.

    Where that is small, its loss stays, and 18 times as much is predicted; else a quarter of 1.8 times comes true.
    """
    size, fall = (0.3, 0.0) if ratio < 0.5 else (0.03, 0.01)
    return [
        StepRecord(
            trajectory="SGD", seed=0, step=n, steps=steps, lr=(lr,), peak_lr=(lr,), batch_loss=2.0 - fall * n,
            batch_slope=-size * (1 + n % 5 / 10), batch_change=-size * (1 + n % 5 / 10) * (ratio + spread * (-1) ** n),
        )
        for n in range(1, count + 1)
    ]  # fmt: skip


GROUNDS = ("straight", "little_ahead", "bent", "thrown_off", "healthy")


@pytest.fixture(autouse=True)
def calibrated(monkeypatch):
    """All verdicts are calibrated, of trainings by SGD."""
    made = Calibrated({"SGD": 90}, {ground: {"20": (97, 98)} for ground in GROUNDS})
    monkeypatch.setattr(confidence, "_calibrated", lambda: made)


@pytest.mark.parametrize(
    ("ratio", "kind"),
    [(0.99, "step_too_short"), (0.9, "healthy"), (0.6, "healthy"), (0.3, "step_too_long"), (-2.0, "step_too_long")],
)
def test_the_trust_ratio_judges_the_rate(ratio, kind):
    first, *others = findings(training(ratio))
    assert (first.kind, others) == (kind, [])
    assert f"{ratio:.3f} of what its gradient predicts" in first.evidence
    assert "23 steps from step 3 to 25" in first.evidence
    assert (first.change is None) == (kind == "healthy")
    assert kind == "healthy" or "now 0.01" in first.change


def test_the_trust_ratio_is_that_of_the_quadratic():
    """T = 1 − ρ/2 with ρ = dᵀHd / (−gᵀd), for each step and so for their sum."""
    hessian = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    x, records = torch.tensor([1.0, 2.0], dtype=torch.float64), []
    slopes, curvatures = 0.0, 0.0
    for step in range(1, 8):
        gradient = hessian @ x
        d = -0.2 * gradient
        slope, curvature = float(gradient @ d), float(d @ hessian @ d)
        change = float((x + d) @ hessian @ (x + d) / 2 - x @ hessian @ x / 2)
        records.append(StepRecord(trajectory="SGD", seed=0, step=step, batch_change=change, batch_slope=slope))
        slopes, curvatures, x = slopes + slope, curvatures + curvature, x + d
    trust = trust_ratio(records)
    assert trust.ratio == pytest.approx(1 - curvatures / -slopes / 2, rel=1e-12)
    assert trust.low <= trust.ratio <= trust.high


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda records: [], "no step was measured on the batch that made it"),
        (
            lambda records: [replace(r, batch_change=None, batch_slope=None) for r in records],
            "no step was measured",
        ),
        (lambda records: [replace(r, batch_change=math.nan) for r in records], "wasn't finite"),
        (lambda records: records[:6], "4 of the 6 measured steps lie between steps 3 and 50"),
        (lambda records: [replace(r, steps=None) for r in records[:4]], "`steps=` tells the probe how long"),
        (lambda records: [replace(r, steps=1000) for r in records], "0 of the 25 measured steps"),
        (lambda records: [replace(r, batch_slope=-r.batch_slope) for r in records], "don't go downhill"),
        (lambda records: [replace(r, batch_change=-r.step / 830) for r in records], "reaches below 0.5: "),
        # Where weights in low precision don't move at all, no change is seen: no step is too long for that.
        (lambda records: [replace(r, batch_change=0.0, batch_noise=0.1) for r in records], "reaches below 0.5: "),
        (lambda records: [replace(r, batch_loss=2.0 + r.step / 20) for r in records], "20% above its start"),
        (lambda records: [*records[:-2], replace(records[-2], batch_change=None), records[-1]], "20% above its start"),
        (lambda records: [replace(r, lr=(r.step / 100,), peak_lr=None) for r in records], "still rising"),
        (
            lambda records: [*records, replace(records[0], step=51, lr=(0.1,)), replace(records[0], step=60)],
            "0 of the 27",
        ),
    ],
)
def test_where_it_cannot_be_told_the_reason_is_said(change, why):
    first, *_ = findings(change(training(0.99)))
    assert (first.kind, first.confidence, first.change) == ("cannot_tell", None, None)
    assert why in first.evidence


def test_small_rates_of_warm_up_and_decay_do_not_count():
    records = training(0.3)
    small = [replace(r, lr=(0.004,), batch_change=r.batch_slope) for r in records]
    mixed = [low if r.step < 15 else r for r, low in zip(records, small, strict=True)]
    assert judge_rate(mixed).evidence.steps == tuple(range(15, 26))
    assert findings(mixed)[0].kind == "step_too_long"


def slow_training(*, ratio=0.9, slope=-0.008, loss=2.0, realized=0.5, steps=100, count=25, floor=10**9):
    """A training whose gradients predict the same fall at each step, a part of which comes true, until a floor."""
    return [
        replace(
            r, batch_slope=slope, batch_change=ratio * slope, batch_loss=loss + slope * realized * min(r.step, floor)
        )
        for r in training(ratio, steps=steps, count=count)
    ]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "step_too_short"),
        ({"slope": -0.04}, "healthy"),  # twice the loss, over the training
        ({"realized": 0.2}, "healthy"),
        ({"floor": 8}, "healthy"),  # a third of the fall comes true, and nothing of its later half
        ({"ratio": 0.8}, "healthy"),
        ({"ratio": 0.98, "slope": -0.04}, "step_too_short"),
        ({"ratio": 0.98, "slope": -0.04, "floor": 8}, "cannot_tell"),
        ({"ratio": 0.98, "realized": 0.05}, "step_too_short"),
        ({"ratio": 0.98, "slope": -0.04, "realized": 0.05}, "cannot_tell"),
        ({"ratio": 0.4}, "cannot_tell"),
        ({"ratio": 0.4, "slope": -0.3, "realized": 0.0}, "step_too_long"),  # 15 times the loss
        ({"ratio": 0.4, "slope": -0.3, "realized": 0.1}, "cannot_tell"),
        ({"ratio": 0.2, "slope": -0.3, "realized": 0.1}, "step_too_long"),
        ({"slope": -2.1, "realized": 0.03}, "step_too_long"),  # more than all of the loss, of each step
        ({"slope": -1.8, "realized": 0.03}, "healthy"),
        ({"ratio": 0.98, "slope": -0.3, "realized": 0.2}, "cannot_tell"),  # much is predicted
        ({"ratio": 0.2, "slope": -0.08, "realized": 0.0}, "cannot_tell"),
        ({"realized": -3.0}, "cannot_tell"),  # a risen loss
        ({"realized": -20.0}, "cannot_tell"),
        ({"ratio": 0.6, "slope": -0.3, "realized": 0.015}, "step_too_long"),  # one and a half steps, of a hundred
        ({"ratio": 0.6, "slope": -0.3, "realized": 0.015, "steps": 200}, "healthy"),  # three of two hundred
        ({"ratio": 0.75, "slope": -0.3, "realized": 0.015}, "healthy"),
        ({"loss": 0.1}, "healthy"),
        ({"loss": -2.0}, "cannot_tell"),  # of such a loss no multiple says anything
        ({"loss": 200.0}, "step_too_short"),  # what speaks against it says so
        ({"count": 9}, "step_too_short"),
        ({"steps": None}, "healthy"),  # a training that has just begun comes to little
        ({"steps": None, "ratio": 0.98, "realized": 0.05}, "cannot_tell"),
        ({"steps": None, "ratio": 0.98}, "step_too_short"),
        ({"steps": 450, "count": 135}, "healthy"),  # as many more steps come to more than the loss
    ],
)
def test_what_all_steps_come_to_is_asked_too(options, kind):
    assert findings(slow_training(**options))[0].kind == kind


@pytest.mark.parametrize(
    ("realized", "said"),
    [
        (0.5, "by 0.398 times itself, of which 0.5 came true, of the later half 0.5. Too small is said above 0.83"),
        (0.1, "by 0.396 times itself, of which 0.1 came true: what 10 steps are predicted to bring. "),
        (-0.5, "by 0.394 times itself, of which nothing came true. "),
        (2.0, "by 0.406 times itself, of which all came true, of the later half all. "),
    ],
)
def test_the_evidence_says_what_came_true(realized, said):
    assert said in findings(slow_training(realized=realized))[0].evidence


def test_the_outlook_of_a_quadratic_is_that_of_its_closed_form():
    """Gradient descent on x²/2: −gᵀd = ηx², and the loss has fallen by 1 − η/2 of their sum."""
    x, rate, records = 3.0, 0.05, []
    for step in range(1, 41):
        slope, loss = -rate * x * x, x * x / 2
        x -= rate * x
        terms = {"batch_loss": loss, "batch_slope": slope, "batch_change": x * x / 2 - loss}
        records.append(StepRecord(trajectory="SGD", seed=0, step=step, steps=60, **terms))
    seen = outlook(records)
    kept, first = (1 - rate) ** 2, records[2].batch_loss
    slopes = [2 * rate * records[0].batch_loss * kept**n for n in range(40)]
    whole = sum(slopes) - (slopes[0] + slopes[-1]) / 2 + 20 * slopes[-1]
    assert seen.predicted == pytest.approx(whole / first, rel=1e-12)
    by_rule = sum(slopes[2:38]) - (slopes[2] + slopes[37]) / 2
    assert seen.realized == pytest.approx((1 - rate / 2) * sum(slopes[2:37]) / by_rule, rel=1e-12)
    assert seen.worth == pytest.approx(60 * seen.realized, rel=1e-12)
    sums = [sum(slopes[: n + 1]) - (slopes[0] + slopes[n]) / 2 for n in range(40)]
    half = next(n for n in range(40) if sums[n] >= sums[-1] / 2)
    by_rule = sum(slopes[half:38]) - (slopes[half] + slopes[37]) / 2
    assert seen.late == pytest.approx((1 - rate / 2) * sum(slopes[half:37]) / by_rule, rel=1e-9)


def test_while_a_training_goes_on_the_steps_so_far_count_as_its_length():
    records = [replace(r, steps=None) for r in training(0.99, count=100)]
    assert judge_rate(records[:50]).evidence.steps == tuple(range(2, 26))
    assert judge_rate(records).evidence.steps == tuple(range(3, 51))
    # A loss that falls as it does here lets no doubt rise.
    assert findings(records[:50])[0].kind == findings(records)[0].kind == "step_too_short"


RATIOS = st.lists(st.floats(-2.0, 2.0).map(lambda ratio: round(ratio, 9)), min_size=5, max_size=25)


@given(RATIOS, st.sampled_from([2.0**-20, 2.0, 2.0**10]))
def test_units_of_the_loss_change_nothing(ratios, unit):
    records = [replace(r, batch_change=q * r.batch_slope) for r, q in zip(training(1.0), ratios, strict=False)]
    scaled = [
        replace(r, batch_loss=unit * r.batch_loss, batch_change=unit * r.batch_change, batch_slope=unit * r.batch_slope)
        for r in records
    ]
    assert judge_rate(scaled) == judge_rate(records)


def test_slopes_that_add_up_to_more_than_a_number_holds_are_judged():
    records, unit = training(0.3), 2.0**1023
    scaled = [replace(r, batch_change=unit * r.batch_change, batch_slope=unit * r.batch_slope) for r in records]
    assert judge_rate(scaled).evidence.trust == judge_rate(records).evidence.trust


@given(RATIOS)
def test_steps_that_are_flipped_about_the_minimum_never_get_the_same_verdict(ratios):
    """A ratio of q becomes 1 − q: what was short can't be short any more, and what was long not long."""
    records = [replace(r, batch_change=q * r.batch_slope) for r, q in zip(training(1.0), ratios, strict=False)]
    flipped = [replace(r, batch_change=r.batch_slope - r.batch_change) for r in records]
    verdicts = judge_rate(records).kind, judge_rate(flipped).kind
    assert verdicts[0] != verdicts[1] or verdicts[0] in ("healthy", "cannot_tell")


@given(st.permutations(range(1, 26)), st.floats(0.0, 1.2))
def test_the_order_of_the_steps_decides_nothing_but_rounding(order, ratio):
    records = training(ratio)
    whole, mixed = trust_ratio(records), trust_ratio([records[n - 1] for n in order])
    assert mixed.ratio == pytest.approx(whole.ratio)
    assert mixed.low == pytest.approx(whole.low, abs=0.003)


def test_confidence_is_counted_by_verdict_and_number_of_steps(monkeypatch):
    short = {"5": (39, 39), "10": (20, 29), "20": (97, 98)}
    made = Calibrated({"SGD": 30, "AdamW": 29}, {"straight": short, "bent": {"5": (9, 9), "20": (20, 20)}})
    monkeypatch.setattr(confidence, "_calibrated", lambda: made)
    assert findings(training(0.99))[0].confidence == 0.98
    assert "right in 98% of the calibration's cases" in str(findings(training(0.99)))
    assert findings(training(0.99, count=10))[0].confidence == 40 / 41
    # Said too rarely with so few steps: all count.
    assert findings(training(0.99, count=15))[0].confidence == (39 + 20 + 97 + 1) / (39 + 29 + 98 + 2)


@pytest.mark.parametrize(
    ("ratio", "optimizer", "said"),
    [
        (0.3, "SGD", "at least three times too large, but in the calibration that was said 29 times, fewer than 30"),
        (0.99, "AdamW", "at least three times too small, but the calibration has too few trainings by AdamW"),
        (
            0.9,
            "Adan",
            "but the calibration has too few trainings by Adan",
        ),
        # Muon was tried with another.
        (0.99, "Muon + SGD", "too few trainings by Muon with SGD"),
    ],
)
def test_a_verdict_that_is_not_calibrated_is_not_said(ratio, optimizer, said, monkeypatch):
    verdicts = {"straight": {"20": (97, 98)}, "bent": {"20": (29, 29)}}
    made = Calibrated({"SGD": 30, "AdamW": 29, "Muon + Lion": 30}, verdicts)
    monkeypatch.setattr(confidence, "_calibrated", lambda: made)
    first, *_ = findings([replace(step, trajectory=optimizer) for step in training(ratio)])
    assert (first.kind, first.confidence, first.change) == ("cannot_tell", None, None)
    assert said in first.evidence
    assert f"{ratio:.3f} of what its gradient predicts" in first.evidence


def test_adam_is_calibrated_where_adamw_is(monkeypatch):
    made = Calibrated({"AdamW": 30}, {"straight": {"20": (97, 98)}})
    monkeypatch.setattr(confidence, "_calibrated", lambda: made)
    assert findings([replace(step, trajectory="Adam") for step in training(0.99)])[0].confidence == 0.98


@pytest.mark.parametrize(
    ("spread", "noise", "kind", "peaks", "against"),
    [
        # By turns on both sides of a threshold: the interval reaches past it.
        (lambda r: -0.9 - 0.15 * (r.step % 2), 0.0, "small", "0.03", "5 of these rates were the best, and 0"),
        (lambda r: -0.3 - 0.35 * (r.step % 2), 0.0, "large", "0.0033", "4 of these rates were the best, and 1"),
        (lambda r: -8.0 * (r.step % 8 == 0), 0.0, "", None, "more measured steps may tell"),  # past both
        (lambda r: 0.0, 3.5, "", None, "more measured steps may tell"),  # weights that didn't move
        (lambda r: -0.501, 2.3, "", None, "more measured steps may tell"),  # past the upper one by rounding alone
    ],
)
def test_near_a_verdict_it_is_told_where_such_rates_were(spread, noise, kind, peaks, against, monkeypatch):
    near = {"step_too_short": (35, 5, 0), "step_too_long": (1, 4, 32)}
    made = Calibrated({"SGD": 30}, {}, near)
    monkeypatch.setattr(confidence, "_calibrated", lambda: made)
    unit = 0.05 if kind == "small" else 1.0
    steps = [
        replace(r, batch_slope=-unit, batch_change=unit * spread(r), batch_noise=noise, batch_loss=2.0 - r.step / 20)
        for r in training(1.0)
    ]
    first, *_ = findings(steps)
    assert (first.kind, first.confidence) == ("cannot_tell", None)
    assert first.against.startswith(against)
    assert first.summary.partition("; ")[2] == (f"it may be too {kind}" if kind else "")
    assert first.change == (peaks and f"a peak rate of {peaks} (now 0.01)")
    # With as much predicted as no such verdict would allow, as of a training that has collapsed, nothing is said.
    other = [replace(r, batch_loss=(100.0 if unit == 1 else 0.1) * r.batch_loss) for r in steps]
    assert "may be" not in findings(other)[0].summary
    monkeypatch.setattr(confidence, "_calibrated", lambda: replace(made, trainings={"AdamW": 30}))
    assert findings(steps)[0].change is None


def test_each_stored_confidence_is_a_count():
    stored = Calibrated(**json.loads(Path(confidence.__file__).with_name(confidence.FILE).read_text()))
    assert set(stored.verdicts) == set(GROUNDS)
    for bins in stored.verdicts.values():
        assert all(int(least) in confidence.PROBES and 0 <= right <= said for least, (right, said) in bins.items())
    assert all(count % 9 == 0 for count in stored.trainings.values())
    assert set(stored.near) == {"step_too_short", "step_too_long"}
    assert all(len(counts) == 3 for counts in stored.near.values())


# What describes


def edge(multiple=None, change=None):
    return {"evaluation": RecordedEdge(loss=1.0, multiples=(), losses=(), critical_multiple=multiple, realized_change=change)}  # noqa: E501  # fmt: skip


def direction(label, step, **values):
    return DirectionRecord(trajectory="SGD", seed=0, step=step, direction=label, **values)


def clipped(gain, sharpness):
    for step in range(4):
        yield direction("own SGD", step, sharpness=1.0, best_decrease=1.0)
        yield direction("own SGD clip 10%", step, sharpness=sharpness, best_decrease=gain)


def in_layers(part):
    for step in range(4):
        layers = {HOSTILE: part, "a": 0.1, "b": 0.1, "c": 0.8 - part}
        yield direction("own SGD", step, sharpness=1.0, layers=layers)


@pytest.mark.parametrize(
    ("records", "kind", "said"),
    [
        ([replace(r, edges=edge(1.1)) for r in training(0.9)], "at_the_edge", "1.1 times as long"),
        ([replace(r, edges=edge(2.5)) for r in training(0.9)], None, ""),
        ([replace(r, edges=edge(None)) for r in training(0.9)], None, ""),
        ([replace(r, edges=edge(None, 0.1)) for r in training(0.9)], "noise_limited", "at 25 of 25 measured steps"),
        ([replace(r, edges=edge(None, -0.1)) for r in training(0.9)], None, ""),
        ([replace(r, batch_slope=0.1) for r in training(0.9)], "poorly_aligned", "at 25 of 25"),
        ([replace(r, batch_slope=0.0) for r in training(0.9)], None, ""),
        (list(clipped(2.0, 0.4)), "few_coordinates", "by a median factor of 2"),
        (list(clipped(2.0, 0.9)), None, ""),
        (list(clipped(0.9, 0.4)), None, ""),
        (list(in_layers(0.7)), "one_layer", "a median of 70%, more than half at 4 of 4"),
        (list(in_layers(0.3)), None, ""),
    ],
)
def test_what_describes_gives_no_verdict(records, kind, said):
    _, *described = findings(records)
    assert [finding.kind for finding in described] == ([kind] if kind else [])
    assert all(said in finding.summary + finding.evidence and finding.confidence is None for finding in described)


def test_the_measured_best_clip_is_the_line_to_try():
    more = [direction("own SGD clip 50%", step, sharpness=0.2, best_decrease=3.0) for step in range(4)]
    assert findings([*clipped(2.0, 0.4), *more])[1].change == "stepscope.clip_optimizer(optimizer, 0.5)"


def test_at_most_three_are_said():
    records = [replace(r, batch_slope=0.1, edges=edge(1.1)) for r in training(0.9)]
    assert [f.kind for f in findings([*records, *clipped(2.0, 0.4)])] == [
        "cannot_tell",
        "poorly_aligned",
        "at_the_edge",
    ]


# Where they are shown


def stored(path, records, directions=()):
    with RunDirectory.open(path, DirectionRecord, {"experiment": "probe"}) as run:
        run.append(list(directions))
    (path / "steps.jsonl").write_text("".join(json.dumps(record.as_json()) + "\n" for record in records))
    return path


def test_a_run_directory_has_the_findings_of_its_records(tmp_path):
    records = [*training(0.99), replace(training(0.3)[-1])]  # measured again: counts once
    assert findings(stored(tmp_path / "run", records)) == findings(records)
    with pytest.raises(UsageError, match="not a run directory"):
        findings(tmp_path)


def test_the_command_line_prints_them_as_text_and_as_json(tmp_path, capsys):
    run = stored(tmp_path / "run", training(0.3), in_layers(0.7))
    for arguments in (["findings", str(run)], ["findings", str(run), "--json"]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
    text, _, listed = capsys.readouterr().out.partition("[\n")
    assert text.startswith("The learning rate is probably at least three times too large (")
    assert "\n  Try:      a peak rate of 0.0033, then 0.001 (now 0.01)" in text
    assert "\x1b" not in text
    assert [finding["kind"] for finding in json.loads("[" + listed)] == ["step_too_long", "one_layer"]


def test_the_page_opens_with_them_and_escapes_names(tmp_path):
    pytest.importorskip("altair")
    page = write_report(stored(tmp_path / "run", training(0.99), in_layers(0.7)), tmp_path / "page.html").read_text()
    assert page.index("at least three times too small") < page.index("What was run")
    assert "most of the step&#39;s sharpness: &lt;/script&gt;&lt;b&gt;" in page
    steps_alone = write_report(stored(tmp_path / "steps", training(0.99)), tmp_path / "page.html").read_text()
    assert "at least three times too small" in steps_alone
    assert "Nothing measured yet" not in steps_alone
    assert "Self-check" not in steps_alone


def test_a_probe_has_findings_of_its_own_steps_and_shows_them_on_its_page(tmp_path):
    pytest.importorskip("altair")
    model, batch = nn.Linear(2, 1), torch.ones(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    given = {"steps": 100, "max_overhead": None, "quiet": True}
    with stepscope.Probe(model, optimizer, lambda m, b: m(b).square().mean(), [batch], **given) as probe:
        for _ in range(100):
            with probe.batch(batch):
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()
    assert stepscope.findings(probe) == probe.findings()
    assert probe.findings()[0].kind == "step_too_short"
    page = probe.report(tmp_path / "page.html").read_text()
    assert probe.findings()[0].evidence in page
    assert "Self-check, before the first full measurement. Two evaluations of the loss differ by 0.00." in page


@pytest.mark.parametrize("lost", [math.inf, math.nan, None])
def test_a_step_that_ends_where_the_loss_is_not_finite_is_too_long(lost):
    records = training(0.99)
    thrown = [*records[:-1], replace(records[-1], batch_change=lost)]
    gone = replace(records[-1], step=60, batch_loss=None, batch_change=None, batch_slope=0.0)
    for seen in (thrown, [*thrown, gone], [thrown[-1]]):
        first, *_ = findings(seen)
        assert (first.kind, first.change) == ("step_too_long", "a peak rate of 0.0033, then 0.001 (now 0.01)")
        assert first.evidence.startswith("from step 25 on the loss wasn't finite")
    # The training went on as if nothing had been; the gradient wasn't finite, or the loss before.
    recovered = [*thrown, replace(records[-1], step=60)]
    for seen in (recovered, [*records[:-1], gone], [*records[:-1], replace(gone, batch_slope=math.nan)]):
        assert findings(seen)[0].kind == "cannot_tell"
    assert "aren't finite" in findings([*records[:-1], gone])[0].against


@pytest.mark.parametrize(
    ("factor", "slope", "kind"),
    [(1.2, -0.1, "cannot_tell"), (3.0, -0.1, "step_too_long"), (1.0, -2.1, "step_too_long")],
)
def test_a_loss_that_rises_until_it_is_not_finite_is_that_of_a_rate_that_is_too_large(factor, slope, kind):
    """One that isn't finite all of a sudden may have met a damaged example."""
    records = [replace(r, batch_loss=2.0 * factor ** (r.step / 4), batch_slope=slope) for r in training(0.9)[:4]]
    gone = [replace(records[0], step=n, batch_loss=None, batch_change=None, batch_slope=0.0) for n in (5, 6)]
    assert findings([*records, *gone])[0].kind == kind


@given(st.integers(0, 10**6), st.sampled_from([0.3, 1.0, 2.0]))
def test_noise_of_batches_makes_no_rate_too_large(seed, spread):
    """Losses of single examples, at a rate that does nothing."""
    draw = random.Random(seed)
    records = [replace(r, batch_loss=draw.lognormvariate(0, spread)) for r in training(0.99, count=60)]
    still = [replace(r, batch_slope=-1e-6 * r.batch_loss, batch_change=-1e-6 * r.batch_loss) for r in records]
    assert judge_rate(still).kind != "step_too_long"


@pytest.mark.parametrize("ratio", [0.9, 0.99])
def test_a_loss_that_came_to_be_nan_says_that_nothing_is_well(ratio):
    """The step at which it is has a record of nothing else."""
    records = training(ratio)
    lost = replace(records[-1], step=60, batch_loss=None, batch_change=None, batch_slope=0.0)
    first, *_ = findings([*records, lost])
    assert first.kind == "cannot_tell"
    assert "wasn't finite" in first.evidence
    assert "wasn't finite" in findings([records[3], lost])[0].evidence
