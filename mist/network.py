"""Links between clients: latency, and bandwidth that concurrent transfers share equally."""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

from mist.errors import InputError
from mist.kernel import Kernel
from mist.units import BytesPerSecond, Seconds


@dataclass(frozen=True)
class LinkSpec:
    """A path from one pool to another, one direction."""

    name: str
    bandwidth: BytesPerSecond
    latency: Seconds

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise InputError("bandwidth", self.bandwidth, "must be positive")
        if self.latency < 0:
            raise InputError("latency", self.latency, "must not be negative")


class Link:
    """Transfers in flight share the bandwidth equally (processor sharing) and then take one latency.

    Work is measured per transfer: while n are in flight, each gets ``bandwidth / n``; a transfer of S bytes
    ends when that common progress has grown by S, so a change costs O(log n).
    """

    def __init__(self, kernel: Kernel, spec: LinkSpec) -> None:
        self.kernel, self.spec = kernel, spec
        self.bytes_sent = 0.0
        self._progress = 0.0  # bytes that a transfer in flight since the start would have sent
        self._since = 0.0  # s
        self._ends: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []  # (progress, serial, ...)
        self._serial = 0  # of changes
        self._flows = 0  # ever begun

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def next_flow(self) -> int:
        """The number of the transfer that is sent next."""
        return self._flows + 1

    def send(self, size: float, call: Callable[..., None], *args: Any) -> None:
        """Call once ``size`` bytes have arrived."""
        self._advance()
        self._serial += 1
        self._flows += 1
        self.bytes_sent += size
        heappush(self._ends, (self._progress + size, self._flows, call, args))
        self._plan()

    def cancel(self, flow: int) -> None:
        """Stop a transfer, if its last byte is not sent yet; the call is not made."""
        self._advance()
        for end in self._ends:
            if end[1] == flow:
                self._ends.remove(end)
                heapify(self._ends)
                self._serial += 1
                self.bytes_sent -= end[0] - self._progress
                self._plan()
                return

    def _advance(self) -> None:
        now = self.kernel.now
        if self._ends:
            self._progress += (now - self._since) * self.spec.bandwidth / len(self._ends)
        self._since = now

    def _plan(self) -> None:
        if self._ends:
            left = max(self._ends[0][0] - self._progress, 0.0)
            self.kernel.after(left * len(self._ends) / self.spec.bandwidth, self._end, self._serial, len(self._ends))

    def _end(self, serial: int, flows: int) -> None:
        if (serial, flows) != (self._serial, len(self._ends)):
            return  # another transfer began or ended meanwhile, and planned anew
        self._advance()
        end, _, call, args = heappop(self._ends)
        self._progress = end
        self.kernel.after(self.spec.latency, call, *args)
        self._plan()
