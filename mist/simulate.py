"""One deployment under one workload: config in, Result out."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from math import ceil, inf
from typing import Any, NamedTuple

from mist import __version__
from mist.autoscalers.slo_attainment import SloAttainment
from mist.build import build
from mist.clients.speculative import SpeculativeClient
from mist.cluster import Cluster, Pool, PoolSpec, check_pools
from mist.errors import Infeasible, InputError, UnmeetableSLO
from mist.faults import NO_FAULTS, Faults, NoFaults, check_faults
from mist.fleet import Autoscale, Fixed, mean_replicas, paid, seconds
from mist.handover import GLOBAL, HandoverSpec, check_handover
from mist.kernel import Kernel
from mist.memory.choice import prefix_use, swap_use
from mist.metrics import (
    METRICS,
    Check,
    ClassReport,
    Counts,
    FleetReport,
    PoolReport,
    Result,
    SpeculationReport,
    Verdict,
    WindowReport,
    latency,
    measured,
    percentile,
    split,
    tail_notes,
    unstable,
    window_notes,
    within,
)
from mist.network import LinkSpec
from mist.policy import Scheduler
from mist.price import PriceList
from mist.request import UNCLASSED, Request, RequestClass
from mist.roles import FIXED_ROLES, FixedRoles, Roles
from mist.slo import SLO, Limit
from mist.workload.traffic import Traffic, Workload, class_names, class_priorities

LOOKS = 20  # at the run, per window
ALONE = 1 / 4096  # of a rate that is too high: requests hardly ever meet


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
    handover: HandoverSpec = GLOBAL
    faults: Faults = NO_FAULTS
    roles: Roles = FIXED_ROLES

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError("seed", self.seed, "must not be negative")
        check_pools(self.pools, self.link)
        self._check_dynamics()
        try:
            self.slo.check_classes(class_names(self.workload))
        except InputError as error:
            raise InputError(f"slo.{error.field}", error.value, error.why, error.choices) from None
        priorities = class_priorities(self.workload)
        for name, spec in self.pools.items():
            if getattr(spec.scheduler, "policy", "") == "priority" and len(priorities) < 2:
                why = "has no effect: all requests of this workload have one priority (workload=two_class has two)"
                raise InputError(f"pools.{name}.scheduler.policy", "priority", why)

    def _check_dynamics(self) -> None:
        moving = not isinstance(self.roles, FixedRoles) or not isinstance(self.faults, NoFaults)
        for name, spec in self.pools.items():
            coming = moving or not isinstance(spec.autoscaler, Fixed) or self.handover.layerwise
            if spec.pp > 1 and coming:
                why = "autoscaling, faults, role switching and layer-wise hand-over are not modelled for pipelines"
                raise InputError(f"pools.{name}.pp", spec.pp, why, ["1"])
        replicas = {name: spec.replicas for name, spec in self.pools.items()}
        scaled = any(isinstance(spec.autoscaler, Autoscale) for spec in self.pools.values())
        switching = not isinstance(self.roles, FixedRoles)
        alike = len({(spec.hardware.name, spec.tp) for spec in self.pools.values()}) == 1 and not scaled
        fixed = {n: r for n, r in replicas.items() if isinstance(self.pools[n].autoscaler, Fixed) and not switching}
        for name, spec in self.pools.items():
            scaling = spec.autoscaler
            if isinstance(scaling, Autoscale) and isinstance(scaling.policy, SloAttainment) and not list(self.slo):
                why = "without a limit in slo every request is within it: no effect"
                raise InputError(f"pools.{name}.autoscaler", "slo_attainment", why)
        with at("roles"):
            self.roles.check(alike, replicas)
        with at("handover"):
            check_handover(self.handover, replicas, not scaled and not switching)
        with at("faults"):
            check_faults(self.faults, fixed, replicas)

    @property
    def rate(self) -> float:
        """Offered requests per second."""
        return self.workload.own_rate() if self.workload.rate is None else self.workload.rate

    @property
    def dollars_per_hour(self) -> float:
        return sum(spec.devices * self.price.of(spec.hardware.name) for spec in self.pools.values())


@contextmanager
def at(place: str) -> Iterator[None]:
    """What is wrong in here is wrong with an option of ``place``."""
    try:
        yield
    except InputError as error:
        whole = ".".join(part for part in (place, error.field) if part)
        raise type(error)(whole, error.value, error.why, error.choices) from None


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
    alone = serve(scenario, traffic, result.rate * ALONE, lambda seen, _now: _unmet(scenario.slo, seen) is None)
    limit = _unmet(scenario.slo, alone.requests)
    if limit is not None:
        fastest = min(measured(limit.metric, alone.requests), default=inf)
        why = f"no request can meet it, even alone on the deployment: the fastest takes {fastest:.3g} s"
        raise UnmeetableSLO(f"slo.{limit.name}", f"{limit.limit:g} s", why)


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

    ``stop`` looks at the window's requests and the clock some twenty times a window and may end the run.
    """
    kernel = Kernel()
    try:
        cluster = Cluster(
            kernel,
            scenario.pools,
            scenario.link,
            handover=scenario.handover,
            faults=scenario.faults,
            roles=scenario.roles,
            good=within(scenario.slo),
            seed=scenario.seed,
        )
    except Infeasible as why:
        dollars = scenario.dollars_per_hour
        return Result("infeasible", str(why), rate, scenario.seed, __version__, dollars_per_hour=dollars)
    cycle, warm = len(traffic), ceil(scenario.window.warmup * len(traffic))
    requests: list[Request] = []
    source = _arrivals(traffic, rate, warm, scenario.slo)

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
    backlogs, drawn = [cluster.in_flight], [cluster.joules]
    for look in range(1, ceil(LOOKS * (1 + scenario.window.patience)) + 1):
        now = start + length * look / LOOKS
        kernel.run(until=now)
        if look <= LOOKS:
            backlogs.append(cluster.in_flight)
            drawn.append(cluster.joules)
        cohort = requests[warm : warm + cycle]
        if look == LOOKS and unstable(cycle, backlogs[0], backlogs[-1]):
            break
        if stop(cohort, now) or (look >= LOOKS and all(r.finished >= 0 or r.refused or r.lost for r in cohort)):
            break
    kernel.clear()
    window = _Window(
        start,
        start + length * (len(backlogs) - 1) / LOOKS,
        warm,
        cycle,
        backlogs[0],
        backlogs[-1],
        drawn[-1] - drawn[0],
    )
    return _result(scenario, cluster, requests, rate, window, tuple(traffic.sizes()))


def _instant(traffic: Traffic, position: int) -> float:
    """When request ``position`` arrives, in mean gaps from the beginning of cycle 0."""
    cycle = len(traffic)
    return position // cycle * cycle + float(traffic.times[position % cycle])


def _arrivals(traffic: Traffic, rate: float, warm: int, slo: SLO) -> Iterator[Request]:
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
        yield Request(position, arrived, inputs[part], outputs[part], kind.priority, content, kind)


def _promised(kind: RequestClass, slo: SLO) -> RequestClass:
    """The class with the limits its requests are held to; a first token is due no later than the last."""
    bounds = slo.of(kind.name).bounds
    first = min(bounds.get("ttft", inf), bounds.get("e2e", inf))
    return kind._replace(ttft=first, tpot=bounds.get("tpot", inf))


class _Window(NamedTuple):
    start: float
    end: float  # earlier than the cycle's end if the run was stopped
    warm: int
    cycle: int
    backlog_start: int
    backlog_end: int
    joules: float


def _result(  # noqa: PLR0917
    scenario: Scenario,
    cluster: Cluster,
    requests: Sequence[Request],
    rate: float,
    window: _Window,
    classes: Sequence[str],
) -> Result:
    slo, kernel = scenario.slo, cluster.kernel
    cohort = requests[window.warm : window.warm + window.cycle]
    values = {name: measured(name, cohort) for name in METRICS}
    figures = {name: latency(column) for name, column in values.items()}
    checks = _checks(slo, cohort, values)
    good = within(slo)
    length = window.end - window.start
    done = [r for r in requests if window.start < r.finished <= window.end]
    in_slo = [r for r in done if good(r)]
    verdict, reason = _verdict(window, checks)
    goodput = sum(r.output for r in in_slo) / length
    pools = {name: _pool(scenario, pool, kernel.now, window) for name, pool in cluster.pools.items()}
    dollars = sum(pool.dollars_per_hour for pool in pools.values())
    tokens = sum(r.output for r in done)
    notes = window_notes(slo, len(cohort), length, max(window.start, 0.0), figures["e2e"])
    for name, (own, members) in split(slo, cohort).items():
        notes.extend(f"class {name}: {note}" for note in tail_notes(own, len(members)) if name)
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
        tokens_per_dollar=goodput / (dollars / 3600) if verdict == "ok" and dollars else 0.0,
        watts=window.joules / length,
        joules_per_token=window.joules / tokens if tokens else None,
        tokens_per_joule=tokens / window.joules if window.joules else 0.0,
        pools=pools,
        refusal=next((r.refused for r in requests if r.refused), ""),
        requests=tuple(requests),
        classes={name: _class(slo, name, cohort, done, length) for name in classes} or None,
    )


def _checks(slo: SLO, cohort: Sequence[Request], values: Mapping[str, list[float]]) -> dict[str, Check]:
    """Every limit by its address below ``slo``."""
    checks = {}
    for part, (own, members) in split(slo, cohort).items():
        for limit in own:
            column = values[limit.metric] if members is cohort else [METRICS[limit.metric](r) for r in members]
            observed = percentile(column, limit.percentile)
            name = f"classes.{part}.{limit.name}" if part else limit.name
            checks[name] = Check(limit.limit, observed, observed <= limit.limit)
    return checks


def _class(slo: SLO, name: str, cohort: Sequence[Request], done: Sequence[Request], length: float) -> ClassReport:
    members, good = [r for r in cohort if r.kind.name == name], within(slo)
    return ClassReport(
        requests=_counts(members),
        latency={metric: latency([value(r) for r in members]) for metric, value in METRICS.items()},
        attainment=sum(map(good, members)) / max(len(members), 1),
        goodput_tokens_per_second=sum(r.output for r in done if r.kind.name == name and good(r)) / length,
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
    lost = sum(1 for r in requests if r.lost)
    return Counts(len(requests), completed, len(requests) - completed - refused - lost, refused, lost)


def _pool(scenario: Scenario, pool: Pool, elapsed: float, window: _Window) -> PoolReport:
    spec, clients, drawn = pool.spec, pool.everybody, pool.joules(elapsed)
    degrees = {"tp": spec.tp, "pp": spec.pp, "dp": spec.dp, "ep": spec.ep}
    fleet = _fleet(pool, window)
    replicas = spec.replicas if fleet is None else fleet.mean_replicas
    up_seconds = spec.replicas * elapsed if fleet is None else fleet.up_seconds
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
        utilization=sum(client.busy for client in clients) / up_seconds if up_seconds else 0.0,
        preemptions=sum(client.preemptions for client in clients),
        steps=sum(client.steps for client in clients),
        dollars_per_hour=spec.replica.devices * replicas * scenario.price.of(spec.hardware.name),
        scheduler=_named(spec.scheduler),
        layout=" x ".join(f"{name} {degree}" for name, degree in degrees.items() if degree > 1),
        node=spec.node.name,
        joules=drawn,
        watts=drawn / (spec.devices * elapsed),
        speculation=_speculation(pool),
        fleet=fleet,
        prefix=prefix_use([client.kv for client in clients]),
        swap=swap_use([client.kv for client in clients]),
    )


def _fleet(pool: Pool, window: _Window) -> FleetReport | None:
    if pool.fleet is None:
        return None
    spans = pool.fleet.history()
    lasting = pool.fleet.history(max(pool.fleet.kernel.now, window.end))
    up, failed = seconds(spans, "up", "draining"), seconds(spans, "failed")
    counts = [count for _, count in paid(lasting)][:-1]  # the last is when the run ends
    return FleetReport(
        replica_seconds=seconds(spans),
        up_seconds=up,
        mean_replicas=mean_replicas(lasting, window.start, window.end),
        fewest=min(counts),
        most=max(counts),
        failures=pool.fleet.failures,
        availability=up / (up + failed) if up + failed else 1.0,
        joined=pool.fleet.joined,
    )


def _speculation(pool: Pool) -> SpeculationReport | None:
    drafts = pool.spec.speculation
    if not drafts.tokens:
        return None
    counts = [client.acceptance for client in pool.clients if isinstance(client, SpeculativeClient)]
    verifications, drafted, accepted = (
        sum(getattr(count, name) for count in counts) for name in ("verifications", "drafted", "accepted")
    )
    return SpeculationReport(
        drafts.name, drafts.tokens, drafted, accepted, accepted / max(drafted, 1), 1 + accepted / max(verifications, 1)
    )


def _named(scheduler: Scheduler) -> str:
    """A policy is known by its file, and by the order of its line where that is an option."""
    name = type(scheduler).__module__.rpartition(".")[2]
    order = getattr(scheduler, "policy", "fcfs")
    return name if order == "fcfs" else f"{name} {order}"
