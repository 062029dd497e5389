"""Runs that end by the clock: arrivals at their own times, warm-up, a window, patience for its last answers."""

from collections.abc import Callable, Iterator, Sequence

from mist.cluster import Cluster
from mist.kernel import Kernel
from mist.metrics import unstable
from mist.outcome import Observed
from mist.request import Request

LOOKS = 20  # at the run, per window
RISING = 1.5  # tokens that left in the later half of the warm-up over those of the earlier: filling, not saturated
EVEN = 8  # cycles of warm-up from which on that is asked


class TimedRun:
    """``warm`` requests up to ``start``, then a window of ``length`` seconds in which ``cycle`` requests arrive.

    Arrivals go on until the window's last request has ended.
    """

    def __init__(  # noqa: PLR0917
        self,
        kernel: Kernel,
        cluster: Cluster,
        source: Iterator[Request],
        warm: int,
        cycle: int,
        start: float,
        length: float,
    ) -> None:
        self.kernel, self.cluster, self.source = kernel, cluster, source
        self.warm, self.cycle = warm, cycle
        self.start, self.length = start, length  # s
        self.requests: list[Request] = []

    def warm_up(self) -> None:
        """Serve what arrives before the window."""
        first = next(self.source)
        self.kernel.at(first.arrived, self._arrive, first)
        self._until(self.start)

    @property
    def filling(self) -> bool:
        """Whether the requests inside are asked for more tokens than those that have left were, and not for overload.

        The cluster was empty when the run began. Of a stationary load, as many tokens have left as are inside when the
        run is as old as two mean stays, a token's stay being its request's. In overload that may never come; but then
        what no engine has begun to serve grows beyond chance or, where it is links that are overloaded, tokens leave
        at an even pace.
        """
        ended = [request for request in self.requests if _ended(request)]
        left = _tokens(ended)
        if left >= _tokens(self.requests) - left:
            return False
        if self.warm >= EVEN * self.cycle:
            early = _tokens([request for request in ended if request.finished <= self.start / 2])
            if left < (1 + RISING) * early:
                return False
        unserved = sum(type(request) is Request and not _begun(request) for request in self.requests)
        return not unstable(len(self.requests), 0, max(unserved, self.cluster.line))

    def measure(self, patience: float, stop: Callable[[Sequence[Request], float], bool]) -> Observed:
        """Serve the window and the last of its requests; ``stop`` may end it at any look.

        After ``patience`` windows, or as many times the longest stay so far twice over if that is longer, whoever has
        not ended counts as never.
        """
        backlogs, before, drawn = [self.cluster.in_flight], self.cluster.joules, 0.0
        look, over = 0, False
        while not over:
            look += 1 if look < LOOKS * (1 + patience) else max(1, (look - LOOKS) // LOOKS)  # far out a twentieth more
            now = self.start + self.length * look / LOOKS
            self._until(now)
            if look <= LOOKS:
                backlogs.append(self.cluster.in_flight)
            cohort = self.requests[self.warm : self.warm + self.cycle]
            over = look == LOOKS and unstable(self.cycle, backlogs[0], backlogs[-1])
            over = over or stop(cohort, now)
            if look == LOOKS or (over and look < LOOKS):
                drawn = self.cluster.joules - before
            over = over or (look >= LOOKS and (all(map(_ended, cohort)) or self._given_up(look - LOOKS, patience)))
        self.kernel.clear()
        end = self.start + self.length * (len(backlogs) - 1) / LOOKS
        return Observed(self.start, end, self.warm, self.cycle, backlogs[0], backlogs[-1], drawn)

    def _given_up(self, looks: int, patience: float) -> bool:
        """``looks`` after the window."""
        if looks < LOOKS * patience:
            return False
        longest = max((r.finished - r.arrived for r in self.requests if r.finished >= 0), default=0.0)
        return looks * self.length / LOOKS >= 2 * patience * longest

    def _until(self, now: float) -> None:
        self.kernel.run(until=now)
        self.kernel.now = max(self.kernel.now, now)  # energy is drawn between events too

    def _arrive(self, request: Request) -> None:
        self.requests.append(request)
        self.cluster.arrive(request)
        following = next(self.source)
        self.kernel.at(following.arrived, self._arrive, following)


def _tokens(requests: Sequence[Request]) -> int:
    return sum(max(request.output, 1) for request in requests)


def _ended(request: Request) -> bool:
    return request.finished >= 0 or bool(request.refused or request.lost)


def _begun(request: Request) -> bool:
    return _ended(request) or request.started >= 0 or request.first_token >= 0 or bool(request.visits)
