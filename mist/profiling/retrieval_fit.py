"""Constants of the retrieval models from measured cells: least squares on relative errors, none negative."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import nnls

from mist.perf.retrieval.flat import Flat, FlatRates
from mist.perf.retrieval.hnsw import Hnsw, HnswRates
from mist.perf.retrieval.ivf_pq import CODEWORDS, IvfPq, IvfPqRates

Index = Flat | IvfPq | Hnsw
SHAPE = ["index", "vectors", "dim", "centroids", "subquantisers", "links"]
TINY = 1e-15  # a rate whose reciprocal the cells cannot tell from nothing


@dataclass(frozen=True)
class Fitted:
    """Constants in SI units, and by how much each moves when one calibration index is left out."""

    rates: dict[str, float]
    spread: dict[str, float]  # relative standard error, jackknife over the indexes
    cells: pd.DataFrame  # one row per cell: as measured, with predicted seconds of processor and split


def fit(kind: str, cells: pd.DataFrame, cache: float, matrix_from: float) -> Fitted:
    """The constants of ``kind`` from the cells of its calibration sizes on one thread; every cell is predicted."""
    solve = {"flat": _flat, "ivf_pq": _ivf_pq, "hnsw": _hnsw}[kind]
    own = cells[cells["index"] == kind]
    fitted = own[~own.held_out & (own.threads == 1)]
    rates = solve(fitted, cache, matrix_from)
    return Fitted(rates, _jackknife(fitted, lambda part: solve(part, cache, matrix_from), rates), predict(own, rates))


def predict(cells: pd.DataFrame, rates: dict[str, float]) -> pd.DataFrame:
    """Each cell with the seconds of processor that the model gives it, on one thread or several."""
    rows = []
    for cell in records(cells):
        work = as_index(cell, rates).work(cell["batch"])
        split = "threads" if cell["threads"] > 1 else "held-out" if cell["held_out"] else "calibration"
        rows.append({**cell, "split": split, "predicted": work.latency + work.core_seconds})
    return pd.DataFrame(rows)


def records(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """The cells as plain rows."""
    return [{str(name): value for name, value in row.items()} for row in cells.to_dict("records")]


def as_index(cell: dict[str, Any], rates: dict[str, float]) -> Index:
    """The index of a measured cell, under these rates."""
    vectors, dim, k, setting = (int(cell[name]) for name in ("vectors", "dim", "k", "setting"))
    if cell["index"] == "flat":
        return Flat(vectors, dim, FlatRates(**rates), k)
    if cell["index"] == "hnsw":
        return Hnsw(vectors, dim, int(cell["links"]), setting, HnswRates(**rates), k)
    shape = int(cell["centroids"]), setting, int(cell["subquantisers"])
    return IvfPq(vectors, dim, *shape, IvfPqRates(**rates), k, imbalance=float(cell["imbalance"]))


def scores(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells, mean absolute and signed relative error, Spearman's rank correlation, per split.

    The cells on several threads are a split of their own.
    """
    error = cells.predicted / cells.core_seconds - 1
    table = cells.assign(error=error, size=error.abs()).groupby("split")
    ranks = {split: part.core_seconds.rank().corr(part.predicted.rank()) for split, part in table}
    frame = table.agg(n=("error", "size"), mape=("size", "mean"), median=("size", "median"), bias=("error", "mean"))
    return frame.assign(rank=pd.Series(ranks))


def _least(features: dict[str, Any], measured: Any) -> dict[str, float]:
    matrix = np.column_stack([np.asarray(column, dtype=float) * np.ones(len(measured)) for column in features.values()])
    scale = np.maximum(np.abs(matrix).max(axis=0), TINY)
    found, _ = nnls(matrix / scale / np.asarray(measured)[:, None], np.ones(len(measured)))
    return dict(zip(features, (float(c) for c in found / scale), strict=True))


def _rates(found: dict[str, float], **names: str) -> dict[str, float]:
    """``found`` with these features, seconds per byte or operation, as rates under their names."""
    turned = {names[feature]: 1.0 / max(seconds, TINY) for feature, seconds in found.items() if feature in names}
    return {**{feature: value for feature, value in found.items() if feature not in names}, **turned}


def _flat(cells: pd.DataFrame, cache: float, matrix_from: float) -> dict[str, float]:
    size, q = cells.vectors * cells.dim * 4.0, cells.batch
    misses = np.where(size > cache, 1.0, 0.0)
    product = cells.batch * cells.dim >= matrix_from
    found = _least(
        {
            "call_time": 1.0,
            "query_time": q,
            "cached": np.where(product, 0, q * size * (1 - misses)),
            "scan": np.where(product, 0, q * size * misses),
            "matrix": np.where(product, 2.0 * q * cells.vectors * cells.dim, 0),
            "candidate_time": np.where(product, q * cells.vectors, 0),
            "result_time": q * cells.k,
        },
        cells.core_seconds,
    )
    return {
        **_rates(found, cached="cached_rate", scan="scan_rate", matrix="matrix_rate"),
        "cache": cache,
        "matrix_from": matrix_from,
    }


def _ivf_pq(cells: pd.DataFrame, cache: float, matrix_from: float) -> dict[str, float]:  # noqa: ARG001 - one signature
    q = cells.batch
    codes = (cells.setting * cells.vectors / cells.centroids * cells.imbalance).clip(upper=cells.vectors)
    found = _least(
        {
            "call_time": 1.0,
            "query_time": q,
            "matrix": 2.0 * q * cells.dim * (cells.centroids + CODEWORDS),
            "probe_time": q * cells.setting,
            "code_time": q * codes,
            "scan": q * codes * cells.subquantisers,
            "result_time": q * cells.k,
        },
        cells.core_seconds,
    )
    return _rates(found, matrix="matrix_rate", scan="scan_rate")


def _hnsw(cells: pd.DataFrame, cache: float, matrix_from: float) -> dict[str, float]:  # noqa: ARG001 - one signature
    walk, walk_ef, walk_links = _walk(cells)
    q, ef = cells.batch, cells.setting
    misses = (1 - cache / cells.index_bytes).clip(lower=0)
    found = _least(
        {
            "call_time": 1.0,
            "query_time": q,
            "distance_time": q * cells.distances,
            "scan": q * cells.distances * cells.dim * 4.0,
            "miss_time": q * cells.distances * misses,
            "hop_time": q * ef,
            "link_time": q * ef * 2 * cells.links,
            "heap_time": q * ef * ef,
            "result_time": q * cells.k,
        },
        cells.core_seconds,
    )
    counts = {"walk": walk, "walk_ef": walk_ef, "walk_links": walk_links}
    return {**_rates(found, scan="scan_rate"), "cache": cache, **counts}


def _walk(cells: pd.DataFrame) -> tuple[float, float, float]:
    """Least squares on the logarithm of the distances that were counted."""
    once = cells.drop_duplicates([*SHAPE, "setting"])
    matrix = np.column_stack([np.ones(len(once)), np.log(once.setting), np.log(once.links)])
    log_walk = np.log(once.distances / np.log(once.vectors))
    found: NDArray[np.float64] = np.linalg.lstsq(matrix, log_walk.to_numpy(), rcond=None)[0]
    return float(np.exp(found[0])), float(found[1]), float(found[2])


def _jackknife(
    cells: pd.DataFrame, solve: Callable[[pd.DataFrame], dict[str, float]], whole: dict[str, float]
) -> dict[str, float]:
    groups = [group for _, group in cells.groupby(SHAPE)]
    parts = [solve(cells.drop(group.index)) for group in groups]
    n = len(parts)
    spread = {}
    for name, value in whole.items():
        power = -1 if name.endswith("_rate") else 1  # a rate is fitted as its reciprocal
        deviations = [part[name] ** power - value**power for part in parts] if value else [0.0]
        spread[name] = sqrt((n - 1) / n * sum(d * d for d in deviations)) / value**power if value else 0.0
    return spread
