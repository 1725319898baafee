"""Trainings side by side: each optimizer at its own best learning rate, each variant against its original."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stepscope.paper.records import LossRecord
from stepscope.paper.statistics import CONFIDENCE, MeanInterval, mean_interval

Curve = dict[int, float]
"""``{step: loss}``."""


@dataclass(frozen=True)
class Final:
    """How far one optimizer came on one task.

    Attributes:
        task: the task's name.
        optimizer: its name.
        original: the optimizer that it is a variant of, or None.
        lr: its learning rate: the best of the search, or a lower one where that diverged on a seed.
        retreats: how often it was lowered.
        bracketed: whether both neighbors of the search's best rate were worse at full length; otherwise a better one
            may lie beyond.
        losses: ``{seed: loss after the last step}``; None where the training diverged.
        curves: ``{seed: {step: loss}}``.
    """

    task: str
    optimizer: str
    original: str | None
    lr: float
    retreats: int
    bracketed: bool
    losses: dict[int, float | None]
    curves: dict[int, Curve]

    @property
    def mean(self) -> float | None:
        """Of the losses; None if a training diverged."""
        losses = _finite(self.losses.values())
        return statistics.fmean(losses) if losses else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one seed, or if a training diverged."""
        losses = _finite(self.losses.values())
        return statistics.stdev(losses) if len(losses) > 1 else None


@dataclass(frozen=True)
class Pair:
    """A variant against its original, seed by seed.

    Attributes:
        variant: the variant.
        original: what it is compared with.
        difference: of the losses after the last step, variant − original; None if one diverged in a seed, or no seed
            has both.
        steps_needed: the part of the steps after which the variant's loss was down to the original's last one, mean
            over seeds; None if it didn't get there in each.
        verdict: ``"faster"``, ``"slower"`` or ``"cannot tell"``.
        remark: why it cannot be told, or what stands beside the verdict.
    """

    variant: Final
    original: Final
    difference: MeanInterval | None
    steps_needed: float | None
    verdict: str
    remark: str

    @property
    def title(self) -> str:
        """The variant's name, with the original's where it doesn't begin with that."""
        variant, original = self.variant.optimizer, self.original.optimizer
        return variant if variant.startswith(f"{original} ") else f"{variant} / {original}"


def finals_of(records: Sequence[LossRecord]) -> list[Final]:
    """How far each optimizer came, by task, variants after their original.

    Args:
        records: those of a convergence experiment. Trainings that aren't finished are left out.

    Example:
        >>> at = {"run": "a", "task": "code", "optimizer": "sgd", "phase": "final", "lr": 1.0, "seed": 0}
        >>> finals = finals_of([LossRecord(**at, step=0, loss=5.0), LossRecord(**at, step=8, loss=2.0)])
        >>> finals[0].losses, finals[0].curves
        ({0: 2.0}, {0: {0: 5.0, 8: 2.0}})
    """
    chosen = [record for record in records if record.phase == "final"]
    whole = max((record.step for record in chosen), default=0)
    trainings: dict[tuple[str, str], list[LossRecord]] = {}
    for record in chosen:
        trainings.setdefault((record.task, record.optimizer), []).append(record)
    finals = []
    for (task, optimizer), tried in trainings.items():
        rates = sorted({record.lr for record in tried})
        # Rates are only ever lowered: the lowest is the one that holds.
        own = [record for record in tried if record.lr == rates[0]]
        curves: dict[int, Curve] = {}
        for record in own:
            if record.loss is not None:
                curves.setdefault(record.seed, {})[record.step] = record.loss
        ends = {record.seed: record.loss for record in own if record.step == whole}
        if ends:
            original, bracketed, retreats = own[0].original, bool(own[0].bracketed), len(rates) - 1
            losses = dict(sorted(ends.items()))
            finals.append(Final(task, optimizer, original, rates[0], retreats, bracketed, losses, curves))
    tasks = [record.task for record in records]
    optimizers = [record.optimizer for record in records]

    def place(final: Final) -> tuple[int, int, bool, int]:
        """An original stands before its variants, whichever was trained first."""
        first = final.original if final.original in optimizers else final.optimizer
        own = optimizers.index(final.optimizer)
        return tasks.index(final.task), optimizers.index(first), final.original is not None, own

    return sorted(finals, key=place)


def pairs_of(finals: Sequence[Final]) -> list[Pair]:
    """Each variant against its original.

    *Faster* and *slower* are said where the interval of the mean difference, paired by seed, doesn't hold 0.
    """
    originals = {(final.task, final.optimizer): final for final in finals}
    return [
        _pair(variant, original)
        for variant in finals
        if (original := originals.get((variant.task, variant.original or "")))
    ]


def _pair(variant: Final, original: Final) -> Pair:
    seeds = [seed for seed in variant.losses if seed in original.losses]
    ours, theirs = ([final.losses[seed] for seed in seeds] for final in (variant, original))
    remarks = [
        f"{final.optimizer} diverged in {lost} of {len(seeds)} seeds"
        for final, losses in ((variant, ours), (original, theirs))
        if (lost := losses.count(None))
    ]
    remarks += [
        f"the best rate of {final.optimizer} diverged on at least one seed and was lowered {_times(final.retreats)}"
        for final in (variant, original)
        if final.retreats
    ]
    open_ended = [final.optimizer for final in (variant, original) if not final.bracketed]
    if open_ended:
        remarks.append(f"a better rate for {' and '.join(open_ended)} may lie beyond those tried")
    first, second = _finite(ours), _finite(theirs)
    if not first or not second:
        return Pair(variant, original, None, None, "cannot tell", "; ".join(remarks) or "no seed has both")
    difference = mean_interval([a - b for a, b in zip(first, second, strict=True)])
    verdict = "faster" if difference.high < 0 else "slower" if difference.low > 0 else "cannot tell"
    if len(seeds) == 1:
        remarks.insert(0, "one seed")
    reached = _finite(_steps_needed(variant.curves[seed], original.curves[seed]) for seed in seeds)
    steps = statistics.fmean(reached) if reached else None
    return Pair(variant, original, difference, steps, verdict, "; ".join(remarks))


def _finite(values: Iterable[float | None]) -> list[float]:
    """All values; none of them if one is missing."""
    values = list(values)
    return [] if None in values else [value for value in values if value is not None]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _steps_needed(variant: Curve, original: Curve) -> float | None:
    """The part of the original's steps after which the variant's loss was as low as the original's last."""
    last = max(original)
    target = original[last]
    before: tuple[int, float] | None = None
    for step, loss in sorted(variant.items()):
        if loss <= target:
            if before is None or before[1] <= loss:
                return step / last
            return (before[0] + (step - before[0]) * (before[1] - target) / (before[1] - loss)) / last
        before = step, loss
    return None


def conclusion(pairs: Sequence[Pair]) -> str:
    """One sentence on what the pairs say, whatever it is.

    Example:
        >>> conclusion([])
        'No variant and its original have both been trained to the end.'
    """
    if not pairs:
        return "No variant and its original have both been trained to the end."
    counts = {verdict: sum(pair.verdict == verdict for pair in pairs) for verdict in ("faster", "slower")}
    rest = len(pairs) - sum(counts.values())
    seeds = max(len(pair.variant.losses) for pair in pairs)
    counted = (
        f"Of {len(pairs)} comparisons with the original, {counts['faster']} are faster, {counts['slower']} slower, "
        f"{rest} cannot be told from {seeds} seed{'s' if seeds > 1 else ''}"
    )
    tested = sum(pair.difference is not None and math.isfinite(pair.difference.low) for pair in pairs)
    if not tested:
        return f"{counted}."
    chance = f"about {tested * (1 - CONFIDENCE):.1f} would be called faster or slower by chance"
    return f"{counted}; where nothing differs, {chance}."
