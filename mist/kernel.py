"""The discrete-event kernel: a clock and a queue of calls."""

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any

from mist.errors import CausalityError

Call = Callable[..., None]


class Kernel:
    """Makes calls in order of time; at one instant, facts before routes before decisions.

    Everything that happened at an instant is in before a request is sent anywhere (``route``), and every
    request has been sent before a client chooses its next step (``decide``). So no choice depends on the
    order in which simultaneous events were inserted.
    """

    __slots__ = ("_decisions", "_facts", "_routes", "_serial", "events", "now")

    def __init__(self) -> None:
        self.now = 0.0  # s
        self.events = 0  # calls made
        self._serial = 0
        self._facts: list[tuple[float, int, Call, tuple[Any, ...]]] = []
        self._routes: deque[tuple[Call, tuple[Any, ...]]] = deque()
        self._decisions: deque[tuple[Call, tuple[Any, ...]]] = deque()

    def at(self, time: float, call: Call, *args: Any) -> None:
        if not time >= self.now:  # phrased so that NaN is refused too
            raise CausalityError(f"{call.__qualname__} at {time} s, but it is {self.now} s")
        self._serial += 1
        heappush(self._facts, (time, self._serial, call, args))

    def after(self, delay: float, call: Call, *args: Any) -> None:
        self.at(self.now + delay, call, *args)

    def route(self, call: Call, *args: Any) -> None:
        """Call at this instant, once every fact of it is in."""
        self._routes.append((call, args))

    def decide(self, call: Call, *args: Any) -> None:
        """Call at this instant, once every fact of it is in and every request is where it goes."""
        self._decisions.append((call, args))

    def run(self, until: float = inf) -> None:
        """Make every call due up to ``until``, seconds; the clock stops at the last one made."""
        facts, routes, decisions = self._facts, self._routes, self._decisions
        now = self.now
        while True:
            if facts and facts[0][0] <= now:
                _, _, call, args = heappop(facts)
            elif routes:
                call, args = routes.popleft()
            elif decisions:
                call, args = decisions.popleft()
            elif facts and facts[0][0] <= until:
                now, _, call, args = heappop(facts)
                self.now = now
            else:
                return
            self.events += 1
            call(*args)

    def clear(self) -> None:
        """Forget every call not made; what they hold is freed."""
        self._facts.clear()
        self._routes.clear()
        self._decisions.clear()

    @property
    def idle(self) -> bool:
        """Whether no call is left to make."""
        return not (self._facts or self._routes or self._decisions)
