"""One study from question to ranked answer: propose, judge, record, confirm."""

import platform
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mist.build import build
from mist.report.study import Progress, Watch, print_answer
from mist.slo import SLO
from mist.sweep import question, ranking, store, workers
from mist.sweep.identity import code, design_identity, digest, refuse_changes
from mist.sweep.question import Sweep
from mist.sweep.search import Proposal, Search
from mist.sweep.workers import Job, Outcome, Workers
from mist.workload.traffic import Traffic, Workload

JUDGE = "mist.sweep.capacity.judge"
COMPOSE = "mist.compose.compose"

DONE, NOTHING_FEASIBLE, INTERRUPTED = 0, 3, 130  # exit codes

Compose = Callable[[list[str]], dict[str, Any]]


def run(
    name: str,
    overrides: Sequence[str] = (),
    *,
    judge: str = JUDGE,
    compose: str = COMPOSE,
    results: Path = Path("results"),
) -> int:
    """Answer the question of a sweep and print it; the exit code (0, 3 if nothing is feasible, 130 if interrupted).

    Raises InputError for every mistake in the sweep or its overrides, before any design is judged.
    """
    stem, data = question.read(name, overrides)
    sweep = question.sweep(data)
    composer = workers.named(compose)
    loads = Workloads()
    inputs = reach(sweep, composer, loads, judge)
    manifest = {
        "sweep": stem,
        "inputs": inputs,
        "command": shlex.join(["mist", "sweep", name, *overrides]),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "price_date": composer(sweep.overrides({})).get("price", {}).get("date"),
        "seeds": {"search": sweep.search.seed, "study": sweep.study_seeds, "confirm": sweep.confirm_seeds},
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("numpy", "optuna", "ray")},
        "git": _git(),
        "host": platform.platform(),
    }
    folder = store.create(results, stem, digest(inputs), data, manifest)
    return _answer(Watch(stem, sweep.question, folder), sweep, composer, loads, judge)


def resume(run: Path, *, judge: str = JUDGE, compose: str = COMPOSE) -> int:
    """Go on with a run to its configured budget; exit code as of ``run``.

    Nothing that finished is judged again. Raises StaleRun, naming it, if any input has changed since the run began.
    """
    run = run.resolve() if run.is_symlink() else run
    data, manifest = store.load(run)
    sweep = question.sweep(data)
    composer = workers.named(compose)
    loads = Workloads()
    refuse_changes(manifest["inputs"], reach(sweep, composer, loads, judge))
    return _answer(Watch(manifest["sweep"], sweep.question, run), sweep, composer, loads, judge)


class Workloads:
    """Content hashes and traffic, made once per workload and seed."""

    def __init__(self) -> None:
        self._built: dict[str, tuple[Any, str]] = {}
        self._traffic: dict[tuple[str, int], Traffic] = {}

    def content(self, config: Mapping[str, Any]) -> str:
        """sha256 of the file behind the config's workload, or nothing."""
        return self._load(config)[1]

    def traffic(self, config: Mapping[str, Any], seeds: Sequence[int]) -> dict[int, Traffic]:
        """The same objects every time, so that they are sent to workers once."""
        key = digest(config["workload"])
        for seed in seeds:
            if (key, seed) not in self._traffic:
                self._traffic[key, seed] = self._load(config)[0].traffic(seed)
        return {seed: self._traffic[key, seed] for seed in seeds}

    def _load(self, config: Mapping[str, Any]) -> tuple[Any, str]:
        key = digest(config["workload"])
        if key not in self._built:
            workload: Any = build(Workload, config["workload"], "workload")  # type: ignore[type-abstract]
            self._built[key] = workload, workload.content()
        return self._built[key]


def reach(sweep: Sweep, compose: Compose, loads: Workloads, judge: str) -> dict[str, str]:
    """Every input that can change an answer of this sweep, by name, hashed.

    Composes one design for each name in the space: a misspelt choice is found here, and so is, on a resume, a data
    sheet that has changed.
    """
    configs = {"the base config": compose(sweep.overrides({}))}
    for label, design in sweep.designs.probes():
        configs[f"the config of {label}"] = compose(sweep.overrides(design))
    contents = {f"the workload of {name}": loads.content(config) for name, config in configs.items()}
    asked = {"space": dict(sweep.space), "when": dict(sweep.when), "seeds": sweep.seeds, "timeout": sweep.timeout}
    return {
        **{name: digest(config) for name, config in configs.items()},
        **{name: content for name, content in contents.items() if content},
        "the prices": digest(configs["the base config"].get("price")),
        "the space": digest(asked),
        "the judge": judge,
        **code(),
    }


@dataclass
class Study:
    """The state of one driver: what is known, what is in flight."""

    sweep: Sweep
    compose: Compose
    loads: Workloads
    trials: store.Trials
    hands: Workers
    search: Search = field(init=False)

    def __post_init__(self) -> None:
        self.search = Search(self.sweep, self.trials.lines)
        judged = [line for line in self.trials.lines if line["state"] not in ("repeat", "confirm")]
        self._known = {line["identity"]: line for line in judged}
        self._number = max((line["number"] for line in self.trials.lines), default=-1) + 1
        self._flying: dict[int, dict[str, Any]] = {}  # trial number -> its line so far
        self._waiting: dict[str, list[tuple[Proposal, dict[str, Any]]]] = {}  # identity in flight -> who asked for it

    def judge_designs(self) -> Iterator[None]:
        """Until the budget is spent or the space exhausted; yields whenever the state may have changed."""
        exhausted = False
        while True:
            while not exhausted and self._room():
                proposal = self.search.propose()
                exhausted = proposal is None
                if proposal is not None:
                    self._launch(proposal)
                yield
            if not self._flying:
                return
            for outcome in self.hands.finished(patience_s=0.25):
                self._land(outcome)
            yield

    def _room(self) -> bool:
        return len(self._flying) < self.hands.slots and len(self._known) + len(self._flying) < self.sweep.budget.designs

    def _launch(self, proposal: Proposal) -> None:
        overrides = self.sweep.overrides(proposal.design)
        number = self._number
        line: store.Line = {"number": number, "state": "", "design": proposal.design, "overrides": overrides}
        line |= {"restart": proposal.restart, "seeds": self.sweep.study_seeds}
        self._number += 1
        try:
            config = self.compose(overrides)
            identity = design_identity(config, self.loads.content(config))
            traffic = self.loads.traffic(config, self.sweep.study_seeds)
        except Exception as error:  # a combination that cannot be composed is recorded like any other crash
            line["identity"] = digest(overrides)
            self._waiting[line["identity"]] = [(proposal, line)]
            self._flying[number] = line
            self._land(Outcome(number, None, workers.told(error), 0.0, 1))
            return
        line["identity"] = identity
        if identity in self._known:
            self.search.repeated()
            self._repeat(proposal, line, self._known[identity])
        elif identity in self._waiting:
            self.search.repeated()
            self._waiting[identity].append((proposal, line))
        else:
            self._waiting[identity] = [(proposal, line)]
            self._flying[number] = line
            self.hands.submit(Job(number, config, traffic, self.sweep.timeout))

    def _land(self, outcome: Outcome) -> None:
        line = self._flying.pop(outcome.number) | _answered(outcome)
        (proposal, _), *others = self._waiting.pop(line["identity"])
        self.trials.append(line)
        self._known[line["identity"]] = line
        self.search.tell(proposal, line)
        for twin, asked in others:
            self._repeat(twin, asked, line)

    def _repeat(self, proposal: Proposal, asked: dict[str, Any], known: Mapping[str, Any]) -> None:
        answer = {"state": "repeat", "record": known["record"], "error": known["error"]}
        self.trials.append(asked | answer | {"wall_s": 0.0, "attempts": 0})
        self.search.tell(proposal, known)

    def confirm_leaders(self) -> Iterator[None]:
        """Judge the best designs again, one fresh seed a trial."""
        leaders = ranking.feasible(self.trials.lines)[: self.sweep.confirm.leaders]
        done = {(t["identity"], t["seeds"][0]) for t in self.trials.lines if t["state"] == "confirm"}
        todo = [
            (leader, seed)
            for seed in self.sweep.confirm_seeds
            for leader in leaders
            if (leader["identity"], seed) not in done
        ]
        while todo or self._flying:
            while todo and len(self._flying) < self.hands.slots:
                leader, seed = todo.pop(0)
                config = self.compose(leader["overrides"])
                line = {name: leader[name] for name in ("identity", "design", "overrides", "restart")}
                self._flying[self._number] = {"number": self._number, **line, "seeds": [seed]}
                self.hands.submit(Job(self._number, config, self.loads.traffic(config, [seed]), self.sweep.timeout))
                self._number += 1
            for outcome in self.hands.finished(patience_s=0.25):
                self.trials.append(self._flying.pop(outcome.number) | _answered(outcome) | {"state": "confirm"})
            yield

    def progress(self, phase: str, began: float, at_start: int) -> Progress:
        """What there is to show."""
        lines = self.trials.lines
        counts = {state: sum(line["state"] == state for line in lines) for state in _STATES}
        best = ranking.feasible(lines)[:1]
        confirming = phase == "confirming"
        leaders = min(self.sweep.confirm.leaders, counts["ok"])
        size = self.sweep.designs.size or self.sweep.budget.designs
        return Progress(
            phase=phase,
            done=counts["confirm"] if confirming else len(self._known),
            total=leaders * self.sweep.confirm.seeds if confirming else min(size, self.sweep.budget.designs),
            at_start=at_start,
            feasible=counts["ok"],
            infeasible=counts["infeasible"],
            failed=counts["failed"],
            repeats=counts["repeat"],
            flying=len(self._flying),
            elapsed_s=time.monotonic() - began,
            best_value=best[0]["record"]["value"] if best else None,
            best_design=best[0]["design"] if best else {},
        )


_STATES = ("ok", "infeasible", "failed", "repeat", "confirm")


def _answered(outcome: Outcome) -> dict[str, Any]:
    state = "failed" if outcome.record is None else "ok" if outcome.record["verdict"] == "ok" else "infeasible"
    answer = {"state": state, "record": outcome.record, "error": outcome.error}
    return answer | {"wall_s": round(outcome.wall_s, 4), "attempts": outcome.attempts}


def _answer(watch: Watch, sweep: Sweep, compose: Compose, loads: Workloads, judge: str) -> int:
    trials = store.Trials(watch.run)
    hands: Workers | None = None
    try:
        with _terminable():
            watch.start(sweep.workers, sweep.ray.address)
            hands = workers.start(sweep, judge)
            _work(Study(sweep, compose, loads, trials, hands), watch)
            return _conclude(watch, sweep, compose, trials.lines)
    except KeyboardInterrupt:
        judged = sum(line["state"] not in ("repeat", "confirm") for line in trials.lines)
        watch.interrupted(judged, sweep.budget.designs, f"mist resume {shlex.quote(str(watch.run))}")
        return INTERRUPTED
    finally:
        watch.stop()
        with _deaf():
            if hands is not None:
                hands.close()
            trials.close()


def _work(study: Study, watch: Watch) -> None:
    for phase, steps in (("judging", study.judge_designs), ("confirming", study.confirm_leaders)):
        began, at_start = time.monotonic(), study.progress(phase, 0.0, 0).done
        for _ in steps():
            watch.show(partial(study.progress, phase, began, at_start))
        watch.show(partial(study.progress, phase, began, at_start), last=True)


def _conclude(watch: Watch, sweep: Sweep, compose: Compose, lines: list[store.Line]) -> int:
    run = watch.run
    store.write_table(run, lines)
    ranked = ranking.rank(lines)
    slo = build(SLO, compose(sweep.overrides({})).get("slo", {}), "slo")
    if ranked:
        best = ranked[0]
        store.write_best(
            run,
            {
                "overrides": dict(text.split("=", 1) for text in best.overrides),
                "tokens_per_dollar": best.value,
                "tokens_per_dollar_error": best.value_error,
                "capacity": best.capacity,
                "capacity_error": best.capacity_error,
                "metrics": dict(best.metrics),
                "seeds": list(best.seeds),
                "tied_with": [one.design for one in ranked if one.tied],
                "replay": replay(best),
            },
        )
    print_answer(watch, ranked, {limit.name: limit.limit for limit in slo}, lines, replay(ranked[0]) if ranked else {})
    return DONE if ranked else NOTHING_FEASIBLE


def replay(best: ranking.Ranked) -> dict[str, str]:
    """Commands that judge a design again, and that simulate it at its capacity."""
    rate = f"workload.rate={best.capacity:.4g}"
    return {
        "capacity": shlex.join(["mist", "capacity", *best.overrides]),
        "simulate": shlex.join(["mist", "simulate", *best.overrides, rate]),
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
