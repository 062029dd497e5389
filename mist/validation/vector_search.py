"""Vector databases against VectorDBBench: mean latency and queries per second of unfiltered HNSW searches."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from mist.build import build
from mist.model import Dtype
from mist.perf.retrieval.database import Database, Served
from mist.perf.retrieval.hnsw import Hnsw
from mist.validation.cells import Cell, frame, rows
from mist.validation.embedding import sheet

VECTORS = {"Performance768D1M": 1_000_000, "Performance768D10M": 10_000_000}  # Cohere embeddings of 768 dimensions
DIM = 768
EF = ("ef", "ef_search", "efSearch", "hnsw_ef", "num_candidates")  # the databases' names for it
LINKS = ("M", "m")


class Deployment(NamedTuple):
    """A database as a file has it: its sheet, how it stores vectors, and the file its scalars are solved from."""

    sheet: str
    dtype: Dtype
    calibration: str


# (database, label) of the deployments that search one segment per shard: what else is searched no file tells
DEPLOYMENTS = {
    ("ElasticCloud", "8c60g-force_merge"): Deployment("elasticsearch", "fp32", "result_20250318"),
    ("OpenSearch", "16c128g-force_merge"): Deployment("opensearch", "fp32", "result_20250224"),
    ("Milvus", "16c64g-sq8-force_merge"): Deployment("milvus", "int8", "result_20260403"),
    ("Milvus", "16c64g-sq4u-fp16-force_merge"): Deployment("milvus", "int4", ""),
    ("QdrantCloud", "16c64g"): Deployment("qdrant", "fp32", "result_20250602"),
}
CALIBRATED = ("Performance768D1M", 5)  # case and concurrency of the calibration cells


def score(path: Path) -> pd.DataFrame:
    """Predicted beside measured latency (s) and throughput (queries/s) of every row of a VectorDBBench table.

    Columns: set, slice, cell, measured, predicted, unit, split. Filtered searches, databases that hide their index,
    and rows that contradict each other have no prediction and the split *not modelled*. The first searches after a
    start read from disk: single-client rows slower on average than the warm P99 are a slice of their own.
    """
    return frame("T12", _cells(pd.read_csv(path)))


def calibrate(path: Path) -> dict[str, tuple[float, float]]:
    """Seconds per query and slowdown of each database, by least squares on relative errors of calibration cells."""
    solved = {}
    known = list(_known(pd.read_csv(path)))
    for name in sorted({deployment.sheet for _, deployment, _ in known}):
        own = [
            (row, index) for row, deployment, index in known if deployment.sheet == name and _fitted(row, deployment)
        ]
        latency = np.array([row["lat_avg_s"] for row, _ in own])
        search = np.array([index.work(1).core_seconds for _, index in own])
        found, _ = nnls(np.column_stack([1 / latency, search / latency]), np.ones(len(own)))
        solved[name] = (float(found[0]), float(found[1]))
    return solved


def _cells(table: pd.DataFrame) -> Iterator[Cell]:
    known = {row["row"]: (deployment, index) for row, deployment, index in _known(table)}
    databases = {d.sheet: build(Database, sheet("database", d.sheet)) for d in DEPLOYMENTS.values()}
    for number, row in enumerate(rows(table)):
        where = f"{row['db']} {row['db_label']}, {row['case']}, recall {row['recall']}, {row['concurrency']} clients"
        latency, split, kind = None, "", f"{row['db']} {row['case']}"
        if number in known:
            deployment, index = known[number]
            work = Served(index, databases[deployment.sheet]).work(1)
            latency = work.latency + work.core_seconds
            split = "calibration" if _fitted(row, deployment) else "held-out"
            if row["concurrency"] == 1 and row["lat_avg_s"] > row["serial_p99_s"]:
                kind += ", cold"
        yield Cell(kind, where, row["lat_avg_s"], latency, "s", split)
        yield Cell(kind, where, row["qps"], latency and row["concurrency"] / latency, "queries/s", split)


def _known(table: pd.DataFrame) -> Iterator[tuple[dict[str, Any], Deployment, Hnsw]]:
    """The rows that are modelled, with the index that they search."""
    shipped = build(Hnsw, sheet("retrieval", "hnsw"))
    # rows that say they are one configuration and measured several recalls misstate it
    same = table.groupby(["file", "db_label", "case", "params", "concurrency"]).recall.transform("nunique")
    for number, row in enumerate(rows(table)):
        deployment, vectors = DEPLOYMENTS.get((row["db"], row["db_label"])), VECTORS.get(row["case"])
        if deployment is None or vectors is None or same.iloc[number] > 1:
            continue
        given = json.loads(row["params"])
        ef, links = _first(given, EF), _first(given, LINKS)
        if ef is None or links is None:
            continue
        k = int(row["k"])  # fewer candidates than results are raised to as many (hnswlib, Lucene)
        index = replace(
            shipped, vectors=vectors, dim=DIM, links=links, ef_search=max(ef, k), k=k, dtype=deployment.dtype
        )
        yield {**row, "row": number}, deployment, index


def _fitted(row: Mapping[str, Any], deployment: Deployment) -> bool:
    fitted = bool(deployment.calibration) and row["file"].startswith(deployment.calibration)
    return fitted and (row["case"], row["concurrency"]) == CALIBRATED


def _first(given: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((int(given[name]) for name in names if name in given), None)
