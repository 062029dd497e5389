"""Least squares over replays: the scalars with which the simulator comes nearest to what was measured."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import t as student

from mist.calibration.scalars import SCALARS, Floats, unidentified
from mist.errors import InputError

Values = Mapping[str, float]  # scalars in seconds
Errors = Callable[[Values], Floats]

FAR = 0.1  # relative error from which a figure counts as an outlier, until the spread of its metric is known
OUTLIER = 2.0  # the same in spreads of its metric
NOISE = 0.01  # spread of a metric that fits better than this, where nobody has measured its noise
WIDTHS = (1.0, 0.5, 0.25)  # of differences, in trial changes
ROUNDS = 6  # Jacobians of one search at most; each costs one replay of every cell per scalar
RESAMPLES = 2000  # of the bootstrap
CONFIDENCE = 0.95
OUT_OF_TIME = "best point when time was over: not converged"
AT_ZERO = "is at its bound 0: predictions are too slow even without it"


@dataclass(frozen=True)
class Estimate:
    """A scalar: its base and fitted value and 95 % confidence interval, seconds.

    ``low`` and ``high`` are None where it was held (``why``) or lies at its bound 0.
    """

    name: str
    base: float
    value: float
    low: float | None = None
    high: float | None = None
    why: str = ""
    remedy: str = ""

    @property
    def at_zero(self) -> bool:
        """Whether it lies at its bound: less overhead than none cannot be."""
        return self.why == AT_ZERO


@dataclass(frozen=True)
class Target:
    """Which figure of which cell an error belongs to, and its noise where known."""

    cell: int
    figure: str
    noise: float | None

    @property
    def observed(self) -> tuple[int, str]:
        """What was observed once, whatever the statistics of it: mean and P90 of one run err together."""
        return self.cell, self.figure.rpartition("_")[0]


def fit(
    errors: Errors, targets: Sequence[Target], base: Values, held: Mapping[str, str], changes: Values = SCALARS
) -> list[Estimate]:
    """Estimates of all scalars; those ``held`` (name -> why) and those the data cannot tell keep their base value.

    ``errors`` are the relative errors of ``targets``, ``changes`` those by which each scalar's effect is tried.
    A scalar that ends at 0 stays there, and those that could not be told apart from it are tried anew: there is too
    much overhead, and they may be it. Raises InputError where nothing can be told.
    """
    settled = {name: Estimate(name, base[name], base[name], why=why) for name, why in held.items()}
    values = dict(base)
    while True:
        free = [name for name in SCALARS if name not in settled]
        found = _told_apart(errors, targets, free, values, changes)
        at_zero = [one for one in found if one.at_zero]
        if not at_zero or not any(one.remedy and one.base > 0 for one in found):
            break
        settled |= {one.name: one for one in at_zero}
        values |= {one.name: 0.0 for one in at_zero}
    if not any(one.low is not None or one.at_zero for one in [*found, *settled.values()]):
        raise InputError("", ", ".join(SCALARS), "; ".join(f"{one.name} {one.why}" for one in found) or "all are given")
    estimates = settled | {one.name: one for one in found}
    return [estimates[name] for name in SCALARS]


def _told_apart(
    errors: Errors, targets: Sequence[Target], free: Sequence[str], values: Values, changes: Values
) -> list[Estimate]:
    """Estimates of ``free`` scalars, one after the other given up until the data tell the rest apart, before the fit
    and after it."""
    lost: list[Estimate] = []
    at = dict(values)
    while kept := [name for name in free if name not in {one.name for one in lost}]:
        problem = _Problem(errors, kept, values, targets, changes)
        given_up, found = unidentified(problem.jacobian(problem.start(at)), kept, problem.observations), None
        if given_up is None:
            found = problem.solve(at)
            at |= dict(zip(kept, found.values.tolist(), strict=True))
            given_up = unidentified(problem.jacobian(problem.start(at)), kept, problem.observations)
        if given_up is None and found is not None:
            return [*lost, *(found.estimate(i, name, values[name]) for i, name in enumerate(kept))]
        assert given_up is not None
        name = given_up.scalar
        lost.append(Estimate(name, values[name], values[name], why=given_up.why, remedy=given_up.remedy))
        at[name] = values[name]
    return lost


@dataclass(frozen=True, eq=False)
class _Solution:
    values: Floats  # s
    intervals: Sequence[tuple[float, float] | None]  # None at the bound

    def estimate(self, position: int, name: str, base: float) -> Estimate:
        value, interval = float(self.values[position]), self.intervals[position]
        if interval is None:
            return Estimate(name, base, 0.0, why=AT_ZERO)
        return Estimate(name, base, value, *interval)


class _Problem:
    """Some scalars, in units of their trial changes; the others as they are."""

    def __init__(
        self, errors: Errors, free: Sequence[str], fixed: Values, targets: Sequence[Target], changes: Values
    ) -> None:
        self._errors, self._free, self._fixed, self._targets = errors, free, fixed, targets
        self._units = np.array([changes[name] for name in free])
        statistics = Counter(target.observed for target in targets)
        self.observations = len(statistics)
        self._share = np.sqrt([statistics[target.observed] for target in targets])  # an observation weighs as one

    def start(self, values: Values) -> Floats:
        x: Floats = np.array([values[name] for name in self._free]) / self._units
        return x

    def at(self, x: Floats) -> Floats:
        return self._errors({**self._fixed, **dict(zip(self._free, (x * self._units).tolist(), strict=True))})

    def jacobian(self, x: Floats, width: float = 1.0) -> Floats:
        """By forward differences over whole trial changes, or a share of them: replays are smooth only in pieces."""
        here = self.at(x)
        return np.column_stack([self.at(x + width * unit) - here for unit in np.eye(len(x))]) / width

    def solve(self, values: Values) -> _Solution:
        """Twice: all figures alike, then each metric in units of its own spread."""
        first = self._least(self.start(values), np.full(len(self._targets), FAR) * self._share)
        scale = OUTLIER * _spreads(self.at(first), self._targets) * self._share
        x = self._least(first, scale)
        return _Solution(x * self._units, self._intervals(x, scale))

    def _least(self, start: Floats, scale: Floats) -> Floats:
        """The best of searches with ever narrower differences, each from where the last one stopped: a stair that
        holds one of them up is none to the next."""
        best, least = start, np.inf
        for width in WIDTHS:
            found = least_squares(
                lambda x: self.at(x) / scale,
                best,
                lambda x, width=width: self.jacobian(x, width) / scale[:, None],
                bounds=(0, np.inf),
                method="dogbox",
                loss="soft_l1",
                ftol=1e-4,
                xtol=1e-3,
                gtol=1e-6,
                max_nfev=ROUNDS,
            )
            if found.cost < least:
                best, least = found.x, found.cost
        return best

    def _intervals(self, x: Floats, scale: Floats) -> list[tuple[float, float] | None]:
        """The wider of two: from the Jacobian and the residual variance, and from resampled cells."""
        inside, errors = np.flatnonzero(x > 0), self.at(x) / scale
        # residuals and Jacobian as soft_l1 weighs them (Triggs et al. 2000, Bundle adjustment, section 4.3)
        residual = errors * (1 + errors**2) ** 0.25
        jacobian = (self.jacobian(x) / (scale * (1 + errors**2) ** 0.75)[:, None])[:, inside]
        freedom = self.observations - len(inside)
        loss = float(np.sum(np.sqrt(1 + errors**2) - 1))
        spread = np.sqrt(np.diag(np.linalg.pinv(jacobian.T @ jacobian)) * (2 * loss / freedom))
        half = student.ppf((1 + CONFIDENCE) / 2, freedom) * spread
        moves = _bootstrap(jacobian, residual, np.array([target.cell for target in self._targets]))
        tail = 100 * (1 - CONFIDENCE) / 2
        low = np.minimum(-half, np.percentile(moves, tail, axis=0)) if len(moves) else -half
        high = np.maximum(half, np.percentile(moves, 100 - tail, axis=0)) if len(moves) else half
        both = np.column_stack([np.maximum(x[inside] + low, 0.0), x[inside] + high]) * self._units[inside, None]
        told: list[tuple[float, float] | None] = [None] * len(x)
        for position, (least, most) in zip(inside.tolist(), both.tolist(), strict=True):
            told[position] = (least, most)
        return told


def _spreads(errors: Floats, targets: Sequence[Target]) -> Floats:
    """The scale of each figure's errors: 1.4826 times the median absolute error of its kind (Rousseeuw and Croux
    1993, J. Am. Stat. Assoc. 88), or the noise if that is larger."""
    figures = np.array([target.figure for target in targets])
    noise = np.array([target.noise or NOISE for target in targets])
    typical = {name: 1.4826 * float(np.median(np.abs(errors[figures == name]))) for name in set(figures.tolist())}
    spreads: Floats = np.maximum(noise, [typical[target.figure] for target in targets])
    return spreads


def _bootstrap(jacobian: Floats, residual: Floats, cells: NDArray[np.int64]) -> Floats:
    """How far the solution of the linearised problem moves when cells are drawn anew, with replacement; none of
    fewer cells than three times the scalars, whose draws would often be singular."""
    names = np.unique(cells)
    count = jacobian.shape[1]
    if len(names) < 3 * count:
        return np.empty((0, count))
    squares = np.array([jacobian[cells == c].T @ jacobian[cells == c] for c in names])
    slopes = np.array([jacobian[cells == c].T @ residual[cells == c] for c in names])
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    curvatures, gradients = np.tensordot(draws, squares, 1), draws @ slopes
    moves: Floats = -np.einsum("rij,rj->ri", np.linalg.pinv(curvatures), gradients)
    return moves
