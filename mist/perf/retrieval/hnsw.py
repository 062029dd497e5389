"""Hierarchical navigable small world graphs (Malkov and Yashunin, IEEE TPAMI 42(4), 2020, arXiv:1603.09320)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log

from mist.errors import InputError
from mist.model import BYTES_PER_ELEMENT, Dtype
from mist.perf.retrieval.checks import at_least_one, check_recalls, not_negative, positive
from mist.perf.retrieval.recall import recall_at
from mist.perf.work import Work
from mist.units import Bytes, BytesPerSecond, Seconds

LINK = 4.0  # bytes: one neighbour's number
HEADER = 12.0  # bytes a vector has beside: its level and the offset of its links (faiss: int, size_t)


@dataclass(frozen=True)
class HnswRates:
    """What one core reaches and how far a search walks, as measured: not of one index, but of a machine, library, data.

    A search of M links per vector computes ``walk * ef^walk_ef * M^walk_links * ln(vectors)`` distances: logarithmic
    in the vectors (section 4.2.1); the paper leaves the rest to experiment.
    """

    call_time: Seconds  # one call, whatever the batch
    query_time: Seconds  # one query, whatever the index
    distance_time: Seconds  # one distance, whatever the dimension
    scan_rate: BytesPerSecond  # vectors compared with the query
    miss_time: Seconds  # a vector that is not in the cache
    cache: Bytes  # last-level cache
    hop_time: Seconds  # one vector whose links are followed
    link_time: Seconds  # one link looked at: has its vector been seen?
    heap_time: Seconds  # one candidate looked through for the nearest, at every hop
    result_time: Seconds  # one neighbour returned
    walk: float
    walk_ef: float
    walk_links: float

    def __post_init__(self) -> None:
        positive(self, "scan_rate", "walk", "walk_ef")
        not_negative(self, "call_time", "query_time", "distance_time", "miss_time", "cache", "hop_time", "heap_time")
        not_negative(self, "result_time", "link_time", "walk_links")


@dataclass(frozen=True)
class Hnsw:
    """An HNSW index over full vectors; ``recalls`` maps ef_search to recall, where the user knows it."""

    vectors: int
    dim: int
    links: int  # M: neighbours of a vector on the upper layers, twice that on the lowest (section 4.1)
    ef_search: int  # candidates kept; never fewer than k
    rates: HnswRates
    k: int = 10  # neighbours returned
    dtype: Dtype = "fp32"
    refine: float = 0.0  # candidates per neighbour that are scored again with full vectors, kept beside the index's
    refine_dtype: Dtype = "fp32"  # of those
    recalls: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least_one(self, "vectors", "dim", "ef_search", "k")
        check_recalls(self.recalls)
        if self.links < 2:
            raise InputError("links", self.links, "must be at least 2: with one there are no layers")
        if self.ef_search < self.k:
            raise InputError("ef_search", self.ef_search, f"must be at least k, {self.k}, or has no effect")
        if self.refine and not 1 <= self.refine <= self.ef_search / self.k:
            why = (
                f"must be 0, or from 1 to ef_search / k, {self.ef_search / self.k:g}: only candidates are scored again"
            )
            raise InputError("refine", self.refine, why)
        self.recall  # noqa: B018 - a table that does not reach the setting is refused here

    @property
    def recall(self) -> float | None:
        """Recall at this ef_search, by the user's table; None without one."""
        return recall_at(self.recalls, self.ef_search)

    @property
    def vector_bytes(self) -> float:
        return self.dim * BYTES_PER_ELEMENT[self.dtype]

    @property
    def memory_bytes(self) -> float:
        """Vectors, 2 M links on the lowest layer, M on each of the 1 / (M - 1) further layers that a vector is on.

        Section 4.2.3; layers are drawn with 1 / ln M (section 4.1), so that M^-l of the vectors reach layer l.
        """
        links = (2 * self.links + self.links / (self.links - 1)) * LINK
        return self.vectors * (self.vector_bytes + links + HEADER + (self._full_bytes if self.refine else 0.0))

    @property
    def _full_bytes(self) -> float:
        return self.dim * BYTES_PER_ELEMENT[self.refine_dtype]

    @property
    def distances(self) -> float:
        """Distances computed per query; no more than there are vectors."""
        rates = self.rates
        walked = rates.walk * self.ef_search**rates.walk_ef * self.links**rates.walk_links * log(max(self.vectors, 2))
        return min(float(walked), float(self.vectors))

    @property
    def misses(self) -> float:
        """Share of the index that the cache cannot hold: a walk reads it at random."""
        return max(0.0, 1.0 - self.rates.cache / self.memory_bytes)

    def work(self, queries: int) -> Work:
        rates, ef = self.rates, self.ef_search
        distance = rates.distance_time + self.vector_bytes / rates.scan_rate + self.misses * rates.miss_time
        hops = ef * (rates.hop_time + 2 * self.links * rates.link_time + ef * rates.heap_time)
        again = self.refine * self.k
        full = rates.distance_time + self._full_bytes / rates.scan_rate + self.misses * rates.miss_time
        each = rates.query_time + self.distances * distance + hops + self.k * rates.result_time + again * full
        read = self.misses * (
            self.distances * self.vector_bytes + ef * 2 * self.links * LINK + again * self._full_bytes
        )
        return Work(queries * each, queries * read, rates.call_time)
