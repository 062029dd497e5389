"""Vector databases, replayed: mean latency and queries per second of clients that search one after another."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from mist.build import build
from mist.model import Dtype
from mist.perf.retrieval.database import Database, Served
from mist.perf.retrieval.hnsw import Hnsw
from mist.validation.embedding import sheet
from mist.validation.facts import number
from mist.validation.harness import Facts, Overrides, Unanswered
from mist.validation.measured import measured_sets

EF = ("ef", "ef_search", "efSearch", "hnsw_ef", "num_candidates")  # the databases' names for it
LINKS = ("M", "m")


@dataclass(frozen=True)
class Deployed:
    """A database (conf/database) and the type of the vectors it keeps."""

    database: str
    dtype: Dtype


@dataclass(frozen=True)
class Collection:
    """What is searched."""

    vectors: int
    dim: int


@dataclass(frozen=True)
class VectorSearch:
    """``concurrency`` clients, each with one search at a time, of an HNSW index.

    Facts: deployment, case, k, ef, links, concurrency. Unanswered for deployments and cases that are not given.
    """

    deployments: Mapping[str, Deployed]
    cases: Mapping[str, Collection]

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        index, database = self.served(facts)
        work = Served(index, build(Database, sheet("database", database))).work(1)
        latency = work.latency + work.core_seconds
        return {"latency": latency, "queries_per_second": number(facts, "concurrency") / latency}

    def served(self, facts: Facts) -> tuple[Hnsw, str]:
        """The index that is searched, and the database around it."""
        deployed, searched = self.deployments.get(facts["deployment"]), self.cases.get(facts["case"])
        if searched is None:
            raise Unanswered("filtered searches and other collections are not modelled")
        if deployed is None:
            raise Unanswered("deployments that search several segments or hide their index are not modelled")
        k = round(number(facts, "k"))  # fewer candidates than results are raised to as many (hnswlib, Lucene)
        links, depth = round(number(facts, "links")), max(round(number(facts, "ef")), k)
        found = {"vectors": searched.vectors, "dim": searched.dim, "dtype": deployed.dtype}
        shipped = build(Hnsw, sheet("retrieval", "hnsw"))
        return replace(shipped, links=links, ef_search=depth, k=k, **found), deployed.database  # type: ignore[arg-type]


@dataclass(frozen=True)
class Configurations:
    """What VectorDBBench's rows say in their own ways: ``deployment``, and ``ef`` and ``links`` out of ``params``.

    A ``start`` is cold, from disk, where a lone client waits longer on average than the P99 of the searches before.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"db_label", "params", "serial_p99_s"})

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        given = [_parameters(text) for text in table["params"]]
        cold = (table["concurrency"] == 1) & (table["lat_avg_s"] > table["serial_p99_s"])
        return table.assign(
            deployment=table["db"] + " " + table["db_label"].fillna("(no label)").astype(str),
            ef=[_first(one, EF) for one in given],
            links=[_first(one, LINKS) for one in given],
            start=np.where(cold, "cold", "warm"),
        )


def calibrate(path: Path) -> dict[str, tuple[float, float]]:
    """Seconds per query and slowdown of each database, by least squares on relative errors of calibration cells."""
    kind = measured_sets()["vector_search"]
    assert isinstance(kind.harness, VectorSearch)
    measured: dict[str, list[tuple[float, float]]] = {}
    for cell in kind.cells(pd.read_csv(path), path.stem):
        if kind.fitted_on(cell.facts) and not cell.problem:
            index, database = kind.harness.served(cell.facts)
            measured.setdefault(database, []).append((cell.measured["latency"], index.work(1).core_seconds))
    return {name: _solved(*np.array(cells).T) for name, cells in sorted(measured.items())}


def _solved(latency: Any, search: Any) -> tuple[float, float]:
    found, _ = nnls(np.column_stack([1 / latency, search / latency]), np.ones(len(latency)))
    return float(found[0]), float(found[1])


def _parameters(text: object) -> Mapping[str, Any]:
    try:
        found = json.loads(str(text))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, Mapping) else {}


def _first(given: Mapping[str, Any], names: tuple[str, ...]) -> float:
    return next((float(given[name]) for name in names if name in given), float("nan"))
