"""Heavy and light: long prompts apart from short ones."""

from dataclasses import dataclass

from mist.errors import InputError
from mist.policy import RouteView


@dataclass(frozen=True)
class HeavyLight:
    """Requests of more than ``threshold`` tokens go to the first ``share`` of the replicas, all others to the rest.

    Size-interval task assignment (Harchol-Balter, Crovella and Murta, "On Choosing a Task Assignment Policy for a
    Distributed Server System", JPDC 59(2), 1999, SITA-E): the short never wait behind the long. At least one replica
    for either kind, if there are two; of its own, each request takes the one with the fewest unfinished.
    """

    threshold: int
    share: float

    def __post_init__(self) -> None:
        if self.threshold < 1:
            raise InputError("threshold", self.threshold, "must be at least 1 token")
        if not 0 < self.share < 1:
            raise InputError("share", self.share, "must be between 0 and 1, or one kind has no replica")

    def choose(self, view: RouteView) -> int:
        outstanding = view.outstanding
        n = len(outstanding)
        if n == 1:
            return 0
        heavy = min(max(round(self.share * n), 1), n - 1)
        own = range(heavy) if view.request.known > self.threshold else range(heavy, n)
        return min(own, key=outstanding.__getitem__)
