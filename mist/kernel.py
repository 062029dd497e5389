"""The discrete-event kernel: a clock and a queue of calls."""

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any

from mist.errors import CausalityError

FACT, ROUTE, DECIDE = 0, 1, 2


class Kernel:
    """Makes calls in order of (time, rank, insertion).

    Ranks put facts before decisions: everything that happened at an instant (FACT) is in before a request
    is sent anywhere (ROUTE), and every request has been sent before a client chooses its next step
    (DECIDE). So no choice depends on the order in which simultaneous events were inserted.
    """

    __slots__ = ("_queue", "_serial", "events", "now")

    def __init__(self) -> None:
        self.now = 0.0  # s
        self.events = 0  # calls made
        self._serial = 0
        self._queue: list[tuple[float, int, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, time: float, call: Callable[..., None], *args: Any, rank: int = FACT) -> None:
        if not time >= self.now:  # phrased so that NaN is refused too
            raise CausalityError(f"{call.__qualname__} at {time} s, but it is {self.now} s")
        self._serial += 1
        heappush(self._queue, (time, rank, self._serial, call, args))

    def after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self.at(self.now + delay, call, *args)

    def choose(self, call: Callable[..., None], *args: Any, rank: int = DECIDE) -> None:
        """Call at this instant, once everything of lower rank is in."""
        self.at(self.now, call, *args, rank=rank)

    def run(self, until: float = inf) -> None:
        """Make every call due up to ``until``, seconds; the clock stops at the last one made."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, _, call, args = heappop(queue)
            self.events += 1
            call(*args)

    @property
    def idle(self) -> bool:
        return not self._queue
