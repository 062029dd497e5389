"""Target utilization: as many replicas as keep a measured share at its target."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

from mist.errors import InputError
from mist.policy import PoolView

NOISE = 1e-9  # replicas: what is left of sums of seconds, and never meant


@dataclass(frozen=True)
class TargetUtilization:
    """``ceil(replicas up x share / target)``, unless that share is within ``tolerance`` of its target
    (Kubernetes, "Horizontal Pod Autoscaling", algorithm details).

    ``share`` is of KV memory in use, or of time spent stepping; the latter saturates with one request, which
    is why operators scale engines on the former. Requests that wait at a pool without a replica want one.
    A share is a quotient of sums: one of three replicas, busy throughout, is two at half use, whatever was rounded.
    """

    share: Literal["memory", "busy"]
    target: float
    tolerance: float

    def __post_init__(self) -> None:
        if not 0 < self.target <= 1:
            raise InputError("target", self.target, "must lie in (0, 1]")
        if not 0 <= self.tolerance < 1:
            raise InputError("tolerance", self.tolerance, "must lie in [0, 1)")

    def replicas(self, view: PoolView) -> int:
        if not view.up:
            return max(view.replicas, int(view.waiting > 0))
        ratio = (view.memory if self.share == "memory" else view.busy) / self.target
        return view.replicas if abs(ratio - 1) <= self.tolerance + NOISE else ceil(view.up * ratio - NOISE)
