"""What is known of a run: its answer as it is recorded, printed or as a page, and all runs beside each other."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mist.errors import InputError
from mist.inert import effective
from mist.report import page
from mist.report.progress import amount, in_short
from mist.report.study import Answer, console, print_answer
from mist.sweep import question, ranking, store
from mist.sweep.best_first import of_json, standing
from mist.sweep.question import Sweep

DONE = 0  # exit code


def show(run: Path) -> int:
    """Print the answer of a run as it is recorded, or how far it has come; 0. Nothing is judged or composed."""
    data, manifest = store.load(run)
    lines = store.read_lines(run)
    sweep = question.sweep(data)
    unfinished = None if store.concluded(run) else shlex.join(["mist", "resume", str(run)])
    screen = console()
    screen.print(f"{manifest['sweep']}  {sweep.question}", style="bold", markup=False)
    print_answer(answer_of(run, sweep, manifest, lines, unfinished=unfinished), screen)
    return DONE


def publish(file: Path, run: Path, beside: Sequence[Path]) -> int:
    """Write the page of a run to ``file``, other runs beside it; 0. Raises InputError where one is unfinished."""
    page.write(file, _told(run), [_told(other) for other in beside])
    return DONE


def _told(run: Path) -> page.Told:
    if not store.concluded(run):
        raise InputError("", str(run), f"not finished; go on with: {shlex.join(['mist', 'resume', str(run)])}")
    data, manifest = store.load(run)
    sweep = question.sweep(data)
    return page.Told(answer_of(run, sweep, manifest, store.read_lines(run)), sweep.question, sweep.base, manifest)


def show_all(results: Path) -> int:
    """One line for every run in ``results``, oldest first; 0."""
    screen = console()
    runs = sorted({manifest.parent.resolve() for manifest in results.glob("*/*/manifest.json")})
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("run", "state", "designs", "per $", "best"):
        table.add_column(header, justify="right" if header in ("designs", "per $") else "left")
    for run in runs:
        try:
            data, _ = store.load(run)
            lines, budget = store.read_lines(run), question.sweep(data).budget.designs
        except InputError:
            table.add_row(f"{run.parent.name}/{run.name}", "unreadable", "", "", "")
            continue
        judged = sum(line["rung"] != "confirm" and line["state"] != "repeat" for line in lines)
        best = ranking.rank(lines)[:1]
        state = "done" if store.concluded(run) else "unfinished"
        value, design = (amount(best[0].value), in_short(best[0].design)) if best else ("-", "none feasible")
        table.add_row(f"{run.parent.name}/{run.name}", state, f"{judged} of {budget}", value, design)
    screen.print(table if runs else f"no runs in {results.resolve()}")
    return DONE


def answer_of(run: Path, sweep: Sweep, manifest: Mapping[str, Any], lines: list[store.Line], **facts: Any) -> Answer:
    ranked = ranking.rank(lines)
    best = best_of(ranked)
    commands = replay(best) if best else {}
    bounds = list(map(of_json, store.read_bounds(run)))
    decided = standing(bounds, lines, sweep.confirm.leaders) if bounds else None
    return Answer(
        run, ranked, lines, manifest["slo"], commands, sweep.screen, objective=sweep.objective, decided=decided, **facts
    )


def best_of(ranked: Sequence[ranking.Ranked]) -> ranking.Ranked | None:
    """What a study may call its answer: the first, unless it was only screened."""
    return ranked[0] if ranked and ranked[0].rung != "screen" else None


def replay(best: ranking.Ranked) -> dict[str, str]:
    """Commands that judge a design again as the table has it, and that simulate it at its first seed's capacity."""
    first, count, typed = f"seed={best.seeds[0]}", str(len(best.seeds)), effective(best.overrides)
    return {
        "capacity": shlex.join(["mist", "capacity", *typed, first, "--seeds", count]),
        "simulate": shlex.join(["mist", "simulate", *typed, first, f"workload.rate={best.rates[0]!r}"]),
    }
