"""One deployment under one workload: config in, Result out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil
from typing import Any, NamedTuple

from mist import __version__
from mist.build import build
from mist.cluster import Cluster, Pool, PoolSpec, check_pools
from mist.errors import Infeasible, InputError
from mist.kernel import Kernel
from mist.memory.choice import prefix_use, swap_use
from mist.metrics import (
    METRICS,
    Check,
    Counts,
    PoolReport,
    Result,
    Verdict,
    WindowReport,
    latency,
    percentile,
    unstable,
    window_notes,
    within,
)
from mist.network import LinkSpec
from mist.price import PriceList
from mist.request import Request
from mist.slo import SLO
from mist.workload.traffic import Traffic, Workload

LOOKS = 20  # at the run, per window


@dataclass(frozen=True)
class Window:
    """What is measured: one cycle of the traffic, after ``warmup`` of a cycle.

    Arrivals go on until the last request of the window has ended, for at most ``patience`` cycles more.
    """

    warmup: float = 0.05
    patience: float = 1.0

    def __post_init__(self) -> None:
        for field in ("warmup", "patience"):
            if getattr(self, field) < 0:
                raise InputError(field, getattr(self, field), "must not be negative")


@dataclass(frozen=True)
class Scenario:
    """Everything a simulation depends on."""

    pools: Mapping[str, PoolSpec]
    workload: Workload
    slo: SLO
    price: PriceList
    link: LinkSpec | None = None
    window: Window = Window()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError("seed", self.seed, "must not be negative")
        check_pools(self.pools, self.link)

    @property
    def rate(self) -> float:
        """Offered requests per second."""
        return self.workload.own_rate() if self.workload.rate is None else self.workload.rate

    @property
    def dollars_per_hour(self) -> float:
        return sum(spec.devices * self.price.of(spec.hardware.name) for spec in self.pools.values())


Stop = Callable[[Sequence[Request], float], bool]


def simulate(config: Mapping[str, Any]) -> Result:
    """Serve the config's workload with its deployment.

    Pure: the same config and version give the same Result to the last bit. Raises InputError for a config
    that cannot be built; a design that does not fit is a Result with verdict ``infeasible``.
    """
    scenario = build(Scenario, config)
    return serve(scenario, scenario.workload.traffic(scenario.seed), scenario.rate)


def never(_requests: Sequence[Request], _now: float) -> bool:
    """Let the run go on to its end."""
    return False


def serve(scenario: Scenario, traffic: Traffic, rate: float, stop: Stop = never) -> Result:
    """Serve this traffic at ``rate`` requests per second.

    ``stop`` looks at the window's requests and the clock some twenty times a window and may end the run.
    """
    kernel = Kernel()
    try:
        cluster = Cluster(kernel, scenario.pools, scenario.link)
    except Infeasible as why:
        dollars = scenario.dollars_per_hour
        return Result("infeasible", str(why), rate, scenario.seed, __version__, dollars_per_hour=dollars)
    cycle, warm = len(traffic), ceil(scenario.window.warmup * len(traffic))
    requests: list[Request] = []
    source = _arrivals(traffic, rate, warm)

    def arrive(request: Request) -> None:
        requests.append(request)
        cluster.arrive(request)
        following = next(source)
        kernel.at(following.arrived, arrive, following)

    first = next(source)
    kernel.at(first.arrived, arrive, first)
    start = -_instant(traffic, -warm) / rate
    length = cycle / rate
    kernel.run(until=start)
    backlogs = [cluster.in_flight]
    for look in range(1, ceil(LOOKS * (1 + scenario.window.patience)) + 1):
        now = start + length * look / LOOKS
        kernel.run(until=now)
        if look <= LOOKS:
            backlogs.append(cluster.in_flight)
        cohort = requests[warm : warm + cycle]
        if look == LOOKS and unstable(cycle, backlogs[0], backlogs[-1]):
            break
        if stop(cohort, now) or (look >= LOOKS and all(r.finished >= 0 or r.refused for r in cohort)):
            break
    window = _Window(start, start + length * (len(backlogs) - 1) / LOOKS, warm, cycle, backlogs[0], backlogs[-1])
    return _result(scenario, cluster, requests, rate, window)


def _instant(traffic: Traffic, position: int) -> float:
    """When request ``position`` arrives, in mean gaps from the beginning of cycle 0."""
    cycle = len(traffic)
    return position // cycle * cycle + float(traffic.times[position % cycle])


def _arrivals(traffic: Traffic, rate: float, warm: int) -> Iterator[Request]:
    """Requests ``-warm``, ``-warm + 1``, ... for ever; the first arrives at time 0."""
    cycle = len(traffic)
    times, inputs, outputs = traffic.times.tolist(), traffic.inputs.tolist(), traffic.outputs.tolist()
    origin, contents = _instant(traffic, -warm), traffic.contents
    for position in count(-warm):
        whole, part = divmod(position, cycle)
        request = Request(position, (whole * cycle + times[part] - origin) / rate, inputs[part], outputs[part])
        if contents is not None:
            request.content = contents.of(whole, part)
        yield request


class _Window(NamedTuple):
    start: float
    end: float  # earlier than the cycle's end if the run was stopped
    warm: int
    cycle: int
    backlog_start: int
    backlog_end: int


def _result(scenario: Scenario, cluster: Cluster, requests: Sequence[Request], rate: float, window: _Window) -> Result:
    slo, kernel = scenario.slo, cluster.kernel
    cohort = requests[window.warm : window.warm + window.cycle]
    values = {name: [metric(r) for r in cohort] for name, metric in METRICS.items()}
    figures = {name: latency(column) for name, column in values.items()}
    checks = {}
    for limit in slo:
        observed = percentile(values[limit.metric], limit.percentile)
        checks[limit.name] = Check(limit.limit, observed, observed <= limit.limit)
    good = within(slo)
    length = window.end - window.start
    done = [r for r in requests if window.start < r.finished <= window.end]
    in_slo = [r for r in done if good(r)]
    verdict, reason = _verdict(window, checks)
    goodput = sum(r.output for r in in_slo) / length
    dollars = scenario.dollars_per_hour
    notes = window_notes(slo, len(cohort), length, max(window.start, 0.0), figures["e2e"])
    if len(cohort) < window.cycle:
        notes.append("the run was stopped early")
    return Result(
        verdict=verdict,
        reason=reason,
        rate=rate,
        seed=scenario.seed,
        version=__version__,
        counts=_counts(requests),
        window=WindowReport(
            window.start, window.end, _counts(cohort), window.backlog_start, window.backlog_end, not notes, tuple(notes)
        ),
        latency=figures,
        slo=checks,
        attainment=sum(map(good, cohort)) / max(len(cohort), 1),
        requests_per_second=len(done) / length,
        output_tokens_per_second=sum(r.output for r in done) / length,
        goodput_tokens_per_second=goodput,
        dollars_per_hour=dollars,
        tokens_per_dollar=goodput / (dollars / 3600) if verdict == "ok" else 0.0,
        pools={name: _pool(scenario, pool, kernel.now) for name, pool in cluster.pools.items()},
        refusal=next((r.refused for r in requests if r.refused), ""),
        requests=tuple(requests),
    )


def _verdict(window: _Window, checks: Mapping[str, Check]) -> tuple[Verdict, str]:
    if unstable(window.cycle, window.backlog_start, window.backlog_end):
        grown = f"{window.backlog_start} to {window.backlog_end} requests"
        return "unstable", f"the backlog grew from {grown} over the window's {window.cycle} arrivals"
    missed = [f"{name} {check.observed:.3g} s > {check.limit:.3g} s" for name, check in checks.items() if not check.met]
    return ("slo_missed", ", ".join(missed)) if missed else ("ok", "")


def _counts(requests: Sequence[Request]) -> Counts:
    completed = sum(1 for r in requests if r.finished >= 0)
    refused = sum(1 for r in requests if r.refused)
    return Counts(len(requests), completed, len(requests) - completed - refused, refused)


def _pool(scenario: Scenario, pool: Pool, elapsed: float) -> PoolReport:
    spec, clients = pool.spec, pool.clients
    return PoolReport(
        model=spec.model.name,
        hardware=spec.hardware.name,
        role=spec.role,
        tp=spec.tp,
        replicas=spec.replicas,
        devices=spec.devices,
        perf=type(spec.perf).__name__.lower(),
        engine=f"{spec.engine.name} {spec.engine.version}",
        kv_blocks=pool.blocks,
        kv_tokens=pool.blocks * spec.engine.block_tokens,
        kv_peak=max(client.kv.peak for client in clients) / pool.blocks,
        utilization=sum(client.busy for client in clients) / (spec.replicas * elapsed),
        preemptions=sum(client.preemptions for client in clients),
        steps=sum(client.steps for client in clients),
        dollars_per_hour=spec.devices * scenario.price.of(spec.hardware.name),
        prefix=prefix_use([client.kv for client in clients]),
        swap=swap_use([client.kv for client in clients]),
    )
