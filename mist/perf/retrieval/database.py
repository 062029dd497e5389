"""A vector database around an index: what a query costs over the wire, and how its program compares with faiss."""

from dataclasses import dataclass
from typing import Protocol

from mist.perf.retrieval.checks import not_negative, positive
from mist.perf.retrieval.index import Around, Searched
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


class Index(Searched, Protocol):
    """A flat, IVF-PQ or HNSW index."""

    def work(self, queries: int) -> Work:
        """The work of one batch of so many queries."""


@dataclass(frozen=True)
class Served(Around):
    """An index behind a database; a batch is sent as one query after another over connections of their own."""

    index: Index
    database: Database

    def work(self, queries: int) -> Work:
        inner = self.index.work(1)
        slow = self.database.slowdown
        return Work(queries * inner.core_seconds * slow, queries * inner.traffic, self.database.query_time)
