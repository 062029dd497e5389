"""Which replicas of a pool are up: ordered, starting, up, draining, failed, released."""

from bisect import insort
from collections import deque
from collections.abc import Callable
from math import fsum
from typing import Any

from mist.kernel import Kernel
from mist.policy import PoolView
from mist.scaling import Autoscale
from mist.spans import Span


class Fleet:
    """The states of a pool's replicas. Whoever routes looks at ``up``; what cannot be routed waits in ``held``.

    An index is given again once its replica is released; every start is a new, empty client. ``spans`` is the
    whole history: what is rented, by whom it could be served and how long it was out of order follow from it.
    ``clients`` are engines; the servers of a station are none (see mist/crew.py).
    """

    def __init__(
        self,
        kernel: Kernel,
        clients: list[Any],
        outstanding: list[int],
        start: Callable[[int], Any],
    ) -> None:
        self.kernel, self.clients, self.outstanding, self._start = kernel, clients, outstanding, start
        self.up = list(range(len(clients)))  # ascending
        self.held: deque[Callable[[], None]] = deque()  # until a replica comes up
        self.retired: list[Any] = []
        self.spans: list[Span] = []
        self.failures = 0
        self.joined = 0  # replicas taken over from another role
        self.on_up: Callable[[int], None] | None = None
        self.fetching: Callable[[], int] = int  # requests in no line, since their caches are on the way
        self._now: dict[int, Span] = {index: Span(index, "up", 0.0) for index in self.up}
        self._life = [0] * len(clients)  # tells an event for a replica from one for its predecessor
        self._then: dict[int, Callable[[int], None]] = {}  # once drained, with its index

    def count(self, *states: str) -> int:
        return sum(1 for span in self._now.values() if span.state in states)

    def state(self, index: int) -> str:
        return self._now[index].state if index in self._now else "released"

    def life(self, index: int) -> int:
        """Changes whenever the replica at ``index`` starts, comes up or ends."""
        return self._life[index]

    def _enter(self, index: int, state: str | None) -> None:
        now, old = self.kernel.now, self._now.pop(index, None)
        self._life[index] += state != "draining"
        if old is not None:
            self.spans.append(old._replace(until=now))
        if state is not None:
            self._now[index] = Span(index, state, now)

    @property
    def vacant(self) -> int:
        """The index of the next replica that is ordered."""
        return next((i for i in range(len(self.clients)) if i not in self._now), len(self.clients))

    def order(self, startup: float) -> None:
        """One replica more, in ``startup`` seconds."""
        index = self.vacant
        if index == len(self.clients):
            self.clients.append(self._start(index))
            self.outstanding.append(0)
            self._life.append(0)
        else:
            self._renew(index)
        self._enter(index, "starting")
        self.kernel.after(startup, self._come_up, index, self._life[index])

    def _renew(self, index: int) -> None:
        self.retired.append(self.clients[index])
        self.clients[index] = self._start(index)

    def _come_up(self, index: int, life: int) -> None:
        if life != self._life[index]:
            return
        self._enter(index, "up")
        insort(self.up, index)
        if self.on_up is not None:
            self.on_up(index)
        held, self.held = self.held, deque()
        for call in held:
            self.kernel.route(call)

    def shrink(self, then: Callable[[int], None] | None = None) -> None:
        """One replica fewer: the one ordered last of those starting, or of those up the one with the least to do.

        ``then`` is called with its index once it is released.
        """
        starting = [span for span in self._now.values() if span.state == "starting"]
        if starting and then is None:
            self._enter(starting[-1].replica, None)
            return
        index = min(reversed(self.up), key=self.outstanding.__getitem__)
        self.up.remove(index)
        self._enter(index, "draining")
        if then is not None:
            self._then[index] = then
        self.settle(index)

    def settle(self, index: int) -> None:
        """Release a draining replica if nothing is left on it."""
        if not self.outstanding[index] and self.empty(index) and self.state(index) == "draining":
            self._enter(index, None)
            self._then.pop(index, _nothing)(index)

    def empty(self, index: int) -> bool:
        """Whether its client holds nothing any more."""
        return not self.clients[index].kv.used

    def fail(self, index: int, repair: float) -> None:
        """The replica is gone with all it held; another one is up in its place ``repair`` seconds later."""
        self.failures += 1
        self.outstanding[index] = 0
        self._renew(index)
        if self.state(index) == "draining":
            self.settle(index)
            return
        self.up.remove(index)
        self._enter(index, "failed")
        self.kernel.after(repair, self._come_up, index, self._life[index])

    def history(self, now: float | None = None) -> list[Span]:
        """Every span so far; those that last still end now, or at a later ``now``."""
        until = self.kernel.now if now is None else now
        return [*self.spans, *(span._replace(until=until) for span in self._now.values())]

    def everybody(self) -> list[Any]:
        """Every client there has been."""
        return [*self.clients, *self.retired]


def _nothing(_index: int) -> None:
    pass


class Scaler:
    """Carries out an autoscaling policy on one fleet."""

    def __init__(self, kernel: Kernel, spec: Autoscale, fleet: Fleet) -> None:
        self.kernel, self.spec, self.fleet = kernel, spec, fleet
        self.ended = self.good = 0  # requests since the last look
        self._busy = 0.0  # s, of all clients until the last look
        self._looked = 0.0  # s
        self._wanted: deque[tuple[float, int]] = deque()  # (time, replicas), largest first
        if spec.min_replicas < spec.max_replicas:
            kernel.after(spec.interval, self._tick)

    def _tick(self) -> None:
        self.kernel.decide(self._look)
        self.kernel.after(self.spec.interval, self._tick)

    def _look(self) -> None:
        spec, fleet = self.spec, self.fleet
        view = self._view()
        wanted = self._stabilized(min(max(spec.policy.replicas(view), spec.min_replicas), spec.max_replicas))
        for _ in range(wanted - view.replicas):
            fleet.order(spec.startup)
        for _ in range(min(view.replicas - wanted, fleet.count("starting", "up"))):
            fleet.shrink()

    def _stabilized(self, wanted: int) -> int:
        """The largest number wanted within the stabilization window."""
        now, past = self.kernel.now, self._wanted
        while past and past[-1][1] <= wanted:
            past.pop()
        past.append((now, wanted))
        while past[0][0] < now - self.spec.stabilization:
            past.popleft()
        return past[0][1]

    def _view(self) -> PoolView:
        fleet, now = self.fleet, self.kernel.now
        live = [fleet.clients[index] for index in fleet.up]
        busy, before, looked = fsum(c.busy_by_now for c in fleet.everybody()), self._busy, self._looked
        attainment = self.good / self.ended if self.ended else None
        self._busy, self._looked, self.ended, self.good = busy, now, 0, 0
        return PoolView(
            replicas=fleet.count("starting", "up", "failed"),
            up=len(live),
            waiting=sum(client.waiting + client.expected for client in live) + len(fleet.held) + fleet.fetching(),
            running=sum(len(client.running) for client in live),
            memory=sum(c.used_by_now for c in live) / sum(c.kv.total for c in live) if live else 0.0,
            busy=min((busy - before) / ((now - looked) * len(live)), 1.0) if live else 0.0,
            attainment=attainment,
        )
