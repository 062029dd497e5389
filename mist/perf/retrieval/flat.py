"""Exact search: every query is compared with every vector (Johnson et al., arXiv:1702.08734, section 2)."""

from dataclasses import dataclass

from mist.errors import InputError
from mist.model import BYTES_PER_ELEMENT, Dtype
from mist.perf.retrieval.checks import at_least_one, not_negative, positive
from mist.perf.work import Work
from mist.units import Bytes, BytesPerSecond, OpsPerSecond, Seconds


@dataclass(frozen=True)
class FlatRates:
    """What one core reaches, as measured: constants of a machine and a library, not of an index."""

    call_time: Seconds  # one call, whatever the batch
    query_time: Seconds  # one query, whatever the index
    scan_rate: BytesPerSecond  # vectors in memory compared with one query
    cached_rate: BytesPerSecond  # vectors in the cache compared with one query
    cache: Bytes  # last-level cache
    matrix_rate: OpsPerSecond  # vectors compared with a batch, as one matrix product
    matrix_from: float  # queries x dim from which the library takes the matrix product
    candidate_time: Seconds  # one entry of that product looked at
    result_time: Seconds  # one neighbour returned

    def __post_init__(self) -> None:
        positive(self, "scan_rate", "cached_rate", "matrix_rate")
        not_negative(self, "call_time", "query_time", "cache", "matrix_from", "candidate_time", "result_time")


@dataclass(frozen=True)
class Flat:
    """An index without structure: recall is 1.

    A small batch is searched query by query, each reading all vectors; one of ``matrix_from`` numbers or more is a
    matrix product that reads them once.
    """

    vectors: int
    dim: int
    rates: FlatRates
    k: int = 10  # neighbours returned
    dtype: Dtype = "fp32"

    def __post_init__(self) -> None:
        at_least_one(self, "vectors", "dim", "k")
        if self.k > self.vectors:
            raise InputError("k", self.k, f"the index has {self.vectors} vectors")

    @property
    def recall(self) -> float:
        return 1.0

    @property
    def memory_bytes(self) -> float:
        return self.vectors * self.dim * BYTES_PER_ELEMENT[self.dtype]

    def operations(self, queries: int) -> tuple[float, float]:
        """Floating-point operations and bytes read by a batch that shares one pass over the vectors."""
        return 2.0 * queries * self.vectors * self.dim, self.memory_bytes

    def work(self, queries: int) -> Work:
        rates, once = self.rates, self.memory_bytes
        each = rates.query_time + self.k * rates.result_time
        if queries * self.dim >= rates.matrix_from:
            product = self.operations(queries)[0] / rates.matrix_rate + queries * self.vectors * rates.candidate_time
            return Work(queries * each + product, once, rates.call_time)
        cached = once <= rates.cache  # pass after pass over more than the cache holds finds nothing in it
        scan = once / (rates.cached_rate if cached else rates.scan_rate)
        return Work(queries * (each + scan), 0.0 if cached else queries * once, rates.call_time)
