"""The claims on directions along trajectories, from records that were made up so that the answer is known."""

import math

import pytest

from claim_records import SEEDS, at, claim, images, nothing, part, trajectory
from stepscope.paper.claims.trajectory_claims import decades
from stepscope.paper.claims.verdicts import Unmeasured
from stepscope.paper.runs import Run


def by_seed(*values):
    """A change that gives a direction's field another value in each seed."""

    def make(direction, field):
        return lambda r: {field: values[r["seed"]]} if r.get("direction") == direction else {}

    return make


def carried(*shares):
    return lambda r: {"top": {"0.1": {"norm": 0.9, "sharpness": shares[r["seed"] % len(shares)] * r["sharpness"]}}}


TRAJECTORY_CASES = {
    "C1": (at("lion", sharpness=7.0), by_seed(1.0, 3.9, 6.0)("lion", "sharpness")),
    "C2": (at("sgd clip 10%", sharpness=5.0), by_seed(1.0, 4.0, 6.0)("sgd clip 10%", "sharpness")),
    "C3": (at("adafactor clip 50% (numerator)", sharpness=0.6),
           by_seed(0.1, 0.5, 0.6)("adafactor clip 50% (numerator)", "sharpness")),
    "C4": (at("adafactor", sharpness=5.0), by_seed(0.5, 5.0, 5.0)("adafactor", "sharpness")),
    "C5": (at("signsgd", best_decrease=0.5), by_seed(0.5, 3.0, 3.0)("signsgd", "best_decrease")),
    "C6": (carried(0.2), carried(0.1, 0.6, 0.6)),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAJECTORY_CASES)
def test_a_claim_on_directions_that_does_not_hold_or_cannot_be_told(name):
    fails, unclear = TRAJECTORY_CASES[name]
    assert [claim(name, trajectory(change=change)).verdict for change in (nothing, fails, unclear)] == [
        "holds", "does not hold", "cannot tell",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("adaptive", "verdict"),
    [((9.0, 9.0, 9.0), "holds"), ((1.0, 1.1, 1.2), "does not hold"), ((1.0, 4.1, 9.0), "cannot tell")],
)
def test_the_contrast_on_images(adaptive, verdict):
    run = images(lambda r: {} if r["direction"] == "sgd" else {"sharpness": adaptive[r["seed"]]})
    assert claim("C9", run).verdict == verdict


def test_ratios_are_by_sgds_size_or_its_robust_value():
    """At one point of four SGD has −2 and a robust 8: Lion's ratio is 3/8. At one −4 and none: Lion is above."""

    def change(r):
        if r["direction"] == "sgd" and r["trajectory"] == "sgd":
            return {"sharpness": -2.0, "sharpness_robust": 8.0} if r["step"] == 10 else {"sharpness": -4.0}
        return {}

    found = part("C1", "code", trajectory(change=change))
    assert set(found.values.values()) == {1.0}
    assert found.verdict == "does not hold"
    assert "SGD the sharpest of the unclipped at 6 of 12 points" in found.remark
    assert found.remark.endswith(
        "SGD's sharpness is negative at 3 of 12 points: the magnitude of its robust value is the divisor, SGD's "
        "sharpness is negative at 3 of 12 points: its magnitude is the divisor, nor is the robust value positive at 3 "
        "of 12 points: what is sharper than SGD counts as 1"
    )


def test_where_sgd_curves_down_it_is_not_far_above():
    """SGD −10, robust −50: by the size of that a sharpness of 1 would be a fiftieth of SGD's."""
    found = part("C1", "code", trajectory(change=at("sgd", sharpness=-10.0, sharpness_robust=-50.0)))
    assert set(found.values.values()) == {1.0}
    assert found.verdict == "does not hold"
    below = {name: at(name, sharpness=-20.0) for name in ("adam", "adafactor", "lion", "signsgd")}

    def change(r):
        sgd = at("sgd", sharpness=-10.0, sharpness_robust=-50.0)(r)
        return {**sgd, **(below[r["direction"]](r) if r["direction"] in below else {})}

    assert set(part("C1", "code", trajectory(change=change)).values.values()) == {-0.4}


def test_points_where_nothing_descends_say_nothing_of_who_is_best():
    """At half of the points no direction lowers the loss: the shares are of the other half."""

    def change(r):
        return {"best_decrease": 0.0} if r["trajectory"] == "sgd" else {}

    whole, half = trajectory(), trajectory(change=change)
    for name, of in (("C4", "code, not the best"), ("C5", "code")):
        one, other = part(name, of, whole), part(name, of, half)
        assert one.values == other.values
        assert "no direction lowers the loss at 6 of 12 points, left out" in other.remark
        assert "no direction" not in one.remark
    nowhere = part("C5", "code", trajectory(change=lambda r: {"best_decrease": 0.0}))
    assert nowhere.values == {}
    assert "no direction lowers the loss" in nowhere.remark


def test_every_step_and_both_trajectories_count():
    """At one point of four signSGD is above SGD, the others below it."""
    found = part("C1", "code", trajectory(change=at("signsgd", place=("adam", 60), sharpness=9.0)))
    assert found.values == dict.fromkeys(SEEDS, 9 / 8)
    assert "SGD the sharpest of the unclipped at 9 of 12 points" in found.remark


def test_what_clipping_leaves_is_a_median_over_points():
    """Of SGD 2/8, 4/8 and 7/8, the fourth point has no positive original: the median is 1/2, and not below."""
    values = {("sgd", 10): 2.0, ("sgd", 60): 4.0, ("adam", 10): 7.0}

    def change(r):
        place = r["trajectory"], r["step"]
        if r["direction"] == "sgd clip 10%":
            return {"sharpness": values.get(place, 1e9)}
        return {"sharpness": -1.0} if r["direction"] == "sgd" and place not in values else {}

    found = part("C2", "code, sgd clip 10%", trajectory(change=change))
    assert (found.values, found.verdict) == ({0: 0.5, 1: 0.5, 2: 0.5}, "cannot tell")
    assert found.remark == "the sharpness of sgd isn't positive at 3 of 12 points, left out"
    other = part("C2", "code, normalized sgd clip 10%", trajectory(change=change))
    assert (other.values, other.verdict) == ({0: 0.25, 1: 0.25, 2: 0.25}, "holds")


def test_clipping_both_moments_stands_beside():
    found = claim("C3", trajectory(change=at("adam clip 50% (gradient)", sharpness=99.0)))
    assert {one.name: (one.deciding, one.number) for one in found.parts} == {
        "code, adam clip 50% (first moment)": (True, "0.4 [0.4, 0.4]"),
        "code, adafactor clip 50% (numerator)": (True, "0.5 [0.5, 0.5]"),
        "code, adam clip 50% (gradient)": (False, "39.6 [39.6, 39.6]"),
    }
    assert found.verdict == "holds"


def test_adafactor_is_counted_by_points():
    """Lowest at 3 of 4 points; its decrease is the largest at one, shared at another."""

    def change(r):
        place = r["trajectory"], r["step"]
        if r["direction"] == "adafactor":
            changed = {("sgd", 10): {"sharpness": 4.0, "best_decrease": 9.0}, ("sgd", 60): {"best_decrease": 6.0}}
            return changed.get(place, {})
        return {"best_decrease": 6.0} if r["direction"] == "adam" and place == ("sgd", 60) else {}

    run = trajectory(change=change)
    assert part("C4", "code, lowest", run).values == {0: 0.75, 1: 0.75, 2: 0.75}
    assert part("C4", "code, not the best", run).values == {0: 0.5, 1: 0.5, 2: 0.5}


def test_the_weakest_method_decides_on_decreases():
    """signSGD is ahead at 3 of 4 points, Adam's clipped variant at 2 (an equal decrease isn't larger)."""

    def change(r):
        if r["direction"] == "signsgd" and (r["trajectory"], r["step"]) == ("sgd", 10):
            return {"best_decrease": 0.1}
        return (
            {"best_decrease": 1.0 + r["seed"] / 100} if "first" in r["direction"] and r["trajectory"] == "sgd" else {}
        )

    found = part("C5", "code", trajectory(change=change))
    assert found.values == {0: 0.5, 1: 0.5, 2: 0.5}
    assert found.remark == "least often adam clip 50% (first moment): at 6 of 12 points"


def test_the_largest_coordinates_share_is_of_sgds_own_sharpness():
    """Along SGD's trajectory it is negative and left out, whatever its parts; along Adam's 6/8 and 6/16 are carried."""

    def change(r):
        sharpness = -8.0 if r["trajectory"] == "sgd" else 16.0 if r["step"] == 60 else 8.0
        top = {"0.1": {"norm": 0.9, "sharpness": 6.0}}
        return {"sharpness": sharpness, "top": top} if r["direction"] == "sgd" else {}

    found = part("C6", "code, 10% largest", trajectory(change=change))
    assert found.values == dict.fromkeys(SEEDS, (0.75 + 0.375) / 2)
    assert found.remark == "the sharpness of sgd isn't positive at 6 of 12 points, left out"


@pytest.mark.parametrize(
    ("counts", "per_decade", "wanted"),
    [
        # A thousandth of 1,000 is one coordinate: a tenth of the classes with 10 at the ends.
        ([10, 980, 10], 1, 3 - 0.1 - 0.1),
        ([10, 0, 0, 980, 0, 10, 0], 4, (6 - 0.1 - 0.1) / 4),
        # Exactly a thousandth in the first class, half of one in the next two.
        ([1, 0, 998, 0.5, 0.5], 2, (5 - 1 - 2) / 2),
        ([1000], 4, 0.998 / 4),
    ],
)
def test_decades_by_hand(counts, per_decade, wanted):
    scale = 2 if 0.5 in counts else 1
    histogram = {"zeros": 7, "lowest": -9, "per_decade": per_decade, "counts": [int(scale * c) for c in counts]}
    assert decades(histogram) == pytest.approx(wanted, rel=1e-12)


def test_decades_are_those_of_the_coordinates():
    """Against the quantiles of the coordinates themselves: at most a class off at either end."""
    exponents = sorted(math.sin(k) * 3 + math.sin(2.3 * k) for k in range(20_000))
    classes = [math.floor(4 * e) for e in exponents]
    counts = [classes.count(k) for k in range(min(classes), max(classes) + 1)]
    wanted = exponents[-21] - exponents[20]
    assert decades({"lowest": min(classes), "per_decade": 4, "counts": counts}) == pytest.approx(wanted, abs=0.25)


@pytest.mark.parametrize("broken", [None, {}, {"counts": [], "per_decade": 4}, {"counts": [0], "per_decade": 4}])
def test_no_histogram_no_decades(broken):
    with pytest.raises(Unmeasured, match="histogram"):
        decades(broken)
    found = part("C6", "code, decades", trajectory(change=at("sgd", magnitudes=broken)))
    assert (found.verdict, found.values) == ("cannot tell", {})
    assert "seed 0 doesn't count" in found.remark


def test_three_decades_are_not_more_than_three():
    """Twelve even classes of a quarter decade: the middle 99.8% spans 2.994; sixteen span 3.992."""
    narrow, wide = ({"lowest": 0, "per_decade": 4, "counts": [50] * n} for n in (12, 16))
    for histogram, span, verdict in ((narrow, 2.994, "does not hold"), (wide, 3.992, "holds")):
        found = part("C6", "code, decades", trajectory(change=at("sgd", magnitudes=histogram)))
        assert (found.interval.mean, found.verdict) == (pytest.approx(span), verdict)


def test_a_random_start_on_images_stands_beside():
    contrast = trajectory("images")
    assert claim("C9", images(), contrast).verdict == "holds"
    assert claim("C9", contrast).verdict == "cannot tell"
    found = part("C9", "images", images(), contrast)
    # Ratios 2.5/8, 0.5/8, 3/8, 2/8 at all points: the median lies between 2/8 and 2.5/8.
    assert (found.deciding, found.number) == (False, "0.281 [0.281, 0.281]")
    assert "above SGD in 0 of 48" in found.remark
    assert "above SGD in 48 of 48" in part("C9", "images-pretrained", images()).remark


@pytest.mark.parametrize("broken", [{"sharpness": None}, {"sharpness": math.nan}, {"sharpness": "3"}])
def test_a_number_that_is_missing_takes_its_seed_out(broken):
    found = part("C1", "code", trajectory(change=at("lion", place=("adam", 60), seed=1, **broken)))
    assert tuple(found.values) == (0, 2)
    assert "seed 1 doesn't count: there is no sharpness of lion" in found.remark


def test_a_direction_that_nobody_asked_for_is_told():
    run = trajectory()
    asked = {**run.head["configuration"], "directions": ["sgd", "adam"]}
    found = part("C1", "code", Run(run.name, {**run.head, "configuration": asked}, run.records))
    assert (found.verdict, found.values) == ("cannot tell", {})
    assert "there is no sharpness of adafactor" in found.remark
