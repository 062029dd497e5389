"""Piecewise-linear interpolation over measured points that lie anywhere, inside their convex hull only."""

from bisect import bisect_right
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay, QhullError

Floats = NDArray[np.float64]

SECTIONS = 4096  # kept; a section takes some 0.1 ms to cut
SLACK = 1e-9  # of an axis's range: rounding at the hull's edge, not reach beyond it


class Line:
    """A piecewise-linear function on [low, high]; both arrays of shape [n], ``x`` rising."""

    def __init__(self, x: Floats, value: Floats) -> None:
        self.x: list[float] = x.tolist()
        self.value: list[float] = value.tolist()
        self.low, self.high = self.x[0], self.x[-1]
        self._slack: float = SLACK * max(abs(self.low), abs(self.high), 1.0)

    def covers(self, x: float) -> bool:
        return bool(self.low - self._slack <= x <= self.high + self._slack)

    def piece(self, x: float) -> tuple[float, float, float]:
        """The value at ``x``, the slope to the right of it, and where that slope ends (``high`` or a knot)."""
        at, end = bisect_right(self.x, x), len(self.x)
        if end == 1:
            return self.value[0], 0.0, self.high
        right = min(max(at, 1), end - 1)
        slope = (self.value[right] - self.value[right - 1]) / (self.x[right] - self.x[right - 1])
        return self.value[right - 1] + slope * (x - self.x[right - 1]), slope, self.x[right]

    def at(self, x: float) -> float:
        return self.piece(x)[0]


class Surface:
    """Linear over the Delaunay triangles of the points (x, y), which it passes through; undefined outside their hull.

    Linear interpolation keeps between the three measured corners: it never overshoots as splines and forests of
    polynomials do, and where the corners rise, so does it (Barber, Dobkin and Huhdanpaa, ACM TOMS 22(4), 1996, for
    the triangulation, on axes scaled to one range). Points on one line are interpolated along it and undefined
    beside it.
    """

    def __init__(self, x: Floats, y: Floats, value: Floats) -> None:
        self.x, self.y, self.value = x, y, value
        self.x_range, self.y_range = (float(x.min()), float(x.max())), (float(y.min()), float(y.max()))
        self._lines: dict[float, Line | None] = {}

    @cached_property
    def _edges(self) -> NDArray[np.int64]:
        """Pairs of points joined by a side of a triangle, shape [n, 2]."""
        scaled = np.column_stack([_unit(self.x), _unit(self.y)])
        try:
            corners = Delaunay(scaled).simplices
        except (QhullError, ValueError):  # fewer than three points, or all on one line
            order = np.lexsort((self.y, self.x))
            return np.column_stack([order[:-1], order[1:]]) if len(order) > 1 else np.zeros((1, 2), np.int64)
        sides = np.sort(np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]]), axis=1)
        return np.unique(sides, axis=0)

    def line(self, x: float) -> Line | None:
        """The exact section at ``x``, a function of y; None outside the points' range."""
        if x not in self._lines:
            if len(self._lines) >= SECTIONS:
                self._lines.clear()
            self._lines[x] = self._section(x)
        return self._lines[x]

    def _section(self, x: float) -> Line | None:
        if not self.x_range[0] <= x <= self.x_range[1]:
            return None
        a, b = self._edges.T
        across = (np.minimum(self.x[a], self.x[b]) <= x) & (x <= np.maximum(self.x[a], self.x[b]))
        a, b = a[across], b[across]
        if not len(a):
            return None
        level = self.x[a] == self.x[b]
        share = (x - self.x[a]) / np.where(level, 1.0, self.x[b] - self.x[a])
        cut = ~level
        y = np.concatenate([(self.y[a] + share * (self.y[b] - self.y[a]))[cut], self.y[a[level]], self.y[b[level]]])
        value = self.value[a] + share * (self.value[b] - self.value[a])
        value = np.concatenate([value[cut], self.value[a[level]], self.value[b[level]]])
        order = np.argsort(y, kind="stable")
        y, value = y[order], value[order]
        apart = np.append(True, np.diff(y) > SLACK * max(self.y_range[1] - self.y_range[0], 1.0))
        return Line(y[apart], value[apart])


def _unit(axis: Floats) -> Floats:
    spread = float(axis.max() - axis.min())
    scaled: Floats = (axis - axis.min()) / (spread or 1.0)
    return scaled
