"""Runs that end by count: the clients of a closed loop, and a benchmark that stops after its last request."""

from collections.abc import Callable, Iterator, Sequence

from mist.cluster import Cluster
from mist.kernel import Kernel
from mist.outcome import Observed
from mist.request import Request
from mist.workload.traffic import Loop

LOOKS = 20  # at the run, per window
INSTANT = 1e-9  # s, the shortest window: a run that refuses everybody takes no time


class CountedRun:
    """Sends ``warm`` requests and then the window's ``cycle``, and ends when all of those have ended.

    Open (``loop`` is None): each request at its own time. Closed: one for every client at time 0, and a client's
    next one ``think`` seconds after its last one was answered, refused or lost.

    ``drain`` is what a benchmark client does: nothing follows the window's last request, and the window lasts until
    the last answer. Otherwise the clients go on, so that the load stays up, and the window ends when the request
    after it is sent. ``stop`` looks at the window's requests now and then and may end the run.
    """

    def __init__(  # noqa: PLR0917
        self,
        kernel: Kernel,
        cluster: Cluster,
        source: Iterator[Request],
        loop: Loop | None,
        warm: int,
        cycle: int,
        drain: bool,
        stop: Callable[[Sequence[Request], float], bool],
    ) -> None:
        self.kernel, self.cluster, self.source, self.loop = kernel, cluster, source, loop
        self.warm, self.cycle, self.drain, self.stop = warm, cycle, drain, stop
        self.requests: list[Request] = []
        self.start, self.end = 0.0, -1.0  # s
        self._backlog = 0  # as the window began
        self._drawn = [0.0, 0.0]  # J, as it began and ended
        self._ended = 0  # of the window
        self._over = False
        cluster.ended = self._end

    def run(self) -> Observed:
        """Serve until the window's last request has ended."""
        if self.loop is None:
            self._expect()
        else:
            for _ in range(min(self.loop.clients, self.warm + self.cycle)):
                self.kernel.at(0.0, self._send)
        self.kernel.run()
        if self.end < 0:
            self._close()
        end = max(self.end, self.start + INSTANT)
        self.kernel.now = max(self.kernel.now, end)
        remaining = 0 if self.drain else self._backlog
        drawn = self._drawn[1] - self._drawn[0]
        return Observed(self.start, end, self.warm, self.cycle, self._backlog, remaining, drawn)

    def _expect(self) -> None:
        """The next request of an open benchmark, at its time."""
        following = next(self.source)
        self.kernel.at(following.arrived, self._arrive, following)

    def _send(self) -> None:
        """A client's next request, now."""
        if self._over or (self.drain and len(self.requests) == self.warm + self.cycle):
            return
        request = next(self.source)
        request.arrived = request.queued = self.kernel.now
        self._arrive(request)

    def _arrive(self, request: Request) -> None:
        sent = len(self.requests)
        if sent == self.warm:
            self.start, self._backlog, self._drawn[0] = self.kernel.now, self.cluster.in_flight, self.cluster.joules
        if sent == self.warm + self.cycle:
            self._close()
        self.requests.append(request)
        if self.loop is None and sent + 1 < self.warm + self.cycle:
            self._expect()
        self.cluster.arrive(request)

    def _end(self, request: Request) -> None:
        if self.warm <= request.id + self.warm < self.warm + self.cycle:
            self._ended += 1
            look = self._ended % max(self.cycle // LOOKS, 1) == 0
            if self._ended == self.cycle or (look and self.stop(self._cohort(), self.kernel.now)):
                self._finish()
        if self.loop is not None and not self._over:
            self.kernel.after(self.loop.think, self._send)

    def _cohort(self) -> list[Request]:
        return self.requests[self.warm : self.warm + self.cycle]

    def _finish(self) -> None:
        self._over = True
        if self.end < 0:
            self._close()
        self.kernel.at(self.kernel.now, self.kernel.clear)  # before whatever would be decided at this instant

    def _close(self) -> None:
        self.end, self._drawn[1] = self.kernel.now, self.cluster.joules
