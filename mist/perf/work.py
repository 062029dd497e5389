"""What a batch asks of a host, before anything is known of who else runs there."""

from typing import NamedTuple, Protocol

from mist.errors import Infeasible


class Work(NamedTuple):
    """One batch on a host: work that sharing stretches, and a floor that it does not."""

    core_seconds: float  # s of one core, over all cores it runs on
    traffic: float  # bytes to and from memory
    latency: float  # s; does not scale with sharing

    def alone(self, cores: float, bandwidth: float) -> float:
        """Seconds on ``cores`` cores and ``bandwidth`` bytes/s that nothing else uses."""
        return self.latency + max(self.core_seconds / cores, self.traffic / bandwidth)


class ServiceModel(Protocol):
    """How much work a batch is: pure, exact, blind to everything but its size."""

    def work(self, queries: int) -> Work:
        """The work of one batch of ``queries`` (at least 1)."""


class Resident(Protocol):
    """Something that lies in memory for as long as it serves."""

    @property
    def memory_bytes(self) -> float:
        """Bytes it occupies."""


def check_memory(resident: Resident, memory: float, what: str, where: str) -> None:
    """Raises Infeasible, with the numbers, if ``what`` does not fit the ``memory`` bytes of ``where``."""
    if resident.memory_bytes > memory:
        need, have = resident.memory_bytes / 1e9, memory / 1e9
        raise Infeasible(f"{what} needs {need:.4g} GB of memory, {where} has {have:.4g} GB")
