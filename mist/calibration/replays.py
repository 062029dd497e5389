"""Cells replayed with any scalars, each point once, for as long as there is time."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mist.calibration.cells import Measured
from mist.calibration.fit import Target, Values
from mist.calibration.scalars import Floats
from mist.errors import MistError
from mist.validation.harness import Overrides, Unanswered

WRONG = 10.0  # relative error that a replay without an answer counts as, and the largest that any figure counts as

Figures = Mapping[str, float]


class OutOfTime(Exception):
    """The time that a fit was given is over."""


@dataclass(frozen=True)
class Progress:
    """How far a fit is: ``replays`` made of ``cells`` cells over and over, seconds gone and seconds there are."""

    replays: int
    cells: int
    gone: float
    limit: float


Shown = Callable[[Progress], None]


class Replays:
    """The cells, replayed with any scalars; equal scalars are replayed once. OutOfTime after ``limit`` seconds."""

    def __init__(
        self, known: Sequence[Measured], own: Overrides, free: Sequence[str], limit: float, shown: Shown
    ) -> None:
        self._cells, self._own, self._free, self._shown = known, own, free, shown
        self._kept: dict[tuple[int, tuple[float, ...]], Figures | str] = {}
        self._began, self._limit, self.done, self.endless = time.monotonic(), limit, 0, False

    @property
    def gone(self) -> float:
        """Seconds since the first replay could begin."""
        return time.monotonic() - self._began

    def figures(self, values: Values) -> list[Figures | str]:
        """What each cell comes to, or why it does not."""
        return [self._figures(index, values) for index in range(len(self._cells))]

    def errors(self, values: Values, targets: Sequence[Target]) -> Floats:
        """Relative errors, none larger than WRONG."""
        found = []
        for target in targets:
            answer = self._figures(target.cell, values)
            measured = self._cells[target.cell].figures[target.figure]
            found.append(WRONG if isinstance(answer, str) else answer[target.figure] / measured - 1)
        return np.minimum(np.array(found, dtype=np.float64), WRONG)

    def _figures(self, index: int, values: Values) -> Figures | str:
        key = index, tuple(values[name] for name in self._free)
        if key not in self._kept:
            if self.gone > self._limit and not self.endless:
                raise OutOfTime
            self._kept[key] = self._replay(self._cells[index], values)
            self.done += 1
            self._shown(Progress(self.done, len(self._cells), self.gone, self._limit))
        return self._kept[key]

    def _replay(self, cell: Measured, values: Values) -> Figures | str:
        if cell.problem:
            return cell.problem
        scalars = {f"engine.{name}": f"{values[name] * 1e6:.6f} us" for name in self._free}
        try:
            return cell.replay({**cell.overrides, **scalars, **self._own})
        except (Unanswered, MistError) as error:
            return str(error)
