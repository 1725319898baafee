"""The search for a learning rate on losses that are known: it finds the best, within its budget, and can be stopped."""

import math
from fractions import Fraction

import pytest

from stepscope.paper.experiments.search import Search


def parabola(best, penalty=0.0):
    """A loss with its minimum at `best` after a full training; short trainings favor larger rates."""

    def loss(rate, part):
        return (math.log2(rate / best) - penalty * (1 - part)) ** 2 + 1 - part

    return loss


def searched(search, first, steps, loss, *, stop_after=math.inf):
    """The losses that a search asks for, each training carried on from where it stood; and the steps that it cost."""
    losses, cost, asked = {}, 0, 0
    while todo := search.next_trainings(first, steps, losses):
        for rate, end in todo:
            cost += end - max(losses.get(rate, {0: 0}))
            losses.setdefault(rate, {})[end] = loss(rate, end / steps)
            asked += 1
            if asked >= stop_after:
                return losses, cost
    return losses, cost


@pytest.mark.parametrize("best", [2.0**k for k in range(-6, 7)])
def test_the_best_rate_is_found_wherever_it_lies(best):
    losses, cost = searched(Search(), 1.0, 80, parabola(best))
    found, bracketed = Search().best(80, losses)
    assert (found, bracketed) == (best, True)
    assert cost <= Search().budget() * 80


def test_short_trainings_that_mislead_are_put_right_at_full_length():
    """At a quarter of the steps a rate seems best that is eight times too large: it alone would be kept there."""
    loss = parabola(1.0, penalty=4.0)
    by_short = min((4.0**k for k in range(-2, 3)), key=lambda rate: loss(rate, 0.25))
    assert by_short >= 4
    found, _ = Search().best(80, searched(Search(), 1.0, 80, loss)[0])
    assert found == 1.0


def test_a_rate_far_beyond_the_grid_is_said_to_be_open_ended():
    losses, cost = searched(Search(), 1.0, 80, parabola(2.0**20))
    found, bracketed = Search().best(80, losses)
    assert not bracketed
    assert found > 1000
    assert cost <= Search().budget() * 80


def test_diverged_rates_are_the_worst():
    losses, _ = searched(Search(), 1.0, 80, lambda rate, part: math.inf if rate > 0.3 else parabola(0.25)(rate, part))
    assert Search().best(80, losses) == (0.25, True)


def test_all_diverged_still_ends():
    losses, cost = searched(Search(), 1.0, 80, lambda rate, part: math.inf)
    _, bracketed = Search().best(80, losses)
    assert not bracketed
    assert cost <= Search().budget() * 80


@pytest.mark.parametrize("stop_after", range(1, 16))
def test_a_search_that_was_stopped_anywhere_goes_on_as_if_it_had_not(stop_after):
    whole, _ = searched(Search(), 1.0, 80, parabola(8.0))
    half, _ = searched(Search(), 1.0, 80, parabola(8.0), stop_after=stop_after)
    while todo := Search().next_trainings(1.0, 80, half):
        for rate, end in todo:
            half.setdefault(rate, {})[end] = parabola(8.0)(rate, end / 80)
    assert half == whole


def test_the_budget_counts_every_step():
    """The most expensive course: the grid grows as often as it may, and every climb looks at two new rates."""
    search = Search(rates=3, extensions=1, rungs=((Fraction(1, 2), 2), (Fraction(1), 1)), climbs=1)
    assert search.budget() == 4 * Fraction(1, 2) + 2 * Fraction(1, 2) + 2
    _, cost = searched(search, 1.0, 80, parabola(1000.0))
    assert cost == search.budget() * 80


def test_rates_that_are_reached_by_two_ways_are_one():
    rates = {rate for rate, _ in Search(factor=10.0, rates=7).next_trainings(3e-4, 8, {})}
    assert rates == {3e-7, 3e-6, 3e-5, 3e-4, 3e-3, 3e-2, 3e-1}
