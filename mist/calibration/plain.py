"""Plain CSV: a table of runs, or of the requests of one run.

Columns, not case-sensitive, others ignored: ``model``, ``engine`` (``backend``), ``concurrency`` (``max_concurrency``,
``conc``), ``rate`` (``request_rate``, ``qps``, ``qps_offered``), ``input`` (``input_tokens``, ``input_len``, ``isl``,
``prompt_tokens``, ``input_toks``), ``output`` (``output_tokens``, ``output_len``, ``osl``, ``completion_tokens``,
``output_toks``), ``completed``, ``duration``. Latencies are named by metric (``ttft``, ``tpot``, ``itl``, ``e2e``),
statistic (``mean``, ``avg``, ``median``, ``p50`` to ``p99``) and unit (``ms``, ``s``, ``us``), joined by ``_`` in any
order: ``mean_ttft_ms``, ``ttft_p99_s``. A unit must be there. A table whose latencies have no statistic and which has
``arrival`` (``arrival_s``) or neither rate nor concurrency is one of requests, else one of runs whose statistic is not
stated: it is read as the mean.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mist.calibration.run import METRICS, Run, mean, number, numbers, of_requests, stated
from mist.errors import InputError, TraceError

COLUMNS = {
    "model": ("model", "model_id"),
    "engine": ("engine", "backend"),
    "concurrency": ("concurrency", "max_concurrency", "conc"),
    "rate": ("rate", "request_rate", "qps", "qps_offered"),
    "input": ("input", "input_tokens", "input_len", "isl", "prompt_tokens", "input_toks"),
    "output": ("output", "output_tokens", "output_len", "osl", "completion_tokens", "output_toks"),
    "completed": ("completed", "num_requests", "requests"),
    "duration": ("duration", "duration_s"),
    "arrival": ("arrival", "arrival_s"),
}
STATISTICS = {"mean": "mean", "avg": "mean", "median": "p50"} | {f"p{p}": f"p{p}" for p in (50, 90, 95, 99)}
UNITS = {"ms": 1e-3, "s": 1.0, "us": 1e-6}
UNSTATED = "which statistic its latencies are is not stated: read as means"
Times = Mapping[str, tuple[str, str, float]]  # by column: metric, statistic (may be empty) and unit of a latency
SPELT = {"e2el": "e2e", "latency": "e2e"}


def runs(path: Path) -> list[Run]:
    """The runs of a table."""
    try:
        table = pd.read_csv(path)
    except ValueError as error:
        raise TraceError(str(path), path.suffix, f"cannot be read: {str(error).splitlines()[0]}") from None
    names = {str(name).strip().lower(): str(name) for name in table.columns}
    found = {what: next((names[n] for n in spelt if n in names), None) for what, spelt in COLUMNS.items()}
    times = {name: parts for name in map(str, table.columns) if (parts := _latency(name)) is not None}
    if not times:
        raise TraceError(str(path), ", ".join(names), "has no latency with a unit, such as mean_ttft_ms", METRICS)
    offered = found["rate"] or found["concurrency"]
    if found["arrival"] or (not offered and not any(statistic for _, statistic, _ in times.values())):
        return [_of_requests(table, found, times, path)]
    rows = table.to_dict("records")
    told = [{str(name): value for name, value in row.items()} for row in rows]
    return [_checked(row, found, times, f"{path}:{n}") for n, row in enumerate(told, 2)]


def _checked(row: Mapping[str, Any], found: Mapping[str, str | None], times: Times, source: str) -> Run:
    try:
        return _run(row, found, times, source)
    except TraceError:
        raise
    except InputError as error:
        raise TraceError(source, f"{error.field} {error.value}", error.why) from None


def _latency(name: str) -> tuple[str, str, float] | None:
    """Metric, statistic (may be empty) and unit of a column's name; None if it is no latency."""
    words = [SPELT.get(word, word) for word in name.strip().lower().split("_")]
    metrics, units = [w for w in words if w in METRICS], [w for w in words if w in UNITS]
    if len(metrics) != 1 or len(units) != 1 or "std" in words:
        return None
    statistic = next((STATISTICS[word] for word in words if word in STATISTICS), "")
    return metrics[0], statistic, UNITS[units[0]]


def _run(row: Mapping[str, Any], found: Mapping[str, str | None], times: Times, source: str) -> Run:
    def value(what: str) -> Any:
        name = found[what]
        return None if name is None or pd.isna(row[name]) else row[name]

    latency = {
        f"{metric}_{statistic or 'mean'}": known * unit
        for name, (metric, statistic, unit) in times.items()
        if (known := number(row[name], name)) is not None
    }
    completed = number(value("completed"), "completed")
    return Run(
        source=source,
        tool="csv",
        model=str(value("model") or ""),
        engine=str(value("engine") or ""),
        concurrency=stated(value("concurrency"), "concurrency"),
        rate=stated(value("rate"), "rate"),
        input=stated(value("input"), "input"),
        output=stated(value("output"), "output"),
        completed=None if completed is None else int(completed),
        duration=stated(value("duration"), "duration"),
        latency=latency,
        note="" if all(statistic for _, statistic, _ in times.values()) else UNSTATED,
    )


def _of_requests(table: pd.DataFrame, found: Mapping[str, str | None], times: Times, path: Path) -> Run:
    rows = pd.DataFrame(index=table.index)
    for what in ("input", "output"):
        if (name := found[what]) is not None:
            rows[what] = numbers(name, table[name].tolist())
    if (name := found["arrival"]) is not None:
        rows["arrival"] = _arrivals(table[name])
    for name, (metric, _, unit) in times.items():
        rows[metric] = np.array(numbers(name, table[name].tolist())) * unit
    model, engine = (str(table[name].iloc[0]) if (name := found[what]) else "" for what in ("model", "engine"))
    lengths: dict[str, Any] = {
        side: mean(rows[side].dropna().tolist()) if side in rows else None for side in ("input", "output")
    }
    latency = of_requests(rows)
    return Run(
        str(path),
        "csv",
        model,
        engine,
        completed=len(rows),
        latency=latency,
        requests=rows,
        **lengths,
    )


def _arrivals(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Seconds from the first arrival, of numbers or of time spans."""
    seconds = pd.to_numeric(column, errors="coerce")
    if seconds.isna().all():
        seconds = pd.to_timedelta(column, errors="coerce").dt.total_seconds()
    if (holes := seconds.isna()).any():
        raise InputError(
            str(column.name), column[holes].iloc[0], "is no time of arrival, a number of seconds or a span"
        )
    since: pd.Series[Any] = seconds - seconds.min()
    return since
