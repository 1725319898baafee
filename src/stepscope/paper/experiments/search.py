"""The search for a learning rate: successive halving, then a climb among neighbors at full length.

A pure function of what has been found says what to train next, so a search that was stopped goes on by asking again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

Losses = Mapping[float, Mapping[int, float]]
"""``{learning rate: {step: loss}}``; a training that diverged has infinite losses."""


@dataclass(frozen=True)
class Search:
    """How a learning rate is looked for, and what that may cost.

    Rates are ``first · factor^k`` at first. All of them train for a part of the steps, and the grid grows while the
    best lies at its edge. The best go on, fewer and fewer, until the last train for all steps (successive halving,
    Jamieson and Talwalkar, 2016, arXiv 1502.07943). Short trainings favor rates that are wrong later, so the end is
    a climb: the neighbors of the best, at a distance of ``√factor``, train for all steps too, until none is better.

    Attributes:
        factor: between neighbors of the grid.
        rates: of the grid, an odd number: as many on both sides of the first.
        extensions: how often the grid may grow by one rate.
        rungs: ``(part of the steps, how many rates go on)``, the last with all steps.
        climbs: how often the climb may look around.
    """

    factor: float = 4.0
    rates: int = 5
    extensions: int = 3
    rungs: tuple[tuple[Fraction, int], ...] = ((Fraction(1, 4), 3), (Fraction(1, 2), 2), (Fraction(1), 1))
    climbs: int = 2

    def budget(self) -> Fraction:
        """The most that a search costs, in trainings of full length.

        Example:
            >>> Search().budget()
            Fraction(31, 4)
        """
        cost, before, count = Fraction(0), Fraction(0), self.rates + self.extensions
        for part, kept in self.rungs:
            cost += count * (part - before)
            before, count = part, kept
        return cost + 2 * self.climbs

    def next_trainings(self, first: float, steps: int, losses: Losses) -> list[tuple[float, int]]:
        """What has to be trained next.

        Args:
            first: the rate to begin with.
            steps: of a full training.
            losses: what is known.

        Returns:
            ``(learning rate, up to which step)`` of each; empty when the search is over.

        Example:
            >>> Search(rates=3).next_trainings(1.0, 8, {})
            [(0.25, 2), (1.0, 2), (4.0, 2)]
        """
        rates = self._grid(first)
        begun = max(1, int(self.rungs[0][0] * steps))
        grown = 0
        while not (missing := _missing(rates, begun, losses)):
            edge = self._beyond(rates, _best(rates, begun, losses))
            if edge is None or grown == self.extensions:
                break
            rates, grown = sorted([*rates, edge]), grown + 1
        if missing:
            return missing
        end = begun
        for (part, _), (_, kept) in zip(self.rungs[1:], self.rungs, strict=False):
            rates = sorted(sorted(rates, key=lambda rate: _loss(rate, end, losses))[:kept])
            end = max(1, int(part * steps))
            if missing := _missing(rates, end, losses):
                return missing
        for _ in range(self.climbs):
            best = _best(rates, steps, losses)
            neighbors = [_rounded(best / self.factor**0.5), _rounded(best * self.factor**0.5)]
            if missing := _missing(neighbors, steps, losses):
                return missing
            rates = sorted({*rates, *neighbors})
            if _best(rates, steps, losses) == best:
                break
        return []

    def best(self, steps: int, losses: Losses) -> tuple[float, bool]:
        """The rate with the lowest loss after a full training, and whether both of its neighbors were worse there.

        Args:
            steps: of a full training.
            losses: what the search found.

        Example:
            >>> found = {0.5: {8: 2.0}, 1.0: {8: 1.0}, 2.0: {8: 3.0}}
            >>> Search().best(8, found)
            (1.0, True)
        """
        rates = [rate for rate, curve in losses.items() if steps in curve]
        best = _best(sorted(rates), steps, losses)
        sides = [_rounded(best / self.factor**0.5), _rounded(best * self.factor**0.5)]
        return best, all(_loss(best, steps, losses) < losses.get(side, {}).get(steps, -math.inf) for side in sides)

    def lower(self, rate: float) -> float:
        """The next lower rate, at the distance of the climb.

        Example:
            >>> Search().lower(8.0)
            4.0
        """
        return _rounded(rate / self.factor**0.5)

    def _grid(self, first: float) -> list[float]:
        half = self.rates // 2
        return [_rounded(first * self.factor**k) for k in range(-half, half + 1)]

    def _beyond(self, rates: Sequence[float], best: float) -> float | None:
        """The rate beyond the edge of the grid that the best one lies at; None if it lies inside."""
        if best == rates[0]:
            return _rounded(rates[0] / self.factor)
        return _rounded(rates[-1] * self.factor) if best == rates[-1] else None


def _rounded(rate: float) -> float:
    """To 12 digits: the same rate, however it was arrived at, has one value."""
    return float(f"{rate:.12g}")


def _missing(rates: Sequence[float], end: int, losses: Losses) -> list[tuple[float, int]]:
    return [(rate, end) for rate in rates if end not in losses.get(rate, {})]


def _loss(rate: float, step: int, losses: Losses) -> float:
    return losses[rate][step]


def _best(rates: Sequence[float], step: int, losses: Losses) -> float:
    """Of equals the smallest, which is the safer one."""
    return min(rates, key=lambda rate: _loss(rate, step, losses))
