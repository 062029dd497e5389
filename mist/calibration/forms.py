"""Two kinds of engine that the scalars may be fitted as: one that replays CUDA graphs, one whose host launches kernels.

A step of the former takes the device's time and overheads beside it; of the latter what the slower of host and device
takes (mist/perf/launched.py). No search finds the way from one to the other, because ``launch_time`` has no effect
until the host is the slower, so each is fitted by itself. A profile has four fitted scalars at most: with
``launch_time`` among them ``step_overhead`` is held.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mist.calibration.fit import FAR, Errors, Estimate, Target, Values, fit
from mist.errors import InputError

LAUNCH = "launch_time"
GRAPHS = "0: with the CUDA graphs of the base profile the runs fit as well"
REPLAYED = "0: as an engine that replays CUDA graphs the runs fit better"
BESIDE = "held: beside launch_time, which is fitted, four scalars are enough"
NEVER = "has no effect on what was measured: the host is nowhere the slower"
ALIKE = "cannot be told apart from step_overhead"
SMALLER = "runs at smaller batches"
MIXED_SIZES = "runs at smaller and at larger batches, of which the host bounds the smaller ones only,"
BETTER = 0.5  # of the loss of the graph form: with as many scalars, chance does not halve it

Fit = Callable[[Values, Mapping[str, str]], list[Estimate]]  # by base values and what is held


@dataclass(frozen=True)
class Forms:
    """Fits of ``targets`` as either kind of engine.

    ``likely`` is the launch time at which the smallest measured step is the host's, s; None where no figure tells one.
    """

    errors: Errors
    targets: Sequence[Target]
    changes: Values
    likely: float | None

    def fit(self, base: Values, held: Mapping[str, str]) -> list[Estimate]:
        """Estimates of all scalars; those ``held`` (name -> why) keep their base value.

        The base profile's own kind, unless as the other the loss is less than half, or the host is nowhere the slower.
        """
        if LAUNCH in held:
            return self._as(base, held)
        if base[LAUNCH]:
            own, graphs = self._launched(base, held), self._graphs(base, held, REPLAYED)
            if own is None:
                return [replace(one, why=NEVER, remedy=SMALLER) if one.name == LAUNCH else one for one in graphs]
            return graphs if self._better(graphs, own) else own
        found = self._graphs(base, held, GRAPHS)
        if self.likely is None or not self._promises(found, base):
            return found
        other = self._launched(base, held)
        if other is None or self._loss(_values(other)) >= self._loss(_values(found)):
            return found
        if self._better(other, found):
            return other
        return [replace(one, why=ALIKE, remedy=MIXED_SIZES) if one.name == LAUNCH else one for one in found]

    def _better(self, other: Sequence[Estimate], own: Sequence[Estimate]) -> bool:
        return self._loss(_values(other)) < BETTER * self._loss(_values(own))

    def _promises(self, found: Sequence[Estimate], base: Values) -> bool:
        """Whether a host that bounds the smallest step, by itself, comes near what the graph form was fitted to."""
        assert self.likely is not None
        bound, fitted = {LAUNCH: self.likely, "step_overhead": base["step_overhead"]}, _values(found)
        return min(self._loss({**fitted, **bound}), self._loss({**base, **bound})) < self._loss(fitted)

    def _graphs(self, base: Values, held: Mapping[str, str], why: str) -> list[Estimate]:
        found = self._as({**base, LAUNCH: 0.0}, {**held, LAUNCH: why})
        return [replace(one, base=base[LAUNCH]) if one.name == LAUNCH else one for one in found]

    def _launched(self, base: Values, held: Mapping[str, str]) -> list[Estimate] | None:
        """None where the runs do not tell a launch time."""
        begin = base[LAUNCH] or self.likely
        assert begin is not None
        beside = held if held else {"step_overhead": BESIDE}
        try:
            found = self._as({**base, LAUNCH: begin}, beside)
        except InputError:
            return None
        told = next(one for one in found if one.name == LAUNCH)
        if told.low is None:
            return None
        return [replace(one, base=base[LAUNCH]) if one.name == LAUNCH else one for one in found]

    def _as(self, base: Values, held: Mapping[str, str]) -> list[Estimate]:
        return fit(self.errors, self.targets, base, held, self.changes)

    def _loss(self, values: Values) -> float:
        """Soft L1 over the errors, as they are fitted; 0 where all are met."""
        return float(np.sum(np.sqrt(1 + (self.errors(values) / FAR) ** 2) - 1))


def _values(found: Sequence[Estimate]) -> dict[str, float]:
    return {one.name: one.value for one in found}
