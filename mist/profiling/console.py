"""What ``mist profile`` prints."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mist.errors import InputError
from mist.perf import steplog
from mist.perf.profile import ProfileSteps
from mist.perf.steplog import MEASURED, SHAPE
from mist.profiling.device import Device
from mist.profiling.ops import Outcome
from mist.profiling.ops import ops as measure


def ops(arguments: argparse.Namespace, device: Device, out: Path) -> int:
    """Measure with a progress bar; 0."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(highlight=False)
    kind = f"{device.title} ({device.where}), torch {device.torch.__version__}"
    console.print(f"{kind}: measuring for {arguments.minutes:g} min; Ctrl-C keeps what there is", soft_wrap=True)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("memory", total=None)

        def progress(phase: str, done: int, total: int) -> None:
            bar.update(task, description=phase, completed=done, total=total)

        told = (arguments.power, arguments.idle_power)
        outcome = measure(arguments.name, arguments.minutes, out, device, told, progress)
    console.print(told_of(outcome), soft_wrap=True)
    return 0


def told_of(outcome: Outcome) -> str:
    """What was measured and how to use it."""
    found = outcome.measured
    peaks = ", ".join(f"{dtype} {rate / 1e12:.4g} TFLOP/s at {at}" for dtype, (rate, at) in found.peaks.items())
    rows = ", ".join(f"{table} {count:,}" for table, count in outcome.rows.items() if count)
    lines = [f"memory {found.memory_bandwidth / 1e9:.4g} GB/s; {peaks}", f"rows: {rows}  ->  {outcome.tables}"]
    if outcome.unmeasured:
        lines.append(f"{outcome.unmeasured:,} shapes of the grids were not reached; another run goes on from here")
    if outcome.coarse:
        lines.append(f"not enough for perf=measured yet: {outcome.coarse:,} shapes of the first grids are missing")
    if outcome.too_long:
        lines.append(f"{outcome.too_long:,} shapes are too large for this device and so many minutes")
    if outcome.apart:
        lines.append(outcome.apart)
    missing = [f for f in ("power", "idle_power") if getattr(found, f) is None]
    give = "".join(f" hardware.{field}='... W'" for field in missing)
    lines.append(f"{outcome.hardware}: mist simulate hardware={found.name} price.hourly.{found.name}='... $/h'{give}")
    return "\n".join(lines)


def steps(path: str, where: Mapping[str, object]) -> int:
    """Print what a step log covers, deployment by deployment; 0."""
    frame = steplog.read(path, where).frame
    apart = [column for column in MEASURED if column in frame]
    console = Console(highlight=False, soft_wrap=True)
    for key, rows in frame.groupby(apart) if apart else [((), frame)]:
        names = key if isinstance(key, tuple) else (key,)
        title = ", ".join(f"{column} {name}" for column, name in zip(apart, names, strict=True))
        steplog.refuse_mixture(rows)
        shapes = rows.groupby(list(SHAPE), as_index=False).agg({"seconds": "median"})
        console.print("\n".join(_covered(title or path, len(rows), ProfileSteps(path, shapes))))
    if frame.empty:
        raise InputError("", path, "holds no steps")
    return 0


def _covered(title: str, count: int, model: ProfileSteps) -> list[str]:
    """What a deployment's rows cover."""
    lines = [f"{title}: {count:,} rows, {len(model.rows):,} shapes, floor {model.floor * 1e3:.4g} ms"]
    if model.decoding is None:
        lines.append("  decodes: none alone")
    else:
        (low, high), (least, most) = model.decoding.x_range, model.decoding.y_range
        lines.append(f"  decodes {low:,.0f} to {high:,.0f}, KV tokens together {least:,.0f} to {most:,.0f}")
    if model.prompts is None:
        lines.append("  prompt chunks: none")
    else:
        (low, high), (least, most) = model.prompts.x_range, model.prompts.y_range
        beyond = ", told from mixed steps" if model.from_mixed else ""
        lines.append(f"  prompt chunks of {least:,.0f} to {most:,.0f} tokens after {low:,.0f} to {high:,.0f}{beyond}")
    check = model.check()
    if check.rows:
        off = f"mean error {check.error:.1%}, bias {check.bias:+.1%}"
        lines.append(f"  sums of parts against its {check.rows:,} steps of several parts: {off}")
    if check.outside:
        lines.append(f"  {check.outside:,} steps of several parts have a part that it does not cover by itself")
    return lines
