"""The arrival rate at which the search for capacity begins."""

from math import inf
from sys import float_info

from mist.errors import OutsideProfile
from mist.perf.base import StepModel, StepShape
from mist.plan.demand import demand
from mist.scenario import Scenario
from mist.simulate import serve
from mist.ways import services
from mist.workload.traffic import Traffic

SELDOM = 0.001  # requests/s that hardly ever meet at a station


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
