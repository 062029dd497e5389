"""Timestamps to percentiles, goodput, dollars: the Result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite, sqrt
from typing import Any, Literal

import numpy as np
import pandas as pd

from mist.clients.cascading import CascadeUse
from mist.fleet_report import FleetReport
from mist.memory.prefix import PrefixUse
from mist.memory.swap import SwapUse
from mist.request import Request
from mist.requests_frame import requests_frame
from mist.slo import SLO
from mist.stage_times import StageReport
from mist.station_report import HostReport, StationReport
from mist.tiers.use import TiersUse

METRICS: dict[str, Callable[[Request], float]] = {
    "ttft": lambda r: r.first_token - r.arrived if r.first_token >= 0 else inf,
    "tpot": lambda r: r.tpot if r.finished >= 0 else inf,
    "e2e": lambda r: r.finished - r.arrived if r.finished >= 0 else inf,
}
PERCENTILES = (50, 90, 95, 99)

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
    requests_per_dollar: float = 0.0  # completed in the window within SLO; 0 unless the SLO held
    input_tokens_per_dollar: float = 0.0  # of those requests
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


def unstable(arrivals: int, backlog_start: int, backlog_end: int) -> bool:
    """Whether the backlog grew by more than chance would have it.

    In a steady state it has no drift; 2 % of the arrivals and two standard deviations of a Poisson count of
    them are allowed for, but never all of them.
    """
    growth = backlog_end - backlog_start
    return growth > 0.02 * arrivals + 2 * sqrt(arrivals) or growth >= arrivals
