"""Timestamps to percentiles, goodput, dollars: the Result."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite, sqrt
from typing import Any, Literal

import numpy as np
import pandas as pd

from mist.clients.cascading import CascadeUse
from mist.fleet import FleetReport
from mist.memory.prefix import PrefixUse
from mist.memory.swap import SwapUse
from mist.plan.query import Query
from mist.request import Request, Stage
from mist.slo import SLO, Limit
from mist.stage_times import StageReport, stage_columns
from mist.station_report import HostReport, StationReport
from mist.tiers.use import TiersUse

METRICS: dict[str, Callable[[Request], float]] = {
    "ttft": lambda r: r.first_token - r.arrived if r.first_token >= 0 else inf,
    "tpot": lambda r: r.tpot if r.finished >= 0 else inf,
    "e2e": lambda r: r.finished - r.arrived if r.finished >= 0 else inf,
}
PERCENTILES = (50, 90, 95, 99)
TAIL = 10  # requests beyond a percentile below which it is not worth quoting

Verdict = Literal["ok", "slo_missed", "unstable", "infeasible"]


@dataclass(frozen=True)
class Latency:
    """Distribution over all requests that arrived in the window, seconds.

    Nobody is dropped: a request that had not finished, or was refused, counts as infinite.
    """

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Check:
    """One limit of the SLO against what was observed, seconds."""

    limit: float
    observed: float
    met: bool


@dataclass(frozen=True)
class Counts:
    """arrived = completed + in_flight + refused + lost, over the whole run and over the window's arrivals."""

    arrived: int
    completed: int
    in_flight: int
    refused: int
    lost: int = 0  # with a replica that failed


@dataclass(frozen=True)
class ClassReport:
    """What one request class got, of the window's arrivals."""

    requests: Counts
    latency: Mapping[str, Latency]
    attainment: float  # share of them within every limit of theirs
    goodput_tokens_per_second: float  # output tokens of those completed in the window within SLO


@dataclass(frozen=True)
class WindowReport:
    """The steady window: one cycle of the traffic, after warm-up; arrivals went on until its last request ended."""

    start: float  # s
    end: float  # s
    requests: Counts
    backlog_start: int  # requests in the system
    backlog_end: int
    long_enough: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpeculationReport:
    """What was drafted and what became of it, over the whole run."""

    drafter: str
    tokens: int  # drafts of a request in one step
    drafted: int  # tokens verified
    accepted: int  # of those
    acceptance_rate: float  # accepted share of the drafted
    tokens_per_step: float  # of a decoding request: one, and the accepted


@dataclass(frozen=True)
class PoolReport:
    """What one pool is and how busy it was, over the whole run."""

    model: str
    hardware: str
    role: str
    tp: int
    replicas: int
    devices: int
    perf: str
    engine: str
    kv_blocks: int  # per replica
    kv_tokens: int  # that fit them
    kv_peak: float  # share of the blocks, fullest replica
    utilization: float  # share of time a replica was stepping
    preemptions: int
    steps: int
    dollars_per_hour: float  # on average over the window
    scheduler: str = ""
    layout: str = ""  # "tp 2 x pp 2": how a replica is cut, degrees of 1 left out
    node: str = ""
    joules: float = 0.0  # drawn by all its devices
    watts: float = 0.0  # mean of a device
    speculation: SpeculationReport | None = None
    fleet: FleetReport | None = None  # of a pool whose replicas come and go
    prefix: PrefixUse | None = None  # with prefix caching
    swap: SwapUse | None = None  # with preemption by swap
    tiers: TiersUse | None = None  # with tiers behind the devices
    cascade: CascadeUse | None = None  # with cascade attention
    step_time_sources: Mapping[str, float] | None = None  # share of step time by how it is known; empty if unknown


@dataclass(frozen=True)
class Result:
    """What one deployment did with one workload."""

    verdict: Verdict
    reason: str
    rate: float  # offered requests/s
    seed: int
    version: str
    counts: Counts | None = None
    window: WindowReport | None = None
    latency: Mapping[str, Latency] | None = None
    slo: Mapping[str, Check] | None = None
    attainment: float = 0.0  # share of the window's requests within every limit
    requests_per_second: float = 0.0  # completed in the window
    output_tokens_per_second: float = 0.0  # of requests completed in the window
    goodput_tokens_per_second: float = 0.0  # of those, within SLO
    dollars_per_hour: float = 0.0
    tokens_per_dollar: float = 0.0  # goodput per dollar; 0 unless the SLO held
    watts: float = 0.0  # mean over the window, all devices
    joules_per_token: float | None = None  # of the output tokens completed in the window; None if there were none
    tokens_per_joule: float = 0.0  # output tokens completed in the window
    pools: Mapping[str, PoolReport] | None = None
    refusal: str = ""  # why the first request that was refused could never be served
    requests: tuple[Request, ...] = ()
    classes: Mapping[str, ClassReport] | None = None  # by name, where the workload has classes
    prices: str = ""  # whose they are: list, provider, region, commitment, date
    stages: Mapping[str, StageReport] | None = None  # by kind, where requests follow plans
    stations: Mapping[str, StationReport] | None = None  # where there are any
    hosts: Mapping[str, HostReport] | None = None

    @property
    def dollars_per_query(self) -> float:
        """What the deployment costs while one request is answered; infinite where none is."""
        return self.dollars_per_hour / 3600 / self.requests_per_second if self.requests_per_second else inf

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the requests; infinite times are None."""
        data = {name: value for name, value in self.__dict__.items() if name != "requests"}
        return {name: _json(value) for name, value in data.items()}

    def requests_frame(self) -> pd.DataFrame:
        """One row per request of the run, warm-up (negative id) included, every stage with its times in seconds."""
        return requests_frame(self.requests)


def _json(value: Any) -> Any:
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return _json(asdict(value)) if hasattr(value, "__dataclass_fields__") else value


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least q % of the values do not exceed, 0 of none; infinite values are fine."""
    return float(np.percentile(np.asarray(values, dtype=float), q, method="inverted_cdf")) if len(values) else 0.0


def measured(metric: str, requests: Sequence[Request]) -> list[float]:
    """The metric of each request that has it, infinite where it never came; a one-token answer has no TPOT."""
    value = METRICS[metric]
    return [value(r) for r in requests if r.output > 1] if metric == "tpot" else [value(r) for r in requests]


def latency(values: Sequence[float]) -> Latency:
    if not len(values):
        return Latency(*[0.0] * 5)
    column = np.asarray(values, dtype=float)
    return Latency(float(np.mean(column)), *np.percentile(column, PERCENTILES, method="inverted_cdf").tolist())


def split(slo: SLO, requests: Sequence[Request]) -> dict[str, tuple[SLO, Sequence[Request]]]:
    """The requests by the part of the SLO they are held to, "" for those whose class has no limits of its own."""
    if not slo.classes:
        return {"": (slo, requests)}
    members: dict[str, list[Request]] = {name: [] for name in slo.parts}
    for request in requests:
        members[request.kind.name if request.kind.name in slo.classes else ""].append(request)
    return {name: (own, members[name]) for name, own in slo.parts.items()}


def within(slo: SLO) -> Callable[[Request], bool]:
    """Whether a finished request kept every limit; of several on one metric the highest percentile's counts."""
    parts = {
        name: [(METRICS[metric], bound) for metric, bound in own.bounds.items()] for name, own in slo.parts.items()
    }

    def good(request: Request) -> bool:
        for metric, limit in parts.get(request.kind.name, parts[""]):  # noqa: SIM110 - half the time of a generator
            if not metric(request) <= limit:
                return False
        return True

    return good


class Doomed:
    """Whether some percentile over ``cohort`` requests is missed already, whatever the rest will do.

    Called again and again with the requests so far and the time; each is settled once. ``sizes`` says how many
    of them belong to each class that has limits of its own.
    """

    def __init__(self, slo: SLO, cohort: int, sizes: Mapping[str, int] | None = None) -> None:
        own = {name: (sizes or {})[name] for name in slo.classes}
        self._sizes = {**own, "": cohort - sum(own.values())}
        self._limits = {name: tuple(part) for name, part in slo.parts.items()}
        self._late: Counter[tuple[str, Limit]] = Counter()
        self._open: list[Request] = []
        self._seen = 0

    def __call__(self, requests: Sequence[Request], now: float) -> bool:
        late, still_open = self._late.copy(), []
        for request in (*self._open, *requests[self._seen :]):
            name = request.kind.name if request.kind.name in self._limits else ""
            missed = [(name, limit) for limit in self._limits[name] if _surely_late(request, limit, now)]
            late.update(missed)
            if request.finished >= 0 or request.refused:
                self._late.update(missed)
            else:
                still_open.append(request)
        self._open, self._seen = still_open, len(requests)
        # in whole numbers where that matters: 1 - 0.9 is less than a tenth
        return any(100 * n > (100 - limit.percentile) * self._sizes[name] for (name, limit), n in late.items())


def _surely_late(request: Request, limit: Limit, now: float) -> bool:
    if limit.metric == "tpot" and request.output == 1:
        return False
    value = METRICS[limit.metric](request)
    if value != inf or request.refused or request.lost:
        return value > limit.limit
    return limit.metric != "tpot" and now - request.arrived > limit.limit


def unstable(arrivals: int, backlog_start: int, backlog_end: int) -> bool:
    """Whether the backlog grew by more than chance would have it.

    In a steady state it has no drift; 2 % of the arrivals and two standard deviations of a Poisson count of
    them are allowed for, but never all of them.
    """
    growth = backlog_end - backlog_start
    return growth > 0.02 * arrivals + 2 * sqrt(arrivals) or growth >= arrivals


def window_notes(slo: SLO, cohort: int, length: float, warmup: float, e2e: Latency) -> list[str]:
    """Why the window is too short for what is asked of it; empty if it is long enough.

    ``cohort`` counts its requests, ``length`` and ``warmup`` are seconds.
    """
    notes = [] if slo.classes else tail_notes(slo, cohort)
    if warmup < e2e.p50:
        notes.append(f"warm-up of {warmup:.1f} s is shorter than half of the requests take ({e2e.p50:.1f} s)")
    if length < 3 * e2e.p50:
        notes.append(f"window of {length:.1f} s is shorter than three median requests ({e2e.p50:.1f} s each)")
    return notes


def tail_notes(slo: SLO, cohort: int) -> list[str]:
    """What to say where so many requests do not tell the highest percentile asked for; nothing where they do."""
    highest = max((limit.percentile for limit in slo), default=99.0)
    tail = cohort * (1 - highest / 100)
    if tail >= TAIL:
        return []
    need = int(TAIL / (1 - highest / 100) + 0.5)
    return [f"{tail:.1f} requests lie beyond P{highest:g}: it takes {need} to tell, the window has {cohort}"]


def requests_frame(requests: Sequence[Request]) -> pd.DataFrame:
    columns: dict[str, list[Any]] = {
        "id": [r.id for r in requests],
        "arrived": [r.arrived for r in requests],
        "input": [r.input for r in requests],
        "output": [r.output for r in requests],
        "state": [
            "refused" if r.refused else "lost" if r.lost else "completed" if r.finished >= 0 else "in_flight"
            for r in requests
        ],
        "refused": [r.refused for r in requests],
        "lost": [r.lost for r in requests],
        "retries": [r.retries for r in requests],
        "preemptions": [r.preemptions for r in requests],
        "first_token": [r.first_token if r.first_token >= 0 else np.nan for r in requests],
        "finished": [r.finished if r.finished >= 0 else np.nan for r in requests],
    }
    if any(r.kind.name for r in requests):
        columns["class"] = [r.kind.name for r in requests]
        columns["priority"] = [r.priority for r in requests]
    if requests and isinstance(requests[0], Query):
        return pd.DataFrame(columns | stage_columns(requests))
    for stage in Stage:
        visits = [next((v for v in r.visits if v.stage is stage), None) for r in requests]
        if any(visits):
            columns[f"{stage}_place"] = [v.place if v else None for v in visits]
            for mark in ("queued", "started", "finished"):
                columns[f"{stage}_{mark}"] = [getattr(v, mark) if v else np.nan for v in visits]
    return pd.DataFrame(columns)
