"""Reports of GuideLLM: ``benchmarks.json``, one benchmark per load.

GuideLLM documentation, guides/metrics and guides/outputs: a metric is {successful: {mean, median, percentiles}};
``inter_token_latency_ms`` leaves the first token out and is a request's mean, so it is TPOT here, while
``time_per_output_token_ms`` counts the first token in and is left aside. ``request_latency`` is in seconds.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mist.calibration.run import Run, mean, number, stated

METRICS = {
    "time_to_first_token_ms": ("ttft", 1e-3),
    "inter_token_latency_ms": ("tpot", 1e-3),
    "request_latency": ("e2e", 1.0),
}
LENGTHS = {"prompt_token_count": "input", "output_token_count": "output"}
ROWS = {"prompt_tokens": "input", "output_tokens": "output"}


def is_report(data: Mapping[str, Any]) -> bool:
    return isinstance(data.get("benchmarks"), list)


def runs(data: Mapping[str, Any], source: str) -> list[Run]:
    """All benchmarks of a report."""
    return [_run(data, one, f"{source}: benchmark {number}") for number, one in enumerate(data["benchmarks"], 1)]


def _run(report: Mapping[str, Any], data: Mapping[str, Any], source: str) -> Run:
    metrics, strategy = data.get("metrics") or {}, _strategy(data)
    kind = str(strategy.get("type_") or strategy.get("kind") or strategy.get("type") or "")
    totals = (data.get("run_stats") or {}).get("requests_made") or metrics.get("request_totals") or {}
    completed, errors = number(totals.get("successful")), number(totals.get("errored"))
    rows = _requests(data)
    lengths: dict[str, Any] = {
        side: stated(_of(metrics, name).get("mean")) or _mean(rows, side) for name, side in LENGTHS.items()
    }
    return Run(
        source=source,
        tool="guidellm",
        model=_model(report, data),
        concurrency=1.0 if kind == "synchronous" else stated(strategy.get("streams")),
        rate=float("inf") if kind == "throughput" else stated(strategy.get("rate")),
        completed=None if completed is None else int(completed),
        failed=None if errors is None else int(errors),
        duration=stated(data.get("duration")),
        latency=_latency(metrics),
        requests=rows,
        **lengths,
    )


def _latency(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, (metric, unit) in METRICS.items():
        block = _of(metrics, name)
        points = {"mean": block.get("mean"), "p50": block.get("median"), **(block.get("percentiles") or {})}
        for statistic in ("mean", "p50", "p90", "p95", "p99"):
            if (value := number(points.get(statistic, block.get(statistic)), f"{name} {statistic}")) is not None:
                found[f"{metric}_{statistic}"] = value * unit
    return found


def _of(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The statistics of requests that succeeded."""
    return (metrics.get(name) or {}).get("successful") or {}


def _requests(data: Mapping[str, Any]) -> pd.DataFrame | None:
    requests = data.get("requests")
    worked = requests.get("successful") if isinstance(requests, Mapping) else None
    if not worked:
        return None
    rows = []
    for one in worked:
        row = {side: number(one.get(name)) for name, side in ROWS.items()}
        row |= {metric: _scaled(one.get(name), name, unit) for name, (metric, unit) in METRICS.items()}
        start = one.get("start_time", one.get("request_start_time"))
        rows.append(row | {"arrival": number(start)})
    frame = pd.DataFrame(rows).astype(float).dropna(axis=1, how="all")
    if "arrival" in frame:
        frame["arrival"] -= frame["arrival"].min()
    return frame


def _scaled(value: object, name: str, unit: float) -> float | None:
    found = number(value, name)
    return None if found is None else found * unit


def _mean(rows: pd.DataFrame | None, side: str) -> float | None:
    return mean(rows[side].dropna().tolist()) if rows is not None and side in rows else None


def _strategy(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """How requests were sent: under ``config`` or ``args``, by version; a bare rate beside it."""
    config = data.get("config") or data.get("args") or {}
    strategy = config.get("strategy") or (data.get("scheduler") or {}).get("strategy") or {}
    return {"rate": config.get("rate")} | dict(strategy)


def _model(report: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    for place in (
        data.get("worker"),
        data.get("backend"),
        data.get("config"),
        report.get("args"),
        report.get("config"),
    ):
        if isinstance(place, Mapping):
            for inner in (place, place.get("backend_args"), place.get("backend")):
                found = isinstance(inner, Mapping) and (inner.get("model") or inner.get("backend_model"))
                if isinstance(found, str) and found:
                    return found
    return ""
