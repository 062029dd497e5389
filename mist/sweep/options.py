"""How long a sweep looks, who proposes, what is confirmed, and where Ray runs."""

from dataclasses import dataclass
from typing import Literal

from mist.errors import InputError
from mist.units import Bytes


@dataclass(frozen=True)
class Budget:
    """``designs``: how many different designs are judged, repeats not counted."""

    designs: int = 64

    def __post_init__(self) -> None:
        if self.designs < 1:
            raise InputError("designs", self.designs, "must be at least 1")


@dataclass(frozen=True)
class Search:
    """Who proposes designs. ``restarts`` cuts the budget into that many independent searches.

    bound: all designs in falling order of what they can reach at most, until no other can be among the leaders;
    tpe: multivariate tree-structured Parzen estimator; nsga2: genetic; qmc: a low-discrepancy sequence; random;
    grid: every design; auto: bound where designs can be listed, tpe where there are too many. A space no larger than
    the budget is always searched as a grid by those that draw.
    """

    sampler: Literal["auto", "bound", "tpe", "nsga2", "qmc", "random", "grid"] = "auto"
    seed: int = 0
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise InputError("restarts", self.restarts, "must be at least 1")
        if self.seed < 0:
            raise InputError("seed", self.seed, "must not be negative")


@dataclass(frozen=True)
class Confirm:
    """The ``leaders`` best designs are judged again at full fidelity, each over ``seeds`` fresh seeds.

    0 leaders is no confirmation. Where a leader turns out infeasible, the next best takes its place.
    """

    leaders: int = 5
    seeds: int = 3

    def __post_init__(self) -> None:
        if self.leaders < 0:
            raise InputError("leaders", self.leaders, "must not be negative")
        if self.seeds < 2:
            raise InputError("seeds", self.seeds, "a spread needs at least 2")


@dataclass(frozen=True)
class RayOptions:
    """Where Ray runs. ``address`` null is a private Ray on this machine, otherwise a running cluster's address."""

    address: str | None = None
    cpus: int | None = None  # of a private Ray; null is all of this machine's
    in_flight: int = 2  # trials per CPU, so that no CPU waits for the driver
    object_store: Bytes = 200e6  # of a private Ray: traffic arrays, at most a few MB per seed
    retries: int = 2  # of a trial whose worker died

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise InputError("cpus", self.cpus, "must be at least 1")
        if self.in_flight < 1:
            raise InputError("in_flight", self.in_flight, "must be at least 1")
        if self.object_store < 80e6:  # Ray refuses less than 75 MiB
            raise InputError("object_store", self.object_store, "Ray needs at least 80 MB")
        if self.retries < 0:
            raise InputError("retries", self.retries, "must not be negative")
