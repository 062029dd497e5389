"""Piecewise linear functions through measured points."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

# "transferred" is scaled from other shapes that were timed on the device, or from a like kernel of another engine.
Source = Literal["measured", "interpolated", "extrapolated", "transferred", "analytical"]
Floats = NDArray[np.float64]


class Curve(NamedTuple):
    """Seconds over a count: linear between its points, and beyond the last as in the last interval."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    source: Source = "measured"  # at the points
    end: float = 0.0  # last count that was measured; 0 is the last point

    def __call__(self, count: float) -> float:
        x, y = self.x, self.y
        at = min(max(bisect_right(x, count) - 1, 0), len(x) - 2)
        return max(y[at] + (y[at + 1] - y[at]) * (count - x[at]) / (x[at + 1] - x[at]), 0.0)

    def source_at(self, count: float) -> Source:
        """How the value at ``count`` is known."""
        if self.source == "analytical":
            return "analytical"
        if count > (self.end or self.x[-1]):
            return "extrapolated"
        return "interpolated" if self.source == "measured" and count not in self.x else self.source

    def at_least(self, seconds: float) -> "Curve":
        """No less than so many seconds, whatever was timed."""
        return self._replace(y=tuple(max(y, seconds) for y in self.y))

    def times(self, factor: float, per: float = 1.0) -> "Curve":
        """``factor`` such operators, of ``per`` units for each one counted."""
        end = (self.end or self.x[-1]) / per
        return Curve(tuple(float(x) / per for x in self.x), tuple(float(y) * factor for y in self.y), self.source, end)


def through(x: Any, y: Any, source: Source = "measured", proportional: bool = True) -> Curve:
    """The curve through these points.

    Times never fall with the count: a spike (an outlier, or a tile edge that the next larger problem does not
    have) is cut down to the least time of any larger problem. Beyond the last point time grows in proportion,
    or as between the last two.
    """
    x, place = np.unique(np.asarray(x, dtype=float), return_inverse=True)
    least_seconds = np.full(len(x), np.inf)  # of what was timed more than once
    np.minimum.at(least_seconds, place, np.asarray(y, dtype=float))
    y = envelope(least_seconds)
    end = float(x[-1])
    if proportional or len(x) == 1:
        x, y = np.append(x, 2 * end), np.append(y, 2 * y[-1])
    return Curve(tuple(map(float, x)), tuple(map(float, y)), source, end)


def line(each: float, once: float = 0.0) -> Curve:
    """An analytical operator: ``once`` seconds and ``each`` for every one counted."""
    return Curve((0.0, 1.0), (once, once + each), "analytical")


def total(curves: Sequence[Curve]) -> Curve:
    """The sum of curves, over all their points."""
    x = tuple(sorted({0.0, 1.0}.union(*(curve.x for curve in curves))))
    return Curve(x, tuple(sum(curve(count) for curve in curves) for count in x))


def least(curves: Sequence[Curve], source: Source = "measured") -> Curve:
    """The least of several curves at every point of any."""
    if len(curves) == 1:
        return curves[0]
    x = sorted(set().union(*(curve.x[:-1] for curve in curves)))
    return through(x, [min(curve(count) for curve in curves) for count in x], source)


def envelope(y: Floats, axis: int = -1) -> Floats:
    """The least of a time and all times of larger problems."""
    flipped = np.flip(y, axis)
    return np.flip(np.minimum.accumulate(flipped, axis=axis), axis)


def between(grid: Floats, at: float) -> tuple[int, float]:
    """The interval of ``grid`` that holds ``at``, and how far along it lies: 0 to 1, clamped to the grid."""
    index = int(np.clip(np.searchsorted(grid, at, side="right") - 1, 0, len(grid) - 2))
    return index, float(np.clip((at - grid[index]) / (grid[index + 1] - grid[index]), 0.0, 1.0))
