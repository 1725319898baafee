"""The bound on drawn losses: it holds in every draw, and the experiment would say so if it didn't."""

import dataclasses
import math
from functools import partial

import pytest
import torch

from stepscope import UsageError
from stepscope.paper.experiments import bounds as module
from stepscope.paper.experiments.bounds import FAMILIES, Outcome, bound_record, examine, summary
from stepscope.paper.experiments.clipping_bound import clip
from stepscope.paper.records import Margins

FRACTIONS = (0.1, 0.5, 1.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(family, count, seed=0):
    made = generator(seed)
    return [FAMILIES[family](made) for _ in range(count)]


def smoothness_of(levels):
    return torch.tensor([levels.large if bad else levels.small for bad in levels.bad.tolist()], dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_bound_holds_and_clipping_helps_where_the_theorem_says(family, fraction):
    count = 250
    record = bound_record(family, fraction, count, seed=3)
    assert (record.draws, record.fraction) == (count, fraction)
    for name in ("clipped", "plain", *(["block"] if family == "block quadratic" else [])):
        assert getattr(record, name).violations == 0, name
        assert getattr(record, name).least_margin > -1e-12
        assert getattr(record, name).median_margin < 0.99
    assert record.disagreements == 0
    assert record.guarantees_more == record.predicted_more
    assert 0 < record.guarantees_more < count  # both sides of the theorem are seen


def test_on_the_papers_quadratic_the_bound_is_what_is_gained():
    """Its good coordinates all have the small curvature, and the bad one is clipped: nothing is given away."""
    reached = 0
    for draw in draws("quadratic of section 1", 100):
        _, threshold = clip(draw.gradient, 0.1)
        outcome = examine(draw, 0.1)
        assert outcome.plain_margin == pytest.approx(0, abs=1e-12)
        if abs(float(draw.gradient[0])) >= threshold:
            reached += 1
            assert outcome.clipped_margin == pytest.approx(0, abs=1e-12)
        else:
            assert outcome.clipped_margin > 0
    assert 90 < reached < 100


def test_where_clipping_guarantees_more_on_the_papers_quadratic_it_gains_more():
    record = bound_record("quadratic of section 1", 0.1, 300, seed=1)
    assert record.decreases_more == record.guarantees_more


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draws_gradient_and_levels_are_those_of_its_loss(family):
    for draw in draws(family, 10):
        n = len(draw.gradient)
        zero, one = torch.zeros(n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
        start = draw.loss(zero, 0.0)
        # A parabola: differences are exact but for rounding.
        h = torch.tensor([draw.loss(e, 1.0) + draw.loss(e, -1.0) - 2 * start for e in one])
        g = torch.tensor([(draw.loss(e, -1.0) - draw.loss(e, 1.0)) / 2 for e in one])
        torch.testing.assert_close(g.double(), draw.gradient, rtol=1e-4, atol=1e-3)
        levels = draw.levels
        curved = draw.blocks[0] if draw.blocks else torch.diag(h.double())
        bound = torch.diag(smoothness_of(levels))
        assert float(torch.linalg.eigvalsh(bound - curved)[0]) >= -1e-5 * levels.large
        assert 0 < int(levels.bad.sum()) <= n // 10


def test_blocks_have_the_norms_that_the_levels_say():
    for draw in draws("block quadratic", 10):
        hessian, _ = draw.blocks
        levels = draw.levels
        for block, level in ((levels.bad, levels.large), (~levels.bad, levels.small)):
            part = hessian[block][:, block]
            assert 2 * float(torch.linalg.matrix_norm(part, 2)) == pytest.approx(level, rel=1e-10)
        assert examine(draw, 0.5).block_margin == pytest.approx(0, abs=1e-12)  # the worst vector is among those tried


# What a mistake in the code would do: each has to show in the records.
MUTANTS = {
    "the step goes up the gradient": (
        "examine",
        lambda inner, draw, p: inner(dataclasses.replace(draw, loss=lambda d, step: draw.loss(-d, step)), p),
    ),
    "τ in the bound is half of that in the clip": (
        "clipped_guarantee",
        lambda inner, g, c, t, levels: inner(g, c, t / 2, levels),
    ),
    "the bound believes that the gradient was clipped": ("clip", lambda inner, g, p: (g.clone(), inner(g, p)[1])),
    "the bad coordinates' part of Q is left out": (
        "clipped_guarantee",
        lambda inner, g, c, t, levels: inner(g, c, 0.0, levels),
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_mistake_would_show(mutant, fraction, monkeypatch):
    name, mistaken = MUTANTS[mutant]
    monkeypatch.setattr(module, name, partial(mistaken, getattr(module, name)))
    record = bound_record("quadratic of section 1", fraction, 100, seed=0)
    assert record.clipped.violations > 80
    assert record.clipped.least_margin < -0.3


def test_a_wrong_critical_ratio_would_show(monkeypatch):
    """Without the part of the slope that clipping costs, it would be predicted to help far too often."""

    def without_cost(gradient, clipped, threshold, bad):
        saved = float(gradient[bad] @ gradient[bad]) - int(bad.sum()) * threshold**2
        return 1.0 if saved > 0 else math.inf

    monkeypatch.setattr(module, "critical_ratio", without_cost)
    assert bound_record("diagonal quadratic", 0.1, 100, seed=0).disagreements > 10


def test_a_factor_below_two_of_the_block_inequality_would_show(monkeypatch):
    inner = module.block_bound
    monkeypatch.setattr(module, "block_bound", lambda h, bad, u: (inner(h, bad, u)[0], 0.99 * inner(h, bad, u)[1]))
    record = bound_record("block quadratic", 0.1, 20, seed=0)
    assert record.block.violations == 20


def test_summary_counts():
    one = Outcome(0.5, 0.25, (), True, True, False)
    two = Outcome(-0.5, 0.75, ("clipped",), False, True, True)
    found = summary([one, two, one])
    assert found["clipped"] == Margins(violations=1, least_margin=-0.5, median_margin=0.5)
    assert found["plain"] == Margins(violations=0, least_margin=0.25, median_margin=0.25)
    assert found["block"] is None
    assert (found["guarantees_more"], found["predicted_more"], found["decreases_more"]) == (2, 3, 1)
    assert found["disagreements"] == 1


def test_the_same_draws_at_every_fraction_and_others_at_another_seed():
    first, second, other = (bound_record("diagonal quadratic", p, 20, s) for p, s in ((0.1, 0), (0.5, 0), (0.1, 1)))
    assert first.plain == second.plain
    assert first.plain != other.plain
    before = torch.get_rng_state()
    again = bound_record("diagonal quadratic", 0.1, 20, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert dataclasses.replace(again, seconds=None) == dataclasses.replace(first, seconds=None)


@pytest.mark.parametrize(
    ("family", "fraction", "count", "message"),
    [
        ("cubic", 0.1, 5, "no family 'cubic': choose quadratic of section 1"),
        ("diagonal quadratic", 0.1, 0, "draws is 0"),
        ("diagonal quadratic", 0.001, 5, "clips none"),
        ("diagonal quadratic", 1.5, 5, "fraction is 1.5"),
    ],
)
def test_mistakes(family, fraction, count, message):
    with pytest.raises(UsageError, match=message):
        bound_record(family, fraction, count, 0)
