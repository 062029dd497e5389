"""What a run comes to: timestamps of requests and state of pools -> Result."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mist import __version__
from mist.clients.cascading import CascadeUse, CascadingClient
from mist.clients.speculative import SpeculativeClient
from mist.cluster import Cluster
from mist.faults import missed_outages
from mist.fleet_report import fleet_report
from mist.memory.choice import prefix_use, swap_use
from mist.metrics import (
    METRICS,
    Check,
    ClassReport,
    Counts,
    Latency,
    PoolReport,
    Result,
    SpeculationReport,
    Verdict,
    WindowReport,
    latency,
    measured,
    percentile,
    split,
    unstable,
    within,
)
from mist.perf.provenance import shares, typical
from mist.plan.query import Query
from mist.policy import Scheduler
from mist.replicas import Pool
from mist.request import Request
from mist.scenario import Scenario
from mist.slo import SLO
from mist.spans import Span
from mist.stage_times import stage_reports
from mist.station_report import host_report, station_report
from mist.steady import steady_notes
from mist.tiers.prices import mean_tier_dollars, tier_dollars
from mist.window import tail_notes, window_notes


class Observed(NamedTuple):
    """The part of a run that is measured: ``cycle`` requests after the first ``warm``, and what frames them."""

    start: float
    end: float  # earlier than the cycle's end if the run was stopped
    warm: int
    cycle: int
    backlog_start: int
    backlog_end: int
    joules: float


def outcome(  # noqa: PLR0917
    scenario: Scenario,
    cluster: Cluster,
    requests: Sequence[Request],
    rate: float,
    window: Observed,
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
    held = 3600 / length if verdict == "ok" else 0.0
    pools = {name: _pool(scenario, cluster, name, window, requests) for name in cluster.pools}
    dollars = sum(pool.dollars_per_hour for pool in pools.values())
    stations = {
        n: station_report(s, scenario.price, kernel.now, (window.start, window.end))
        for n, s in cluster.stations.items()
    }
    hosts = {name: host_report(host, scenario.price, kernel.now) for name, host in cluster.hosts.items()}
    dollars += sum(station.dollars_per_hour for station in stations.values())
    dollars += sum(host.dollars_per_hour for host in hosts.values())
    tokens = sum(r.output for r in done)
    notes = _notes(scenario, cohort, window, figures["e2e"])
    if len(cohort) == window.cycle and verdict != "unstable":
        backlog, after = (window.backlog_start, window.backlog_end), kernel.now - window.end
        notes += steady_notes(slo, _counts(cohort), length, backlog, after)
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
        prices=scenario.price.source,
        tokens_per_dollar=goodput / (dollars / 3600) if verdict == "ok" and dollars else 0.0,
        requests_per_dollar=len(in_slo) * held / dollars if dollars else 0.0,
        input_tokens_per_dollar=sum(r.input for r in in_slo) * held / dollars if dollars else 0.0,
        watts=window.joules / length,
        joules_per_token=window.joules / tokens if tokens else None,
        tokens_per_joule=tokens / window.joules if window.joules else 0.0,
        pools=pools,
        refusal=next((r.refused for r in requests if r.refused), ""),
        requests=tuple(requests),
        classes={name: _class(slo, name, cohort, done, length) for name in classes} or None,
        stages=stage_reports(cohort) if cohort and isinstance(cohort[0], Query) else None,
        stations=stations or None,
        hosts=hosts or None,
    )


def _notes(scenario: Scenario, cohort: Sequence[Request], window: Observed, e2e: Latency) -> list[str]:
    """What to know of a window before its figures are used."""
    slo = scenario.slo
    notes = window_notes(slo, len(cohort), window.end - window.start, max(window.start, 0.0), e2e)
    for name, (own, members) in split(slo, cohort).items():
        notes.extend(f"class {name}: {note}" for note in tail_notes(own, len(members)) if name)
    notes.extend(missed_outages(scenario.faults, window.start, window.end))
    if len(cohort) < window.cycle:
        notes.append("the run was stopped early")
    return notes


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


def _verdict(window: Observed, checks: Mapping[str, Check]) -> tuple[Verdict, str]:
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


def _pool(scenario: Scenario, cluster: Cluster, name: str, window: Observed, requests: Sequence[Request]) -> PoolReport:
    pool, elapsed = cluster.pools[name], cluster.kernel.now
    spec, clients, drawn = pool.spec, pool.everybody, pool.joules(elapsed)
    degrees = {"tp": spec.tp, "pp": spec.pp, "dp": spec.dp, "ep": spec.ep}
    fleet = None if pool.fleet is None else fleet_report(pool.fleet, window.start, window.end)
    replicas = spec.replicas if fleet is None else fleet.mean_replicas
    up_seconds = spec.replicas * elapsed if fleet is None else fleet.up_seconds
    rented = spec.devices * elapsed if fleet is None else spec.replica.devices * fleet.replica_seconds
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
        kv_tokens=pool.blocks * pool.block_tokens,
        kv_peak=max(client.kv.peak for client in clients) / pool.blocks,
        utilization=sum(client.busy_by_now for client in clients) / up_seconds if up_seconds else 0.0,
        preemptions=sum(client.preemptions for client in clients),
        steps=sum(client.steps for client in clients),
        dollars_per_hour=spec.replica.devices * replicas * pool.part * scenario.price.of(spec.hardware.name)
        + _tiers(scenario, cluster, pool, window),
        scheduler=_named(spec.scheduler),
        layout=" x ".join(f"{kind} {degree}" for kind, degree in degrees.items() if degree > 1),
        node=spec.node.name,
        joules=drawn,
        watts=drawn / rented if rented else 0.0,
        speculation=_speculation(pool),
        fleet=fleet,
        prefix=prefix_use([client.kv for client in clients]),
        swap=swap_use([client.kv for client in clients]),
        cascade=_cascade(pool),
        tiers=pool.fetches.use() if pool.fetches is not None else None,
        step_time_sources=_sources(pool, requests),
    )


def _tiers(scenario: Scenario, cluster: Cluster, pool: Pool, window: Observed) -> float:
    """Dollars per hour of the stores behind a pool, on average over the window."""
    tiers, fleet, wires = pool.spec.tiers, pool.fleet, cluster.wires
    if fleet is None:
        return tier_dollars(tiers, scenario.network, scenario.nodes(pool.name, pool.spec.replicas))

    def node(span: Span) -> int:
        return 0 if wires is None else wires.node((pool.name, span.replica), span.since)

    spans = fleet.history(max(fleet.kernel.now, window.end))
    return mean_tier_dollars(tiers, scenario.network, node, spans, window.start, window.end)


def _sources(pool: Pool, requests: Sequence[Request]) -> dict[str, float]:
    """How the pool's step times are known, at its mean steps."""
    done = [request for request in requests if request.finished >= 0]
    if not done:
        return {}
    prompt, answer = (sum(getattr(r, name) for r in done) / len(done) for name in ("input", "output"))
    steps = sum(client.steps for client in pool.everybody)
    each = typical(len(done), prompt, answer, steps, pool.spec.scheduler.token_budget, pool.spec.role)
    return shares(pool.stages, each)


def _speculation(pool: Pool) -> SpeculationReport | None:
    drafts = pool.spec.speculation
    if not drafts.tokens:
        return None
    counts = [client.acceptance for client in pool.everybody if isinstance(client, SpeculativeClient)]
    verifications, drafted, accepted = (
        sum(getattr(count, name) for count in counts) for name in ("verifications", "drafted", "accepted")
    )
    return SpeculationReport(
        drafts.name, drafts.tokens, drafted, accepted, accepted / max(drafted, 1), 1 + accepted / max(verifications, 1)
    )


def _cascade(pool: Pool) -> CascadeUse | None:
    uses = [client.cascade for client in pool.everybody if isinstance(client, CascadingClient)]
    return CascadeUse(sum(u.steps for u in uses), sum(u.spared_tokens for u in uses)) if uses else None


def _named(scheduler: Scheduler) -> str:
    """A policy is known by its file, and by the order of its line where that is an option."""
    name = type(scheduler).__module__.rpartition(".")[2]
    order = getattr(scheduler, "policy", "fcfs")
    return name if order == "fcfs" else f"{name} {order}"
