"""Axes that the charts share: for numbers of many magnitudes, and for training steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from stepscope.report.vega import alt

_Channel = TypeVar("_Channel", "alt.X", "alt.Y")


def powers_of_ten(low: float, high: float, most: int = 6) -> list[float]:
    """Ticks for a log axis: powers of ten between two positive numbers, at most so many.

    Where there would be only one or two, their 2- and 5-fold join them.

    Example:
        >>> powers_of_ten(0.02, 3000)
        [0.1, 1.0, 10.0, 100.0, 1000.0]
    """
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / most))
    powers = [float(f"1e{power}") for power in range(first, last + 1, stride)]
    if len(powers) > 2:
        return powers
    finer = [float(f"{digit}e{power}") for power in range(first - 1, last + 1) for digit in (1, 2, 5)]
    return [tick for tick in finer if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def log_axis(
    channel: type[_Channel], field: str, title: str, low: float, high: float, most: int = 6, **axis: Any
) -> _Channel:
    """A logarithmic axis between two positive numbers, with ticks at powers of ten; `axis` changes `altair.Axis`."""
    ticks = alt.Axis(**{"values": powers_of_ten(low, high, most), "format": "~g", **axis})
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    return channel(field, type="quantitative", title=f"{title} (log)", scale=scale, axis=ticks)


def magnitude_axis(channel: type[_Channel], field: str, values: Sequence[float], title: str) -> _Channel:
    """An axis for numbers of many magnitudes: logarithmic if all are positive, else symmetric around zero."""
    sizes = [abs(value) for value in values if value]
    if not sizes:
        return channel(field, type="quantitative", title=title)
    biggest = max(sizes)
    if min(values) > 0:
        return log_axis(channel, field, title, min(values) / 2, biggest * 2)
    # Below this the axis is linear: a single number near zero must not take all the room.
    linear = 10.0 ** math.floor(math.log10(max(min(sizes), biggest * 1e-8)))
    ticks = [0.0]
    if max(values) > 0:
        ticks += powers_of_ten(linear, max(values), 5)
    if min(values) < 0:
        ticks += [-tick for tick in powers_of_ten(linear, -min(values), 5)]
    domain = [min(1.6 * min(values), 0), max(1.6 * max(values), 0)]
    scale = alt.Scale(type="symlog", constant=linear, domain=domain, nice=False)
    # Of this scale Vega takes the step between ticks for a precision: 1000 would be 1e+3.
    axis = alt.Axis(values=sorted(ticks), labelExpr="format(datum.value, '~g')", labelOverlap=True)
    return channel(field, type="quantitative", title=f"{title} (symmetric log)", scale=scale, axis=axis)


def step_axis(steps: Iterable[float]) -> alt.X:
    """Training steps, each with its tick where they are few."""
    ticks = sorted(set(steps))
    axis = alt.Axis(values=ticks, format="~s", grid=False, labelOverlap=True)
    if len(ticks) > 12:
        # Each with its own prefix: ticks that Vega chooses would share one, and 200 be 0.2k.
        axis = alt.Axis(labelExpr="format(datum.value, '~s')", grid=False, tickCount=8)
    return alt.X("step:Q", title="training step", axis=axis, scale=alt.Scale(zero=False, nice=False, padding=14))
