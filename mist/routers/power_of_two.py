"""Power of two choices: the less loaded of two random replicas."""

from dataclasses import dataclass

from mist.policy import RouteView


@dataclass(frozen=True)
class PowerOfTwo:
    """Two different replicas at random, the one with fewer unfinished requests, the first drawn if they are equal.

    (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001.) Looks at two
    queues only, and yet its tail falls off doubly exponentially where that of a random choice is exponential.
    """

    def choose(self, view: RouteView) -> int:
        outstanding = view.outstanding
        n = len(outstanding)
        if n == 1:
            return 0
        first, second = int(view.chance() * n), int(view.chance() * (n - 1))
        second += second >= first
        return second if outstanding[second] < outstanding[first] else first
