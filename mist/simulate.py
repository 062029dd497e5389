"""One deployment under one workload: config in, Result out."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from math import ceil, inf
from typing import Any

from mist import __version__
from mist.build import build
from mist.cluster import Cluster
from mist.counted import CountedRun
from mist.errors import Infeasible, UnmeetableSLO
from mist.kernel import Kernel
from mist.metrics import Result, measured, within
from mist.outcome import outcome
from mist.plan.query import Query
from mist.request import UNCLASSED, Request, RequestClass
from mist.scenario import Scenario
from mist.slo import SLO, Limit
from mist.timed import TimedRun
from mist.workload.traffic import Loop, Traffic

LONGEST_WARM_UP = 64  # cycles
MOST_WARM_UP = 16_384  # requests, where that is more than four cycles
ALONE = 1 / 4096  # of a rate that is too high: requests hardly ever meet


Stop = Callable[[Sequence[Request], float], bool]


def simulate(config: Mapping[str, Any]) -> Result:
    """Serve the config's workload with its deployment.

    Pure: the same config and version give the same Result to the last bit. Raises InputError for a config
    that cannot be built, UnmeetableSLO where no request keeps a limit even when served alone; a design that
    does not fit is a Result with verdict ``infeasible``.
    """
    scenario = build(Scenario, config)
    traffic = scenario.workload.traffic(scenario.seed)
    result = serve(scenario, traffic, scenario.rate)
    refuse_unmeetable(scenario, traffic, result)
    return result


def refuse_unmeetable(scenario: Scenario, traffic: Traffic, result: Result) -> None:
    """UnmeetableSLO where no request of ``result`` keeps some limit, and none does when served alone either."""
    if not result.requests or _unmet(scenario.slo, result.requests) is None:
        return
    if traffic.loop is not None:
        traffic = replace(traffic, loop=Loop(1, 0.0))
    alone = serve(scenario, traffic, result.rate * ALONE, lambda seen, _now: _unmet(scenario.slo, seen) is None)
    limit = _unmet(scenario.slo, alone.requests)
    if limit is not None:
        fastest = min(measured(limit.metric, alone.requests), default=inf)
        told = f"the fastest takes {fastest:.3g} s" if fastest < inf else f"none is answered ({_unanswered(alone)})"
        why = f"no request can meet it, even alone on the deployment: {told}"
        raise UnmeetableSLO(f"slo.{limit.name}", f"{limit.limit:g} s", why)


def _unanswered(result: Result) -> str:
    """Why a request was not."""
    return next((r.refused or r.lost for r in result.requests if r.refused or r.lost), "the run ended before")


def _unmet(slo: SLO, requests: Sequence[Request]) -> Limit | None:
    """A limit that none of these requests keeps."""
    for limit in slo:
        if not any(value <= limit.limit for value in measured(limit.metric, requests)):
            return limit
    return None


def never(_requests: Sequence[Request], _now: float) -> bool:
    """Let the run go on to its end."""
    return False


@contextmanager
def collector_paused() -> Iterator[None]:
    """No cyclic garbage collection in here.

    A run makes a million small objects, hardly any of them garbage that reference counts do not free; the
    collector would look at those that last again and again, a quarter of the run's time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@collector_paused()
def serve(scenario: Scenario, traffic: Traffic, rate: float, stop: Stop = never) -> Result:
    """Serve this traffic at ``rate`` requests per second.

    ``stop`` looks at the window's requests and the clock some twenty times a window and may end the run; it is asked
    after every warm-up too, where it may only raise.
    """
    classes = tuple(traffic.sizes())
    try:
        if traffic.loop is not None or scenario.window.drain:
            counted = _counted(scenario, traffic, rate, stop)
            seen = counted.run()
            rate = rate if traffic.loop is None else len(traffic) / (seen.end - seen.start)
            return outcome(scenario, counted.cluster, counted.requests, rate, seen, classes)
        timed = _warmed_up(scenario, traffic, rate, stop)
    except Infeasible as why:
        dollars = scenario.dollars_per_hour
        return Result("infeasible", str(why), rate, scenario.seed, __version__, dollars_per_hour=dollars)
    seen = timed.measure(scenario.window.patience, stop)
    return outcome(scenario, timed.cluster, timed.requests, rate, seen, classes)


def _warmed_up(scenario: Scenario, traffic: Traffic, rate: float, stop: Stop) -> TimedRun:
    """A run at the start of its window: twice the warm-up as long as the cluster, empty at first, is still filling."""
    cycle, warm = len(traffic), ceil(scenario.window.warmup * len(traffic))
    most = min(LONGEST_WARM_UP * cycle, max(4 * cycle, MOST_WARM_UP))
    while True:
        source = _arrivals(traffic, rate, warm, scenario.slo, _kind(scenario))
        start, length = -_instant(traffic, -warm) / rate, cycle / rate
        run = TimedRun(kernel := Kernel(), _cluster(scenario, kernel, cycle), source, warm, cycle, start, length)
        run.warm_up()
        stop((), start)
        if warm == 0 or warm >= most or not run.filling:
            return run
        warm *= 2


def _counted(scenario: Scenario, traffic: Traffic, rate: float, stop: Stop) -> CountedRun:
    cycle, warm = len(traffic), ceil(scenario.window.warmup * len(traffic))
    source = _arrivals(traffic, rate, warm, scenario.slo, _kind(scenario))
    cluster = _cluster(scenario, kernel := Kernel(), cycle)
    return CountedRun(kernel, cluster, source, traffic.loop, warm, cycle, scenario.window.drain, stop)


def _kind(scenario: Scenario) -> type[Request]:
    return Request if scenario.pipeline.plain else Query


def _cluster(scenario: Scenario, kernel: Kernel, cycle: int) -> Cluster:
    """Everything that serves, empty; Infeasible where a model does not fit."""
    return Cluster(
        kernel,
        scenario.pools,
        scenario.link,
        handover=scenario.handover,
        faults=scenario.faults,
        roles=scenario.roles,
        network=scenario.network,
        good=within(scenario.slo),
        seed=scenario.seed,
        pipeline=scenario.pipeline,
        stations=scenario.stations,
        hosts=scenario.hosts,
        links=scenario.links,
        cycle=cycle,
        colocated=scenario.colocated,
    )


def _instant(traffic: Traffic, position: int) -> float:
    """When request ``position`` arrives, in mean gaps from the beginning of cycle 0."""
    cycle = len(traffic)
    return position // cycle * cycle + float(traffic.times[position % cycle])


def _arrivals(traffic: Traffic, rate: float, warm: int, slo: SLO, make: type[Request] = Request) -> Iterator[Request]:
    """Requests ``-warm``, ``-warm + 1``, ... for ever; the first arrives at time 0."""
    cycle = len(traffic)
    times, inputs, outputs = traffic.times.tolist(), traffic.inputs.tolist(), traffic.outputs.tolist()
    origin, contents = _instant(traffic, -warm), traffic.contents
    kinds = [_promised(kind, slo) for kind in traffic.classes or (UNCLASSED,)]
    members = [0] * cycle if traffic.members is None else traffic.members.tolist()
    for position in count(-warm):
        whole, part = divmod(position, cycle)
        arrived, kind = (whole * cycle + times[part] - origin) / rate, kinds[members[part]]
        content = None if contents is None else contents.of(whole, part)
        yield make(position, arrived, inputs[part], outputs[part], kind.priority, content, kind)


def _promised(kind: RequestClass, slo: SLO) -> RequestClass:
    """The class with the limits its requests are held to; a first token is due no later than the last."""
    bounds = slo.of(kind.name).bounds
    first = min(bounds.get("ttft", inf), bounds.get("e2e", inf))
    return kind._replace(ttft=first, tpot=bounds.get("tpot", inf))
