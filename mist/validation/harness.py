"""How each set was measured, replayed: the documented benchmark as overrides of a config, and what it comes to."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isinf
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from mist.compose import compose
from mist.errors import InputError, as_typed
from mist.metrics import Result
from mist.request import Request
from mist.simulate import simulate
from mist.validation.facts import count, number
from mist.validation.memoryless import memoryless

Facts = dict[str, Any]
Overrides = dict[str, str]

BENCHMARK: Overrides = {"slo": "none", "window.drain": "true", "window.warmup": "0"}  # every request counts


class Unanswered(Exception):
    """The simulator has no answer to compare, and why."""


class Harness(Protocol):
    """A documented way of measuring."""

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:
        """Predicted values by name, SI units; ``overrides`` outrank those of the harness."""


UNPRICED = 1.0  # $/h of a device that no list has a price for: times are compared, no dollars


def composed(*layers: Mapping[str, str]) -> dict[str, Any]:
    """The config of these overrides; of the same address the last one counts."""
    merged: Overrides = {}
    for layer in layers:
        merged.update(layer)
    config = compose([f"{address}={value}" for address, value in merged.items()])
    for pool in config["pools"].values():
        config["price"]["hourly"].setdefault(pool["hardware"]["name"], UNPRICED)
    return config


def outcome(config: Mapping[str, Any]) -> dict[str, float]:
    """Serve the config's workload; latencies over all requests and throughput from first arrival to last answer."""
    with as_typed(config["pools"]):
        result = simulate(config)
    if result.counts is None or result.latency is None or result.window is None:
        raise Unanswered(result.reason)
    if result.counts.completed < result.counts.arrived:
        raise Unanswered(result.refusal or f"{result.counts.in_flight} requests were never answered")
    return _figures(result)


def _figures(result: Result) -> dict[str, float]:
    assert result.window is not None and result.latency is not None
    span, done = result.window.end - result.window.start, result.requests
    figures = {"requests_per_second": len(done) / span, "output_tokens_per_second": sum(r.output for r in done) / span}
    figures["tokens_per_second"] = sum(r.input + r.output for r in done) / span
    for metric, seen in result.latency.items():
        figures |= {f"{metric}_mean": seen.mean, f"{metric}_p50": seen.p50, f"{metric}_p90": seen.p90}
        figures[f"{metric}_p99"] = seen.p99
    figures["itl_mean"] = _mean_gap(done)
    return figures


def _mean_gap(requests: Iterable[Request]) -> float:
    """Mean time between two tokens, over all gaps of all requests alike."""
    pairs = [(r.finished - r.first_token, r.output - 1) for r in requests]
    gaps = sum(gap for _, gap in pairs)
    return sum(time for time, _ in pairs) / gaps if gaps else 0.0


def lengths(name: str, low: float, high: float) -> Overrides:
    """Uniform lengths of a closed loop, both ends included."""
    return {f"workload.{name}.low": str(round(low)), f"workload.{name}.high": str(round(high))}


@dataclass(frozen=True)
class ClosedLoopBench:
    """``concurrency`` clients, ``per_client`` requests each, lengths uniform from ``shortest`` L to L.

    Facts: concurrency, input and output tokens. With vLLM's ``bench serve --max-concurrency`` and InferenceMAX all
    clients begin at once and every request counts.
    """

    per_client: int = 10
    shortest: float = 0.8

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        clients = count(facts, "concurrency")
        load = {"workload": "closed_loop", "workload.concurrency": str(clients)}
        load["workload.requests"] = str(clients * self.per_client)
        for name, fact in (("inputs", "input"), ("outputs", "output")):
            longest = count(facts, fact)
            load |= lengths(name, max(self.shortest * longest, 1), longest)
        return outcome(composed(BENCHMARK, load, overrides))


@dataclass(frozen=True)
class OpenLoopBench:
    """``requests`` requests of fixed lengths, Poisson at ``qps``; all at once where that is infinite.

    Lengths differ where the pair of means is one of ``drawn`` ("input/output": the longest, in tokens): they are
    drawn without memory (memoryless.py).
    """

    drawn: Mapping[str, int] = field(default_factory=dict)

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        rate = number(facts, "qps")
        if not rate > 0:
            raise InputError("qps", facts["qps"], "must be positive")
        load = {"workload": "all_at_once"} if isinf(rate) else {"workload": "poisson_fixed", "workload.rate": str(rate)}
        config = composed(BENCHMARK, load, fixed(facts), overrides)
        means = {name: round(number(facts, fact)) for name, fact in (("inputs", "input"), ("outputs", "output"))}
        longest = self.drawn.get("/".join(map(str, means.values())))
        if longest:
            config["workload"].update({name: memoryless(mean, longest) for name, mean in means.items()})
        return outcome(config)


@dataclass(frozen=True)
class AllAtOnce:
    """An offline batch: ``requests`` requests of fixed lengths at time 0."""

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        return outcome(composed(BENCHMARK, {"workload": "all_at_once"}, fixed(facts), overrides))


@dataclass(frozen=True)
class StaticBatch:
    """``batch`` requests of fixed lengths, prefilled in one step and decoded to the end together."""

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        batch, prompt, answer = (count(facts, fact) for fact in ("batch", "input", "output"))
        load = {"workload": "all_at_once", **fixed({**facts, "requests": batch}), "scheduler": "static"}
        load |= {"scheduler.max_running": str(batch), "scheduler.token_budget": str(batch * prompt)}
        load["model.context"] = str(max(prompt + answer, 4096))  # what it was made for is no limit to a benchmark
        return outcome(composed(BENCHMARK, load, overrides))


def fixed(facts: Facts) -> Overrides:
    """Fixed lengths, and how many requests."""
    counts = {"inputs.tokens": "input", "outputs.tokens": "output", "requests": "requests"}
    return {f"workload.{address}": str(count(facts, fact)) for address, fact in counts.items()}


@dataclass(frozen=True)
class TraceReplay:
    """The file's own requests at its own times, each once; ``arrival``, ``input`` and ``output`` are its columns."""

    arrival: str
    input: str
    output: str

    @property
    def reads(self) -> frozenset[str]:
        """Columns that no fact is in."""
        return frozenset({self.arrival, self.input, self.output})

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        tokens = {name: _tokens(rows[column]) for name, column in (("input", self.input), ("output", self.output))}
        plain = pd.DataFrame({"arrival": _seconds(rows[self.arrival]), **tokens})
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "replay.csv"
            plain.sort_values("arrival", kind="stable").to_csv(file, index=False)
            return outcome(composed(BENCHMARK, {"workload": "trace", "workload.path": f"'{file}'"}, overrides))


def _seconds(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Times as numbers of seconds, or as time spans."""
    if pd.api.types.is_numeric_dtype(column):
        return column.astype(float)
    spans = pd.to_timedelta(column, errors="coerce")
    _refuse_holes(column, spans, "is no time")
    return spans.dt.total_seconds()


def _tokens(column: "pd.Series[Any]") -> "pd.Series[Any]":
    known = pd.to_numeric(column, errors="coerce")
    _refuse_holes(column, known, "is no number of tokens")
    return known.round().astype(int)


def _refuse_holes(column: "pd.Series[Any]", known: "pd.Series[Any]", why: str) -> None:
    if (holes := known.isna()).any():
        raise InputError(str(column.name), column[holes].iloc[0], why)


@dataclass(frozen=True)
class Disaggregated:
    """A closed loop on ``prefill`` and ``decode`` workers: ``requests`` requests by ``concurrency`` clients.

    Answers end where the model ends them: all get the mean length that was measured, ``answered`` tokens of
    ``completed`` requests.
    """

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        completed = count(facts, "completed")
        prompt, answer = (count(facts, fact) / completed for fact in ("asked", "answered"))
        load = {"cluster": "disaggregated", "workload": "closed_loop"}
        load["workload.concurrency"] = str(count(facts, "concurrency"))
        load["workload.requests"] = str(completed)
        load |= {f"{role}.replicas": str(count(facts, role)) for role in ("prefill", "decode")}
        load |= lengths("inputs", prompt, prompt) | lengths("outputs", answer, answer)
        return outcome(composed(BENCHMARK, load, overrides))
