"""Round robin: every replica in turn."""

from dataclasses import dataclass

from mist.policy import RouteView


@dataclass(frozen=True)
class RoundRobin:
    """Request k of a pool goes to replica k modulo the number of replicas, whatever its load."""

    def choose(self, view: RouteView) -> int:
        return view.turn % len(view.outstanding)
