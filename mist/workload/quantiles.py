"""Monotone curves written as text: ``"0:2 0.5:1020 1:14050"``, straight lines between the knots.

A distribution is written as its quantile function (probability:value), an arrival profile as the time at
which each share of the requests has arrived (requests:seconds).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mist.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """A continuous non-decreasing function on [0, 1], linear between its knots."""

    levels: Floats
    values: Floats

    def __call__(self, level: Floats) -> Floats:
        return np.interp(level, self.levels, self.values)

    def mean(self) -> float:
        """The mean of the distribution whose quantile function this is."""
        return float(np.trapezoid(self.values, self.levels))


@lru_cache(maxsize=4096)
def curve(text: str) -> Curve:
    """The curve that ``text`` describes, its levels divided by the last of them.

    Raises InputError (without a field name) unless there are at least two ``level:value`` knots, levels
    rise from 0, and values are non-negative and never fall.
    """
    try:
        knots = np.array([[float(part) for part in knot.split(":")] for knot in text.split()], dtype=np.float64)
    except ValueError:
        knots = np.empty(0)
    if knots.ndim != 2 or knots.shape[1] != 2 or len(knots) < 2 or not np.isfinite(knots).all():
        raise InputError("", shown(text), 'needs at least two knots "level:value level:value ..."')
    levels, values = np.ascontiguousarray(knots.T)
    if levels[0] != 0 or np.any(np.diff(levels) < 0) or levels[-1] == 0:
        raise InputError("", shown(text), "levels must rise from 0")
    if values[0] < 0 or np.any(np.diff(values) < 0):
        raise InputError("", shown(text), "values must be non-negative and never fall")
    return Curve(levels / levels[-1], values)


def check_curve(field: str, text: str) -> Curve:
    """``curve(text)``, its error naming ``field``."""
    try:
        return curve(text)
    except InputError as error:
        raise InputError(field, error.value, error.why) from None


def last_knot(text: str) -> tuple[float, float]:
    """The undivided last level and value."""
    level, value = text.rsplit(maxsplit=1)[-1].split(":")
    return float(level), float(value)


def thin(levels: Floats, values: Floats, tolerance: float) -> NDArray[np.intp]:
    """Indices of the knots that describe a curve: an interval is split at its largest deviation while the
    area between curve and chord exceeds ``tolerance``.

    Area bounds the error of the mean, where a bound on height would spend every knot on the tail.
    """
    kept, open_intervals = {0, len(levels) - 1}, [(0, len(levels) - 1)]
    while open_intervals:
        first, last = open_intervals.pop()
        if last - first < 2:
            continue
        inside = slice(first, last + 1)
        error = np.abs(np.interp(levels[inside], levels[[first, last]], values[[first, last]]) - values[inside])
        if np.trapezoid(error, levels[inside]) > tolerance:
            middle = first + int(error[1:-1].argmax()) + 1
            kept.add(middle)
            open_intervals += [(first, middle), (middle, last)]
    return np.array(sorted(kept))


def stratified(n: int, chance: np.random.Generator) -> Floats:
    """``n`` uniforms in random order, one in each n-th of [0, 1): their sample quantiles hardly vary."""
    return (chance.permutation(n) + chance.random(n)) / n


def shown(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
