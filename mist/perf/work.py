"""What one batch asks of the host that serves it."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mist.errors import InputError
from mist.units import Bytes, Seconds


class Work(NamedTuple):
    """One batch on a host: alone it takes the longer of compute and memory traffic, and the latency on top."""

    core_seconds: float
    traffic: float  # bytes of memory traffic
    latency: float  # s, does not scale with sharing


class ServiceModel(Protocol):
    """How much work a batch is: pure, blind to everything but its size."""

    def work(self, queries: int) -> Work:
        """The work of one batch of so many queries."""


@dataclass(frozen=True)
class PerQuery:
    """Every query the same: ``core_time`` and ``traffic`` of each, and one ``latency`` a batch."""

    core_time: Seconds  # on one core
    traffic: Bytes
    latency: Seconds = 0.0

    def __post_init__(self) -> None:
        for field in ("core_time", "traffic", "latency"):
            if getattr(self, field) < 0:
                raise InputError(field, getattr(self, field), "must not be negative")

    def work(self, queries: int) -> Work:
        return Work(queries * self.core_time, queries * self.traffic, self.latency)
