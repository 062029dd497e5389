"""A vector database around an index: what a query costs over the wire, and how its program compares with faiss."""

from dataclasses import dataclass

from mist.perf.retrieval.checks import not_negative, positive
from mist.perf.retrieval.flat import Flat
from mist.perf.retrieval.hnsw import Hnsw
from mist.perf.retrieval.ivf_pq import IvfPq
from mist.perf.work import Work
from mist.units import Seconds


@dataclass(frozen=True)
class Database:
    """Two scalars that belong to one database and version, never to an index."""

    name: str
    version: str
    query_time: Seconds  # request, network, plan and answer of one query
    slowdown: float  # its search over the same search by faiss on the profiled core

    def __post_init__(self) -> None:
        not_negative(self, "query_time")
        positive(self, "slowdown")


@dataclass(frozen=True)
class Served:
    """An index behind a database; a batch is sent as one query after another over connections of their own."""

    index: Hnsw | IvfPq | Flat
    database: Database

    @property
    def recall(self) -> float | None:
        return self.index.recall

    @property
    def memory_bytes(self) -> float:
        return self.index.memory_bytes

    def work(self, queries: int) -> Work:
        inner = self.index.work(1)
        slow = self.database.slowdown
        return Work(queries * inner.core_seconds * slow, queries * inner.traffic, self.database.query_time)
