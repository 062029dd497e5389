"""Batches that devices of their own run, and what has been spent on them so far."""

from collections.abc import Callable

from mist.kernel import Kernel

Batch = tuple[float, float, float, Callable[[], None]]  # s: when it began, how long, that at full utilisation; then


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
