"""One study from question to ranked answer, and any run of one: begin, go on, show."""

import platform
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from mist.build import build
from mist.errors import InputError
from mist.inert import effective
from mist.report import page
from mist.report.progress import Watch, amount, in_short
from mist.report.study import Answer, console, print_answer
from mist.slo import SLO
from mist.sweep import question, ranking, store, workers
from mist.sweep.best_first import of_json, standing
from mist.sweep.identity import digest, refuse_changes
from mist.sweep.inputs import MIST, Workloads, World, reach
from mist.sweep.ladder import Study
from mist.sweep.question import Sweep
from mist.sweep.workers import Workers

DONE, NOTHING_FEASIBLE, INTERRUPTED = 0, 3, 130  # exit codes


def run(name: str, overrides: Sequence[str] = (), *, world: World = MIST, results: Path = Path("results")) -> int:
    """Answer the question of a sweep and print it; the exit code (0, 3 if nothing is feasible, 130 if interrupted).

    Raises InputError for every mistake in the sweep or its overrides, before any design is judged.
    """
    stem, data = question.read(name, overrides)
    sweep = question.sweep(data)
    loads = Workloads()
    inputs = reach(sweep, world, loads)
    if sweep.workers == "ray" and sweep.ray.address:
        workers.knock(sweep.ray.address)
    base = world.compose(sweep.overrides({}))
    slo = build(SLO, base.get("slo", {}), "slo")
    manifest = {
        "format": store.FORMAT,
        "sweep": stem,
        "inputs": inputs,
        "command": shlex.join(["mist", "sweep", name, *overrides]),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "slo": {limit.name: limit.limit for limit in slo},
        "price_date": base.get("price", {}).get("date"),
        "prices": {key: base.get("price", {}).get(key) for key in ("name", "provider", "region", "commitment")},
        "seeds": {"search": sweep.search.seed, "study": sweep.study_seeds, "confirm": sweep.confirm_seeds},
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("numpy", "optuna", "ray")},
        "git": _git(),
        "host": platform.platform(),
    }
    folder = store.create(results, stem, digest(inputs), data, manifest)
    return _driven(folder, sweep, manifest, world, loads)


def resume(run: Path, *, world: World = MIST) -> int:
    """Go on with a run to its configured budget; exit code as of ``run``.

    Nothing that finished is judged again. Raises StaleRun, naming it, if any input has changed since the run began.
    """
    run = run.resolve() if run.is_symlink() else run
    data, manifest = store.load(run)
    sweep = question.sweep(data)
    loads = Workloads()
    refuse_changes(manifest["inputs"], reach(sweep, world, loads))
    return _driven(run, sweep, manifest, world, loads)


def show(run: Path) -> int:
    """Print the answer of a run as it is recorded, or how far it has come; 0. Nothing is judged or composed."""
    data, manifest = store.load(run)
    lines = store.read_lines(run)
    sweep = question.sweep(data)
    unfinished = None if store.concluded(run) else shlex.join(["mist", "resume", str(run)])
    screen = console()
    screen.print(f"{manifest['sweep']}  {sweep.question}", style="bold", markup=False)
    print_answer(_answer(run, sweep, manifest, lines, unfinished=unfinished), screen)
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
    return page.Told(_answer(run, sweep, manifest, store.read_lines(run)), sweep.question, sweep.base, manifest)


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


def _driven(run: Path, sweep: Sweep, manifest: Mapping[str, Any], world: World, loads: Workloads) -> int:
    began = time.monotonic()
    watch = Watch(manifest["sweep"], sweep.question, run)
    trials = store.Trials(run)
    store.reopen(run)
    hands: Workers | None = None
    try:
        with _terminable():
            watch.start(sweep.workers, sweep.ray.address, sweep.screen)
            hands = workers.start(sweep, world.judge)
            _work(Study(sweep, world, loads, trials, hands, list(map(of_json, store.read_bounds(run)))), watch, run)
            watch.stop()
            return _conclude(_answer(run, sweep, manifest, trials.lines, wall_s=time.monotonic() - began), watch)
    except KeyboardInterrupt:
        judged = sum(line["rung"] != "confirm" and line["state"] != "repeat" for line in trials.lines)
        watch.interrupted(judged, sweep.budget.designs, shlex.join(["mist", "resume", str(run)]))
        return INTERRUPTED
    finally:
        watch.stop()
        with _deaf():
            if hands is not None:
                hands.close()
            trials.close()


def _work(study: Study, watch: Watch, run: Path) -> None:
    if study.sweep.best_first and not study.bounds:
        _phase("bounding", study.bound_designs, study, watch)
        store.write_bounds(run, [one.to_json() for one in study.bounds])
    answered = -1
    while answered < len(study.trials.lines):  # a leader that was refuted makes room for designs that were ruled out
        answered = len(study.trials.lines)
        _phase("judging", study.judge_designs, study, watch)
        _phase("confirming", study.confirm_leaders, study, watch)
        if not study.bounds:
            return


def _phase(name: str, steps: Callable[[], Iterator[None]], study: Study, watch: Watch) -> None:
    began, at_start = time.monotonic(), study.progress(name, 0.0, 0).done
    for _ in steps():
        watch.show(partial(study.progress, name, began, at_start))
    watch.show(partial(study.progress, name, began, at_start), last=True)


def _answer(run: Path, sweep: Sweep, manifest: Mapping[str, Any], lines: list[store.Line], **facts: Any) -> Answer:
    ranked = ranking.rank(lines)
    best = _best(ranked)
    commands = replay(best) if best else {}
    bounds = list(map(of_json, store.read_bounds(run)))
    decided = standing(bounds, lines, sweep.confirm.leaders) if bounds else None
    return Answer(
        run, ranked, lines, manifest["slo"], commands, sweep.screen, objective=sweep.objective, decided=decided, **facts
    )


def _best(ranked: Sequence[ranking.Ranked]) -> ranking.Ranked | None:
    """What a study may call its answer: the first, unless it was only screened."""
    return ranked[0] if ranked and ranked[0].rung != "screen" else None


def _conclude(answer: Answer, watch: Watch) -> int:
    ranked = ranking.rank(answer.lines)
    best = _best(ranked)
    if best:
        store.write_best(
            answer.run,
            {
                "overrides": dict(text.split("=", 1) for text in best.overrides),
                "rung": best.rung,
                answer.objective: best.value,
                f"{answer.objective}_error": best.value_error,
                "capacity": best.capacity,
                "capacity_error": best.capacity_error,
                "metrics": dict(best.metrics),
                "seeds": list(best.seeds),
                "tied_with": [one.design for one in ranked if one.tied],
                "replay": dict(answer.commands),
            },
        )
    store.write_table(answer.run, answer.lines)
    print_answer(answer, watch.console)
    return DONE if best else NOTHING_FEASIBLE


def replay(best: ranking.Ranked) -> dict[str, str]:
    """Commands that judge a design again as the table has it, and that simulate it at its first seed's capacity."""
    first, count, typed = f"seed={best.seeds[0]}", str(len(best.seeds)), effective(best.overrides)
    return {
        "capacity": shlex.join(["mist", "capacity", *typed, first, "--seeds", count]),
        "simulate": shlex.join(["mist", "simulate", *typed, first, f"workload.rate={best.rates[0]!r}"]),
    }


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, the way a scheduler takes a machine back, ends a study as cleanly as Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: signals are another's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _deaf() -> Iterator[None]:
    """A second Ctrl-C does not leave processes behind."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _git() -> str | None:
    """The commit of the working directory, marked if changed; None where there is none."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None
