"""Timestamps to percentiles, goodput, dollars: the Result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite, sqrt
from typing import Any, Literal

import numpy as np
import pandas as pd

from mist.memory.prefix import PrefixUse
from mist.memory.swap import SwapUse
from mist.request import Request, Stage
from mist.slo import SLO

METRICS: dict[str, Callable[[Request], float]] = {
    "ttft": lambda r: r.ttft if r.first_token >= 0 else inf,
    "tpot": lambda r: r.tpot if r.finished >= 0 else inf,
    "e2e": lambda r: r.e2e if r.finished >= 0 else inf,
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
    """arrived = completed + in_flight + refused, over the whole run and over the window's arrivals."""

    arrived: int
    completed: int
    in_flight: int
    refused: int


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
    dollars_per_hour: float
    prefix: PrefixUse | None = None  # with prefix caching
    swap: SwapUse | None = None  # with preemption by swap


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
    pools: Mapping[str, PoolReport] | None = None
    refusal: str = ""  # why the first request that was refused could never be served
    requests: tuple[Request, ...] = ()

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
    """The smallest value that at least q % of the values do not exceed; infinite values are fine."""
    return float(np.percentile(np.asarray(values, dtype=float), q, method="inverted_cdf")) if len(values) else inf


def latency(values: Sequence[float]) -> Latency:
    return Latency(float(np.mean(values)) if len(values) else inf, *(percentile(values, q) for q in PERCENTILES))


def within(slo: SLO) -> Callable[[Request], bool]:
    """Whether a finished request kept every limit; of several on one metric the highest percentile's counts."""
    last = {limit.metric: limit.limit for limit in slo}  # limits come by rising percentile
    checks = [(METRICS[metric], limit) for metric, limit in last.items()]
    return lambda request: all(metric(request) <= limit for metric, limit in checks)


def doomed(slo: SLO, requests: Sequence[Request], cohort: int, now: float) -> bool:
    """Whether some percentile over ``cohort`` requests is missed already, whatever the rest will do."""
    for limit in slo:
        metric = METRICS[limit.metric]
        late = sum(1 for r in requests if _surely_late(r, limit.metric, metric(r), limit.limit, now))
        if 100 * late > (100 - limit.percentile) * cohort:  # exact: 1 - 0.9 is less than a tenth
            return True
    return False


def _surely_late(request: Request, metric: str, value: float, limit: float, now: float) -> bool:
    if value != inf or request.refused:
        return value > limit
    return metric != "tpot" and now - request.arrived > limit


def unstable(arrivals: int, backlog_start: int, backlog_end: int) -> bool:
    """Whether the backlog grew by more than chance would have it.

    In a steady state it has no drift; 2 % of the arrivals and two standard deviations of a Poisson count of
    them are allowed for.
    """
    return backlog_end - backlog_start > 0.02 * arrivals + 2 * sqrt(arrivals)


def window_notes(slo: SLO, cohort: int, length: float, warmup: float, e2e: Latency) -> list[str]:
    """Why the window is too short for what is asked of it; empty if it is long enough.

    ``cohort`` counts its requests, ``length`` and ``warmup`` are seconds.
    """
    notes = []
    highest = max((limit.percentile for limit in slo), default=99.0)
    tail = cohort * (1 - highest / 100)
    if tail < TAIL:
        need = int(TAIL / (1 - highest / 100) + 0.5)
        notes.append(f"{tail:.1f} requests lie beyond P{highest:g}: it takes {need} to tell, the window has {cohort}")
    if warmup < e2e.p50:
        notes.append(f"warm-up of {warmup:.1f} s is shorter than half of the requests take ({e2e.p50:.1f} s)")
    if length < 3 * e2e.p50:
        notes.append(f"window of {length:.1f} s is shorter than three median requests ({e2e.p50:.1f} s each)")
    return notes


def requests_frame(requests: Sequence[Request]) -> pd.DataFrame:
    columns: dict[str, list[Any]] = {
        "id": [r.id for r in requests],
        "arrived": [r.arrived for r in requests],
        "input": [r.input for r in requests],
        "output": [r.output for r in requests],
        "state": ["refused" if r.refused else "completed" if r.finished >= 0 else "in_flight" for r in requests],
        "refused": [r.refused for r in requests],
        "preemptions": [r.preemptions for r in requests],
        "first_token": [r.first_token if r.first_token >= 0 else np.nan for r in requests],
        "finished": [r.finished if r.finished >= 0 else np.nan for r in requests],
    }
    for stage in Stage:
        visits = [next((v for v in r.visits if v.stage is stage), None) for r in requests]
        if any(visits):
            columns[f"{stage}_place"] = [v.place if v else None for v in visits]
            for mark in ("queued", "started", "finished"):
                columns[f"{stage}_{mark}"] = [getattr(v, mark) if v else np.nan for v in visits]
    return pd.DataFrame(columns)
