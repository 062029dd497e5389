"""SLO attainment: one replica more while too many requests miss their limits, one less while there is slack."""

from dataclasses import dataclass

from mist.errors import InputError
from mist.policy import PoolView


@dataclass(frozen=True)
class SloAttainment:
    """Adds ``step`` replicas when fewer than ``target`` of the requests that ended in the interval were within
    their SLO, or when requests wait and none ended; gives one up when at least ``target`` were, nobody waits and
    KV memory in use, on one replica fewer, would stay below ``slack``.
    """

    target: float
    slack: float
    step: int = 1

    def __post_init__(self) -> None:
        for field in ("target", "slack"):
            if not 0 < getattr(self, field) <= 1:
                raise InputError(field, getattr(self, field), "must lie in (0, 1]")
        if self.step < 1:
            raise InputError("step", self.step, "must be at least 1")

    def replicas(self, view: PoolView) -> int:
        missed = view.waiting > 0 if view.attainment is None else view.attainment < self.target
        if missed:
            return max(view.replicas, view.up + self.step)  # those that are starting already count
        fewer = view.up - 1
        idle = not view.waiting and view.memory * view.up < self.slack * max(fewer, 0)
        return view.replicas - 1 if idle else view.replicas
