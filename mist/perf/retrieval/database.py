"""A vector database around an index: what a query costs over the wire, and how its program compares with faiss."""

from dataclasses import Field, dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any, ClassVar, Protocol

from mist.errors import InputError
from mist.perf.retrieval.checks import at_least_one, not_negative, positive
from mist.perf.retrieval.index import Around, Searched
from mist.perf.work import Work
from mist.units import Bytes, Seconds

ELEMENT = 4.0  # bytes; vectors come as FP32, whatever an index makes of them


@dataclass(frozen=True)
class Database:
    """Two scalars that belong to one database and version, never to an index, and how it cuts a collection.

    Every segment is an index of its own, searched as deep as the whole would be: more segments are more work, which
    several cores share.
    """

    name: str
    version: str
    query_time: Seconds  # request, network, plan and answer of one query
    slowdown: float  # its search over the same search by faiss on the profiled core
    segments: int = 1  # that a collection is cut into, at least
    segment_bytes: Bytes | None = None  # of vectors in a segment, as they came, at most; None: no limit

    def __post_init__(self) -> None:
        not_negative(self, "query_time")
        positive(self, "slowdown")
        at_least_one(self, "segments")
        if self.segment_bytes is not None and not self.segment_bytes > 0:
            raise InputError("segment_bytes", self.segment_bytes, "must be positive")


class Index(Searched, Protocol):
    """A flat, IVF-PQ or HNSW index."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # a dataclass: a segment is the same index of fewer vectors

    @property
    def vectors(self) -> int:
        """How many it holds."""

    @property
    def dim(self) -> int:
        """Their dimensions."""

    def work(self, queries: int) -> Work:
        """The work of one batch of so many queries."""


@dataclass(frozen=True)
class Served(Around):
    """An index behind a database; a batch is sent as one query after another over connections of their own."""

    index: Index
    database: Database

    @cached_property
    def segments(self) -> int:
        """As few as the database makes, and its limit on their size allows."""
        size = self.index.vectors * self.index.dim * ELEMENT
        limit = self.database.segment_bytes or size
        return min(max(self.database.segments, ceil(size / limit)), self.index.vectors)

    def work(self, queries: int) -> Work:
        segment = self._segment.work(1)
        searches, slow = queries * self.segments, self.database.slowdown
        return Work(searches * segment.core_seconds * slow, searches * segment.traffic, self.database.query_time)

    @cached_property
    def _segment(self) -> Index:
        if self.segments == 1:
            return self.index
        return replace(self.index, vectors=ceil(self.index.vectors / self.segments))
