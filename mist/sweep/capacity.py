"""Capacity: the largest arrival rate at which every SLO percentile holds."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, log
from statistics import fmean
from time import monotonic
from typing import Any

from mist.build import build
from mist.errors import DeadlineExceeded, ImpossibleLayout, InputError, UnmeetableSLO, as_typed
from mist.metrics import Result
from mist.request import Request
from mist.scenario import Scenario
from mist.simulate import Stop, refuse_unmeetable, serve
from mist.sweep.first_rate import guess
from mist.sweep.largest import largest
from mist.window import Doomed
from mist.workload.traffic import Traffic, check_open

PRECISION = 1.02  # lowest rate known to fail over highest known to hold
ROUGH = 1.08  # the same, for a first search on every COARSE-th request
COARSE = 8
LEAST = 300  # requests worth searching on


@dataclass(frozen=True)
class Capacity:
    """What a deployment can take: requests per second, by seed, with the Result at that rate."""

    results: Mapping[int, Result]  # by seed; verdict "ok", or why there is no capacity
    probes: int  # simulations it took

    @property
    def by_seed(self) -> dict[int, float]:
        return {seed: result.rate if result.verdict == "ok" else 0.0 for seed, result in self.results.items()}

    @property
    def rate(self) -> float:
        """Mean over seeds, requests per second."""
        return fmean(self.by_seed.values())

    @property
    def tokens_per_dollar(self) -> float:
        return fmean(result.tokens_per_dollar for result in self.results.values())

    @property
    def worst(self) -> Result:
        """The Result of the seed with the least capacity."""
        return self.results[min(self.by_seed, key=self.by_seed.__getitem__)]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rates, values = self.by_seed.values(), [result.tokens_per_dollar for result in self.results.values()]
        return {
            "capacity": self.rate,
            "tokens_per_dollar": self.tokens_per_dollar,
            "verdict": "ok" if self.rate else "infeasible",
            "reason": "" if self.rate else self.worst.reason,
            "spread": {"capacity": [min(rates), max(rates)], "tokens_per_dollar": [min(values), max(values)]},
            "by_seed": {str(seed): rate for seed, rate in self.by_seed.items()},
            "probes": self.probes,
            "result": next(iter(self.results.values())).to_json(),
        }


def capacity(config: Mapping[str, Any], seeds: int = 1) -> Capacity:
    """The capacity of the config's deployment, for that many seeds from its own on, each to 2 %.

    All rates of one seed replay the same draws. ``workload.rate`` is what is sought, so it is ignored here
    and refused by the command line. Raises UnmeetableSLO where not one request keeps a limit when alone.
    """
    if seeds < 1:
        raise InputError("seeds", seeds, "at least one seed is needed")
    scenario = build(Scenario, config)
    check_open(scenario.workload)
    draws = range(scenario.seed, scenario.seed + seeds)
    return search(scenario, {seed: scenario.workload.traffic(seed) for seed in draws}, inf)


def search(scenario: Scenario, traffic: Mapping[int, Traffic], limit_s: float) -> Capacity:
    """As ``capacity``, on traffic drawn before; DeadlineExceeded after ``limit_s`` seconds of wall clock.

    A seed is that of plans, faults, routers and whatever else is drawn, too.
    """
    deadline = monotonic() + limit_s
    results, probes = {}, 0
    for seed, draws in traffic.items():
        seeded = replace(scenario, seed=seed)

        def probe(rate: float, draws: Traffic = draws, seeded: Scenario = seeded) -> Result:
            nonlocal probes
            probes += 1
            return serve(seeded, draws, rate, _until_certain(seeded, draws, deadline, limit_s))

        start = guess(seeded, draws)
        if len(draws) >= COARSE * LEAST:
            found = largest(partial(probe, draws=draws.thinned(COARSE)), start, ROUGH)
            start = found.rate * 0.95 if found.verdict == "ok" else start  # a shorter cycle takes a little more
        best = results[seed] = largest(probe, start, PRECISION)
        if best.verdict not in ("ok", "infeasible"):  # once more, to the end
            alone = serve(seeded, draws, best.rate, _before(deadline, limit_s))
            refuse_unmeetable(seeded, draws, alone)
            reason = f"even when idle, {alone.reason}"
            best = results[seed] = replace(alone, verdict="infeasible", reason=reason)
        if best.verdict == "infeasible":
            return Capacity({seed: best}, probes)  # whatever arrives
    return Capacity(results, probes)


def judge(config: Mapping[str, Any], traffic: Mapping[int, Traffic], limit_s: float = inf) -> dict[str, Any]:
    """A design's answer as plain data: value, capacity, verdict, reason, metrics, constraints, spread.

    An infeasible design is an answer: value 0, its constraints positive.
    """
    try:
        with as_typed(config["pools"]):
            found = search(build(Scenario, config), traffic, limit_s)
    except (ImpossibleLayout, UnmeetableSLO) as error:
        return {**_NOTHING, "reason": str(error), "constraints": {"fits": 1.0}}
    result = found.worst
    answer = {key: value for key, value in found.to_json().items() if key in _NOTHING}
    answer["value"] = found.tokens_per_dollar
    answer["constraints"] = _constraints(result)
    answer["metrics"] = _metrics(result) | _worth(found.results.values())
    answer["notes"] = list(result.window.notes) if result.window else []
    return answer


_NOTHING: dict[str, Any] = {
    "value": 0.0,
    "capacity": 0.0,
    "verdict": "infeasible",
    "reason": "",
    "spread": None,
    "metrics": {},
    "constraints": {},
    "notes": [],
}


def _metrics(result: Result) -> dict[str, float]:
    metrics = {
        "output_tokens_per_s": result.output_tokens_per_second,
        "dollars_per_hour": result.dollars_per_hour,
        "attainment": result.attainment,
    }
    for name, figures in (result.latency or {}).items():
        metrics |= {f"{name}_p50": figures.p50, f"{name}_p99": figures.p99}
    for kind, got in (result.classes or {}).items():
        metrics[f"classes.{kind}.attainment"] = got.attainment
        for name, figures in got.latency.items():
            metrics |= {f"classes.{kind}.{name}_p50": figures.p50, f"classes.{kind}.{name}_p99": figures.p99}
    return {name: value for name, value in metrics.items() if value != inf}


def _worth(results: Collection[Result]) -> dict[str, float]:
    """What may be an objective beside tokens per dollar, as that is: mean over seeds."""
    names = "requests_per_dollar", "input_tokens_per_dollar"
    return {name: fmean(getattr(result, name) for result in results) for name in names}


def _constraints(result: Result) -> dict[str, float]:
    """log(observed / limit) by limit, positive where missed; an endless wait counts as e times the limit."""
    if not result.slo:
        return {"fits": 0.0 if result.verdict == "ok" else 1.0}
    shares = {name: check.observed / check.limit for name, check in result.slo.items()}
    return {name: min(log(share), 1.0) if share > 0 else -1.0 for name, share in shares.items()}


def _before(deadline: float, limit_s: float) -> Stop:
    def stop(_requests: Sequence[Request], _now: float) -> bool:
        if monotonic() > deadline:
            raise DeadlineExceeded(f"no verdict after {limit_s:g} s")
        return False

    return stop


def _until_certain(scenario: Scenario, traffic: Traffic, deadline: float, limit_s: float) -> Stop:
    in_time, doomed = _before(deadline, limit_s), Doomed(scenario.slo, len(traffic), traffic.sizes())
    return lambda requests, now: in_time(requests, now) or doomed(requests, now)
