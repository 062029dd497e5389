"""Arrival processes: independent gaps of mean one."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mist.errors import InputError


class Arrivals(Protocol):
    """When requests come, at unit rate."""

    def gaps(self, n: int, chance: np.random.Generator) -> NDArray[np.float64]:
        """``n`` gaps between successive requests, of expectation 1."""


@dataclass(frozen=True)
class Poisson:
    """Exponential gaps: users who know nothing of each other."""

    def gaps(self, n: int, chance: np.random.Generator) -> NDArray[np.float64]:
        return chance.exponential(size=n)


@dataclass(frozen=True)
class Gamma:
    """Gamma gaps with coefficient of variation ``cv``: above 1 burstier than Poisson, below 1 more regular."""

    cv: float

    def __post_init__(self) -> None:
        if not self.cv > 0:
            raise InputError("cv", self.cv, "must be positive (evenly spaced arrivals are Deterministic)")

    def gaps(self, n: int, chance: np.random.Generator) -> NDArray[np.float64]:
        return chance.gamma(self.cv**-2, self.cv**2, size=n)


@dataclass(frozen=True)
class Deterministic:
    """Evenly spaced."""

    def gaps(self, n: int, chance: np.random.Generator) -> NDArray[np.float64]:  # noqa: ARG002
        return np.ones(n)
