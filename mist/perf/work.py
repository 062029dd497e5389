"""What one batch asks of the host that serves it."""

from typing import NamedTuple, Protocol


class Work(NamedTuple):
    """One batch on a host: alone it takes the longer of compute and memory traffic, and the latency on top."""

    core_seconds: float
    traffic: float  # bytes of memory traffic
    latency: float  # s, does not scale with sharing


class ServiceModel(Protocol):
    """How much work a batch is: pure, blind to everything but its size."""

    def work(self, queries: int) -> Work:
        """The work of one batch of so many queries."""
