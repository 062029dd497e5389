"""Timing of flat, IVF-PQ and HNSW searches with faiss, cell by cell, on the machine at hand."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from time import perf_counter, process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mist.errors import MistError

Vectors = NDArray[np.float32]

LATENT = 24  # intrinsic dimensions of the synthetic vectors: embeddings measure some 10 to 30 (arXiv:1905.12784)
QUERIES = 512
SAMPLE = 128  # of them, for counts and recall
REPEATS = 4


@dataclass(frozen=True)
class Build:
    """One index to build; ``held_out`` sizes are scored and never fitted."""

    index: str
    vectors: int
    dim: int
    centroids: int = 0
    subquantisers: int = 0
    links: int = 0
    held_out: bool = False


BUILDS = (
    Build("flat", 5_000, 128),
    Build("flat", 20_000, 128),
    Build("flat", 100_000, 128),
    Build("flat", 40_000, 128, held_out=True),
    Build("flat", 300_000, 128, held_out=True),
    Build("flat", 20_000, 768),
    Build("flat", 50_000, 384, held_out=True),
    Build("flat", 100_000, 768),
    Build("ivf_pq", 100_000, 128, centroids=256, subquantisers=16),
    Build("ivf_pq", 300_000, 128, centroids=1024, subquantisers=32),
    Build("ivf_pq", 1_000_000, 128, centroids=1024, subquantisers=16, held_out=True),
    Build("ivf_pq", 100_000, 768, centroids=256, subquantisers=96),
    Build("ivf_pq", 100_000, 384, centroids=512, subquantisers=48, held_out=True),
    Build("hnsw", 30_000, 128, links=8),
    Build("hnsw", 30_000, 128, links=16),
    Build("hnsw", 30_000, 384, links=32),
    Build("hnsw", 100_000, 128, links=16),
    Build("hnsw", 50_000, 128, links=32),
    Build("hnsw", 300_000, 128, links=16, held_out=True),
    Build("hnsw", 20_000, 768, links=16),
    Build("hnsw", 60_000, 768, links=16),
    Build("hnsw", 60_000, 384, links=24, held_out=True),
)
SETTINGS = {"flat": (0,), "ivf_pq": (1, 4, 16, 64, 256), "hnsw": (16, 64, 128, 256, 512)}  # probes, ef_search
NEIGHBOURS = (10, 100)
BATCHES = {"flat": (1, 8, 64, 512), "ivf_pq": (1, 8, 64), "hnsw": (1, 8, 64)}


def library() -> Any:
    """The faiss module; MistError, with the way to install it, where there is none."""
    try:
        import faiss  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise MistError("mist profile retrieval needs faiss: pip install 'mist-llm[profile]'") from None
    return faiss


def cloud(count: int, dim: int, seed: int) -> Vectors:
    """Unit vectors on a curved sheet of LATENT dimensions: independent noise has no near neighbours to find."""
    weights = np.random.default_rng(dim).normal(size=(LATENT, dim)).astype(np.float32)
    latent = np.random.default_rng(seed).normal(size=(count, LATENT)).astype(np.float32)
    vectors: Vectors = np.tanh(latent @ weights / LATENT**0.5)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def measure(build: Build, faiss: Any, threads: int) -> Iterator[dict[str, Any]]:
    """The cells of one index: every setting, k and batch on one thread, the largest batch on all ``threads``."""
    base, queries = cloud(build.vectors, build.dim, seed=1), cloud(QUERIES, build.dim, seed=2)
    faiss.omp_set_num_threads(threads)
    index = built(build, base, faiss)
    exact = faiss.IndexFlatIP(build.dim)
    exact.add(base)
    _, truth = exact.search(queries, max(NEIGHBOURS))
    for setting in SETTINGS[build.index]:
        if build.index == "ivf_pq":
            if setting > build.centroids:
                continue
            index.nprobe = setting
        elif build.index == "hnsw":
            index.hnsw.efSearch = setting
        for k in NEIGHBOURS:
            if build.index == "hnsw" and setting < k:
                continue
            faiss.omp_set_num_threads(1)
            counts = counted(build.index, index, queries[:SAMPLE], k, faiss)
            _, found = index.search(queries[:SAMPLE], k)
            shares = [len(np.intersect1d(a, b)) / k for a, b in zip(found, truth[:SAMPLE, :k], strict=True)]
            batches = BATCHES[build.index]
            for batch, workers in [(batch, 1) for batch in batches] + [(batches[-1], threads)] * (threads > 1):
                faiss.omp_set_num_threads(workers)
                cell = {"setting": setting, "k": k, "batch": batch, "threads": workers}
                yield {
                    **asdict(build),
                    **cell,
                    **timed(index, queries, k, batch),
                    **counts,
                    "recall": float(np.mean(shares)),
                }


def built(build: Build, base: Vectors, faiss: Any) -> Any:
    """The index, trained and filled; vectors of length one, by inner product."""
    product = faiss.METRIC_INNER_PRODUCT
    if build.index == "flat":
        index = faiss.IndexFlatIP(build.dim)
    elif build.index == "hnsw":
        index = faiss.IndexHNSWFlat(build.dim, build.links, product)
        index.hnsw.efConstruction = 100
    else:
        index = faiss.index_factory(build.dim, f"IVF{build.centroids},PQ{build.subquantisers}", product)
        index.cp.niter, index.pq.cp.niter = 5, 5
        index.train(base[: max(40 * build.centroids, 20_000)])
    index.add(base)
    return index


def counted(kind: str, index: Any, queries: Vectors, k: int, faiss: Any) -> dict[str, float]:
    """What a search did per query: distances (HNSW) or codes (IVF) computed, list imbalance, serialised bytes."""
    counts = {"distances": float(index.ntotal), "imbalance": 1.0}
    counts["index_bytes"] = (
        float(faiss.serialize_index(index).nbytes) if kind != "flat" else 4.0 * index.ntotal * index.d
    )
    if kind == "hnsw":
        faiss.cvar.hnsw_stats.reset()
        index.search(queries, k)
        counts["distances"] = faiss.cvar.hnsw_stats.ndis / len(queries)
    elif kind == "ivf_pq":
        faiss.cvar.indexIVF_stats.reset()
        index.search(queries, k)
        counts["distances"] = faiss.cvar.indexIVF_stats.ndis / len(queries)
        counts["imbalance"] = float(index.invlists.imbalance_factor())
    return counts


def timed(index: Any, queries: Vectors, k: int, batch: int) -> dict[str, float]:
    """Seconds and seconds of processor of one batch: the least of some repeats, since others use the machine.

    What another process takes of a core is in the seconds, not in those of the processor.
    """
    calls = min(len(queries) // batch, max(1, 128 // batch))
    seconds, core_seconds = float("inf"), float("inf")
    for _ in range(REPEATS):
        begin, busy = perf_counter(), process_time()
        for call in range(calls):
            index.search(queries[call * batch : (call + 1) * batch], k)
        seconds = min(seconds, (perf_counter() - begin) / calls)
        core_seconds = min(core_seconds, (process_time() - busy) / calls)
    return {"seconds": seconds, "core_seconds": core_seconds}
