"""Distributions of seconds, for service that no model of hardware stands behind: tools, people, other people's APIs."""

from dataclasses import dataclass
from math import log, sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mist.errors import InputError
from mist.units import Seconds


class Times(Protocol):
    """How long something takes."""

    def draw(self, n: int, chance: np.random.Generator) -> NDArray[np.float64]:
        """``n`` independent durations, seconds."""


@dataclass(frozen=True)
class Constant:
    """Always ``seconds``."""

    seconds: Seconds

    def __post_init__(self) -> None:
        if self.seconds < 0:
            raise InputError("seconds", self.seconds, "must not be negative")

    def draw(self, n: int, chance: np.random.Generator) -> NDArray[np.float64]:  # noqa: ARG002
        return np.full(n, self.seconds)


@dataclass(frozen=True)
class Exponential:
    """Exponential with this ``mean``."""

    mean: Seconds

    def __post_init__(self) -> None:
        if not self.mean > 0:
            raise InputError("mean", self.mean, "must be positive")

    def draw(self, n: int, chance: np.random.Generator) -> NDArray[np.float64]:
        return chance.exponential(self.mean, n)


@dataclass(frozen=True)
class Lognormal:
    """Lognormal with this ``mean`` and coefficient of variation.

    With s^2 = ln(1 + cv^2), ln(seconds) is normal with mean ln(mean) - s^2/2 and variance s^2.
    """

    mean: Seconds
    cv: float

    def __post_init__(self) -> None:
        for field in ("mean", "cv"):
            if not getattr(self, field) > 0:
                raise InputError(field, getattr(self, field), "must be positive")

    def draw(self, n: int, chance: np.random.Generator) -> NDArray[np.float64]:
        variance = log(1 + self.cv**2)
        return chance.lognormal(log(self.mean) - variance / 2, sqrt(variance), n)
