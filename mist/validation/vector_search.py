"""Vector databases, replayed: mean latency and queries per second of clients that search one after another."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from mist.build import build
from mist.errors import InputError
from mist.model import Dtype
from mist.perf.retrieval.database import Database, Served
from mist.perf.retrieval.hnsw import Hnsw
from mist.units import Bytes
from mist.validation.closed import answered
from mist.validation.embedding import sheet
from mist.validation.facts import number
from mist.validation.harness import Facts, Overrides, Unanswered
from mist.validation.measured import Cell, measured_sets

EF = ("ef", "ef_search", "efSearch", "hnsw_ef", "num_candidates")  # the databases' names for it
LINKS = ("M", "m")
REFINE = ("refine_k",)


@dataclass(frozen=True)
class Deployed:
    """A database (conf/database), the type of the vectors it searches, and the hardware threads of its machine.

    ``refine_dtype`` is that of the vectors that score candidates again, ``segment_bytes`` the size of its segments
    where it is not the database's own.
    """

    database: str
    dtype: Dtype
    threads: int
    refine_dtype: Dtype = "fp32"
    segment_bytes: Bytes | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InputError("threads", self.threads, "must be at least 1")


@dataclass(frozen=True)
class Collection:
    """What is searched."""

    vectors: int
    dim: int


@dataclass(frozen=True)
class VectorSearch:
    """``concurrency`` clients, each with one search at a time, of an HNSW index; they share the machine's cores.

    ``threads_gain`` is what a core does with its two threads over what it does with one. Facts: deployment, case, k,
    ef, links, refine, concurrency. Unanswered for deployments and cases that are not given.
    """

    deployments: Mapping[str, Deployed]
    cases: Mapping[str, Collection]
    threads_gain: float

    def __post_init__(self) -> None:
        if not 1 <= self.threads_gain <= 2:
            raise InputError("threads_gain", self.threads_gain, "must lie in [1, 2]")

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        index, deployed = self.served(facts)
        latency = self.latency(facts, index, build(Database, sheet("database", deployed.database)))
        return {"latency": latency, "queries_per_second": number(facts, "concurrency") / latency}

    def latency(self, facts: Facts, index: Hnsw, database: Database) -> float:
        """Mean seconds of a search, one thread to a segment."""
        deployed = self.deployments[facts["deployment"]]
        if deployed.segment_bytes:
            database = replace(database, segment_bytes=deployed.segment_bytes)
        served = Served(index, database)
        work, capacity = served.work(1), max(1.0, deployed.threads / 2 * self.threads_gain)
        busy = min(float(served.segments), capacity)
        return answered(round(number(facts, "concurrency")), work.core_seconds / busy, work.latency, capacity / busy)

    def served(self, facts: Facts) -> tuple[Hnsw, Deployed]:
        """The index that is searched, and the database around it."""
        deployed, searched = self.deployments.get(facts["deployment"]), self.cases.get(facts["case"])
        if searched is None:
            raise Unanswered("filtered searches and other collections are not modelled")
        if deployed is None:
            raise Unanswered("deployments that search several segments or hide their index are not modelled")
        k, refine = round(number(facts, "k")), number(facts, "refine")
        # fewer candidates than results, or than are scored again, are raised to as many (hnswlib, Lucene, Knowhere)
        depth = max(round(number(facts, "ef")), k, round(k * refine))
        shape = {"vectors": searched.vectors, "dim": searched.dim, "k": k, "ef_search": depth}
        again = {"refine": refine, "refine_dtype": deployed.refine_dtype} if refine else {}
        found = {**shape, **again, "links": round(number(facts, "links")), "dtype": deployed.dtype}
        return replace(build(Hnsw, sheet("retrieval", "hnsw")), **found), deployed  # type: ignore[arg-type]  # by its fields


@dataclass(frozen=True)
class Configurations:
    """What VectorDBBench's rows say in their own ways: ``deployment``; ``ef``, ``links``, ``refine`` out of ``params``.

    ``refine`` is how many candidates per neighbour are scored again with full vectors. A ``start`` is cold, from disk,
    where a lone client waits longer on average than the P99 of the searches before, and where the clients right after
    it still do.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"db_label", "params", "serial_p99_s"})

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        given = [_parameters(text) for text in table["params"]]
        deployment = table["db"] + " " + table["db_label"].fillna("(no label)").astype(str)
        return table.assign(
            deployment=deployment,
            ef=[_first(one, EF) for one in given],
            links=[_first(one, LINKS) for one in given],
            refine=[_first(one, REFINE) if one.get("refine") else 0.0 for one in given],
            start=np.where(_cold(table), "cold", "warm"),
        )


def _cold(table: pd.DataFrame) -> "pd.Series[bool]":
    slow, alone = table["lat_avg_s"] > table["serial_p99_s"], table["concurrency"] == 1
    same = [name for name in ("file", "db", "db_label", "case", "params", "recall") if name in table]
    begun = (slow & alone).groupby([table[name] for name in same], dropna=False).transform("any")
    return slow & (alone | begun)


def calibrate(path: Path) -> dict[str, tuple[float, float]]:
    """Seconds per query and slowdown of each database, by least squares on relative errors of calibration cells."""
    kind = measured_sets()["vector_search"]
    assert isinstance(kind.harness, VectorSearch)
    measured: dict[str, list[Cell]] = {}
    for cell in kind.cells(pd.read_csv(path), path.stem):
        if kind.fitted_on(cell.facts) and not cell.problem:
            measured.setdefault(kind.harness.served(cell.facts)[1].database, []).append(cell)
    return {name: _solved(kind.harness, name, cells) for name, cells in sorted(measured.items())}


def _solved(harness: VectorSearch, name: str, cells: list[Cell]) -> tuple[float, float]:
    known = build(Database, sheet("database", name))

    def errors(scalars: Any) -> Any:
        database = replace(known, query_time=float(scalars[0]) * 1e-3, slowdown=float(scalars[1]))
        told = [harness.latency(cell.facts, harness.served(cell.facts)[0], database) for cell in cells]
        return np.array(told) / [cell.measured["latency"] for cell in cells] - 1

    found = least_squares(errors, (1.0, 1.0), bounds=((0.0, 1e-3), (np.inf, np.inf)), xtol=1e-10, ftol=1e-10).x
    return float(found[0]) * 1e-3, float(found[1])


def _parameters(text: object) -> Mapping[str, Any]:
    try:
        found = json.loads(str(text))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, Mapping) else {}


def _first(given: Mapping[str, Any], names: tuple[str, ...]) -> float:
    return next((float(given[name]) for name in names if name in given), float("nan"))
