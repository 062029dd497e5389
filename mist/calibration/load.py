"""A benchmark run as a load on a deployment: which harness replays it, and what its file says of the deployment."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, isinf
from pathlib import Path
from typing import Any

import pandas as pd
from yaml import safe_load

from mist.calibration.run import Run
from mist.catalog import choice_file
from mist.errors import InputError
from mist.validation.facts import number
from mist.validation.harness import (
    BENCHMARK,
    Facts,
    Harness,
    OpenLoopBench,
    Overrides,
    TraceReplay,
    composed,
    lengths,
)
from mist.validation.harness import outcome as served
from mist.validation.names import known

# how each engine forms its batches (conf/validation replays them alike)
SCHEDULERS = {"vllm": "vllm_v1", "sglang": "vllm_v1", "trtllm": "mixed"}


@dataclass(frozen=True)
class FixedLoop:
    """``concurrency`` clients share ``requests`` requests of fixed lengths, all beginning at once."""

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        clients, requests = round(number(facts, "concurrency")), round(number(facts, "requests"))
        load = {"workload": "closed_loop", "workload.requests": str(requests)}
        load["workload.concurrency"] = str(min(clients, requests))
        load |= lengths("inputs", facts["input"], facts["input"]) | lengths("outputs", facts["output"], facts["output"])
        return served(composed(BENCHMARK, load, overrides))


@dataclass(frozen=True)
class LoopOverRows:
    """``concurrency`` clients take the file's requests in its order; all at once where there is no limit."""

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:
        clients = min(round(min(float(facts["concurrency"] or inf), len(rows))), len(rows))
        plain = pd.DataFrame({"arrival": range(len(rows)), "input": rows["input"], "output": rows["output"]})
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "replay.csv"
            plain.astype(int).to_csv(file, index=False)
            load = {"workload": "closed_trace", "workload.path": f"'{file}'", "workload.concurrency": str(clients)}
            return served(composed(BENCHMARK, load, overrides))


def told(run: Run, own: Overrides) -> Run:
    """The run with the load that ``own`` overrides tell in its file's place."""
    options = {"concurrency": own.get("workload.concurrency"), "rate": own.get("workload.rate")}
    given = {name: number({f"workload.{name}": said}, f"workload.{name}") for name, said in options.items() if said}
    return replace(run, **given)  # type: ignore[arg-type]  # names of its fields, all numbers


def harness(run: Run, own: Overrides) -> Harness:
    """How to replay a run; InputError, saying what is missing, where that cannot be known."""
    rows, offered = _rows(run), facts(run, own)
    if run.completed == 0:
        raise InputError("", run.source, "no request was answered")
    timed = rows is not None and "arrival" in rows and bool(rows["arrival"].notna().all())
    paced = run.rate is not None and not isinf(run.rate)
    closed = run.concurrency is not None or (run.rate is not None and isinf(run.rate))
    if run.requests is not None and len(run.requests) and rows is None:
        raise InputError("", run.source, "has a request without input or output of at least one token")
    if closed and not paced and rows is not None:
        return LoopOverRows()
    if timed and not (closed and not paced):
        return TraceReplay("arrival", "input", "output")
    if paced and run.concurrency is not None:
        raise InputError("", run.source, "a rate and a limit of concurrency together need the requests' times")
    if not closed and not paced:
        why = (
            "tells neither concurrency nor rate nor when requests arrived: add workload.concurrency= or workload.rate="
        )
        raise InputError("", run.source, why)
    unknown = [name for name in ("input", "output", "requests") if offered[name] is None]
    if unknown:
        example = "a plain CSV with these columns can (docs/calibrate.md)"
        raise InputError("", run.source, f"does not tell {', '.join(unknown)} (tokens a request; how many): {example}")
    return OpenLoopBench() if paced or run.concurrency is None else FixedLoop()


def facts(run: Run, own: Overrides) -> Facts:
    """What was offered; ``requests`` are those that completed, or as many as duration and rate make."""
    requests: float | None = run.completed or (len(run.requests) if run.requests is not None else None)
    if requests is None and run.duration and run.rate and not isinf(run.rate):
        requests = max(round(run.duration * run.rate), 1)
    return {
        "source": run.source,
        "concurrency": run.concurrency,
        "rate": run.rate,
        "qps": run.rate,
        "input": run.input,
        "output": run.output,
        "requests": own.get("workload.requests", requests),
    }


def deployment(run: Run, own: Overrides) -> Overrides:
    """The overrides that a run's file tells: model and engine where conf/ knows them, the engine's scheduler."""
    said = {"model": run.model, "engine": run.engine}
    found = {role: name for role, value in said.items() if (name := _known(role, value))}
    engine = own.get("engine", found.get("engine"))
    if engine is None:
        return found
    sheet: dict[str, Any] = safe_load(choice_file("engine", engine).read_text(encoding="utf-8"))
    scheduler = SCHEDULERS.get(sheet["name"])
    return found | ({"scheduler": scheduler} if scheduler else {})


def _known(role: str, said: str) -> str:
    try:
        return known(role, said) if said else ""
    except InputError:
        return ""  # it is asked for


def _rows(run: Run) -> pd.DataFrame | None:
    rows = run.requests
    if rows is None or not {"input", "output"} <= {*rows.columns}:
        return None
    whole = bool(rows[["input", "output"]].notna().all(axis=None)) and bool(
        (rows[["input", "output"]] >= 1).all(axis=None)
    )
    return rows if whole and len(rows) else None
