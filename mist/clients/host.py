"""A CPU host: everything that runs on it shares its cores and its memory bandwidth."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from mist.errors import Infeasible, InputError
from mist.hardware import HardwareSpec
from mist.kernel import Kernel
from mist.perf.work import Work
from mist.units import DollarsPerHour


@dataclass(frozen=True)
class HostSpec:
    """``cores`` of a CPU and its memory bandwidth. ``price`` is that of the whole host; None is the price list's."""

    hardware: HardwareSpec
    cores: int
    price: DollarsPerHour | None = None

    def __post_init__(self) -> None:
        if self.cores < 1:
            raise InputError("cores", self.cores, "must be at least 1")
        if self.price is not None and self.price < 0:
            raise InputError("price", self.price, "must not be negative")


class _Use:
    __slots__ = ("args", "call", "left", "most", "rate")

    def __init__(self, amount: float, most: float, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.left, self.most, self.call, self.args = amount, most, call, args
        self.rate = 0.0


class Shared:
    """A resource whose users draw on it at once: equally, but none faster than it can (processor sharing).

    Exact: between two changes every user's rate is constant, and the next to end is the next event. With one user a
    core, n users on c cores each get min(1, c / n) of one.
    """

    def __init__(self, kernel: Kernel, capacity: float) -> None:
        self.kernel, self.capacity = kernel, capacity
        self.done = 0.0  # amount used up so far, to the last change
        self._uses: list[_Use] = []
        self._since = 0.0  # s
        self._stamp = 0  # tells a planned end from one that a change has overtaken

    @property
    def used(self) -> float:
        """Amount used up, up to now."""
        return self.done + (self.kernel.now - self._since) * sum(use.rate for use in self._uses)

    def use(self, amount: float, most: float, call: Callable[..., None], *args: Any) -> None:
        """Call once ``amount`` has been drawn, at a rate of at most ``most`` a second."""
        if amount <= 0:
            self.kernel.after(0.0, call, *args)
            return
        self._advance()
        self._uses.append(_Use(amount, most, call, args))
        self._plan()

    def _advance(self) -> None:
        now, elapsed = self.kernel.now, self.kernel.now - self._since
        if elapsed:
            for use in self._uses:
                drawn = min(use.rate * elapsed, use.left)
                use.left -= drawn
                self.done += drawn
        self._since = now

    def _plan(self) -> None:
        """Rates by filling up from the slowest, and the first to end."""
        left, sharing = self.capacity, len(self._uses)
        for use in sorted(self._uses, key=_most):
            use.rate = min(use.most, left / sharing)
            left -= use.rate
            sharing -= 1
        self._stamp += 1
        if self._uses:
            first = min(self._uses, key=_remaining)
            self.kernel.after(first.left / first.rate, self._end, self._stamp, first)

    def _end(self, stamp: int, use: _Use) -> None:
        if stamp != self._stamp:
            return
        self._advance()
        self.done += use.left  # what rounding left of it
        self._uses.remove(use)
        self._plan()
        use.call(*use.args)


def _most(use: _Use) -> float:
    return use.most


def _remaining(use: _Use) -> float:
    return use.left / use.rate


class Host:
    """Runs batches: cores and memory bandwidth are shared each for itself, and a batch ends when it has had both.

    Alone, a batch takes max(core seconds / its cores, traffic / bandwidth) and its latency: the roofline.
    """

    def __init__(self, kernel: Kernel, name: str, spec: HostSpec) -> None:
        self.kernel, self.name, self.spec = kernel, name, spec
        self.cores = Shared(kernel, float(spec.cores))
        self.memory = Shared(kernel, spec.hardware.memory_bandwidth)
        self._held: list[tuple[str, float]] = []

    @property
    def held(self) -> float:
        """Bytes in memory."""
        return sum(size for _, size in self._held)

    def hold(self, size: float, what: str) -> None:
        """Keep ``size`` bytes in memory, always; Infeasible, with the numbers, if they do not fit."""
        self._held.append((what, size))
        memory = self.spec.hardware.memory
        if self.held > memory:
            parts = " + ".join(f"{name} {part / 1e9:.1f}" for name, part in self._held if part)
            have = f"{self.spec.hardware.name} has {memory / 1e9:.1f}"
            raise Infeasible(f"host {self.name} is to keep {self.held / 1e9:.1f} GB in memory ({parts}), {have}")

    def run(self, work: Work, cores: float, call: Callable[[], None]) -> None:
        """Call once ``work`` is done on at most so many ``cores``."""
        waits = [2]
        part = partial(self._part, waits, work.latency, call)
        self.cores.use(work.core_seconds, cores, part)
        self.memory.use(work.traffic, inf, part)

    def _part(self, waits: list[int], latency: float, call: Callable[[], None]) -> None:
        waits[0] -= 1
        if not waits[0]:
            self.kernel.after(latency, call)

    def joules(self, elapsed: float) -> float:
        """Energy drawn in ``elapsed`` seconds: idle power, and the rest in proportion to busy cores."""
        sheet = self.spec.hardware
        return sheet.idle_power * elapsed + (sheet.power - sheet.idle_power) * self.cores.used / self.spec.cores
