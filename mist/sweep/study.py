"""One study from question to ranked answer: begin, or go on with a run of one."""

import platform
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mist.build import build
from mist.report.progress import Watch
from mist.report.study import Answer, print_answer
from mist.slo import SLO
from mist.sweep import question, ranking, ray_cluster, store, workers
from mist.sweep.best_first import of_json
from mist.sweep.identity import digest, refuse_changes
from mist.sweep.inputs import MIST, Workloads, World, reach
from mist.sweep.interrupts import deaf, terminable
from mist.sweep.ladder import Study
from mist.sweep.question import Sweep
from mist.sweep.runs import answer_of, best_of
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
        ray_cluster.knock(sweep.ray.address)
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


def _driven(run: Path, sweep: Sweep, manifest: Mapping[str, Any], world: World, loads: Workloads) -> int:
    began = time.monotonic()
    watch = Watch(manifest["sweep"], sweep.question, run)
    trials = store.Trials(run)
    store.reopen(run)
    hands: Workers | None = None
    try:
        with terminable():
            watch.start(sweep.workers, sweep.ray.address, sweep.screen)
            hands = workers.start(sweep, world.judge)
            _work(Study(sweep, world, loads, trials, hands, list(map(of_json, store.read_bounds(run)))), watch, run)
            watch.stop()
            return _conclude(answer_of(run, sweep, manifest, trials.lines, wall_s=time.monotonic() - began), watch)
    except KeyboardInterrupt:
        judged = sum(line["rung"] != "confirm" and line["state"] != "repeat" for line in trials.lines)
        watch.interrupted(judged, sweep.budget.designs, shlex.join(["mist", "resume", str(run)]))
        return INTERRUPTED
    finally:
        watch.stop()
        with deaf():
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


def _conclude(answer: Answer, watch: Watch) -> int:
    ranked = ranking.rank(answer.lines)
    best = best_of(ranked)
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


def _git() -> str | None:
    """The commit of the working directory, marked if changed; None where there is none."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None
