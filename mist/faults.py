"""Replica failures as a workload: when they happen, and what becomes of the requests."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from mist.errors import InputError
from mist.streams import stream
from mist.units import Seconds

Fate = Literal["migrate", "restart", "lose"]


class Faults(Protocol):
    """Failures of a deployment's replicas."""

    @property
    def requests(self) -> Fate: ...
    @property
    def retries(self) -> int: ...
    def outages(self, pool: str, replica: int, seed: int) -> Iterator[tuple[float, float]]:
        """(seconds up before it, seconds out of order) of each failure of one replica, one after the other."""


@dataclass(frozen=True)
class NoFaults:
    """Nothing ever fails."""

    @property
    def requests(self) -> Fate:
        return "lose"

    @property
    def retries(self) -> int:
        return 0

    def outages(self, pool: str, replica: int, seed: int) -> Iterator[tuple[float, float]]:  # noqa: ARG002
        return iter(())


NO_FAULTS = NoFaults()


@dataclass(frozen=True)
class DrawnFaults:
    """Every replica fails after exponential times of mean ``mtbf``, and is out of order for such of mean ``mttr``.

    A failed replica loses its KV cache. Its requests are sent again, at most ``retries`` times each, and
    recomputed elsewhere, with the tokens they have (``migrate``) or from the prompt alone (``restart``); or they
    are lost.
    """

    mtbf: Seconds
    mttr: Seconds
    requests: Fate
    retries: int

    def __post_init__(self) -> None:
        for field in ("mtbf", "mttr"):
            if not getattr(self, field) > 0:
                raise InputError(field, getattr(self, field), "must be positive")
        check_retries(self.requests, self.retries)

    def outages(self, pool: str, replica: int, seed: int) -> Iterator[tuple[float, float]]:
        draw = stream(seed, f"faults/{pool}/{replica}")
        while True:
            yield float(draw.exponential(self.mtbf)), float(draw.exponential(self.mttr))


@dataclass(frozen=True)
class Outage:
    """One replica of one pool is out of order from ``at`` on, for ``lasting`` seconds."""

    at: Seconds
    lasting: Seconds
    replica: int = 0
    pool: str = "llm"

    def __post_init__(self) -> None:
        for field in ("at", "lasting"):
            if not getattr(self, field) > 0:
                raise InputError(field, getattr(self, field), "must be positive")


@dataclass(frozen=True)
class GivenFaults:
    """Outages at given times, by a name of their own each; requests fare as in DrawnFaults."""

    outage: Mapping[str, Outage]
    requests: Fate
    retries: int

    def __post_init__(self) -> None:
        check_retries(self.requests, self.retries)
        places = {(outage.pool, outage.replica) for outage in self.outage.values()}
        for place in places:
            end = 0.0
            for name, outage in self._of(*place):
                if outage.at <= end:
                    raise InputError(f"outage.{name}.at", outage.at, f"the replica is out of order until {end:g} s")
                end = outage.at + outage.lasting

    def _of(self, pool: str, replica: int) -> list[tuple[str, Outage]]:
        here = [(name, o) for name, o in self.outage.items() if (o.pool, o.replica) == (pool, replica)]
        return sorted(here, key=lambda item: item[1].at)

    def outages(self, pool: str, replica: int, seed: int) -> Iterator[tuple[float, float]]:  # noqa: ARG002
        end = 0.0
        for _, outage in self._of(pool, replica):
            yield outage.at - end, outage.lasting
            end = outage.at + outage.lasting


def check_retries(fate: Fate, retries: int) -> None:
    """InputError unless the number of retries goes with the fate."""
    if fate == "lose" and retries:
        raise InputError("retries", retries, "has no effect: requests are lost at once; give 0")
    if fate != "lose" and retries < 1:
        raise InputError("retries", retries, "must be at least 1, or requests be lost")


def check_faults(faults: Faults, fixed: Mapping[str, int], pools: Mapping[str, int]) -> None:
    """InputError unless every given outage has its replica; ``fixed`` pools keep the replicas they begin with."""
    if not isinstance(faults, GivenFaults):
        return
    for name, outage in faults.outage.items():
        if outage.pool not in pools:
            raise InputError(f"outage.{name}.pool", outage.pool, "no such pool", sorted(pools))
        if outage.pool not in fixed:
            raise InputError(f"outage.{name}.pool", outage.pool, "its replicas come and go: draw faults instead")
        if not 0 <= outage.replica < fixed[outage.pool]:
            why = f"{outage.pool} has replicas 0 to {fixed[outage.pool] - 1}"
            raise InputError(f"outage.{name}.replica", outage.replica, why)


def missed_outages(faults: Faults, start: float, end: float) -> list[str]:
    """What to say of given outages that lie outside the window from ``start`` to ``end``."""
    given = faults.outage.items() if isinstance(faults, GivenFaults) else ()
    over = [name for name, outage in given if outage.at + outage.lasting <= start]
    late = [name for name, outage in given if outage.at >= end]
    told = [f"outage {name} is over before the window begins" for name in over]
    return told + [f"outage {name} begins after the window" for name in late]
