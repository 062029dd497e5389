"""`mist profile retrieval`: what this machine's cores reach in vector search, as index files ready to use."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from os import cpu_count
from pathlib import Path
from platform import machine, processor
from typing import Any

import pandas as pd

from mist.profiling.faiss_cells import BUILDS, LATENT, Build, library, measure
from mist.profiling.place import refuse_foreign, writable
from mist.profiling.retrieval_fit import Fitted, fit, scores

SHEET = "# Sheet: mist profile retrieval"
PARTIAL = "measured.partial.csv"  # beside what is written, until all is measured
CACHE = 32e6  # bytes, where the system does not tell
# index -> what a user changes, beside its rates; the paper's index for IVF-PQ
SHAPES: dict[str, dict[str, int | str]] = {
    "flat": {"vectors": 1_000_000, "dim": 768, "k": 10, "dtype": "fp32"},
    "ivf_pq": {"vectors": 10_000_000, "dim": 768, "centroids": 4096, "probes": 32, "subquantisers": 96, "k": 10},
    "hnsw": {"vectors": 1_000_000, "dim": 768, "links": 16, "ef_search": 128, "k": 10, "dtype": "fp32"},
}
MEANING = {
    "flat": "Exact search: every vector is compared, recall is 1.",
    "ivf_pq": "Inverted file with product quantisation: centroids, then the codes of the nearest lists.",
    "hnsw": "Hierarchical navigable small world graph: a walk over links, full vectors in memory.",
}
UNITS = {"_time": "s", "_rate": "B/s", "matrix_rate": "OP/s", "cache": "B"}


def profile(out: Path, builds: Sequence[Build] = BUILDS) -> Iterator[str]:
    """Measure, fit, write into ``out``; a line for each index measured, then the scores. Some ten minutes.

    Who is interrupted keeps the indexes that were done: the next run on the same machine and faiss goes on from there.
    Raises MistError without faiss, InputError where nothing can be written or somebody's own files would be lost.
    """
    faiss = library()
    writable("--out", out)
    for kind in SHAPES:
        refuse_foreign("--out", out / f"{kind}.yaml", SHEET)
    kept, mark = out / PARTIAL, f"# {machine_and_library(faiss)}\n"
    cells = _kept(kept, mark)
    for build in builds:
        if not _known(build, cells):
            new = pd.DataFrame(measure(build, faiss, faiss.omp_get_max_threads()))
            cells = pd.concat([cells, new], ignore_index=True)
            kept.write_text(mark + cells.to_csv(index=False), encoding="utf-8")
        yield _line(build, len(cells))
    yield from write(out, cells, provenance(faiss), float(faiss.cvar.distance_compute_blas_threshold))
    kept.unlink(missing_ok=True)


def _kept(path: Path, mark: str) -> pd.DataFrame:
    """Cells of a run that was interrupted, on this machine and with this library."""
    if not path.exists() or not path.read_text(encoding="utf-8").startswith(mark):
        return pd.DataFrame()
    return pd.read_csv(path, comment="#")


def _known(build: Build, cells: pd.DataFrame) -> bool:
    if cells.empty:
        return False
    return bool((cells[list(asdict(build))] == pd.Series(asdict(build))).all(axis=1).any())


def write(out: Path, cells: pd.DataFrame, source: str, matrix_from: float) -> Iterator[str]:
    """``measured.csv`` and one YAML per index in ``out``; a line of score for each."""
    told = []
    for kind in SHAPES:
        fitted = fit(kind, cells, cache_bytes(), matrix_from)
        (out / f"{kind}.yaml").write_text(as_yaml(kind, fitted, source), encoding="utf-8")
        told.append(fitted.cells)
        yield f"{kind}: {said(fitted)}"
    table = pd.concat(told).drop(columns="split")
    with (out / "measured.csv").open("w", encoding="utf-8") as file:
        file.write(f"# {source}\n")
        for column in table.columns:
            if table[column].dtype == float:
                table[column] = table[column].map(lambda value: float(f"{value:.5g}"))
        table.to_csv(file, index=False)


def said(fitted: Fitted) -> str:
    """The errors of a fit, split by split."""
    return "; ".join(
        f"{split} {row.n:.0f} cells, mean error {row.mape:.1%} (bias {row.bias:+.1%}, ranks {row['rank']:.3f})"
        for split, row in scores(fitted.cells).iterrows()
    )


def as_yaml(kind: str, fitted: Fitted, source: str) -> str:
    """The index file: a shape to change, and the constants with their unit, spread and source."""
    target = {"flat": "flat.Flat", "ivf_pq": "ivf_pq.IvfPq", "hnsw": "hnsw.Hnsw"}[kind]
    lines = [f"# {MEANING[kind]}", f"{SHEET}: {source}.", *_error_lines(fitted)]
    lines.append(f"_target_: mist.perf.retrieval.{target}")
    lines += [f"{name}: {value} # configuration" for name, value in SHAPES[kind].items()]
    lines.append("rates: # of one core; +- is the standard error, leaving out one index at a time")
    for name, value in fitted.rates.items():
        lines.append(f"  {name}: {_quantity(name, value)} # sheet: {_how(name, fitted.spread[name])}")
    return "\n".join(lines) + "\n"


def provenance(faiss: Any) -> str:
    """Machine, library and day."""
    return f"{machine_and_library(faiss)}, {datetime.now(UTC).date().isoformat()}"


def machine_and_library(faiss: Any) -> str:
    """What figures are of: another of either, and they are others."""
    return f"{processor_name()} ({cpu_count()} cores, {machine()}), faiss {faiss.__version__}"


def processor_name() -> str:
    """What the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return processor() or "unknown processor"
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    family, model = fields.get("cpu family"), fields.get("model")
    return fields.get("model name", "unknown processor") + (f" family {family} model {model}" if family else "")


def cache_bytes() -> float:
    """Bytes of the last-level cache."""
    sizes = [file.read_text().strip() for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    scale = {"K": 2.0**10, "M": 2.0**20}
    return max((float(size[:-1]) * scale[size[-1]] for size in sizes if size[-1:] in scale), default=CACHE)


def _line(build: Build, cells: int) -> str:
    held = ", held out" if build.held_out else ""
    return f"{build.index} of {build.vectors:,} x {build.dim}{held}: {cells} cells so far"


def _error_lines(fitted: Fitted) -> list[str]:
    table = scores(fitted.cells)
    said_of = {name: f"{name} cells" for name in table.index}
    said_of["threads"] = "cells of several threads, whose waiting counts too"
    return [
        f"# Error on {said_of[split]}: mean {row.mape:.1%}, bias {row.bias:+.1%}, of {row.n:.0f}"
        for split, row in table.iterrows()
    ] + [f"# Vectors: unit length, on a curved sheet of {LATENT} dimensions; inner product."]


def _quantity(name: str, value: float) -> str:
    unit = UNITS.get(name) or next((unit for end, unit in UNITS.items() if name.endswith(end)), "")
    return f"{value:.4g} {unit}".strip()


def _how(name: str, spread: float) -> str:
    if name in ("cache", "matrix_from"):
        return "as the system and the library report"
    return f"fitted, +- {spread:.0%}" if spread else "fitted, nothing to tell from 0"
