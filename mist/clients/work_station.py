"""Stations whose batches are work: on a host that others share, or on a device that nobody does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mist.clients.host import Host
from mist.clients.servers import OnDevices, OnHost
from mist.clients.station import Server, Task, check_scaling, check_station
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.kernel import Kernel
from mist.perf.retrieval.checks import check_memory
from mist.perf.work import ServiceModel, Work
from mist.scaling import FIXED, Scaling
from mist.units import Seconds


@dataclass(frozen=True)
class HostStation:
    """Batches whose ``work`` runs on a ``host`` with whatever else runs there, each on at most ``cores`` of it.

    What the model keeps in memory (``memory_bytes``, where it says so) is in the host's; Infeasible if it does not fit.
    """

    host: str
    work: ServiceModel
    servers: int | None = 1
    cores: int = 1
    max_batch: int = 1
    max_wait: Seconds = 0.0

    timed = False
    devices = 0

    def __post_init__(self) -> None:
        check_station(self.servers, self.max_batch, self.max_wait)
        if self.cores < 1:
            raise InputError("cores", self.cores, "must be at least 1")

    @property
    def service(self) -> str:
        return type(self.work).__name__.lower()

    @property
    def place(self) -> str:
        return self.host

    def server(self, kernel: Kernel, hosts: Mapping[str, Host]) -> Server:  # noqa: ARG002
        host = hosts[self.host]
        host.hold(getattr(self.work, "memory_bytes", 0.0), self.service)
        return OnHost(host, self.cores, lambda batch: self.work.work(_items(batch)))


class DeviceModel(Protocol):
    """How long a batch takes on a device that it has to itself: all of its work is latency."""

    @property
    def hardware(self) -> HardwareSpec:
        """The device."""

    def work(self, queries: int) -> Work:
        """The work of one batch of so many queries."""


@dataclass(frozen=True)
class DeviceStation:
    """Batches whose ``work`` runs in ``servers`` copies, each on a device of its own, at full power.

    Infeasible where what the model keeps in memory does not fit the device's.
    """

    work: DeviceModel
    servers: int = 1
    max_batch: int = 1
    max_wait: Seconds = 0.0
    autoscaler: Scaling = FIXED

    timed = False

    def __post_init__(self) -> None:
        check_station(self.servers, self.max_batch, self.max_wait)
        check_scaling(self.autoscaler, self.servers)

    @property
    def service(self) -> str:
        return type(self.work).__name__.lower()

    @property
    def place(self) -> str:
        return self.work.hardware.name

    @property
    def devices(self) -> int:
        return self.servers

    def server(self, kernel: Kernel, hosts: Mapping[str, Host]) -> Server:  # noqa: ARG002
        hardware = self.work.hardware
        check_memory(getattr(self.work, "memory_bytes", 0.0), hardware.memory, "the index", hardware.name)
        return OnDevices(kernel, hardware, servers=self.servers, spent=self._spent)

    def _spent(self, batch: list[Task]) -> tuple[float, float]:
        time = self.work.work(_items(batch)).latency
        return time, time


def _items(batch: list[Task]) -> int:
    return sum(task.items for task in batch)
