"""Capacity: the largest arrival rate at which every SLO percentile holds."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp, inf, log, sqrt
from statistics import fmean
from sys import float_info
from time import monotonic
from typing import Any

from mist.build import build
from mist.errors import DeadlineExceeded, ImpossibleLayout, InputError, OutsideProfile, UnmeetableSLO, as_typed
from mist.metrics import Result
from mist.perf.base import StepModel, StepShape
from mist.plan.demand import demand
from mist.request import Request
from mist.scenario import Scenario
from mist.simulate import Stop, refuse_unmeetable, serve
from mist.ways import services
from mist.window import Doomed
from mist.workload.traffic import Traffic, check_open

PRECISION = 1.02  # lowest rate known to fail over highest known to hold
ROUGH = 1.08  # the same, for a first search on every COARSE-th request
COARSE = 8
LEAST = 300  # requests worth searching on
SLOPE = 3.0  # d log(latency) / d log(rate) to begin with
LEAP = log(2)  # furthest step up, in log(rate)
IDLE = 1 / 4096  # of the first guess: a rate at which requests are alone
FLOOD = 4096  # times the first guess: a rate at which they come all at once

SELDOM = 0.001  # requests/s that hardly ever meet at a station

Probe = Callable[[float], Result]


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
            found = _largest(partial(probe, draws=draws.thinned(COARSE)), start, ROUGH)
            start = found.rate * 0.95 if found.verdict == "ok" else start  # a shorter cycle takes a little more
        best = results[seed] = _largest(probe, start, PRECISION)
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


def guess(scenario: Scenario, traffic: Traffic) -> float:
    """Requests per second, to start from: full chunks, and decodes in the largest batch within the TPOT limit.

    Of stations alone, as many as they serve one by one.
    """
    if not scenario.pools:
        return _one_by_one(scenario, traffic)
    tpot = min((limit.limit for limit in scenario.slo if limit.metric == "tpot"), default=inf)
    loads = demand(scenario.pipeline, traffic, scenario.seed, services(scenario.pools))
    rates = []
    for name, spec in scenario.pools.items():
        if name not in loads:
            continue  # no plan of the sample led there
        generations, prompt, answer = loads[name]
        steps, budget = spec.perf.of(spec.replica), spec.scheduler.token_budget
        seconds = 0.0
        if spec.role != "decode":
            while budget > 1 and _known(steps, StepShape(0, 0, ((budget, 0),))) == inf:
                budget //= 2
            seconds += prompt * steps.step_time(StepShape(0, 0, ((budget, 0),))) / budget
        if spec.role != "prefill":
            batch = spec.scheduler.max_running
            context = int(prompt + answer / 2)
            while batch > 1 and _known(steps, StepShape(batch, batch * context)) > min(tpot, float_info.max):
                batch = int(batch / 1.2)
            seconds += answer * steps.step_time(StepShape(batch, batch * context)) / batch
        rates.append(spec.replicas / (generations * seconds))
    return 0.7 * min(rates, default=1.0)


def _one_by_one(scenario: Scenario, traffic: Traffic) -> float:
    """The rate at which some station would be busy all the time if it served every visit by itself."""
    seldom = serve(scenario, traffic, SELDOM)
    shares = [station.utilization for station in (seldom.stations or {}).values() if station.utilization]
    return 0.7 * SELDOM / max(shares, default=0.7 * SELDOM)


def _known(steps: StepModel, shape: StepShape) -> float:
    """Seconds of the step, infinite where nothing like it was measured: to begin with, a smaller one will do."""
    try:
        return steps.step_time(shape)
    except OutsideProfile:
        return inf


def _largest(probe: Probe, start: float, precision: float) -> Result:
    """The Result at the largest rate that holds, within ``precision`` of one that does not.

    Where no rate holds, the Result of requests served alone.
    """
    held: list[Result] = []  # by rising rate
    fails, rate, retreat = inf, start, 1.04
    while not held or fails / held[-1].rate > precision:
        result = probe(rate)
        if result.verdict == "infeasible":
            return result
        if result.verdict == "ok":
            held.append(result)
            if rate >= start * FLOOD:
                return result  # too few requests to overload anything
        else:
            fails = rate
            if not held and rate <= start * IDLE:
                return result
        if held:
            rate = _between(held, fails, precision)
        else:
            rate, retreat = max(rate / retreat, start * IDLE), retreat**2
    return held[-1]


def _between(held: Sequence[Result], fails: float, precision: float) -> float:
    """The next rate to try, above the last that held and below the first that did not.

    Where the slack of the tightest limit would be used up if it went on as between the last two rates that
    held; halfway, in the logarithm, where that is beyond what fails.
    """
    low, slack = held[-1].rate, _slack(held[-1])
    slope = SLOPE
    if len(held) > 1 and _slack(held[-2]) > slack > 0:
        slope = (_slack(held[-2]) - slack) / log(low / held[-2].rate)
    aim = low * exp(min(slack / slope, LEAP)) / precision**0.25  # just below, so that the next one closes in
    least = low * precision ** (2 ** min(len(held) - 1, 4))  # a crawl from below speeds up
    rate = max(aim, least)
    return rate if rate < fails / precision**0.25 else sqrt(low * fails)


def _slack(result: Result) -> float:
    """log(limit / observed) of the tightest limit; enough for a stride of a quarter where there is none."""
    shares = [check.observed / check.limit for check in (result.slo or {}).values()]
    return -log(max(shares)) if shares and max(shares) > 0 else 0.25 * SLOPE
