"""Stations whose batches are work: on a host that others share, or on a device that nobody does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mist.clients.batches import Batches
from mist.clients.host import Host
from mist.clients.station import Server, Task, check_scaling, check_station
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.kernel import Kernel
from mist.perf.power import joules
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
        return OnHost(hosts[self.host], self)


class DeviceModel(Protocol):
    """How long a batch takes on a device that it has to itself: all of its work is latency."""

    @property
    def hardware(self) -> HardwareSpec:
        """The device."""

    def work(self, queries: int) -> Work:
        """The work of one batch of so many queries."""


@dataclass(frozen=True)
class DeviceStation:
    """Batches whose ``work`` runs in ``servers`` copies, each on a device of its own, at full power."""

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
        return OnDevice(kernel, self)


class OnHost:
    """Runs batches on a shared host, whose energy is the host's."""

    def __init__(self, host: Host, spec: HostStation) -> None:
        self.host, self.spec = host, spec
        host.hold(getattr(spec.work, "memory_bytes", 0.0), spec.service)

    def run(self, batch: list[Task], call: Callable[[], None]) -> None:
        self.host.run(self.spec.work.work(sum(task.items for task in batch)), self.spec.cores, call)

    def joules(self, elapsed: float) -> float:  # noqa: ARG002
        return 0.0


class OnDevice:
    """Runs a batch a server. Infeasible where what the model keeps in memory does not fit the device's."""

    def __init__(self, kernel: Kernel, spec: DeviceStation) -> None:
        hardware = spec.work.hardware
        check_memory(getattr(spec.work, "memory_bytes", 0.0), hardware.memory, "the index", hardware.name)
        self.spec, self.batches = spec, Batches(kernel)

    def run(self, batch: list[Task], call: Callable[[], None]) -> None:
        time = self.spec.work.work(sum(task.items for task in batch)).latency
        self.batches.run(time, time, call)

    def joules(self, elapsed: float) -> float:
        return joules(self.spec.work.hardware, 1, elapsed * self.spec.servers, *self.batches.worked())
