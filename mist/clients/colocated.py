"""Engines side by side on the same devices, which share their time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from mist.clients.cascading import CascadingClient
from mist.clients.leaping import LeapingClient
from mist.clients.speculative import SpeculativeClient
from mist.kernel import Kernel
from mist.perf.base import Stretch


@dataclass(slots=True)
class Job:
    """A step or a leap under way: ``left`` seconds of the whole device at ``since``, done at ``rate`` from then on."""

    since: float
    left: float
    rate: float
    ended: Callable[..., None]
    arguments: tuple[Any, ...]

    @property
    def end(self) -> float:
        return self.since + self.left / self.rate if self.rate else inf


class SharedDevice:
    """The devices of one replica of each of several pools: whoever has a step to make gets a part of their time.

    Processor sharing: of the engines that are in a step, each goes on at its share of the sum of their ``shares``,
    alone at full speed. That is the limit of time slices short against a step (NVIDIA, "Time-Slicing GPUs in
    Kubernetes": equal slices, one process at a time), and of MPS with active thread percentages
    when every kernel fills its part. With ``priority``, only the engines of the largest share among those in a step go
    on, and the others stand still meanwhile.
    """

    def __init__(self, kernel: Kernel, shares: Mapping[str, float], priority: bool) -> None:
        self.kernel, self.shares, self.priority = kernel, shares, priority
        self._jobs: dict[ColocatedClient, Job] = {}
        self._stamp = 0  # of the next end that was announced

    def shared_by(self, client: "ColocatedClient") -> bool:
        """Whether another engine is in a step."""
        return any(other is not client for other in self._jobs)

    def run(
        self, client: "ColocatedClient", time: float, ended: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        """Do ``time`` seconds' work for ``client``, then call ``ended``."""
        for other in self._jobs:
            other.make_room()
        self._jobs[client] = Job(self.kernel.now, time, 1.0, ended, arguments)
        self._share_out()

    def resize(self, client: "ColocatedClient", time: float) -> None:
        """The job of a client that had the device to itself is of so many seconds in all."""
        self._jobs[client].left = time
        self._announce()

    def drop(self, client: "ColocatedClient") -> float | None:
        """An engine is gone; the seconds of the whole device that its step was still to take, None without one."""
        job = self._jobs.pop(client, None)
        if job is None:
            return None
        left = max(job.left - (self.kernel.now - job.since) * job.rate, 0.0)
        self._share_out()
        return left

    def _share_out(self) -> None:
        """New rates, now that others are in a step than before."""
        now, weights = self.kernel.now, self._weights()
        total = sum(weights.values())
        for client, job in self._jobs.items():
            rate = weights[client] / total
            if rate != job.rate:
                job.left = max(job.left - (now - job.since) * job.rate, 0.0)
                job.since, job.rate = now, rate
        self._announce()

    def _weights(self) -> dict["ColocatedClient", float]:
        weights = {client: self.shares[client.pool] for client in self._jobs}
        if self.priority and weights:
            first = max(weights.values())
            return {client: float(weight == first) for client, weight in weights.items()}
        return weights

    def _announce(self) -> None:
        self._stamp += 1
        if self._jobs:
            client = min(self._jobs, key=lambda client: self._jobs[client].end)
            self.kernel.at(max(self._jobs[client].end, self.kernel.now), self._end, client, self._stamp)

    def _end(self, client: "ColocatedClient", stamp: int) -> None:
        if stamp == self._stamp:
            job = self._jobs.pop(client)
            self._share_out()
            job.ended(*job.arguments)


def alone(_pool: str, _replica: int) -> SharedDevice | None:
    """Devices of its own."""
    return None


class ColocatedClient(LeapingClient):
    """A LeapingClient that shares its devices with those of other pools.

    It leaps only while the others stand still: a leap ends with the step in which one of them begins.
    """

    def __init__(self, kernel: Kernel, name: str, *, device: SharedDevice, pool: str, **engine: Any) -> None:
        """``engine`` is what Seats take."""
        super().__init__(kernel, name, **engine)
        self.device, self.pool = device, pool

    def make_room(self) -> None:
        """Another engine begins a step."""
        if self._leap is not None:
            self._cut()

    def fail(self) -> None:
        """Stop for good; a step that shared the device has spent what it had of it."""
        left = self.device.drop(self)
        if left is not None and self._leap is not None:
            _, steps, stretch = self._leap
            self._leap = self.kernel.now - max(stretch.time(steps) - left, 0.0), steps, stretch
        elif left is not None and self._step is not None:
            _, time, load = self._step
            self._step = self.kernel.now - max(time - left, 0.0), time, load
        super().fail()

    def _take(self, time: float, ended: Callable[..., None], *arguments: Any) -> None:
        self.device.run(self, time, ended, arguments)

    def _stretch(self) -> Stretch:
        stretch = super()._stretch()
        return Stretch(1, stretch.first, 0.0) if self.device.shared_by(self) else stretch

    def _cut(self) -> None:
        assert self._leap is not None
        start, steps, stretch = self._leap
        kept = self._begun(self._leap)
        if kept < steps:  # it had the device to itself
            self._leap = start, kept, stretch
            self.device.resize(self, stretch.time(kept))


class ColocatedSpeculativeClient(ColocatedClient, SpeculativeClient):
    """One that drafts and verifies; it never leaps."""

    def _run_decodes(self) -> None:
        SpeculativeClient._run_decodes(self)


class ColocatedCascadingClient(ColocatedClient, CascadingClient):
    """One that reads a common prefix once."""
