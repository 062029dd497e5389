"""An index on an accelerator: the longer of arithmetic and memory traffic (Williams et al., CACM 52(4), 2009)."""

from dataclasses import dataclass
from typing import Protocol

from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.perf.retrieval.checks import not_negative
from mist.perf.retrieval.index import Around, Searched
from mist.perf.work import Work
from mist.units import Seconds


class Scanned(Searched, Protocol):
    """An index whose search is a scan: flat and IVF-PQ, not a walk over a graph."""

    def operations(self, queries: int) -> tuple[float, float]:
        """Operations and bytes read by a batch."""


@dataclass(frozen=True)
class OnDevice(Around):
    """A flat or IVF-PQ index in an accelerator's memory, searched by the whole device at once.

    Nobody shares the device: all of its time is latency. Whether the index fits is for the station to say.
    """

    index: Scanned
    hardware: HardwareSpec
    matmul_efficiency: float  # share of the FP32 peak that a search reaches
    bandwidth_efficiency: float  # share of the memory's bandwidth
    call_time: Seconds  # one batch: launch, copy of queries and results

    def __post_init__(self) -> None:
        if self.hardware.kind == "cpu":
            raise InputError("hardware", self.hardware.name, "is a host: the index itself says what it costs there")
        for field in ("matmul_efficiency", "bandwidth_efficiency"):
            if not 0 < getattr(self, field) <= 1:
                raise InputError(field, getattr(self, field), "must lie in (0, 1]")
        not_negative(self, "call_time")

    def work(self, queries: int) -> Work:
        flops, traffic = self.index.operations(queries)
        compute = flops / (self.hardware.peak("fp32") * self.matmul_efficiency)
        memory = traffic / (self.hardware.memory_bandwidth * self.bandwidth_efficiency)
        return Work(0.0, 0.0, self.call_time + max(compute, memory))
