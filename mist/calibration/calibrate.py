"""An engine profile fitted to benchmarks: cells replayed, scalars fitted, errors before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import numpy as np
from yaml import safe_load

from mist.build import build
from mist.calibration.cells import Measured, cells
from mist.calibration.fit import FAR, OUT_OF_TIME, Estimate, Target, Values
from mist.calibration.forms import Forms
from mist.calibration.hold_out import held_out
from mist.calibration.replays import Figures, OutOfTime, Replays, Shown
from mist.calibration.scalars import SCALARS, Floats
from mist.catalog import choice_file
from mist.errors import InputError
from mist.overrides import parse
from mist.perf.engine import EngineProfile
from mist.validation.effect import refuse_idle
from mist.validation.harness import Overrides
from mist.validation.replay import Comparison
from mist.validation.run import check_overrides
from mist.validation.score import Score, scored

BEFORE, AFTER = "before", "after"
MINUTES = 10.0  # that a fit may take, where nothing else is said


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
    cut_short: str = ""  # why the search ended before it had converged

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
        rest = {"scores": scores, "problems": self.problems, "cut_short": self.cut_short}
        return {**head, "scalars": scalars, **rest}


def calibrate(
    files: Sequence[str],
    own: Overrides,
    hold_out: str | None = None,
    minutes: float = MINUTES,
    shown: Shown = lambda _progress: None,
) -> Calibration:
    """Fit the engine profile that ``files`` (and ``own`` overrides) name to what was measured.

    A scalar given in ``own`` (``engine.front_end``) is held there. ``shown`` is told of every replay. After ``minutes``
    the best point so far is the answer, without confidence intervals, and is scored. Raises InputError for files that
    are none, a deployment that is not said, data that tell no scalar, and a time in which not one pass over the cells
    ends.
    """
    if not 0 < minutes < inf:
        raise InputError("--minutes", f"{minutes:g}", "must be positive")
    check_overrides(own)
    known = cells(files, own)
    refuse_idle([cell.overrides for cell in known if not cell.problem], own)
    held = held_out(known, hold_out)
    engine, perf = (_only(known, own, name) for name in ("engine", "perf"))
    if perf == "profile":
        why = "a step log holds the engine's overheads already: there is nothing to fit"
        raise InputError("perf", perf, why, ["measured", "roofline"])
    given = {name: _of(own, f"engine.{name}") for name in SCALARS if any(a.endswith(f"engine.{name}") for a in own)}
    base = _scalars(engine, given)
    replays = Replays(known, own, [name for name in SCALARS if name not in given], minutes * 60, shown)
    before = _first(replays, base, minutes, len(known))
    targets = _targets(known, before, held)
    if not targets:
        problems = dict.fromkeys(answer for answer in before if isinstance(answer, str))
        raise InputError("", ", ".join(files), "no cell can be replayed: " + "; ".join(problems))
    told = {name: f"given: engine.{name}={value}" for name, value in given.items()}
    fitting = [known[index] for index in {target.cell: None for target in targets}]
    changes = {**SCALARS, "front_end": _decode_step(fitting)}
    search = _Search(replays, targets, base)
    try:
        forms = Forms(search.errors, targets, changes, _launched(fitting, own, base))
        estimates, cut = forms.fit(base, told), ""
    except OutOfTime:
        cut = f"time was over after {replays.done} replays ({minutes:g} minutes), before the search had converged"
        estimates = [Estimate(name, base[name], search.best[name], why=told.get(name, OUT_OF_TIME)) for name in SCALARS]
    replays.endless = True  # one pass more: what was found is scored
    after = replays.figures({one.name: one.value for one in estimates})
    compared = [*_compared(known, before, held, BEFORE), *_compared(known, after, held, AFTER)]
    usable = [out for out, answer in zip(held, before, strict=True) if not isinstance(answer, str)]
    counted = usable.count(False), usable.count(True)
    fitted = list(dict.fromkeys(target.figure for target in targets))
    return Calibration(engine, perf, estimates, compared, fitted, counted, replays.done, own, cut)


def _scalars(engine: str, given: Mapping[str, str]) -> dict[str, float]:
    """Those of the base profile, s, and in their place those that were ``given``, as text."""
    sheet = safe_load(choice_file("engine", engine).read_text(encoding="utf-8"))
    sheet |= {name: parse(f"engine.{name}={value}").value for name, value in given.items()}
    profile = build(EngineProfile, sheet, "engine")
    return {name: getattr(profile, name) for name in SCALARS}


def _targets(known: Sequence[Measured], before: Sequence[Figures | str], held: Sequence[bool]) -> list[Target]:
    """The figures to fit of the cells that have an answer and are not held out."""
    return [
        Target(index, figure, cell.noise.get(figure))
        for index, (cell, answer, out) in enumerate(zip(known, before, held, strict=True))
        if not out and not isinstance(answer, str)
        for figure in cell.fitted
        if figure in answer
    ]


def _first(replays: Replays, base: Values, minutes: float, cells: int) -> list[Figures | str]:
    """What the cells come to with the base profile."""
    try:
        return replays.figures(base)
    except OutOfTime:
        why = f"was over after {replays.done} of {cells} cells, and a fit replays all of them some 30 to 200 times"
        raise InputError("--minutes", f"{minutes:g}", f"{why}: give more time, or fewer or shorter runs") from None


class _Search:
    """Errors of the targets at any scalars, and the scalars with the least so far."""

    def __init__(self, replays: Replays, targets: Sequence[Target], base: Values) -> None:
        self._replays, self._targets, self._least = replays, targets, np.inf
        self.best = base

    def errors(self, values: Values) -> Floats:
        found = self._replays.errors(values, self._targets)
        cost = float(np.sum(np.sqrt(1 + (found / FAR) ** 2)))  # soft L1, as it is fitted
        if cost < self._least:
            self._least, self.best = cost, dict(values)
        return found


def _decode_step(cells: Sequence[Measured]) -> float:
    """The median time per token over the figures of ``cells`` that tell one, s; where none does, SCALARS'."""
    times = [cell.figures[name] for cell in cells for name in ("tpot_mean", "itl_mean") if name in cell.figures]
    return float(np.median(times)) if times else SCALARS["front_end"]


def _launched(cells: Sequence[Measured], own: Overrides, base: Values) -> float | None:
    """The launch time at which the host bounds the shortest decode step of ``cells`` for its layers, s."""
    found = []
    for cell in cells:
        times = [cell.figures[name] for name in ("tpot_mean", "itl_mean", "step_time") if name in cell.figures]
        model, node = ({"node": "isolated", **cell.overrides, **own}.get(name, "") for name in ("model", "node"))
        if times and model and not model.endswith(".json"):
            speed = _sheet("node", node).get("host_speed", 1.0)
            found.append((times[0] - base["step_overhead"]) / _sheet("model", model)["layers"] * speed)
    return min(found) if found and min(found) > 0 else None


def _sheet(group: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = safe_load(choice_file(group, name).read_text(encoding="utf-8"))
    return found


def _of(own: Overrides, address: str) -> str:
    return next(value for name, value in own.items() if name.endswith(address))


def _only(known: Sequence[Measured], own: Overrides, name: str) -> str:
    """The one engine or performance model of all cells: overheads belong to both."""
    found = {{**cell.overrides, **own}.get(name, "") for cell in known if not cell.problem}
    if len(found) > 1:
        raise InputError(name, ", ".join(sorted(found)), f"a profile is fitted with one: choose files, or give {name}=")
    if not found:
        problems = "; ".join(list(dict.fromkeys(cell.problem for cell in known))[:3])
        raise InputError("", ", ".join(dict.fromkeys(cell.file for cell in known)), problems or "holds no cell")
    return found.pop()


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
