"""Least loaded: the replica with the fewest unfinished requests."""

from dataclasses import dataclass

from mist.policy import RouteView


@dataclass(frozen=True)
class LeastLoaded:
    """Join the shortest queue, counting waiting and running requests; ties go to the lowest index."""

    def choose(self, view: RouteView) -> int:
        outstanding = view.outstanding
        return outstanding.index(min(outstanding))
