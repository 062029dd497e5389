"""Exports of AIPerf and GenAI-Perf.

AIPerf documentation, "profile_export_aiperf.json Schema" and "Working with Profile Export Files": every metric is
{unit, avg, p50, ...}; the CSV has one metric a row, its unit in brackets; the JSONL one request a line. Inter-token
latency is a request's mean there (metrics reference), so it is TPOT here.
"""

import csv
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mist.calibration.run import Run, mean, number, of_requests, stated, unit

METRICS = {"time_to_first_token": "ttft", "inter_token_latency": "tpot", "request_latency": "e2e"}
LENGTHS = {"input_sequence_length": "input", "output_sequence_length": "output"}
WORDS = {"avg": "mean", "p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
_TITLE = re.compile(r"\s*(.+?)\s*(?:\(([^()]*)\))?\s*\Z")


def is_export(data: Mapping[str, Any]) -> bool:
    return any(isinstance(_records(data).get(name), Mapping) for name in METRICS)


def _records(data: Mapping[str, Any]) -> Mapping[str, Any]:
    records = data.get("records")
    return records if isinstance(records, Mapping) else data


def run(data: Mapping[str, Any], source: str) -> Run:
    """An aggregated export as JSON."""
    records, config = _records(data), data.get("input_config") or {}
    duration = records.get("benchmark_duration") or {}
    lengths: dict[str, Any] = {side: stated(_block(records, name).get("avg")) for name, side in LENGTHS.items()}
    return Run(
        source=source,
        tool="aiperf",
        model=_first(_find(config, "model_names", "model")),
        engine=str(_find(config, "backend", "service_kind", "type") or ""),
        concurrency=stated(_find(config, "concurrency"), "concurrency"),
        rate=stated(_find(config, "request_rate"), "request_rate"),
        completed=_count(records, "request_count"),
        failed=_count(records, "error_request_count"),
        duration=stated(duration.get("avg")) if isinstance(duration, Mapping) else None,
        latency=_latency(records, source),
        **lengths,
    )


def run_of_csv(path: Path) -> Run:
    """An aggregated export as CSV: blocks of a header that begins with Metric, and rows."""
    records: dict[str, dict[str, Any]] = {}
    header: list[str] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.reader(file):
            if row and row[0].strip().lower() == "metric":
                header = [word.strip().lower() for word in row]
            elif row and header and (found := _TITLE.match(row[0])):
                name = found[1].strip().lower().replace(" ", "_")
                values: dict[str, Any] = dict(zip(header[1:], row[1:], strict=False))
                values["avg"] = values.get("avg", values.get("value"))
                records[name] = {"unit": found[2], **values}
    return run(records, str(path))


def is_record(data: Mapping[str, Any]) -> bool:
    return "metadata" in data and "metrics" in data


def run_of_records(lines: Iterable[Mapping[str, Any]], source: str) -> Run:
    """Per-request records as JSONL; those that failed or were cancelled are counted, not measured."""
    rows, failed = [], 0
    for line in lines:
        metrics, metadata = line.get("metrics") or {}, line.get("metadata") or {}
        if line.get("error") or metadata.get("was_cancelled") or "request_latency" not in metrics:
            failed += 1
            continue
        row: dict[str, float | None] = {side: number(_value(metrics, name), name) for name, side in LENGTHS.items()}
        for name, metric in METRICS.items():
            if (value := number(_value(metrics, name), name)) is not None:
                row[metric] = value * unit(metrics[name].get("unit"), source)
        start = number(metadata.get("request_start_ns"))
        rows.append(row | ({"arrival": start * 1e-9} if start is not None else {}))
    frame = pd.DataFrame(rows).astype(float)
    if "arrival" in frame:
        frame["arrival"] -= frame["arrival"].min()
    lengths: dict[str, Any] = {side: mean(frame[side].dropna().tolist()) for side in LENGTHS.values() if side in frame}
    return Run(
        source=source,
        tool="aiperf",
        completed=len(frame),
        failed=failed,
        latency=of_requests(frame),
        requests=frame,
        **lengths,
    )


def parse_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _latency(records: Mapping[str, Any], source: str) -> dict[str, float]:
    found = {}
    for name, metric in METRICS.items():
        block = _block(records, name)
        for word, statistic in WORDS.items():
            if (value := number(block.get(word), f"{name} {word}")) is not None:
                found[f"{metric}_{statistic}"] = value * unit(block.get("unit"), source)
    return found


def _block(records: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    block = records.get(name)
    return block if isinstance(block, Mapping) else {}


def _value(metrics: Mapping[str, Any], name: str) -> object:
    return _block(metrics, name).get("value")


def _count(records: Mapping[str, Any], name: str) -> int | None:
    value = number(_block(records, name).get("avg"))
    return None if value is None else int(value)


def _find(config: Any, *names: str) -> Any:
    """The first of these options anywhere in a nested config."""
    if not isinstance(config, Mapping):
        return None
    for name in names:
        if config.get(name) not in (None, "", []) and not isinstance(config.get(name), Mapping):
            return config[name]
    return next((found for inner in config.values() if (found := _find(inner, *names)) is not None), None)


def _first(value: Any) -> str:
    return str(value[0]) if isinstance(value, list) and value else str(value or "")
