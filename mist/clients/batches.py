"""Batches that devices of their own run, and what has been spent on them so far."""

from collections.abc import Callable

from mist.kernel import Kernel

Batch = tuple[float, float, float]  # s: when it began, how long it takes, that at full utilisation


class Batches:
    """Runs batches side by side; a batch asks for its load evenly."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._load = self._busy = 0.0  # s, of those that ended
        self._running: dict[int, Batch] = {}
        self._begun = 0

    def run(self, time: float, load: float, call: Callable[[], None]) -> None:
        """Call once ``time`` is over, ``load`` seconds of it at full utilisation."""
        self._begun += 1
        self._running[self._begun] = self.kernel.now, time, load
        self.kernel.after(time, self._end, self._begun, call)

    def _end(self, number: int, call: Callable[[], None]) -> None:
        _, time, load = self._running.pop(number)
        self._load += load
        self._busy += time
        call()

    def worked(self) -> tuple[float, float]:
        """Seconds at full utilisation and seconds spent, of all batches together, up to now."""
        load, busy, now = self._load, self._busy, self.kernel.now
        for began, time, all_of_it in self._running.values():
            busy += now - began
            load += all_of_it * (now - began) / time if time else 0.0
        return load, busy
