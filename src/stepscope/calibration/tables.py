"""The tables of a study."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from stepscope.calibration.analysis import SHIPPED, TRIED, Case, Errors, cases_of, errors_of, near_verdicts
from stepscope.calibration.jobs import OPTIMIZERS, SCHEDULES, SETS, VARIANTS, Curve
from stepscope.calibration.splits import Split, part, splits
from stepscope.calibration.study import complete_curves
from stepscope.calibration.training import TrainingRecord
from stepscope.judging import verdict_of
from stepscope.report import NOTHING, Table

_COLUMNS = ("right side, of said", "small found", "large found", "best called short", "best called long", "inverted")
_KINDS = ("step_too_short", "healthy", "cannot_tell", "step_too_long")


def tables_of(records: Sequence[TrainingRecord]) -> list[Table]:
    """All tables of a study.

    Args:
        records: its trainings.
    """
    cases = cases_of(records)
    return [verdicts(records, cases), near(cases), rules(records), parts(cases), over_splits(list(splits(cases)))]


def verdicts(records: Sequence[TrainingRecord], cases: Sequence[Case]) -> Table:
    """What was said at which distance from the best rate."""
    rows = []
    for distance in sorted({case.distance for case in cases}):
        found = [case for case in cases if case.distance == distance]
        said = Counter(SHIPPED.verdict(case.evidence) for case in found)
        ratios = [case.evidence.trust.ratio for case in found if case.evidence.trust.ratio is not None]
        median = f"{statistics.median(ratios):.3f}" if ratios else NOTHING
        rows.append(
            (_factor(distance), str(len(found)), median, *(_share((said[kind], len(found))) for kind in _KINDS))
        )
    headers = ("rate / best rate", "trainings", "median T", "too short", "healthy", "cannot tell", "too long")
    curves, inside = len(complete_curves(records)), len({case.record.curve for case in cases})
    probes = statistics.median(case.evidence.trust.probes for case in cases) if cases else 0
    note = (
        f"{len(records)} trainings; of {curves} curves of nine rates {inside} have their best rate inside and count. "
        f"A median of {probes:g} measured steps count in a training."
    )
    return Table("Verdicts by distance from the best rate", headers, tuple(rows), note, "calibration-verdicts")


def near(cases: Sequence[Case]) -> Table:
    """On which side of the best rate trainings are that don't reach a verdict, by the one that they are near."""
    rows = []
    for kind, title in (("step_too_short", "too short"), ("step_too_long", "too long")):
        found = [case for case in cases if verdict_of(case.evidence, SHIPPED.rule).near == kind]
        tasks = {case.record.task for case in found}
        below, best, above = near_verdicts(cases)[kind]
        rows.append((title, str(len(found)), str(len(tasks)), str(below), str(best), str(above)))
    headers = ("near the verdict", "trainings", "tasks", "rate below the best", "the best rate", "above the best")
    note = (
        "The interval of the trust ratio reaches past the threshold of this verdict, and not past the other; and as "
        "much is predicted, or as little, as the verdict asks for."
    )
    return Table("Near a verdict", headers, tuple(rows), note, "calibration-near")


def rules(records: Sequence[TrainingRecord]) -> Table:
    """The rule that ships beside others that were tried on the same trainings."""
    rows, cases = [], {}
    for tried in TRIED:
        rule = tried.rule
        evidence = tried.seen, rule.window, rule.least_rate, rule.coverage, rule.rise
        if evidence not in cases:
            cases[evidence] = cases_of(records, tried)
        rows.append((tried.name, *_cells(errors_of(cases[evidence], tried))))
    return Table("Rules", ("rule", *_COLUMNS), tuple(rows), _NOTE, "calibration-rules")


def later(records: Sequence[TrainingRecord], curves: Iterable[Curve]) -> Table:
    """The rule that ships, and the trust ratio alone, on curves that were run after the thresholds had been fixed."""
    chosen = set(curves)
    cases = cases_of([record for record in records if record.curve in chosen])
    rows = [(tried.name, *_cells(errors_of(cases, tried))) for tried in TRIED[:2]]
    note = f"{len({case.record.curve for case in cases})} curves. {_NOTE}"
    return Table("Curves of later", ("rule", *_COLUMNS), tuple(rows), note, "calibration-later")


def parts(cases: Sequence[Case]) -> Table:
    """The rule that ships, by what was trained and how."""
    rows = []
    fields: tuple[tuple[str, Callable[[TrainingRecord], str]], ...] = (
        ("", lambda record: record.task),
        ("", lambda record: record.optimizer),
        ("", lambda record: record.schedule),
        ("", lambda record: record.variant),
        ("batches of ", lambda record: str(record.batch_size)),
    )
    for before, value in fields:
        for name in sorted({value(case.record) for case in cases}):
            found = [case for case in cases if value(case.record) == name]
            rows.append((before + name, *_cells(errors_of(found))))
    there = {row[0] for row in rows}
    tasks = next((tasks for tasks in SETS.values() if cases and cases[0].record.task in tasks), SETS["study"])
    left = [name for name in (*tasks, *OPTIMIZERS, *SCHEDULES, *VARIANTS) if name not in there]
    note = f"{_NOTE} Not among these trainings: {', '.join(left)}." if left else _NOTE
    return Table(
        "The rule that ships, by part of the study", ("trainings", *_COLUMNS), tuple(rows), note, "calibration-parts"
    )


def over_splits(found: Sequence[Split]) -> Table:
    """Errors on the tasks that thresholds were not fixed on."""
    ways: tuple[tuple[str, Callable[[Split], Errors]], ...] = (
        ("the rule that ships", lambda split: split.shipped),
        ("thresholds fixed on the other half", lambda split: split.errors),
    )
    rows = []
    for name, errors in ways:
        measured = [errors(split) for split in found]
        shares = [[part(getattr(one, field)) for one in measured] for field in _FIELDS]
        rows.append((name, *(f"{statistics.fmean(each):.1%}" if each else NOTHING for each in shares)))
        worst = [min(each, default=math.nan) for each in shares[:3]] + [
            max(each, default=math.nan) for each in shares[3:]
        ]
        rows.append((f"{name}, worst split", *(NOTHING if math.isnan(each) else f"{each:.1%}" for each in worst)))
    common = Counter(split.fixed for split in found).most_common(1)
    often = " Most often {:g}, {:g} and {:g} were fixed.".format(*common[0][0]) if common else ""
    note = f"Means over {len(found)} ways to divide the tasks; judged on the half that nothing was fixed on.{often}"
    return Table("Held-out tasks", ("thresholds", *_COLUMNS), tuple(rows), note, "calibration-splits")


_FIELDS = ("right", "small_found", "large_found", "best_short", "best_long", "inverted")
_NOTE = (
    "In brackets Wilson's 95% interval, which takes trainings as independent. Small and large: rates ten times off. "
    "Inverted: rates off by √10 or more that were called the opposite."
)


def _cells(errors: Errors) -> Iterable[str]:
    return [_share(getattr(errors, field), interval=True) for field in _FIELDS]


def _share(counts: tuple[int, int], *, interval: bool = False) -> str:
    """So many of how many, in percent, with an interval."""
    times, of = counts
    if not of:
        return NOTHING
    if not interval:
        return f"{times / of:.0%}"
    low, high = wilson(times, of)
    return f"{times / of:.0%} of {of} ({low:.0%} to {high:.0%})"


def wilson(times: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a proportion.

    Args:
        times: successes.
        of: trials, at least 1.
        z: of the normal distribution: 1.96 for 95%.

    Example:
        >>> [round(end, 3) for end in wilson(0, 10)]
        [0.0, 0.278]
    """
    share, width = times / of, z**2 / of
    middle = share + width / 2
    spread = z * math.sqrt(share * (1 - share) / of + width / (4 * of))
    return max(0.0, (middle - spread) / (1 + width)), min(1.0, (middle + spread) / (1 + width))


def _factor(distance: int) -> str:
    """A distance as a factor of the rate."""
    size = {0: "1", 1: "3"}.get(abs(distance) % 2, "1") if distance else "1"
    size += "0" * (abs(distance) // 2)
    return f"1/{size}" if distance < 0 else size
