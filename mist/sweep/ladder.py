"""The ladder: designs are proposed and judged, then the leaders confirmed; every answer is recorded, rung by rung.

A line of ``trials.jsonl`` names its rung: ``screen`` (judged with the sweep's screen overrides), ``search`` (the same
where there are none) or ``confirm`` (at full fidelity, one fresh seed). Its overrides are those it was judged with.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from mist.report.objective import OBJECTIVES
from mist.report.progress import Progress
from mist.sweep import ranking, store
from mist.sweep.best_first import Bounded, Standing, least, standing
from mist.sweep.bound import Bound
from mist.sweep.identity import digest
from mist.sweep.inputs import Config, Workloads, World, identity
from mist.sweep.judging import Job, Outcome, told
from mist.sweep.question import Sweep
from mist.sweep.search import Proposal, Search
from mist.sweep.space import Design
from mist.sweep.workers import Workers
from mist.workload.traffic import Traffic


@dataclass
class Study:
    """The state of one driver: what is known, what is in flight."""

    sweep: Sweep
    world: World
    loads: Workloads
    trials: store.Trials
    hands: Workers
    bounds: list[Bounded] = field(default_factory=list)  # of every design, where they go by that
    search: Search = field(init=False)

    def __post_init__(self) -> None:
        self.search = Search(self.sweep, self.trials.lines)
        judged = [line for line in self.trials.lines if line["rung"] != "confirm" and line["state"] != "repeat"]
        self._known = {line["identity"]: line for line in judged}
        self._number = max((line["number"] for line in self.trials.lines), default=-1) + 1
        self._flying: dict[int, dict[str, Any]] = {}  # trial number -> its line so far
        self._waiting: dict[str, list[tuple[Proposal, dict[str, Any]]]] = {}  # identity in flight -> who asked for it

    def bound_designs(self) -> Iterator[None]:
        """Until every design of the space has its bound."""
        for design in self.sweep.designs.designs():
            self.bounds.append(Bounded(design, *self._bound(design)))
            yield

    def _bound(self, design: Design) -> Bound:
        try:
            config = self.world.compose(self.sweep.search_overrides(design))
            traffic = self.loads.traffic(config, self.sweep.study_seeds)
            return self.world.bounded(config, traffic, self.sweep.objective)
        except Exception:  # it will be judged, and recorded like any other crash
            return Bound(inf)

    def judge_designs(self) -> Iterator[None]:
        """Until the budget is spent or the space exhausted; yields whenever the state may have changed."""
        exhausted = False
        if self.bounds:
            self.search.order(self.bounds)
        while True:
            while not exhausted and self._room():
                proposal = self.search.propose(least(self.trials.lines, self.sweep.confirm.leaders))
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
        overrides = self.sweep.search_overrides(proposal.design)
        line = self._line(self.sweep.search_rung, proposal.design, overrides, self.sweep.study_seeds)
        line["restart"] = proposal.restart
        try:
            config, line["identity"], traffic = self._prepared(overrides, self.sweep.study_seeds)
        except Exception as error:  # a combination that cannot be built is recorded like any other crash
            line["identity"] = digest(overrides)
            self._waiting[line["identity"]] = [(proposal, line)]
            self._flying[line["number"]] = line
            self._land(Outcome(line["number"], None, told(error), 0.0, 1))
            return
        if line["identity"] in self._known:
            self.search.repeated()
            self._repeat(proposal, line, self._known[line["identity"]])
        elif line["identity"] in self._waiting:
            self.search.repeated()
            self._waiting[line["identity"]].append((proposal, line))
        else:
            self._waiting[line["identity"]] = [(proposal, line)]
            self._flying[line["number"]] = line
            self.hands.submit(Job(line["number"], config, traffic, self.sweep.timeout))

    def _line(self, rung: str, design: Mapping[str, Any], overrides: list[str], seeds: Sequence[int]) -> store.Line:
        number, self._number = self._number, self._number + 1
        line = {"number": number, "rung": rung, "state": "", "design": dict(design), "overrides": overrides}
        return {**line, "seeds": list(seeds)}

    def _prepared(self, overrides: list[str], seeds: Sequence[int]) -> tuple[Config, str, dict[int, Traffic]]:
        config = self.world.compose(overrides)
        return config, identity(config, self.world, self.loads), self.loads.traffic(config, seeds)

    def _land(self, outcome: Outcome) -> None:
        line = self._flying.pop(outcome.number) | self._answered(outcome)
        (proposal, _), *others = self._waiting.pop(line["identity"])
        self.trials.append(line)
        self._known[line["identity"]] = line
        self.search.tell(proposal, line)
        for twin, asked in others:
            self._repeat(twin, asked, line)

    def _answered(self, outcome: Outcome) -> dict[str, Any]:
        record = outcome.record
        state = "failed" if record is None else "ok" if record["verdict"] == "ok" else "infeasible"
        if record is not None and self.sweep.objective in record["metrics"]:
            record = record | {"value": record["metrics"][self.sweep.objective]}
        answer = {"state": state, "record": record, "error": outcome.error}
        return answer | {"wall_s": round(outcome.wall_s, 4), "attempts": outcome.attempts}

    def _repeat(self, proposal: Proposal, asked: dict[str, Any], known: Mapping[str, Any]) -> None:
        answer = {"state": "repeat", "record": known["record"], "error": known["error"]}
        self.trials.append(asked | answer | {"wall_s": 0.0, "attempts": 0})
        self.search.tell(proposal, known)

    def confirm_leaders(self) -> Iterator[None]:
        """Judge the best designs again at full fidelity, one fresh seed a trial.

        Ends where a leader was refuted, and a design that is not judged may take its place.
        """
        while True:
            todo = [] if self._reopened else self._unconfirmed()
            while todo and len(self._flying) < self.hands.slots:
                self._confirm(*todo.pop(0))
            if not self._flying:
                return
            for outcome in self.hands.finished(patience_s=0.25):
                self.trials.append(self._flying.pop(outcome.number) | self._answered(outcome))
            yield

    @property
    def _reopened(self) -> bool:
        return bool(self.bounds) and len(self._known) < self.sweep.budget.designs and self.standing.left > 0

    def _leaders(self) -> list[Mapping[str, Any]]:
        return ranking.leaders(self.trials.lines, self.sweep.confirm.leaders)

    def _unconfirmed(self) -> list[tuple[Mapping[str, Any], int]]:
        """Leaders and seeds that no trial has answered or is answering, all leaders of a seed before the next."""
        asked = [*self.trials.lines, *self._flying.values()]
        done = {(digest(line["design"]), line["seeds"][0]) for line in asked if line["rung"] == "confirm"}
        pairs = [(leader, seed) for seed in self.sweep.confirm_seeds for leader in self._leaders()]
        return [(leader, seed) for leader, seed in pairs if (digest(leader["design"]), seed) not in done]

    def _confirm(self, leader: Mapping[str, Any], seed: int) -> None:
        line = self._line("confirm", leader["design"], self.sweep.overrides(leader["design"]), [seed])
        line["restart"] = leader["restart"]
        config, line["identity"], traffic = self._prepared(line["overrides"], [seed])
        self._flying[line["number"]] = line
        self.hands.submit(Job(line["number"], config, traffic, self.sweep.timeout))

    @property
    def standing(self) -> Standing:
        """How much of the space is decided, where designs go by their bounds."""
        return standing(self.bounds, self.trials.lines, self.sweep.confirm.leaders)

    def progress(self, phase: str, began: float, at_start: int) -> Progress:
        """What there is to show."""
        lines = self.trials.lines
        states = [line["state"] for line in lines if line["rung"] != "confirm"]
        confirming = phase == "confirming"
        leaders = {digest(line["design"]) for line in self._leaders()} if confirming else set()
        again = [line for line in lines if line["rung"] == "confirm" and digest(line["design"]) in leaders]
        best = ranking.rank(lines)[:1]
        size = len(self.bounds) or self.sweep.designs.size or self.sweep.budget.designs
        ruled_out = self.standing.ruled_out if self.bounds and phase != "bounding" else 0
        done, total = len(self._known), min(size - ruled_out, self.sweep.budget.designs)
        if phase == "bounding":
            done, total = len(self.bounds), self.sweep.designs.size or 0
        elif confirming:
            done, total = len(again), len(leaders) * self.sweep.confirm.seeds
        return Progress(
            phase=phase,
            done=done,
            total=total,
            at_start=at_start,
            feasible=states.count("ok"),
            infeasible=states.count("infeasible"),
            failed=states.count("failed"),
            repeats=states.count("repeat"),
            flying=len(self._flying),
            elapsed_s=time.monotonic() - began,
            best_value=best[0].value if best else None,
            best_design=best[0].design if best else {},
            best_rung=best[0].rung if best else "",
            ruled_out=ruled_out,
            unit=OBJECTIVES[self.sweep.objective].short,
        )
