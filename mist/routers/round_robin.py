"""Round robin: every replica in turn."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RoundRobin:
    """Request k of a pool goes to replica k modulo the number of replicas, whatever its load."""

    def choose(self, turn: int, outstanding: Sequence[int]) -> int:
        return turn % len(outstanding)
