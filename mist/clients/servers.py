"""What runs the batches of a station: a host that others share, or devices of its own."""

from collections.abc import Callable

from mist.clients.host import Host
from mist.clients.station import Task
from mist.hardware import HardwareSpec
from mist.kernel import Kernel
from mist.perf.power import joules
from mist.perf.work import Work

Batch = tuple[float, float, float, Callable[[], None]]  # s: when it began, how long, that at full utilisation; then


class OnHost:
    """Runs the ``work`` of a batch on at most ``cores`` of a shared host, whose energy is the host's."""

    def __init__(self, host: Host, cores: int, work: Callable[[list[Task]], Work]) -> None:
        self.host, self.cores, self.work = host, cores, work

    def run(self, batch: list[Task], call: Callable[[], None]) -> None:
        self.host.run(self.work(batch), self.cores, call)

    def joules(self, elapsed: float) -> float:  # noqa: ARG002
        return 0.0


class OnDevices:
    """Runs a batch a server, each on ``each`` devices of its own, and adds up what they have done.

    ``spent`` is a batch's time and that at full utilisation, seconds; a batch asks for its load evenly.
    """

    def __init__(
        self,
        kernel: Kernel,
        hardware: HardwareSpec,
        *,
        servers: int,
        each: int = 1,
        spent: Callable[[list[Task]], tuple[float, float]],
    ) -> None:
        self.kernel, self.hardware, self.servers, self.each, self.spent = kernel, hardware, servers, each, spent
        self._load = self._busy = 0.0  # s, of batches that ended
        self._running: dict[int, Batch] = {}
        self._begun = 0

    def run(self, batch: list[Task], call: Callable[[], None]) -> None:
        time, load = self.spent(batch)
        self._begun += 1
        self._running[self._begun] = self.kernel.now, time, load, call
        self.kernel.after(time, self._end, self._begun)

    def _end(self, number: int) -> None:
        if number in self._running:
            _, time, load, call = self._running.pop(number)
            self._load += load
            self._busy += time
            call()

    def stop(self, call: Callable[[], None]) -> None:
        """The batch that was to end with this call ends here; its call is not made."""
        number = next(number for number, batch in self._running.items() if batch[3] is call)
        began, time, load, _ = self._running.pop(number)
        spent = self.kernel.now - began
        self._busy += spent
        self._load += load * spent / time if time else 0.0

    def worked(self) -> tuple[float, float]:
        """Seconds at full utilisation and seconds spent, of all batches together, up to now."""
        load, busy, now = self._load, self._busy, self.kernel.now
        for began, time, all_of_it, _ in self._running.values():
            busy += now - began
            load += all_of_it * (now - began) / time if time else 0.0
        return load, busy

    def joules(self, elapsed: float) -> float:
        return joules(self.hardware, self.each, elapsed * self.servers, *self.worked())
