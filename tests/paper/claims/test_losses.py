"""Verdicts on pairs, from losses that were made up so that the answer is known."""

import math

import pytest

from experiment_records import experiment, training
from stepscope.paper.claims.losses import conclusion, finals_of, pairs_of


def verdict(*arguments, **details):
    (pair,) = pairs_of(finals_of(experiment(*arguments, **details)))
    return pair


def test_the_interval_decides():
    assert verdict([2.0, 2.1, 2.2], [3.0, 3.1, 3.3]).verdict == "faster"
    assert verdict([3.0, 3.1, 3.3], [2.0, 2.1, 2.2]).verdict == "slower"
    unclear = verdict([2.0, 3.1, 2.2], [3.0, 2.1, 3.3])
    assert unclear.verdict == "cannot tell"
    # Student, 2 degrees of freedom: differences −1, 1, −1.1.
    assert unclear.difference.mean == pytest.approx(-1.1 / 3)
    assert unclear.difference.high == pytest.approx(-1.1 / 3 + 4.302653 * 1.18462 / math.sqrt(3), rel=1e-4)


def test_pairing_sees_what_means_hide():
    """Each seed 0.1 better, while seeds differ by 5."""
    assert verdict([1.0, 3.0, 6.0], [1.1, 3.11, 6.1]).verdict == "faster"


def test_one_seed_says_nothing():
    pair = verdict([1.0], [5.0])
    assert (pair.verdict, pair.remark) == ("cannot tell", "one seed")
    assert pair.difference.mean == -4


def test_a_training_that_diverged_is_no_loss():
    pair = verdict([1.0, None, 1.0], [5.0, 5.0, 5.1])
    assert (pair.verdict, pair.difference) == ("cannot tell", None)
    assert pair.remark == "sgd clip 10% diverged in 1 of 3 seeds"
    assert pair.variant.mean is None
    assert pair.variant.losses == {0: 1.0, 1: None, 2: 1.0}


def test_a_rate_at_the_end_of_the_search_is_said():
    pair = verdict([2.0, 2.1, 2.2], [3.0, 3.1, 3.3], bracketed=False)
    assert pair.remark == "a better rate for sgd clip 10% may lie beyond those tried"


def test_steps_needed_are_read_off_the_variants_curve():
    """From 4.0 after 5 steps to 2.0 after 10: the original's 3.0 was passed after 7.5 of 10."""
    assert verdict([2.0, 2.0], [3.0, 3.0]).steps_needed == pytest.approx(0.75)
    assert verdict([2.0, 3.5], [3.0, 3.0]).steps_needed is None  # one seed never got there


def test_unfinished_trainings_and_searches_are_no_finals():
    records = experiment([2.0, 2.1], [3.0, 3.2]) + training("adam", 0, (6.0, 5.0, 1.0))[:2]
    records += training("lion", 0, (6.0, 5.0, 1.0), phase="search")
    assert [final.optimizer for final in finals_of(records)] == ["sgd", "sgd clip 10%"]


def test_tasks_are_kept_apart():
    records = experiment([2.0, 2.1, 2.2], [3.0, 3.1, 3.3])
    records += training("sgd clip 10%", 0, (6.0, 4.0, 9.0), original="sgd", task="translation")
    pairs = pairs_of(finals_of(records))
    assert [(pair.variant.task, pair.verdict) for pair in pairs] == [("code", "faster")]


def test_the_sentence_counts_and_warns():
    pairs = pairs_of(finals_of(experiment([2.0, 2.1, 2.2], [3.0, 3.1, 3.3])))
    assert conclusion(pairs) == (
        "Of 1 comparisons with the original, 1 are faster, 0 slower, 0 cannot be told from 3 seeds; where nothing "
        "differs, about 0.1 would be called faster or slower by chance."
    )


def test_a_rate_that_was_given_up_counts_no_more():
    records = training("sgd", 0, (6.0, 9.0, None), lr=1.0) + training("sgd", 1, (6.0, 5.0, 3.1), lr=1.0)
    records += experiment([2.0, 2.1], [3.0, 3.2])
    (pair,) = pairs_of(finals_of(records))
    assert pair.original.losses == {0: 3.0, 1: 3.2}
    assert pair.original.lr == 0.5
    assert pair.remark == "the best rate of sgd diverged on at least one seed and was lowered once"


def test_one_seed_is_not_called_by_chance():
    found = conclusion(pairs_of(finals_of(experiment([1.0], [5.0]))))
    assert found == "Of 1 comparisons with the original, 0 are faster, 0 slower, 1 cannot be told from 1 seed."
