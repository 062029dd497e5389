"""A calibration as a person reads it: errors before and after, scalars with intervals, what the data cannot tell."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mist.calibration.calibrate import Calibration
from mist.calibration.fit import OUT_OF_TIME, Estimate
from mist.calibration.forms import BESIDE, GRAPHS, REPLAYED
from mist.report.accuracy import table
from mist.validation.run import Validation


def page(answer: Calibration, written: Path | None) -> RenderableType:
    """Everything that ``mist calibrate`` prints."""
    fitted, held = answer.cells
    head = f"{answer.engine} with perf={answer.perf}: fitted on {fitted} cells ({', '.join(answer.fitted)})"
    head += f", {held} held out" if held else ""
    errors = table(Validation(answer.compared, answer.scores, (), {}))
    parts: list[RenderableType] = [Text(f"{head}; {answer.replays} replays"), Text(), errors, Text(), _scalars(answer)]
    if answer.cut_short:
        parts.append(Text(f"{answer.cut_short}: give it more with --minutes, or fewer runs", "yellow"))
    parts += [Text(f"{one.name} {one.why}", "yellow") for one in answer.estimates if one.at_zero]
    parts += [Text(note, "yellow") for one in answer.estimates if (note := unidentified(one))]
    if written is not None:
        parts += [Text(), Text(f"{written}: {usage(written)}")]
    return Group(*parts)


def _scalars(answer: Calibration) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("scalar", "before", "after", "95 % confidence"):
        grid.add_column(name, justify="left" if name == "scalar" else "right")
    for one in answer.estimates:
        grid.add_row(one.name, time(one.base), time(one.value), interval(one))
    return grid


def unidentified(one: Estimate) -> str:
    """A warning for a scalar that the data cannot tell; empty for others."""
    return f"{one.name} {one.why}: left at {time(one.value)}; {one.remedy} would tell" if one.remedy else ""


def interval(one: Estimate) -> str:
    """Its confidence interval, or why it has none."""
    if one.low is not None and one.high is not None:
        return f"{time(one.low)} to {time(one.high)}"
    if one.why == OUT_OF_TIME:
        return "not known"
    if one.why in (GRAPHS, REPLAYED, BESIDE):
        return "held"
    return "not identified" if one.remedy else "at its bound" if one.at_zero else "given"


def time(seconds: float) -> str:
    """Milliseconds, or microseconds below one."""
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 or seconds == 0 else f"{seconds * 1e6:.3g} us"


def usage(written: Path) -> str:
    """How to use a profile that was written there."""
    path = written.resolve()
    if path.parent == (Path.cwd() / "conf" / "engine"):
        return f"use it as engine={path.stem}"
    return f"put it into conf/engine of your working directory to use it as engine={path.stem}"
