"""Exact search: every query is compared with every vector (Johnson et al., arXiv:1702.08734, section 2)."""

from dataclasses import dataclass

from mist.errors import InputError
from mist.model import BYTES_PER_ELEMENT, Dtype
from mist.perf.retrieval.checks import at_least_one, positive
from mist.perf.work import Work
from mist.units import BytesPerSecond, OpsPerSecond, Seconds


@dataclass(frozen=True)
class FlatRates:
    """What one core reaches, as measured: constants of a machine and a library, not of an index."""

    call_time: Seconds  # one call, whatever the batch
    query_time: Seconds  # one query, whatever the index
    scan_rate: BytesPerSecond  # vectors compared with one query
    matrix_rate: OpsPerSecond  # vectors compared with a batch, as one matrix product

    def __post_init__(self) -> None:
        positive(self, "scan_rate", "matrix_rate")
        if self.call_time < 0 or self.query_time < 0:
            field = "call_time" if self.call_time < 0 else "query_time"
            raise InputError(field, getattr(self, field), "must not be negative")


@dataclass(frozen=True)
class Flat:
    """An index without structure: recall is 1.

    A batch is searched query by query, or as one matrix product that reads the vectors once for all, whichever is
    the shorter.
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
        rates = self.rates
        flops, once = self.operations(queries)
        single, product = queries * once / rates.scan_rate, once / rates.scan_rate + flops / rates.matrix_rate
        traffic = once if product < single else queries * once
        return Work(queries * rates.query_time + min(single, product), traffic, rates.call_time)
