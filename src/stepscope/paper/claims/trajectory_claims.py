"""The claims on directions that were measured along a trajectory: C1 to C6, and C9.

A *point* is a trajectory, a step and a seed. A *ratio* there is a direction's sharpness divided by |SGD's|, or by SGD's
robust value where its sharpness is negative (the paper's eq. 4).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from stepscope.paper.claims.verdicts import Part, Threshold, Unmeasured, by_seed, needed, whole_seeds
from stepscope.paper.runs import Run
from stepscope.report import BASELINE, baseline_scale, family
from stepscope.runs import Record, number

ADAPTIVE = ("adam", "adafactor", "lion", "signsgd")
UNCLIPPED = ("sgd", "normalized sgd", *ADAPTIVE)
TRANSFORMERS = ("translation", "code", "sentiment")

ADAM_CLIPPED = "adam clip 50% (first moment)"
"""What the published code does; so is Adafactor's."""
ADAFACTOR_CLIPPED = "adafactor clip 50% (numerator)"
COMPARED_WITH_SGD = (*ADAPTIVE, "sgd clip 10%", ADAM_CLIPPED, ADAFACTOR_CLIPPED)

LOWERED = "median over points of the sharpness divided by the original's"

TAIL = 0.001
"""The part of the coordinates that is left out at either end of the span of magnitudes."""

Point = Mapping[str, Record]
"""What was measured at a point, by direction."""
Note = Callable[[Sequence[Point]], str]


def trajectories(runs: Iterable[Run], tasks: Sequence[str]) -> list[Run]:
    """The runs along trajectories of these tasks, tasks in this order."""
    found = [run for run in runs if run.experiment == "trajectory" and run.task in tasks]
    return sorted(found, key=lambda run: (tasks.index(run.task), run.name))


def label(run: Run) -> str:
    """A run's name in a part's.

    Example:
        >>> label(Run("trajectory-images-pretrained", {}, []))
        'images-pretrained'
    """
    return run.name.removeprefix("trajectory-")


def points_by_seed(run: Run) -> tuple[dict[Any, list[Point]], tuple[str, ...]]:
    """The points of the seeds that are measured to the end; and which aren't, in words."""
    asked = run.head["configuration"]
    places = list(itertools.product(asked.get("training_lr") or (), asked.get("steps") or ()))
    directions = asked.get("directions") or ()

    def key(record: Record) -> tuple[Any, ...]:
        return record.get("trajectory"), record.get("step"), record.get("direction")

    whole, remarks = whole_seeds(run, {(*place, name) for place in places for name in directions}, key)
    return {
        seed: [{name: found[*place, name] for name in directions} for place in places] for seed, found in whole.items()
    }, remarks


def far_above(runs: Sequence[Run]) -> list[Part]:
    """C1: the largest ratio of an adaptive method is below one half."""

    def largest(points: Sequence[Point]) -> float:
        return max(max(_ratios(point, ADAPTIVE).values()) for point in points)

    def offender(points: Sequence[Point]) -> str:
        ratio, name, at = max(
            (ratio, name, _place(point)) for point in points for name, ratio in _ratios(point, ADAPTIVE).items()
        )
        return f"largest of {name}, {ratio:.3g} ({at})"

    def sharpest(points: Sequence[Point]) -> str:
        others = [name for name in UNCLIPPED if name != BASELINE]
        count = sum(_values(p, [BASELINE])[BASELINE] > max(_values(p, others).values()) for p in points)
        return f"SGD the sharpest of the unclipped at {_of(count, points)}"

    what = "largest ratio to SGD of an adaptive method at any point"
    notes, below = (offender, sharpest, _robust), Threshold("<", 0.5)
    parts = [_part(run, "", what, below, largest, notes) for run in trajectories(runs, TRANSFORMERS)]
    return parts + _missing(runs, what, below)


def clipping_lowers_sgd(runs: Sequence[Run]) -> list[Part]:
    """C2: clipping 10% halves the sharpness of SGD and of normalized SGD, in the median."""
    below = Threshold("<", 0.5)
    parts = [
        _lowered(run, original, f"{original} clip 10%", below)
        for run in trajectories(runs, TRANSFORMERS)
        for original in ("sgd", "normalized sgd")
    ]
    return parts + _missing(runs, LOWERED, below)


def clipping_lowers_adaptive(runs: Sequence[Run]) -> list[Part]:
    """C3: clipping 50% lowers the sharpness of Adam and of Adafactor, in the median."""
    variants = ((ADAM_CLIPPED, True), (ADAFACTOR_CLIPPED, True), ("adam clip 50% (gradient)", False))
    below = Threshold("<", 1.0)
    parts = [
        _lowered(run, family(variant), variant, below, deciding)
        for run in trajectories(runs, TRANSFORMERS)
        for variant, deciding in variants
    ]
    return parts + _missing(runs, LOWERED, below)


def lowest_is_not_best(runs: Sequence[Run]) -> list[Part]:
    """C4: Adafactor's sharpness is the lowest at most points, and its best decrease isn't the largest at most."""
    others = [name for name in UNCLIPPED if name != "adafactor"]

    def lowest(points: Sequence[Point]) -> float:
        return _share(_values(p, ["adafactor"])["adafactor"] < min(_values(p, others).values()) for p in points)

    def not_best(points: Sequence[Point]) -> float:
        found = _descending(points, UNCLIPPED)
        return _share(each["adafactor"] < max(each[name] for name in others) for each in found)

    said = (
        ("lowest", "share of points where Adafactor's sharpness is the lowest of the unclipped", lowest, ()),
        ("not the best", "share of points where its best decrease isn't the largest", not_best, (_flat(UNCLIPPED),)),
    )
    above = Threshold(">", 0.5)
    parts = [
        _part(run, name, what, above, statistic, notes)
        for run in trajectories(runs, TRANSFORMERS)
        for name, what, statistic, notes in said
    ]
    return parts + _missing(runs, said[0][1], above)


def decreases_more(runs: Sequence[Run]) -> list[Part]:
    """C5: each adaptive and clipped method's best decrease is larger than SGD's at most points."""

    def shares(points: Sequence[Point]) -> dict[str, float]:
        found = _descending(points, (BASELINE, *COMPARED_WITH_SGD))
        return {name: _share(each[name] > each[BASELINE] for each in found) for name in COMPARED_WITH_SGD}

    def least(points: Sequence[Point]) -> float:
        return min(shares(points).values())

    def weakest(points: Sequence[Point]) -> str:
        found = shares(points)
        name = min(found, key=lambda each: found[each])
        count = len(_descending(points, (BASELINE, *COMPARED_WITH_SGD)))
        return f"least often {name}: at {round(found[name] * count)} of {count} points"

    what = "share of points where the best decrease is larger than SGD's, for the method with the fewest"
    notes, above = (weakest, _flat((BASELINE, *COMPARED_WITH_SGD))), Threshold(">", 0.5)
    parts = [_part(run, "", what, above, least, notes) for run in trajectories(runs, TRANSFORMERS)]
    return parts + _missing(runs, what, above)


def concentrated(runs: Sequence[Run]) -> list[Part]:
    """C6: SGD's 10% largest coordinates carry most of its sharpness, and magnitudes span more than three decades."""

    def carried(points: Sequence[Point]) -> float:
        found = [_carried(point[BASELINE]) for point in points if _values(point, [BASELINE])[BASELINE] > 0]
        if not found:
            raise Unmeasured("SGD's sharpness is positive nowhere")
        return statistics.median(found)

    def spans(points: Sequence[Point]) -> float:
        return statistics.median(decades(point.get(BASELINE, {}).get("magnitudes")) for point in points)

    share = "median share of SGD's sharpness that its 10% largest coordinates carry"
    span = "median decades between the magnitudes that bound the middle 99.8% of SGD's non-zero coordinates"
    found = []
    for run in trajectories(runs, TRANSFORMERS):
        left_out = _left_out(BASELINE)
        found.append(_part(run, "10% largest", share, Threshold(">", 0.5), carried, (left_out,)))
        found.append(_part(run, "decades", span, Threshold(">", 3.0), spans))
    return found + _missing(runs, share, Threshold(">", 0.5))


def absent_on_images(runs: Sequence[Run]) -> list[Part]:
    """C9: on a ResNet the median ratio of adaptive methods isn't below one half. The paper's is pretrained."""

    def ratios(points: Sequence[Point]) -> list[float]:
        return [ratio for point in points for ratio in _ratios(point, ADAPTIVE).values()]

    def reversed_at(points: Sequence[Point]) -> str:
        found = ratios(points)
        return f"above SGD in {sum(ratio > 1 for ratio in found)} of {len(found)}"

    what = "median ratio to SGD over points and adaptive methods"
    notes = (reversed_at, _robust)
    return [
        _part(
            run, "", what, Threshold(">", 0.5), lambda p: statistics.median(ratios(p)), notes, deciding=pretrained(run)
        )
        for run in trajectories(runs, ("images",))
    ]


def _missing(runs: Sequence[Run], what: str, threshold: Threshold) -> list[Part]:
    """Of the tasks that a claim on transformers is about, those without a run: their silence is no agreement.

    None where no directions were measured at all.
    """
    there = {run.task for run in trajectories(runs, TRANSFORMERS)}
    absent = [task for task in TRANSFORMERS if task not in there] if there else []
    return [Part(task, what, threshold, (), {}) for task in absent]


def pretrained(run: Run) -> bool:
    """Whether a run began from pretrained weights."""
    model = run.context.get("model")
    return isinstance(model, Mapping) and str(model.get("initialisation")).startswith("pretrained")


def decades(magnitudes: Any) -> float:
    """Decades between the magnitudes below and above which a thousandth of the coordinates lies each.

    Within a class of the histogram, logarithms are taken as evenly spread.

    Args:
        magnitudes: ``{"lowest", "per_decade", "counts"}``: ``counts[k]`` coordinates have a ``log₁₀`` of at least
            ``(lowest + k) / per_decade`` and less than the next class's.

    Raises:
        Unmeasured: there is no such histogram, or nothing in it.

    Example:
        >>> round(decades({"zeros": 5, "lowest": -2, "per_decade": 4, "counts": [100, 0, 100]}), 9)
        0.749
    """
    try:
        counts = [int(count) for count in magnitudes["counts"]]
        per_decade = int(magnitudes["per_decade"])
    except (TypeError, KeyError, ValueError):
        raise Unmeasured("there is no histogram of SGD's magnitudes") from None
    if not any(counts) or per_decade < 1:
        raise Unmeasured("the histogram of SGD's magnitudes is empty")
    tail = TAIL * sum(counts)
    return (len(counts) - _position(counts, tail) - _position(counts[::-1], tail)) / per_decade


def _position(counts: Sequence[int], wanted: float) -> float:
    """How many classes hold so many coordinates, the last one in part."""
    for place, count in enumerate(counts):
        if count and count >= wanted:
            return place + wanted / count
        wanted -= count
    return float(len(counts))


def _part(
    run: Run,
    name: str,
    what: str,
    threshold: Threshold,
    statistic: Callable[[Sequence[Point]], float],
    notes: Sequence[Note] = (),
    deciding: bool = True,
) -> Part:
    """A part of one run; notes are taken over the points of all seeds that count."""
    seeds, remarks = points_by_seed(run)
    values, lost = by_seed(seeds, statistic)
    counted = [point for seed in values for point in seeds[seed]]
    told = [_told(note, counted) for note in notes] if counted else []
    full = f"{label(run)}, {name}" if name else label(run)
    return Part(full, what, threshold, (run,), values, (*remarks, *lost, *told), deciding)


def _told(note: Note, points: Sequence[Point]) -> str:
    try:
        return note(points)
    except Unmeasured:
        return ""  # of a method that the statistic doesn't need


def _lowered(run: Run, original: str, variant: str, threshold: Threshold, deciding: bool = True) -> Part:
    def median(points: Sequence[Point]) -> float:
        found = [_values(point, (original, variant)) for point in points]
        ratios = [each[variant] / each[original] for each in found if each[original] > 0]
        if not ratios:
            raise Unmeasured(f"the sharpness of {original} is positive nowhere")
        return statistics.median(ratios)

    return _part(run, variant, LOWERED, threshold, median, (_left_out(original),), deciding)


def _left_out(original: str) -> Note:
    def note(points: Sequence[Point]) -> str:
        count = sum(_values(point, [original])[original] <= 0 for point in points)
        return f"the sharpness of {original} isn't positive at {_of(count, points)}, left out" if count else ""

    return note


def _robust(points: Sequence[Point]) -> str:
    origins = [baseline_scale(point.values())[1] for point in points]
    told = [
        f"SGD's sharpness is negative at {_of(origins.count(origin), points)}: {instead}"
        for origin, instead in (
            ("robust", "the magnitude of its robust value is the divisor"),
            ("negative", "its magnitude is the divisor"),
        )
        if origin in origins
    ]
    if none := sum(_sgd_curves_down(point) for point in points):
        told.append(f"nor is the robust value positive at {_of(none, points)}: what is sharper than SGD counts as 1")
    return ", ".join(told)


def _sgd_curves_down(point: Point) -> bool:
    """Whether neither SGD's sharpness nor its robust value is positive: there is nothing to be a multiple of."""
    record = point.get(BASELINE, {})
    robust = number(record, "sharpness_robust")
    return needed(record, "sharpness", BASELINE) <= 0 and (robust is None or robust <= 0)


def _ratios(point: Point, names: Sequence[str]) -> dict[str, float]:
    scale, _ = baseline_scale(point.values())
    if scale is None:
        raise Unmeasured("SGD has no sharpness at a point")
    found = {name: value / scale for name, value in _values(point, names).items()}
    if _sgd_curves_down(point):
        # By the ratio alone a method that is sharper than SGD could look much flatter.
        sgd = needed(point[BASELINE], "sharpness", BASELINE)
        found = {name: max(ratio, 1.0) if ratio * scale > sgd else ratio for name, ratio in found.items()}
    return found


def _descending(points: Sequence[Point], names: Sequence[str]) -> list[dict[str, float]]:
    """The best decreases at the points where any of these descends: where none does, none is better."""
    found = [_values(point, names, "best_decrease") for point in points]
    some = [each for each in found if max(each.values()) > 0]
    if not some:
        raise Unmeasured("no direction lowers the loss")
    return some


def _flat(names: Sequence[str]) -> Note:
    def note(points: Sequence[Point]) -> str:
        count = len(points) - len(_descending(points, names))
        return f"no direction lowers the loss at {_of(count, points)}, left out" if count else ""

    return note


def _values(point: Point, names: Sequence[str], field: str = "sharpness") -> dict[str, float]:
    return {name: needed(point.get(name, {}), field, name) for name in names}


def _carried(record: Record) -> float:
    top = record.get("top")
    largest = top.get("0.1") if isinstance(top, Mapping) else None
    if not isinstance(largest, Mapping):
        raise Unmeasured("there is no breakdown of SGD's sharpness")
    return needed(dict(largest), "sharpness", "SGD's largest coordinates") / needed(record, "sharpness", BASELINE)


def _share(which: Iterable[bool]) -> float:
    return statistics.fmean(which)


def _of(count: int, points: Sequence[Point]) -> str:
    return f"{count} of {len(points)} points"


def _place(point: Point) -> str:
    record = point[BASELINE]
    return f"{record.get('trajectory')} trajectory, step {record.get('step')}, seed {record.get('seed')}"
