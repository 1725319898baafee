"""The one rule, on a toy claim that is defined in one place."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscope.paper.claims.claims import judge
from stepscope.paper.claims.tables import claims_table, parts_table
from stepscope.paper.claims.verdicts import Claim, Criterion, Sample, needed, whole_seeds
from stepscope.paper.reproduction_runs import Run
from stepscope.paper.statistics import MeanInterval, mean_interval
from stepscope.report import NOTHING
from stepscope.runs import Record


@dataclass(frozen=True, kw_only=True)
class Roll(Record):
    """A roll of a die."""

    seed: int
    step: int
    pips: float | None


def rolls(runs):
    """Two rolls of a die for each seed."""
    for run in runs:
        seeds, remarks = whole_seeds(run, ["step"], [(1,), (2,)], run.records)
        yield Sample(run.name, (run,), {seed: list(own.values()) for seed, own in seeds.items()}, remarks)


def total(records):
    return sum(needed(record.pips, "pips of a roll") for record in records)


TOY = Claim("T1", "Two dice show less than eight.", rolls, (Criterion("<", 8, total, "pips of two dice"),))


def dice(rolled, name="dice", **scale):
    records = [Roll(seed=s, step=k, pips=p) for s, own in rolled.items() for k, p in enumerate(own, 1)]
    head = {"configuration": {"experiment": "dice", "seeds": [0, 1, 2], **scale}}
    return Run(name, head, records)


def test_a_claim_is_a_row_that_is_judged_and_tabled():
    run = dice({0: (3, 1), 1: (1, 2), 2: (3, 2)}, scale="cpu")
    (judged,) = judge([run], [TOY])
    (part,) = judged.parts
    assert (part.values, part.remark, judged.verdict) == ({0: 4, 1: 3, 2: 5}, "", "holds")
    row = ("T1", "Two dice show less than eight.", "holds", "holds", "dice 4 [1.52, 6.48]; 1 of 1 holds", "3")
    assert claims_table([judged]).rows == (row,)
    assert parts_table([judged]).rows == (
        ("T1", "dice", NOTHING, "pips of two dice < 8", "4 [1.52, 6.48]", "3", "cpu", "holds", ""),
    )


@pytest.mark.parametrize(
    ("rolled", "values", "remark"),
    [
        ({}, {}, "not measured; seeds 0, 1, 2 are not finished"),
        ({0: (1, 2), 1: (3,)}, {0: 3}, "one seed; seeds 1, 2 are not finished"),
        ({0: (1, 2), 1: (1, 1), 2: (1,)}, {0: 3, 1: 2}, "seed 2 is not finished"),
        ({0: (1, 2), 1: (1, None), 2: (1, 1)}, {0: 3, 2: 2}, "seed 1 doesn't count: there is no pips of a roll"),
        ({0: (1, 2), 1: (1, None), 2: (None, 3)}, {0: 3}, "one seed; seed 1 doesn't count: there is no pips of a "
         "roll; seed 2 doesn't count: there is no pips of a roll"),
        ({0: (1, 2), 1: (1e308, 1e308), 2: (1, 1)}, {0: 3, 2: 2}, "seed 1 doesn't count: its value is not finite"),
        ({2: (6, 6), 7: (1, 1)}, {2: 12}, "one seed; seeds 0, 1 are not finished"),  # nobody asked for seed 7
        ({0: (6, 6), 1: (1, 1), 2: (2, 2, 5)}, {0: 12, 1: 2, 2: 4}, ""),  # nor for a third roll
    ],
)  # fmt: skip
def test_only_whole_seeds_count_and_the_rest_is_said(rolled, values, remark):
    (part,) = TOY.judge([dice(rolled)]).parts
    assert (part.values, part.remark) == (values, remark)


@pytest.mark.parametrize(
    ("relation", "low", "high", "verdict"),
    [
        ("<", 0.1, 0.4, "holds"), ("<", 0.6, 0.9, "does not hold"), ("<", 0.4, 0.6, "cannot tell"),
        (">", 0.6, 0.9, "holds"), (">", 0.1, 0.4, "does not hold"), (">", 0.4, 0.6, "cannot tell"),
        # What only touches the threshold isn't below or above it; "at most" and "at least" have it on their side.
        ("<", 0.1, 0.5, "cannot tell"), ("≤", 0.1, 0.5, "holds"), (">", 0.5, 0.9, "cannot tell"),
        ("≥", 0.5, 0.9, "holds"), ("≤", 0.5, 0.9, "cannot tell"), ("≥", 0.1, 0.5, "cannot tell"),
        ("<", 0.5, 0.5, "cannot tell"), ("≥", 0.5, 0.5, "holds"),
        ("<", -math.inf, math.inf, "cannot tell"), ("≥", -math.inf, math.inf, "cannot tell"),
    ],
)  # fmt: skip
def test_the_rule(relation, low, high, verdict):
    interval = MeanInterval((low + high) / 2, low, high, 1.0)
    assert Criterion(relation, 0.5, sum, "").verdict(interval) == verdict


def judged(relation, value, *samples, always=False):
    """A claim on samples of numbers by seed."""
    named = [Sample(name, (), dict(enumerate(numbers)), (), deciding) for name, numbers, deciding in samples]
    return Claim("T", "", lambda runs: named, (Criterion(relation, value, float, "x", always=always),)).judge([])


numbers = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), max_size=4)


@given(numbers, st.sampled_from(["<", "≤", ">", "≥"]))
def test_a_verdict_is_that_of_the_interval_and_of_the_mirrored_claim(values, relation):
    mirrored = {"<": ">", "≤": "≥", ">": "<", "≥": "≤"}[relation]
    one = judged(relation, 1.0, ("a", values, True)).verdict
    assert judged(mirrored, -1.0, ("a", [-value for value in values], True)).verdict == one
    if len(values) < 2:
        assert one == "cannot tell"
    else:
        low, high = mean_interval(values)[1:3]
        inside = low <= 1.0 <= high
        assert (one == "cannot tell") == (
            inside and not (relation in "≤≥" and (high if relation == "≤" else low) == 1.0)
        )


@given(st.lists(st.tuples(st.sampled_from("ab"), numbers, st.booleans()), max_size=4))
def test_a_claim_needs_all_of_its_deciding_parts(samples):
    """A part that can't be told leaves it open, one that doesn't hold decides; what stands beside does nothing."""
    claim = judged("<", 1.0, *samples)
    deciding = [part.verdict for part, sample in zip(claim.parts, samples, strict=True) if sample[2]]
    if "does not hold" in deciding:
        assert claim.verdict == "does not hold"
    else:
        assert (claim.verdict == "holds") == (deciding != [] and set(deciding) == {"holds"})


def test_what_is_claimed_always_is_refuted_by_one_seed_and_never_from_one_alone():
    verdicts = [judged("≤", 0, ("a", values, True), always=True).verdict for values in ([0, 0], [0, 5], [5], [0], [])]
    assert verdicts == ["holds", "does not hold", "cannot tell", "cannot tell", "cannot tell"]
    assert judged("≤", 0, ("a", [0, 0, 5], True)).verdict == "cannot tell"


def test_a_claims_line_names_few_parts_and_of_many_the_least_and_the_greatest():
    few = judged("<", 0.5, ("a", [0.3, 0.3], True), ("b", [0.9, 0.9], True), ("c", [0.1], True))
    assert (
        few.judgments[0].statistic == "a 0.3 [0.3, 0.3]; b 0.9 [0.9, 0.9]; c 0.1 (one seed); 1 of 3 holds, 1 does not"
    )
    many = [(name, [value, value], True) for name, value in (("a", 0.3), ("b", 0.9), ("c", 0.1), ("d", 0.2))]
    line = judged("<", 0.5, *many, ("beside", [7.0], False), ("none", [], True)).judgments[0].statistic
    assert line == "c 0.1 [0.1, 0.1] to b 0.9 [0.9, 0.9]; 3 of 5 hold, 1 does not"
