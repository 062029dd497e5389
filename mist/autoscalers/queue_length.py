"""Queue length: a replica for every so many requests that wait or run."""

from dataclasses import dataclass
from math import ceil

from mist.errors import InputError
from mist.policy import PoolView


@dataclass(frozen=True)
class QueueLength:
    """``ceil(waiting / target)`` replicas beside those that the running requests need at ``concurrency`` each
    (KEDA and GKE scale on the server's queue; concurrency is Knative's target per replica).
    """

    target: float  # waiting requests per replica
    concurrency: float  # running requests per replica

    def __post_init__(self) -> None:
        for field in ("target", "concurrency"):
            if not getattr(self, field) > 0:
                raise InputError(field, getattr(self, field), "must be positive")

    def replicas(self, view: PoolView) -> int:
        return ceil(view.running / self.concurrency) + ceil(view.waiting / self.target)
