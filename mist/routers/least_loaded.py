"""Least loaded: the replica with the fewest unfinished requests."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LeastLoaded:
    """Join the shortest queue, counting waiting and running requests; ties go to the lowest index."""

    def choose(self, turn: int, outstanding: Sequence[int]) -> int:  # noqa: ARG002
        return outstanding.index(min(outstanding))
