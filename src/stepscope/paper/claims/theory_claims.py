"""The claims on curvature: robust smoothness (C10), its correlation with the gradient (C11), the bound (C12)."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from stepscope.paper.claims.verdicts import Part, Threshold, Unmeasured, by_seed, needed, whole_seeds
from stepscope.paper.runs import Run
from stepscope.runs import Record, number

CUT = 4.0
"""The paper removes coordinates whose row norm is at least so many times the mean."""

BOUNDS = ("clipped", "plain", "block")


def robustly_smoother(runs: Sequence[Run]) -> list[Part]:
    """C10: without the few largest coordinates smoothness is at least twice better, for every batch and step."""
    return [part for run in runs if run.experiment == "robustness" for part in _smoother(run)]


def _smoother(run: Run) -> list[Part]:
    asked = run.head["configuration"]
    batches = range(asked.get("batches") or 0)
    wanted = set(itertools.product(asked.get("training_lr") or (), asked.get("steps") or (), batches))
    parts = []
    for group, deciding in (("attention", True), ("feed-forward", False)):
        chosen = [r for r in run.records if r.get("group") == group and r.get("cut") == CUT]
        seeds, remarks = whole_seeds(
            run, wanted, lambda r: (r.get("trajectory"), r.get("step"), r.get("batch")), chosen
        )
        measured = {seed: list(found.values()) for seed, found in seeds.items()}
        told = _removed([record for some in measured.values() for record in some])
        for name, statistic in (("median", statistics.median), ("every batch and step", min)):
            what = f"{'median' if name == 'median' else 'smallest'} ratio of the spectral norm before and after"

            def value(some: Sequence[Record], of: Any = statistic, group: str = group) -> float:
                return float(of([needed(record, "ratio", f"{group} at a batch") for record in some]))

            values, lost = by_seed(measured, value)
            threshold = Threshold("≥", 2.0)
            notes = (*remarks, *lost, told)
            parts.append(Part(f"{group}, {name}", what, threshold, (run,), values, notes, deciding))
    return parts


def _removed(records: Sequence[Record]) -> str:
    fractions, controls = (
        [value for record in records if (value := number(record, name)) is not None]
        for name in ("fraction", "random_ratio")
    )
    told = [f"{min(fractions):.1%} to {max(fractions):.1%} of the coordinates removed"] if fractions else []
    if controls:
        told.append(f"as many at random: at most {max(controls):.2f} times smoother")
    return ", ".join(told)


def curvature_follows_gradient(runs: Sequence[Run]) -> list[Part]:
    """C11: |gradient| and the Hessian's |diagonal| are positively correlated over coordinates."""
    return [part for run in runs if run.experiment == "theory" for part in _correlated(run)]


def _correlated(run: Run) -> list[Part]:
    parts = []
    for task, settings in (run.head["configuration"].get("correlated") or {}).items():
        wanted = set(itertools.product(settings.get("training_lr") or (), settings.get("steps") or ()))
        for scope in settings.get("scopes") or ():
            if scope and task != "translation":
                continue
            chosen = [r for r in run.records if r.get("task") == task and r.get("scope") == scope and "diagonal" in r]
            seeds, remarks = whole_seeds(run, wanted, lambda r: (r.get("trajectory"), r.get("step")), chosen)
            measured = {seed: list(found.values()) for seed, found in seeds.items()}
            for of, named in (("diagonal", "|diagonal|"), ("row_norm", "row norm")):

                def mean(some: Sequence[Record], of: str = of) -> float:
                    return statistics.fmean(_rho(record, of) for record in some)

                values, lost = by_seed(measured, mean)
                name = f"{task}, {scope or 'all'}" + ("" if of == "diagonal" else f", {named}")
                what = f"mean of ρ between |gradient| and {named}"
                notes = (*remarks, *lost)
                parts.append(Part(name, what, Threshold(">", 0.0), (run,), values, notes, of == "diagonal"))
    return parts


def _rho(record: Record, of: str) -> float:
    found = record.get(of)
    return needed(dict(found) if isinstance(found, Mapping) else {}, "rho", f"the {of} at a step")


def bound_holds(runs: Sequence[Run]) -> list[Part]:
    """C12: no draw decreases the loss by less than the bound of appendix A guarantees."""
    return [_bound(run) for run in runs if run.experiment == "theory"]


def _bound(run: Run) -> Part:
    asked = run.head["configuration"]
    wanted = set(itertools.product(asked.get("families") or (), asked.get("fractions") or ()))
    seeds, remarks = whole_seeds(run, wanted, lambda r: (r.get("family"), r.get("fraction")))
    measured = {seed: list(found.values()) for seed, found in seeds.items()}
    values, lost = by_seed(measured, lambda some: sum(needed(each, "violations", "a bound") for each in _bounds(some)))
    counted = [record for seed in values for record in measured[seed]]
    if counted:
        draws = sum(int(number(record, "draws") or 0) for record in counted)
        margins = [margin for each in _bounds(counted) if (margin := number(each, "least_margin")) is not None]
        least = f", least margin {min(margins):.2g} of the guaranteed decrease" if margins else ""
        remarks = (*remarks, f"{draws:,} draws{least}")
        broken = sum(value > 0 for value in values.values())
        if broken:
            remarks = (*remarks, f"violated in {broken} of {len(values)} seeds")
    what = "draws in which the decrease is less than guaranteed"
    return Part("all losses", what, Threshold("≤", 0.0, always=True), (run,), values, (*remarks, *lost))


def _bounds(records: Sequence[Record]) -> list[Record]:
    """What was found of each bound that a record holds; by blocks there is none for some losses."""
    found = []
    for record in records:
        own = [each for name in BOUNDS if isinstance(each := record.get(name), dict)]
        if not own:
            raise Unmeasured("a record has no bound")
        found += own
    return found
