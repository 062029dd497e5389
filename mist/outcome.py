"""What a run comes to: timestamps of requests and state of pools -> Result."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mist import __version__
from mist.cluster import Cluster
from mist.faults import missed_outages
from mist.metrics import (
    METRICS,
    Check,
    ClassReport,
    Counts,
    Latency,
    PoolReport,
    Result,
    Verdict,
    WindowReport,
    latency,
    measured,
    percentile,
    split,
    unstable,
    within,
)
from mist.node import ISOLATED
from mist.plan.query import Query
from mist.pool_report import pool_report
from mist.request import Request
from mist.scenario import Scenario
from mist.slo import SLO
from mist.stage_times import stage_reports
from mist.station_report import HostReport, StationReport, host_report, station_report
from mist.steady import steady_notes
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

    @property
    def span(self) -> tuple[float, float]:
        return self.start, self.end

    @property
    def backlog(self) -> tuple[int, int]:
        return self.backlog_start, self.backlog_end

    @property
    def length(self) -> float:
        """Seconds."""
        return self.end - self.start

    def cohort(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Of a run's requests, those it measures."""
        return requests[self.warm : self.warm + self.cycle]


def outcome(  # noqa: PLR0917
    scenario: Scenario,
    cluster: Cluster,
    requests: Sequence[Request],
    rate: float,
    window: Observed,
    classes: Sequence[str],
) -> Result:
    """The Result of a run that offered ``rate`` requests/s; ``classes`` are those of its workload."""
    slo, cohort = scenario.slo, window.cohort(requests)
    values = {name: measured(name, cohort) for name in METRICS}
    figures = {name: latency(column) for name, column in values.items()}
    checks = _checks(slo, cohort, values)
    verdict, reason = _verdict(window, checks)
    done = [r for r in requests if window.start < r.finished <= window.end]
    pools, stations, hosts = _parts(scenario, cluster, requests, window)
    dollars = _dollars(pools) + _dollars(stations) + _dollars(hosts)
    notes = _notes(scenario, cohort, window, figures["e2e"])
    if len(cohort) == window.cycle and verdict != "unstable":
        notes += steady_notes(slo, _counts(cohort), window.length, window.backlog, cluster.kernel.now - window.end)
    return Result(
        verdict=verdict,
        reason=reason,
        rate=rate,
        seed=scenario.seed,
        version=__version__,
        counts=_counts(requests),
        window=WindowReport(*window.span, _counts(cohort), *window.backlog, not notes, tuple(notes)),
        latency=figures,
        slo=checks,
        attainment=sum(map(within(slo), cohort)) / max(len(cohort), 1),
        prices=scenario.price.source,
        pools=pools,
        refusal=next((r.refused for r in requests if r.refused), ""),
        requests=tuple(requests),
        classes={name: _class(slo, name, cohort, done, window.length) for name in classes} or None,
        stages=stage_reports(cohort) if cohort and isinstance(cohort[0], Query) else None,
        stations=stations or None,
        hosts=hosts or None,
        **_worth(slo, done, window, dollars, held=verdict == "ok"),
        **_energy(done, window),
    )


def _parts(
    scenario: Scenario, cluster: Cluster, requests: Sequence[Request], window: Observed
) -> tuple[dict[str, PoolReport], dict[str, StationReport], dict[str, HostReport]]:
    """What pools, stations and hosts did and cost."""
    price, now = scenario.price, cluster.kernel.now
    pools = {name: pool_report(scenario, cluster, name, window.span, requests) for name in cluster.pools}
    stations = {name: station_report(at, price, now, window.span) for name, at in cluster.stations.items()}
    return pools, stations, {name: host_report(host, price, now) for name, host in cluster.hosts.items()}


def _dollars(parts: Mapping[str, PoolReport | StationReport | HostReport]) -> float:
    """Per hour."""
    return sum(part.dollars_per_hour for part in parts.values())


def _worth(slo: SLO, done: Sequence[Request], window: Observed, dollars: float, *, held: bool) -> dict[str, Any]:
    """What was completed per second, and what of it was within the SLO, per dollar if that held on the whole."""
    in_slo, length = list(filter(within(slo), done)), window.length
    goodput = sum(r.output for r in in_slo) / length
    hours = 3600 / length if held else 0.0
    return {
        "requests_per_second": len(done) / length,
        "output_tokens_per_second": sum(r.output for r in done) / length,
        "goodput_tokens_per_second": goodput,
        "dollars_per_hour": dollars,
        "tokens_per_dollar": goodput / (dollars / 3600) if held and dollars else 0.0,
        "requests_per_dollar": len(in_slo) * hours / dollars if dollars else 0.0,
        "input_tokens_per_dollar": sum(r.input for r in in_slo) * hours / dollars if dollars else 0.0,
    }


def _energy(done: Sequence[Request], window: Observed) -> dict[str, Any]:
    tokens = sum(r.output for r in done)
    return {
        "watts": window.joules / window.length,
        "joules_per_token": window.joules / tokens if tokens else None,
        "tokens_per_joule": tokens / window.joules if window.joules else 0.0,
    }


def _notes(scenario: Scenario, cohort: Sequence[Request], window: Observed, e2e: Latency) -> list[str]:
    """What to know of a window before its figures are used."""
    slo = scenario.slo
    notes = window_notes(slo, len(cohort), window.end - window.start, max(window.start, 0.0), e2e)
    for name, (own, members) in split(slo, cohort).items():
        notes.extend(f"class {name}: {note}" for note in tail_notes(own, len(members)) if name)
    notes.extend(missed_outages(scenario.faults, window.start, window.end))
    notes.extend(_bus_notes(scenario))
    if len(cohort) < window.cycle:
        notes.append("the run was stopped early")
    return notes


def _bus_notes(scenario: Scenario) -> Iterator[str]:
    """Replicas whose devices were taken to reach each other over a bus that may not let them."""
    for name, spec in scenario.pools.items():
        if spec.replica.devices > 1 and spec.hardware.over_bus and spec.node == ISOLATED:
            yield (
                f"{name}: {spec.hardware.name} has no links of its own, and node=isolated lets devices reach each "
                "other over PCIe directly; node=pcie-box is the server where they cannot"
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
