"""How far off experts of an unseen shape are: every shape that was timed, told from the others of its device."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from mist.build import build
from mist.hardware import HardwareSpec
from mist.perf.roofline import Roofline
from mist.perf.tables.curve import Floats
from mist.perf.tables.files import System
from mist.perf.tables.grouped import STORED, Law, Shape, Timed, law, suffices, transferred
from mist.perf.tables.timings import shapes, usual
from mist.validation.embedding import sheet
from mist.validation.tables_coverage import ENGINES, check_names, those, timed_hardware

GROUPS = (1, 2, 4, 8)  # that the experts of a shape are spread over
MOST = 8  # devices of a group


@dataclass(frozen=True)
class LeftOut:
    """Errors over all cuts and token counts of all shapes, each told without any of its hidden size and width."""

    hardware: str
    kernels: str
    dtype: str
    shapes: int
    timings: int
    mape: float
    median: float
    bias: float
    worst: float  # mean absolute error of the worst shape
    worst_shape: str
    roofline: float  # MAPE of the law alone, at the shares of the peaks that perf=roofline takes


@dataclass(frozen=True)
class LeftOuts:
    """Of every device, engine and dtype."""

    rows: Sequence[LeftOut]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"rows": [asdict(row) for row in self.rows]}


def left_out(names: Sequence[str] = (), distribution: str = "power_law_1.01") -> LeftOuts:
    """Scores of all; ``names`` of devices, kernels and dtypes choose among them."""
    check_names(names, timed_hardware(), ENGINES, STORED)
    asked = product(timed_hardware(names).items(), those(names, ENGINES), those(names, STORED))
    rows = (_row(device, hardware, kernels, kind, distribution) for (device, hardware), kernels, kind in asked)
    return LeftOuts([row for row in rows if row is not None])


class _Told(NamedTuple):
    """Relative errors at every count that was timed of one shape and cut."""

    shape: Shape
    error: Floats
    analytical: Floats  # of the roofline


def _row(device: str, hardware: HardwareSpec, kernels: str, kind: str, distribution: str) -> LeftOut | None:
    system, peaks = System(hardware.tables, kernels), build(Roofline, sheet("perf", "roofline"))
    told: list[_Told] = []
    for groups in GROUPS:
        timed = shapes(system, kernels, kind, groups, distribution)
        for each in timed:
            others = usual([other for other in timed if other.shape.family != each.shape.family])
            if suffices(others, each.shape) and each.cut * groups <= MOST:
                told.append(_told(each, others, law(hardware, kind, others, groups), peaks))
    return _scored(told, device, kernels, kind) if told else None


def _told(each: Timed, others: Sequence[Timed], known: Law, peaks: Roofline) -> _Told:
    curve = transferred(others, known, known, each.shape, each.cut)
    reached = known._replace(
        bandwidth=known.bandwidth * peaks.bandwidth_efficiency, rate=known.rate * peaks.matmul_efficiency
    )
    analytical = reached.time(each.shape, each.cut, each.tokens)
    predicted = np.interp(each.tokens, curve.x, curve.y)
    return _Told(each.shape, predicted / each.seconds - 1, analytical / each.seconds - 1)


def _scored(told: Sequence[_Told], device: str, kernels: str, kind: str) -> LeftOut:
    errors, analytical = (np.concatenate(part) for part in zip(*(each[1:] for each in told), strict=True))
    of_shape = {each.shape: np.concatenate([own.error for own in told if own.shape == each.shape]) for each in told}
    shape = max(of_shape, key=lambda shape: _mape(of_shape[shape]))
    return LeftOut(
        device, kernels, kind, len(of_shape), len(errors), _mape(errors), float(np.median(np.abs(errors))),
        float(np.mean(errors)), _mape(of_shape[shape]), str(shape), _mape(analytical),
    )  # fmt: skip


def _mape(errors: Floats) -> float:
    return float(np.mean(np.abs(errors)))
