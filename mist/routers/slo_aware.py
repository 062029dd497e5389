"""SLO aware: the replica with the least predicted time to the first token."""

from dataclasses import dataclass

from mist.policy import RouteView


@dataclass(frozen=True)
class SloAware:
    """Where the first token is predicted soonest; then fewest requests, then lowest index.

    (Mooncake, arXiv:2407.00079, algorithm 1: the instance with the least queueing plus prefill time, its cached
    prefix taken off.) Every first token is due as its class was promised, so the soonest is the best for any limit.
    """

    def choose(self, view: RouteView) -> int:
        outlook = list(zip(view.ttft(), view.outstanding, strict=True))
        return outlook.index(min(outlook))
