"""Results of ``vllm bench serve`` and of ``sglang.bench_serving``: flat objects with arrays per request.

vLLM documentation, "vllm bench serve" (--save-result, --save-detailed, --append-result) and api/vllm/benchmarks/serve;
SGLang documentation, "Bench Serving Guide" (--output-file, --output-details). Statistics are milliseconds, arrays
seconds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mist.calibration.run import Run, mean, number, numbers, of_requests, stated, statistics

NAMES = {"ttft": ("ttft",), "tpot": ("tpot",), "itl": ("itl",), "e2e": ("e2el", "e2e_latency")}
WORDS = {"mean": "mean", "median": "p50", "p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}


def is_serving(data: Mapping[str, Any]) -> bool:
    return any(f"{word}_{name}_ms" in data for word in WORDS for names in NAMES.values() for name in names)


def run(data: Mapping[str, Any], source: str) -> Run:
    """One result object."""
    sglang = "mean_e2e_latency_ms" in data or str(data.get("backend", "")).startswith("sglang")
    rows = _requests(data)
    completed = number(data.get("completed"), "completed")
    told = (
        of_requests(rows) | statistics("itl", [gap for gaps in _gaps(data) for gap in gaps]) if rows is not None else {}
    )
    lengths = {
        side: mean(rows[side].tolist()) if rows is not None and side in rows else _each(data, side, completed)
        for side in ("input", "output")
    }
    server = data.get("server_info") or {}
    failed, sent = number(data.get("failed"), "failed"), stated(data.get("num_prompts"), "num_prompts")
    if failed is None and completed is not None and sent is not None:
        failed = sent - completed
    if failed is None and rows is not None:
        failed = float(len(data["ttfts"]) - len(rows))
    return Run(
        source=source,
        tool="sglang.bench_serving" if sglang else "vllm bench serve",
        model=str(data.get("model_id") or data.get("model") or server.get("model_path") or ""),
        engine="sglang" if sglang else str(data.get("backend") or data.get("endpoint_type") or "vllm"),
        concurrency=stated(data.get("max_concurrency"), "max_concurrency"),
        rate=stated(data.get("request_rate"), "request_rate"),
        input=lengths["input"],
        output=lengths["output"],
        completed=None if completed is None else int(completed),
        failed=None if failed is None else int(failed),
        duration=stated(data.get("duration"), "duration"),
        latency=told | summary(data),
        requests=rows,
    )


def summary(data: Mapping[str, Any]) -> dict[str, float]:
    """The statistics that the tool computed, in seconds."""
    found = {}
    for metric, names in NAMES.items():
        for word, statistic in WORDS.items():
            for name in names:
                if (value := number(data.get(field := f"{word}_{name}_ms"), field)) is not None:
                    found[f"{metric}_{statistic}"] = value * 1e-3
    return found


def _each(data: Mapping[str, Any], side: str, completed: float | None) -> float | None:
    names = (f"total_{side}_tokens", f"total_{side}")
    total = next((found for name in names if (found := stated(data.get(name), name))), None)
    return total / completed if total and completed else None


def _requests(data: Mapping[str, Any]) -> pd.DataFrame | None:
    """One row per request that succeeded, where arrays were saved."""
    names = {"input": "input_lens", "output": "output_lens", "ttft": "ttfts"}
    if not all(data.get(name) for name in names.values()):
        return None
    columns = {what: numbers(name, data[name]) for what, name in names.items()}
    if len({len(column) for column in columns.values()}) > 1:
        return None
    rows, gaps = pd.DataFrame(columns), _gaps(data)
    if len(gaps) == len(rows):
        after = np.array([sum(one) for one in gaps])
        rows["e2e"] = rows["ttft"] + after
        rows["tpot"] = after / (rows["output"] - 1).where(rows["output"] > 1)
    starts = numbers("start_times", data.get("start_times") or [])
    if len(starts) == len(rows):
        rows["arrival"] = np.asarray(starts) - min(starts)
    errors = data.get("errors") or [""] * len(rows)
    worked = (
        np.array([not error for error in errors]) & (rows["output"] > 0).to_numpy() & rows["ttft"].notna().to_numpy()
    )
    return rows[worked].reset_index(drop=True)


def _gaps(data: Mapping[str, Any]) -> list[list[float]]:
    """Seconds between the tokens of each request."""
    return [numbers("itls", one or []) for one in data.get("itls") or []]
