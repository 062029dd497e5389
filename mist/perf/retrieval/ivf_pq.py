"""Inverted file with product quantisation (Jegou et al., IEEE TPAMI 33(1), 2011).

The cost is that of the MIST paper (arXiv:2504.09775): for one query over ``nc`` centroids, ``np`` probes, ``M``
sub-quantisers of 8 bits, ``v`` vectors per list and ``k`` results in ``D`` dimensions

    operations  2 D nc + M v np + 2 D k            (the table of 2 x 256 D operations apart)
    bytes       4 nc D + 4 * 256 D + np v M + 4 k D

where the last term of each scores the results again with the full vectors (``refine``). The paper's program reads
``v M`` bytes of codes, without ``np``; the formula above, and this module, read those of every list probed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mist.errors import InputError
from mist.perf.retrieval.checks import at_least_one, check_recalls, not_negative, positive
from mist.perf.retrieval.recall import recall_at
from mist.perf.work import Work
from mist.units import BytesPerSecond, OpsPerSecond, Seconds

CODEWORDS = 256  # of a sub-quantiser of 8 bits
ELEMENT = 4.0  # bytes; queries, centroids and tables are float32
ID = 8.0  # bytes a list stores beside each code (faiss: idx_t)


@dataclass(frozen=True)
class IvfPqRates:
    """What one core reaches, as measured: constants of a machine and a library, not of an index."""

    call_time: Seconds  # one call, whatever the batch
    query_time: Seconds  # one query, whatever the index
    matrix_rate: OpsPerSecond  # coarse search and distance tables
    probe_time: Seconds  # one list opened
    code_time: Seconds  # one code, whatever its length
    scan_rate: BytesPerSecond  # codes looked up in the tables
    result_time: Seconds  # one neighbour returned

    def __post_init__(self) -> None:
        positive(self, "matrix_rate", "scan_rate")
        not_negative(self, "call_time", "query_time", "probe_time", "code_time", "result_time")


@dataclass(frozen=True)
class IvfPq:
    """An IVF-PQ index; ``recalls`` maps probes to recall, where the user knows it."""

    vectors: int
    dim: int
    centroids: int
    probes: int  # lists searched per query
    subquantisers: int  # bytes of a code
    rates: IvfPqRates
    k: int = 10  # neighbours returned
    refine: int = 0  # candidates per neighbour that are scored again with full vectors, kept beside the codes
    imbalance: float = 1.0  # centroids x sum of squared list shares: how many more codes than with equal lists are read
    recalls: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least_one(self, "vectors", "dim", "centroids", "probes", "subquantisers", "k")
        not_negative(self, "refine")
        check_recalls(self.recalls)
        if self.centroids > self.vectors:
            raise InputError("centroids", self.centroids, f"the index has {self.vectors} vectors")
        if self.probes > self.centroids:
            raise InputError("probes", self.probes, f"the index has {self.centroids} centroids")
        if self.dim % self.subquantisers:
            divisors = [str(n) for n in range(1, self.dim + 1) if self.dim % n == 0]
            raise InputError("subquantisers", self.subquantisers, f"must divide dim, {self.dim}", divisors)
        if self.imbalance < 1:
            raise InputError("imbalance", self.imbalance, "must be at least 1, that of equal lists")
        self.recall  # noqa: B018 - a table that does not reach the setting is refused here

    @property
    def recall(self) -> float | None:
        """Recall at these probes, by the user's table; None without one."""
        return recall_at(self.recalls, self.probes)

    @property
    def codes(self) -> float:
        """Codes read per query; no more than there are."""
        return min(self.probes * self.vectors / self.centroids * self.imbalance, float(self.vectors))

    @property
    def memory_bytes(self) -> float:
        """Codes and ids, centroids, codebooks, and the full vectors where results are refined."""
        full = self.vectors * self.dim * ELEMENT if self.refine else 0.0
        return self.vectors * (self.subquantisers + ID) + (self.centroids + CODEWORDS) * self.dim * ELEMENT + full

    def operations(self, queries: int) -> tuple[float, float]:
        """Operations and bytes of a batch that reads the centroids and codebooks once, and each query's lists."""
        again = self.refine * self.k
        flops = 2.0 * self.dim * (self.centroids + CODEWORDS + again) + self.subquantisers * self.codes
        shared = ELEMENT * self.dim * (self.centroids + CODEWORDS)
        return queries * flops, shared + queries * (self.codes * self.subquantisers + ELEMENT * self.dim * again)

    def work(self, queries: int) -> Work:
        rates = self.rates
        tables = 2.0 * self.dim * (self.centroids + CODEWORDS + self.refine * self.k) / rates.matrix_rate
        scan = self.codes * (rates.code_time + self.subquantisers / rates.scan_rate)
        each = rates.query_time + tables + self.probes * rates.probe_time + scan + self.k * rates.result_time
        return Work(queries * each, self.operations(queries)[1], rates.call_time)
