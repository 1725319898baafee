"""What the experiments on robust smoothness and on theory found, as tables of text: for the terminal and the page."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from stepscope.paper.records import AgreementRecord, BoundRecord, CorrelationRecord, SmoothnessRecord, TheoryRecord
from stepscope.report import Table
from stepscope.runs.records import AnyRecord

_Key = TypeVar("_Key", bound=Hashable)


def robustness_tables(records: Sequence[SmoothnessRecord]) -> list[Table]:
    """Robust smoothness by group of coordinates and cut, over trajectories, steps, batches and seeds (Table 8).

    Example:
        >>> place = {"trajectory": "sgd", "seed": 0, "step": 1, "batch": 0, "group": "attention", "cut": 4.0}
        >>> one = SmoothnessRecord(**place, ratio=3.0, fraction=0.05, random_ratio=1.01)
        >>> robustness_tables([one])[0].rows
        (('attention, cut 4', '1', '3', '3…3', '1/1', '5.0%', '1.01'),)
    """
    rows = []
    for (group, cut), own in _by(records, lambda r: (r.group, r.cut)).items():
        ratios = _measured(record.ratio for record in own)
        if ratios:
            fractions = _measured(record.fraction for record in own)
            random = _measured(record.random_ratio for record in own)
            rows.append((
                f"{group}, cut {cut:g}",
                str(len(own)),
                f"{statistics.median(ratios):.3g}",
                f"{min(ratios):.3g}…{max(ratios):.3g}",
                f"{sum(ratio >= 2 for ratio in ratios)}/{len(ratios)}",
                f"{statistics.median(fractions):.1%}" if fractions else "-",
                f"{max(random):.2f}" if random else "-",
            ))  # fmt: skip
    headers = ("coordinates", "measured", "times smoother", "from…to", "at least 2", "removed", "at random")
    note = (
        "Spectral norm of the Gauss-Newton matrix divided by that without the coordinates whose column norm is at "
        "least so many times (cut) the mean. Medians; 'at random': the largest ratio where as many go at random."
    )
    title = f"Robust smoothness, {_seeds(records)}"
    return [Table(title, headers, tuple(rows), note, "robust-smoothness")] if rows else []


def theory_tables(records: Sequence[TheoryRecord]) -> list[Table]:
    """The bound of appendix A on drawn losses, and curvature against gradient by coordinates (§4.2)."""
    bounds = _bounds([record for record in records if isinstance(record, BoundRecord)])
    correlations = _correlations([record for record in records if isinstance(record, CorrelationRecord)])
    return [table for table in (bounds, correlations) if table.rows]


def _bounds(records: Sequence[BoundRecord]) -> Table:
    rows = []
    for (family, fraction), own in _by(records, lambda r: (r.family, r.fraction)).items():
        draws = sum(record.draws for record in own)
        margins = [bound for r in own for bound in (r.clipped, r.plain, r.block) if bound is not None]
        rows.append((
            f"{family}, clip {fraction:.0%}",
            f"{draws:,}",
            str(sum(bound.violations for bound in margins)),
            f"{min(bound.least_margin for bound in margins):.2g}" if margins else "-",
            f"{sum(record.guarantees_more for record in own) / draws:.1%}",
            f"{sum(record.decreases_more for record in own) / draws:.1%}",
            str(sum(record.disagreements for record in own)),
        ))  # fmt: skip
    headers = ("loss", "draws", "violations", "least margin", "bound larger", "decrease larger", "disagreements")
    note = (
        "Measured decrease against the guaranteed one, with clipping, without, and by blocks; the margin is relative. "
        "'Larger': with clipping than without. 'Disagreements': draws in which the derived condition says otherwise."
    )
    return Table(f"The bound of appendix A, {_seeds(records)}", headers, tuple(rows), note, "the-bound-of-appendix-a")


def _correlations(records: Sequence[CorrelationRecord]) -> Table:
    rows = []
    for group, own in _by(records, lambda r: r.group).items():
        cells = [group, str(len(own))]
        for ranks in ([record.diagonal for record in own], [record.row_norm for record in own]):
            rhos = _measured(rank.rho for rank in ranks)
            above = sum(low > 0 for low in _measured(rank.low for rank in ranks if rank.rho is not None))
            cells += [f"{min(rhos):.2f}…{max(rhos):.2f}" if rhos else "-", f"{above}/{len(rhos)}"]
        rows.append(tuple(cells))
    headers = ("coordinates", "measured", "with |diagonal|", "above 0", "with row norm", "above 0")
    note = (
        "Spearman's rank correlation of |gradient| with the Hessian's diagonal and with the norm of its row, "
        "coordinate by coordinate. 'Above 0': 95% intervals that lie wholly above 0; they cover the sampling of "
        "coordinates alone."
    )
    return Table(
        f"Curvature against gradient, {_seeds(records)}", headers, tuple(rows), note, "curvature-against-gradient"
    )


def agreement_tables(records: Sequence[AgreementRecord]) -> list[Table]:
    """Sharpness by two independent paths, at one point of each task.

    Example:
        >>> place = {"run": "a", "task": "code", "trajectory": "sgd", "seed": 0, "step": 15, "direction": "sgd"}
        >>> agreement_tables([AgreementRecord(**place, sharpness=2.0, independent=2.0)])[0].rows
        (('code', '15', '1', '0e+00', 'sgd', '2'),)
    """
    rows = []
    for (task, step), own in _by(records, lambda r: (r.task, r.step)).items():
        both = [
            (abs(record.sharpness - record.independent), record.direction, abs(record.independent))
            for record in own
            if record.sharpness is not None and record.independent is not None
        ]
        largest = max((independent for _, _, independent in both), default=0.0)
        if largest:
            worst, direction, _ = max(both, key=lambda pair: pair[0])
            rows.append((
                task,
                str(step),
                str(len(both)),
                f"{worst / largest:.0e}",
                direction,
                f"{largest:.3g}",
            ))  # fmt: skip
    headers = ("task", "step", "directions", "largest difference", "of direction", "largest sharpness")
    note = (
        "Sharpness as recorded (float32, double backward) against differences of float64 gradients that share no code "
        "with it. The difference is relative to the largest sharpness among the directions."
    )
    title = "The measured sharpness, by another path"
    return [Table(title, headers, tuple(rows), note, "the-measured-sharpness")] if rows else []


def _by(records: Iterable[AnyRecord], key: Callable[[AnyRecord], _Key]) -> dict[_Key, list[AnyRecord]]:
    groups: dict[_Key, list[AnyRecord]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _seeds(records: Iterable[SmoothnessRecord | TheoryRecord]) -> str:
    count = len({record.seed for record in records})
    return f"{count} seeds" if count > 1 else "one seed"


def _measured(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
