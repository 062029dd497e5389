"""How the number of replicas of a pool, or of servers of a station, comes about."""

from dataclasses import dataclass
from typing import Protocol

from mist.errors import InputError
from mist.policy import Autoscaler
from mist.units import Seconds


class Scaling(Protocol):
    """How the number of a pool's replicas comes about."""

    def check(self, replicas: int) -> None:
        """InputError unless a pool may begin with this many."""


@dataclass(frozen=True)
class Fixed:
    """As many replicas as the pool is given, always."""

    def check(self, replicas: int) -> None:
        """Any number will do."""


FIXED = Fixed()


@dataclass(frozen=True)
class Autoscale:
    """A policy looks at the pool every ``interval`` and says how many replicas it wants.

    A replica costs from its order on, is up ``startup`` later, takes no new requests once it is to go, and is
    paid until its last request has left. The pool shrinks no further than to the largest number wanted
    within ``stabilization`` (Kubernetes, "Horizontal Pod Autoscaling", stabilization window).
    """

    policy: Autoscaler
    startup: Seconds
    interval: Seconds
    stabilization: Seconds
    min_replicas: int = 1
    max_replicas: int = 8

    def __post_init__(self) -> None:
        if self.min_replicas < 0:
            raise InputError("min_replicas", self.min_replicas, "must not be negative")
        if self.max_replicas < max(self.min_replicas, 1):
            raise InputError("max_replicas", self.max_replicas, f"must be at least {max(self.min_replicas, 1)}")
        if not self.interval > 0:
            raise InputError("interval", self.interval, "must be positive")
        for field in ("startup", "stabilization"):
            if getattr(self, field) < 0:
                raise InputError(field, getattr(self, field), "must not be negative")

    def check(self, replicas: int) -> None:
        if not self.min_replicas <= replicas <= self.max_replicas:
            bounds = f"min_replicas = {self.min_replicas} and max_replicas = {self.max_replicas}"
            raise InputError("replicas", replicas, f"a pool begins within its autoscaler's {bounds}")
