"""A benchmark run as all tools' files come to it: what was offered, and what came of it, in SI units."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
import pandas as pd

from mist.errors import InputError, TraceError

METRICS = ("ttft", "tpot", "itl", "e2e")
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
UNITS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "milliseconds": 1e-3, "us": 1e-6, "ns": 1e-9}
UNSAID = ("", "nan", "none", "null", "n/a", "na", "-")
REQUEST = ("arrival", "input", "output", "ttft", "tpot", "e2e")  # columns of per-request rows


@dataclass(frozen=True, eq=False)
class Run:
    """One load on one deployment.

    ``concurrency`` is how many requests were kept in flight, ``rate`` how many arrived per second (infinite: all at
    once); None is not stated. ``input`` and ``output`` are mean tokens of a request. ``latency`` is in seconds by
    metric and statistic (``ttft_mean``, ``tpot_p99``): TTFT, TPOT (the mean time of a request's tokens after its
    first), ITL (single gaps between tokens) and E2E. ``requests`` are the rows of those that succeeded, with the
    columns of REQUEST that the tool tells, lengths in tokens and times in seconds.
    """

    source: str  # file, and which run of it
    tool: str
    model: str = ""
    engine: str = ""
    concurrency: float | None = None
    rate: float | None = None
    input: float | None = None
    output: float | None = None
    completed: int | None = None
    failed: int | None = None
    duration: float | None = None  # s
    latency: Mapping[str, float] = field(default_factory=dict)
    requests: pd.DataFrame | None = None
    note: str = ""  # what had to be assumed

    def __post_init__(self) -> None:
        if not self.latency:
            raise TraceError(self.source, "(nothing)", "tells no latencies", METRICS)
        for name, value in self.latency.items():
            if not (isfinite(value) and value >= 0):
                raise TraceError(self.source, f"{name} {value}", "a latency is seconds, 0 or more")
        for name in ("concurrency", "rate", "input", "output"):
            if (known := getattr(self, name)) is not None and not known > 0:
                raise TraceError(self.source, f"{name} {known}", "must be positive")


def frame(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run: what was offered, then ``<metric>_<statistic>`` in seconds, NaN where a tool does not tell."""
    plain = (
        "source",
        "tool",
        "model",
        "engine",
        "concurrency",
        "rate",
        "input",
        "output",
        "completed",
        "duration",
        "note",
    )
    names = [f"{metric}_{statistic}" for metric in METRICS for statistic in STATISTICS]
    rows = [
        {name: getattr(run, name) for name in plain} | {name: run.latency.get(name, np.nan) for name in names}
        for run in runs
    ]
    return pd.DataFrame(rows, columns=[*plain, *names])


def statistics(metric: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles of measured values, by name; nothing of none."""
    known = np.asarray([value for value in values if value is not None and isfinite(value)], dtype=float)
    if not len(known):
        return {}
    points = {f"{metric}_p{p}": float(np.percentile(known, p)) for p in (50, 90, 95, 99)}
    return {f"{metric}_mean": float(known.mean()), **points}


def of_requests(rows: pd.DataFrame) -> dict[str, float]:
    """Latencies of per-request rows."""
    found: dict[str, float] = {}
    for metric in ("ttft", "tpot", "e2e"):
        if metric in rows:
            found |= statistics(metric, rows[metric].tolist())
    return found


def number(value: object, name: str = "") -> float | None:
    """A number or infinity ("inf"), None where nothing is stated; InputError for other text, naming its field."""
    if value is None or isinstance(value, bool) or str(value).strip().lower() in UNSAID:
        return None
    try:
        found = float(str(value).replace(",", ""))
    except ValueError:
        raise InputError(name, value, "is no number") from None
    return None if np.isnan(found) else found


def stated(value: object, name: str = "") -> float | None:
    """As ``number``, and 0 is not stated either."""
    found = number(value, name)
    return found if found else None


def numbers(name: str, values: Sequence[object]) -> list[float]:
    """One number per request, NaN where nothing is stated; InputError for what is no list of numbers."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InputError(name, str(values)[:40], "is no list of one number per request")
    return [np.nan if (known := number(value, name)) is None else known for value in values]


def unit(name: object, source: str) -> float:
    """Seconds of a unit of time."""
    factor = UNITS.get(str(name).strip().lower())
    if factor is None:
        raise TraceError(source, name, "is no unit of time", UNITS)
    return factor


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def refuse_empty(runs: Sequence[Run], path: str) -> None:
    if not runs:
        raise InputError("", path, "holds no run of a benchmark")
