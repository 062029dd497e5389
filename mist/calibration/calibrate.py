"""An engine profile fitted to benchmarks: cells replayed, scalars fitted, errors before and after."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from yaml import safe_load

from mist.build import build
from mist.calibration.cells import Measured, cells
from mist.calibration.fit import Estimate, Target, Values, fit
from mist.calibration.hold_out import held_out
from mist.calibration.scalars import SCALARS, Floats
from mist.catalog import choice_file
from mist.errors import InputError, MistError
from mist.overrides import parse
from mist.perf.engine import EngineProfile
from mist.validation.harness import Overrides, Unanswered
from mist.validation.replay import Comparison
from mist.validation.run import check_overrides
from mist.validation.score import Score, scored

BEFORE, AFTER = "before", "after"
WRONG = 10.0  # relative error that a replay without an answer counts as, and the largest that any figure counts as

Figures = Mapping[str, float]
Replayed = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Calibration:
    """A fitted profile: ``estimates`` of its scalars on top of ``engine``, and how far predictions were off and are."""

    engine: str  # the base profile
    perf: str
    estimates: Sequence[Estimate]
    compared: Sequence[Comparison]
    fitted: Sequence[str]  # figures that were fitted; others are only compared
    cells: tuple[int, int]  # fitted on, held out
    replays: int
    overrides: Overrides  # as the user gave them

    @property
    def scores(self) -> list[Score]:
        """By set and figure, before and after, over the cells fitted on and those held out."""
        return scored(self.compared, {line.name: {} for line in self.compared})

    @property
    def problems(self) -> list[str]:
        """Why cells were left out, each once."""
        return list(dict.fromkeys(f"{line.file}: {line.problem}" for line in self.compared if line.problem))

    def to_json(self) -> dict[str, Any]:
        """Plain data, seconds."""
        head = {"engine": self.engine, "perf": self.perf, "replays": self.replays}
        scalars = {estimate.name: asdict(estimate) for estimate in self.estimates}
        scores = [asdict(score) for score in self.scores]
        return {**head, "scalars": scalars, "scores": scores, "problems": self.problems}


def calibrate(
    files: Sequence[str], own: Overrides, hold_out: str | None = None, each: Replayed = lambda _done: None
) -> Calibration:
    """Fit the engine profile that ``files`` (and ``own`` overrides) name to what was measured.

    A scalar given in ``own`` (``engine.front_end``) is held there. ``each`` is told how many replays are done.
    Raises InputError for files that are none, a deployment that is not said, and data that tell no scalar.
    """
    check_overrides(own)
    known = cells(files, own)
    held = held_out(known, hold_out)
    engine, perf = (_only(known, own, name) for name in ("engine", "perf"))
    sheet = safe_load(choice_file("engine", engine).read_text(encoding="utf-8"))
    given = {name: f"engine.{name}" for name in SCALARS if any(a.endswith(f"engine.{name}") for a in own)}
    sheet |= {name: parse(f"{address}={_of(own, address)}").value for name, address in given.items()}
    profile = build(EngineProfile, sheet, "engine")
    base = {name: getattr(profile, name) for name in SCALARS}
    replays = _Replays(known, own, [name for name in SCALARS if name not in given], each)
    before = replays.figures(base)
    usable = [index for index, answer in enumerate(before) if not isinstance(answer, str)]
    targets = [
        Target(index, figure, known[index].noise.get(figure))
        for index in usable
        if not held[index]
        for figure in known[index].fitted
        if figure in before[index]
    ]
    if not targets:
        problems = dict.fromkeys(answer for answer in before if isinstance(answer, str))
        raise InputError("", ", ".join(files), "no cell can be replayed: " + "; ".join(problems))
    told = {name: f"given: {address}={_of(own, address)}" for name, address in given.items()}
    changes = {
        **SCALARS,
        "front_end": _decode_step([known[index] for index in {target.cell: None for target in targets}])
        or SCALARS["front_end"],
    }
    estimates = fit(lambda values: replays.errors(values, targets), targets, base, told, changes)
    after = replays.figures({one.name: one.value for one in estimates})
    compared = [*_compared(known, before, held, BEFORE), *_compared(known, after, held, AFTER)]
    counted = sum(not held[index] for index in usable), sum(held[index] for index in usable)
    fitted = list(dict.fromkeys(target.figure for target in targets))
    return Calibration(engine, perf, estimates, compared, fitted, counted, replays.done, own)


def _decode_step(cells: Sequence[Measured]) -> float | None:
    """The median time per token over the figures of ``cells`` that tell one, s."""
    times = [cell.figures[name] for cell in cells for name in ("tpot_mean", "itl_mean") if name in cell.figures]
    return float(np.median(times)) if times else None


def _of(own: Overrides, address: str) -> str:
    return next(value for name, value in own.items() if name.endswith(address))


def _only(known: Sequence[Measured], own: Overrides, name: str) -> str:
    """The one engine or performance model of all cells: overheads belong to both."""
    found = {{**cell.overrides, **own}.get(name, "") for cell in known if not cell.problem}
    if len(found) > 1:
        raise InputError(name, ", ".join(sorted(found)), f"a profile is fitted with one: choose files, or give {name}=")
    if not found:
        raise InputError("", ", ".join({cell.file for cell in known}), known[0].problem if known else "holds no cell")
    return found.pop()


class _Replays:
    """The cells, replayed with any scalars; equal scalars are replayed once."""

    def __init__(self, known: Sequence[Measured], own: Overrides, free: Sequence[str], each: Replayed) -> None:
        self._cells, self._own, self._free, self._each = known, own, free, each
        self._kept: dict[tuple[int, tuple[float, ...]], Figures | str] = {}
        self.done = 0

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
            self._kept[key] = self._replay(self._cells[index], values)
            self.done += 1
            self._each(self.done)
        return self._kept[key]

    def _replay(self, cell: Measured, values: Values) -> Figures | str:
        if cell.problem:
            return cell.problem
        scalars = {f"engine.{name}": f"{values[name] * 1e6:.6f} us" for name in self._free}
        try:
            return cell.replay({**cell.overrides, **scalars, **self._own})
        except (Unanswered, MistError) as error:
            return str(error)


def _compared(
    known: Sequence[Measured], answers: Sequence[Figures | str], held: Sequence[bool], variant: str
) -> list[Comparison]:
    lines = []
    for cell, answer, out in zip(known, answers, held, strict=True):
        problem = answer if isinstance(answer, str) else ""
        for figure, measured in cell.figures.items():
            predicted = None if isinstance(answer, str) else answer.get(figure)
            if predicted is not None or problem:
                noise = cell.noise.get(figure)
                lines.append(
                    Comparison(cell.name, cell.file, variant, figure, measured, predicted, problem, not out, noise)
                )
    return lines
